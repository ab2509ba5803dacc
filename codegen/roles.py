"""Which part each axis of a region plays (batch, row, col, free), canonical axis names, and how a product splits into
the two operands of a dot.
"""
from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import reduce

from fuse.ir.expr import Axis, Expr, topological
from fuse.ir.program import Carry, Kind, Region
from fuse.reasons import Miss, Refused


def refuse(detail: str, where: str | None = None) -> Refused:
    return Refused(Miss("TARGET_LACKS", where, detail))


def number_axes(region: Region) -> dict[str, Axis]:
    """Axes by name, in order of first visit: bodies arguments first, then what the carries and the region add."""
    found: dict[str, Axis] = {}

    def visit(axes: Iterable[Axis]) -> None:
        for axis in axes:
            found.setdefault(axis.name, axis)
    for node in topological(region.bodies):
        visit((node["axis"],) if node.op == "iota" else node.axes)
    for axes in (*(c.axes for c in region.carries), *(e.axes for e in region.emits)):
        visit(axes)
    visit(a for c in region.carries for a in c.boundary)
    visit((*region.streams, *region.grid))
    for node in topological(region.bodies):      # left over: axes that the argument of a sum lacks
        if node.op == "sum":
            visit(sorted(node["axes"], key=lambda a: str(a.extent)))
    return found


@dataclass(frozen=True)
class Roles:
    """`name` maps an axis name to its canonical name; `dim` to its dim (a batch axis has none)."""

    axes: tuple[Axis, ...]
    name: dict[str, str]
    dim: dict[str, str]
    batch: tuple[str, ...]
    row: tuple[str, ...]
    col: tuple[str, ...]

    def dims(self, axes: Iterable[Axis]) -> tuple[str, ...]:
        """The tile dims of a value that varies along `axes`, in canonical order."""
        return tuple(sorted({self.dim[a.name] for a in axes if a.name in self.dim}, key=dim_order))


def dim_order(dim: str) -> tuple[int, int]:
    return {"row": (0, 0), "col": (1, 0)}.get(dim) or (2, int(dim[1:]))


def roles(region: Region) -> Roles:
    """Batch axes are the grid axes that both operands of a dot share, unless the dot is between row values alone."""
    grid = {a.name for a in region.grid}
    shared: set[str] = set()
    for a, b, contracted in products(region):
        left, right = ({x.name for x in e.axes} - contracted for e in (a, b))
        if (left | right) - grid:
            shared |= left & right & grid
    return assigned(region, shared)


def assigned(region: Region, shared: Collection[str], last: str = "") -> Roles:
    """The roles when `shared` names the grid axes that are batch axes; `last`: the axis with the highest number."""
    axes = number_axes(region)
    axes = {**{n: a for n, a in axes.items() if n != last}, **{n: a for n, a in axes.items() if n == last}}
    name = {old: f"i{k}" for k, old in enumerate(axes)}
    batch = tuple(a.name for a in region.grid if a.name in shared)
    row = tuple(a.name for a in region.grid if a.name not in shared)
    col = tuple(a.name for a in region.streams)
    grid = {a.name for a in region.grid}
    if set(col) & grid:
        raise refuse(f"axis {sorted(set(col) & grid)[0]} is both stream and grid")
    dim = {n: "row" if n in row else "col" if n in col else name[n] for n in axes if n not in batch}
    canonical = tuple(Axis(name[n], a.extent) for n, a in axes.items())
    return Roles(canonical, name, dim, *(tuple(name[n] for n in group) for group in (batch, row, col)))


def products(region: Region) -> Iterable[tuple[Expr, Expr, set[str]]]:
    """The two sides of every top-level product under a sum, inner or carried, and the names it contracts."""
    for node in topological(region.bodies):
        if node.op == "sum" and node.args[0].op == "mul":
            yield (*halves(node.args[0]), {a.name for a in node["axes"]})
    for carry in region.carries:
        if carry.kind is not Kind.SUM:
            continue
        over = {a.name for a in carry.over}
        if carry.relative_to is not None:
            yield region.carry(carry.relative_to).body, carry.body, over
        if carry.body.op == "mul":
            yield (*halves(carry.body), over)


