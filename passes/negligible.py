"""negligible: which entries of a gradient may be left out, beside the cotangent of their row (the gradient filter).

    sum_v d[n, v] w[v, k]  ->  the same sum with eps and scale = |d|[n]: see fuse.ir.program.Carry

d is the gradient of the virtual value: the factors of a product that lack its width. Rows are the walked axes that no
forward sweep streams. |d| is the largest row factor among the additive terms of d, each function of the stream counting as 1:

    |a + b|  ->  max(|a|, |b|)        |where(c, a, b)|  ->  max(|a|, |b|); where(c, |a|, |b|) if c is a row's
    |a b|    ->  |a| |b|              |r|               ->  abs(r) if r is a row's or a scalar
    |a / r|  ->  |a| / |r|            |f|               ->  1 for anything else

For a softmax it is the row's cotangent: g p - where(label, g, 0) has max(|g|, |g|). A factor common to all rows (1 / N, the
upstream gradient, a loss scale) is in d and in |d| alike, so it drops nothing and saves nothing.

Does not apply to forward sums, to gradients that another sweep needs, where forward sweeps stream every walked axis (two
softmaxes across), and where a cotangent is below such an f: then |d| would not grow with it.
"""
from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from fuse.ir.expr import FLOATS, Axis, Expr, const, make, topological, where
from fuse.ir.program import Kind, Program
from fuse.passes.merge import Group, Member
from fuse.passes.products import Product, is_const, product_of, times

Home = Mapping[Expr, tuple[Group, Member]]
AUTO = {"bfloat16": 2.0 ** -12, "float16": 2.0 ** -15, "float32": 2.0 ** -28, "float64": 2.0 ** -57}
"""1 / 32 of the spacing of each type at 1: far below what rounding the operand to that type leaves out."""
BITS = {"bfloat16": 16, "float16": 16, "float32": 32, "float64": 64}


@dataclass(frozen=True)
class Negligible:
    """What to attach to the carry of a leaf; `rows` are the axes of the scale."""

    eps: float
    rows: frozenset[Axis]


def negligible(program: Program, groups: list[Group], home: Home, eps: float | str | None) -> dict[Expr, Negligible]:
    """By leaf. `eps`: a number, "auto" (by the type of the operands), or None for exact gradients."""
    if eps is None:
        return {}
    streamed = {a for g in groups if not g.backward for a in g.streams}
    alone = _gradients_only(program, home)
    out: dict[Expr, Negligible] = {}
    for group in groups:
        rows = frozenset({*group.grid, *group.streams} - streamed)
        found = [m.leaf.value for m in group.members if m.leaf.value in alone and _is_product(m, group)]
        if found and rows in (frozenset(group.grid), frozenset(group.streams)):
            chosen = eps if not isinstance(eps, str) else min(AUTO[_finest(home[v][1], group)] for v in found)
            out |= {v: Negligible(chosen, rows) for v in found}
    return out


def _gradients_only(program: Program, home: Home) -> set[Expr]:
    """Leaves that are read by gradients, and by nothing else."""
    def read_by(gradient: bool) -> set[Expr]:
        terms = [t.value for o in program.outputs for t in o.terms if (o.gradient_of is not None) is gradient]
        return {e for e in topological(terms, home) if e in home}
    needed = {n.value for _, m in home.values() for n in m.leaf.needs}
    return read_by(True) - read_by(False) - needed


def _width(member: Member, group: Group) -> set[Axis]:
    return set(member.leaf.value.axes) - {*group.grid, *group.streams}


def _is_product(member: Member, group: Group) -> bool:
    """Is the leaf a sum of (an entry of the tile) * (what carries a width)?"""
    width, factors = _width(member, group), product_of(member.leaf.body).factors
    wide = [f for f in factors if width & set(f.axes)]
    tile = {a for f in factors if f not in wide for a in f.axes}
    return (member.leaf.kind is Kind.SUM and member.separated is None and member.leaf.body.dtype in FLOATS
            and bool(wide) and {*group.grid, *group.streams} <= tile
            and not any(width & set(d.axes) for d in product_of(member.leaf.body).divisors))


def _finest(member: Member, group: Group) -> str:
    """The most precise element type among the factors with the width, looking through exact casts."""
    width = _width(member, group)
    wide = [_narrow(f).dtype for f in product_of(member.leaf.body).factors if width & set(f.axes)]
    return min(wide, key=lambda dtype: AUTO[dtype])


def _narrow(x: Expr) -> Expr:
    while x.op == "cast" and x.dtype in FLOATS and BITS.get(x.args[0].dtype, 64) < BITS[x.dtype]:
        x = x.args[0]
    return x


def scale_of(body: Expr, width: Collection[Axis], rows: Collection[Axis], cotangents: Collection[str]) -> Expr | None:
    """|d| of the module's docstring for the body of a product, d being its factors without a `width` axis."""
    p = product_of(body)
    tile = Product(p.coefficient, tuple(f for f in p.factors if not set(width) & set(f.axes)), p.divisors)
    try:
        return _Magnitude(rows, cotangents).of(tile.build(body.dtype))
    except _Opaque:
        return None


class _Opaque(Exception):
    """A cotangent lies below what counts as 1."""


class _Magnitude:
    def __init__(self, rows: Collection[Axis], cotangents: Collection[str]):
        self.rows, self.cotangents, self.memo = set(rows), set(cotangents), dict[Expr, Expr]()

    def of(self, x: Expr) -> Expr:
        if x not in self.memo:
            self.memo[x] = self._of(x)
        return self.memo[x]

    def _of(self, x: Expr) -> Expr:
        if set(x.axes) <= self.rows:
            return const(abs(x["value"]), x.dtype) if x.op == "const" else make("abs", x)
        match x.op:
            case "add" | "sub":
                return larger(*map(self.of, x.args))
            case "neg":
                return self.of(x.args[0])
            case "mul":
                a, b = map(self.of, x.args)
                return times(product_of(a), b)
            case "div" if set(x.args[1].axes) <= self.rows:
                return self.of(x.args[0]) / self.of(x.args[1])
            case "where":
                a, b = map(self.of, x.args[1:])
                return where(x.args[0], a, b) if set(x.args[0].axes) <= self.rows else larger(a, b)
        if any(e.op == "read" and e["buffer"].name in self.cotangents for e in topological([x])):
            raise _Opaque
        return const(1, x.dtype)


def larger(a: Expr, b: Expr) -> Expr:
    """max(a, b) of two magnitudes."""
    if a is b or is_const(b, 0):
        return a
    if is_const(a, 0):
        return b
    if a.op == b.op == "const":
        return max(a, b, key=lambda x: x["value"])
    return make("maximum", a, b)