def halves(product: Expr) -> tuple[Expr, Expr]:
    return product.args[0], product.args[1]


def factors(e: Expr) -> list[Expr]:
    """The factors of a product, left to right."""
    return factors(e.args[0]) + factors(e.args[1]) if e.op == "mul" else [e]


def multiply(parts: list[Expr]) -> Expr:
    return reduce(lambda a, b: a * b, parts)


@dataclass(frozen=True)
class Split:
    """product = left * right * outer: left and right share only contracted dims, outer has none of them."""

    left: Expr
    right: Expr
    outer: list[Expr]


def split_product(e: Expr, contracted: frozenset[str], r: Roles) -> Split | None:
    """Splits sum_K(a b c ...) into sum_K(left right) outer; None when the factors do not fall into two groups.

    Does not apply when one factor ties all free dims together: sum_d f(a[i, d], b[j, d]) is no dot.
    """
    if e.op != "mul":
        return None
    outer = [f for f in factors(e) if not contracted & set(r.dims(f.axes))]
    inner = [f for f in factors(e) if contracted & set(r.dims(f.axes))]
    groups = group_by_dims(inner, contracted, r)
    if groups is None:
        return None
    if not outer and e.args[0] in (multiply(g) for g in groups):     # keep the user's own two operands
        left, right = halves(e)
        return Split(left, right, [])
    return Split(multiply(groups[0]), multiply(groups[1]), outer)


def group_by_dims(parts: list[Expr], contracted: frozenset[str], r: Roles) -> tuple[list[Expr], list[Expr]] | None:
    """Two groups of factors with disjoint free dims, each having every contracted dim; None if there are not two."""
    groups: list[tuple[set[str], list[Expr]]] = []
    for part in parts:
        free = set(r.dims(part.axes)) - contracted
        hit = [g for g in groups if g[0] & free or (not free and not g[0])]
        merged = (free.union(*(g[0] for g in hit)), [p for g in hit for p in g[1]] + [part])
        groups = [g for g in groups if g not in hit] + [merged]
    if len(groups) == 3:       # factors of contracted dims alone (a weight, a mask) ride with the first group
        alone = [g for g in groups if not g[0]]
        rest = [g for g in groups if g[0]]
        groups = [(rest[0][0], rest[0][1] + alone[0][1]), rest[1]] if alone else groups
    if len(groups) != 2:
        return None
    groups.sort(key=lambda g: min((dim_order(d) for d in g[0]), default=(3, 0)))
    for _, members in groups:
        if not contracted <= {d for m in members for d in r.dims(m.axes)}:
            return None
    return groups[0][1], groups[1][1]


def check_carry(carry: Carry, region: Region, r: Roles) -> None:
    """Every grid and stream axis is kept or reduced, rows and columns as a whole. Raises Refused."""
    kept, over = ({a.name for a in group} for group in (carry.axes, carry.over))
    walked = {a.name for a in (*region.grid, *region.streams)}
    if kept & over or not walked <= kept | over or not over <= walked:
        raise refuse(f"{carry.name} must keep or reduce each grid and stream axis")
    rows = {a.name for a in region.grid if a.name in r.dim}
    cols = {a.name for a in region.streams}
    for group, label in ((rows, "grid"), (cols, "stream")):
        if group & over and not group <= over:
            raise refuse(f"{carry.name} reduces some of the {label} axes only")
    if not over:
        raise refuse(f"{carry.name} reduces nothing")
    if not cols <= over and not over & {a.name for a in region.grid}:
        raise refuse(f"{carry.name} keeps the stream axis and reduces no grid axis")
