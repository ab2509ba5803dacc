"""How each kind of carry is started, updated by one tile, and finished: the text of `tile.Update`."""
from __future__ import annotations

from dataclasses import dataclass
from math import comb

from fuse.codegen.roles import dim_order, refuse
from fuse.codegen.tile import State, TileProgram, Update, Value
from fuse.codegen.triton.block import Block, fit, within
from fuse.codegen.triton.emit import Tiles, dot_dtype
from fuse.codegen.triton.spell import DTYPES, exp, literal, lowest
from fuse.ir.program import Kind


@dataclass(frozen=True)
class Part:
    """One tensor of a state: `name` as in `Final.state` plus .at / .v for an argmax; `dims` its tile dims."""

    name: str
    dtype: str
    dims: tuple[str, ...]
    identity: str

    @property
    def var(self) -> str:
        return self.name.replace(".", "_")


def parts_of(state: State) -> tuple[Part, ...]:
    """The tensors that carry `state` from tile to tile and from split to split."""
    def part(suffix: str, dtype: str, identity: str) -> Part:
        return Part(state.name + suffix, dtype, state.dims, identity)
    match state.kind:
        case Kind.LSE:
            return part(".m", state.dtype, literal(float("-inf"))), part(".l", state.dtype, "0.0")
        case Kind.ARGMAX:
            return part("", "int64", "0"), part(".v", state.compare, lowest(state.compare))
        case Kind.MAX:
            return (part("", state.dtype, lowest(state.dtype)),)
        case Kind.SUM:
            return (part("", state.dtype, literal(0.0) if state.dtype == "float32" else "0"),)
    raise refuse(f"{state.kind.value} carries")


class Carries:
    """Updates of one level, written into the column loop; `lazy` sums stay tile-shaped until the loop is over."""

    def __init__(self, tiles: Tiles, program: TileProgram, loop: Block, lazy: bool):
        self.tiles, self.program, self.loop = tiles, program, loop
        self.lazy_wanted = lazy
        self.commits: list[str] = []
        self.shared: dict[tuple[object, ...], str] = {}

    def lazy(self, u: Update) -> bool:
        """A plain sum that nothing in the loop reads: reduce once, at the end."""
        return self.lazy_wanted and u.kind is Kind.SUM and u.wide is None and u.relative is None

    def order(self, u: Update) -> tuple[str, ...]:
        """The dims of the tile that `u` reduces."""
        return tuple(sorted({*self.program.state(u.state).dims, *u.over}, key=dim_order))

    def axes(self, u: Update) -> tuple[int, ...]:
        order = self.order(u)
        return tuple(order.index(d) for d in u.over)

    def tile(self, u: Update, value: Value | None, rest: str) -> str:
        """The operand of a reduction: `rest` beyond the end of the reduced dims."""
        order = self.order(u)
        text = "1.0" if value is None else self.tiles.operand(value, order)
        return f"tl.where({self.mask(u, order)}, {text}, {rest})"

    def sizes(self, dims: tuple[str, ...]) -> str:
        return f"[{', '.join(self.tiles.range(d).size for d in dims)}]"

    def start(self, u: Update) -> list[str]:
        state = self.program.state(u.state)
        dims = self.order(u) if self.lazy(u) else state.dims
        return [f"{p.var} = tl.full({self.sizes(dims)}, {p.identity}, {DTYPES[p.dtype]})" for p in parts_of(state)]

    def finish(self, u: Update) -> list[str]:
        name = self.program.state(u.state).name
        return [f"{name} = {self.sum(name, u)}"] if self.lazy(u) else []

    def sum(self, text: str, u: Update) -> str:
        for axis in sorted(self.axes(u), reverse=True):
            text = f"tl.sum({text}, {axis})"
        return text

    def update(self, u: Update) -> None:
        if len(self.order(u)) > 3 or self.program.state(u.state).scope != "row":
            raise refuse(f"the carry {u.state} over {', '.join(u.over)}")
        if u.wide is not None:
            return self.product(u)
        if u.relative is not None:
            return self.relative(u)
        return {Kind.SUM: self.plain, Kind.MAX: self.maximum, Kind.ARGMAX: self.argmax, Kind.LSE: self.lse}[u.kind](u)

    def commit(self) -> None:
        """The LSE's own new values, last: relative sums of this tile still read the old ones."""
        for line in self.commits:
            self.loop.add(line)

    # ---- plain kinds ------------------------------------------------------------------------------------------------

    def plain(self, u: Update) -> None:
        zero = self.program.state(u.state).dtype == "float32"
        tile = self.tile(u, u.value, literal(0.0) if zero else "0")
        self.loop.add(f"{u.state} += {tile if self.lazy(u) else self.sum(tile, u)}")

    def maximum(self, u: Update) -> None:
        state = self.program.state(u.state)
        tile = self.tile(u, u.value, lowest(state.dtype))
        for axis in sorted(self.axes(u), reverse=True):
            tile = f"tl.reduce({tile}, {axis}, nanmax)" if state.dtype == "float32" else f"tl.max({tile}, {axis})"
        join = "nanmax" if state.dtype == "float32" else "tl.maximum"
        self.loop.add(f"{u.state} = {join}({u.state}, {tile})")

    def argmax(self, u: Update) -> None:
        """First position of the maximum, nan being the largest: best = its nans if it has any, else where x = max."""
        state, order, x = self.program.state(u.state), self.order(u), self.tiles.name("x")
        if len(u.over) != 1:
            raise refuse("an argmax over several axes")
        (axis,), c, add = self.axes(u), u.state, self.loop.add
        at = fit(*self.tiles.position(str(u.position)), order)
        add(f"{x} = {self.tile(u, u.value, lowest(state.compare))}")
        add(f"{x}_v = tl.reduce({x}, {axis}, nanmax)" if state.compare == "float32" else f"{x}_v = tl.max({x}, {axis})")
        wide = f"tl.expand_dims({x}_v, {axis})"
        add(f"{x}_hit = ({x} == {wide}) | (({x} != {x}) & ({wide} != {wide}))")
        add(f"{x}_at = tl.min(tl.where({x}_hit & {self.mask(u, order)}, {at}, 0x7fffffff), {axis})")
        add(f"{x}_new = ({x}_v > {c}_v) | (({x}_v != {x}_v) & ({c}_v == {c}_v))")
        add(f"{c} = tl.where({x}_new, {x}_at.to(tl.int64), {c})")
        add(f"{c}_v = tl.where({x}_new, {x}_v, {c}_v)")

    # ---- log-sum-exp and what is relative to it ---------------------------------------------------------------------

    def lse(self, u: Update) -> None:
        """m' = max(m, max s), l' = l exp(m - m') + sum exp(s - m'); with m' = -inf standing for 0 nothing is added."""
        c, order, add = u.state, self.order(u), self.loop.add
        tile = self.tile(u, u.value, literal(float("-inf")))
        add(f"{c}_s = {tile}")
        top = f"{c}_s"
        for axis in sorted(self.axes(u), reverse=True):
            top = f"tl.max({top}, {axis})"
        add(f"{c}_n = tl.maximum({c}_m, {top})")
        add(f'{c}_g = tl.where({c}_n == float("-inf"), 0.0, {c}_n)')
        add(f"{c}_x = {c}_s - {fit(f'{c}_g', self.program.state(c).dims, order)}")
        add(f"{c}_r = {exp(f'({c}_m - {c}_g)')}")
        add(f"{c}_e = {exp(f'{c}_x')}")
        self.commits += [f"{c}_l = {c}_l * {c}_r + {self.sum(f'{c}_e', u)}", f"{c}_m = {c}_n"]

    def weight(self, u: Update) -> str:
        """exp(k (s - m')) (s - m')**n, on the dims of the LSE's own tile."""
        c, k = str(u.relative), u.exponent
        if k == 0:
            return " * ".join([f"{c}_x"] * u.moment) or "1.0"
        e = f"{c}_e" if k == 1 else self.once((c, "weight", k), exp(f"{c}_x", k))
        return " * ".join([e, *[f"{c}_x"] * u.moment])

    def rescaled(self, u: Update) -> str:
        """rho * sum_j C(n, j) delta**(n - j) T_j with delta = m - m', 0 as long as m = -inf."""
        c, n = str(u.relative), u.moment
        dims, own = self.program.state(c).dims, self.program.state(u.state).dims
        rho = fit(self.rho(c, u.exponent), dims if u.exponent else (), own)
        if not n:
            return f"{u.state} * {rho}"
        terms = [u.state]
        for j in range(n):
            count = [f"{float(comb(n, j))}"] if comb(n, j) != 1 else []
            terms.append(" * ".join([*count, *[fit(self.delta(c), dims, own)] * (n - j), u.lower[j].replace(".", "_")]))
        return f"({' + '.join(terms)}) * {rho}"

    def rho(self, c: str, k: float) -> str:
        """exp(k (m - m'))."""
        if k == 1:
            return f"{c}_r"
        if k == 0:
            return "1.0"
        return self.once((c, "rho", k), exp(f"({c}_m - {c}_g)", k))

    def delta(self, c: str) -> str:
        return self.once((c, "delta"), f'tl.where({c}_m == float("-inf"), 0.0, {c}_m - {c}_g)')

    def once(self, key: tuple[object, ...], text: str) -> str:
        """The name of a value that several carries of this loop share."""
        if key not in self.shared:
            self.shared[key] = self.tiles.name("e")
            self.loop.add(f"{self.shared[key]} = {text}")
        return self.shared[key]

    def weighted(self, u: Update, order: tuple[str, ...]) -> str:
        """value * weight, 0 beyond the end. -inf meets a moment as nan, as it does in eager."""
        c, weight = str(u.relative), self.weight(u)
        dims = within(self.lse_order(c), order)
        text = weight if weight == "1.0" else fit(f"({weight})" if " " in weight else weight, dims, order)
        if u.value is None and not u.moment and u.exponent:
            return text
        value = f" * {self.tiles.operand(u.value, order)}" if u.value is not None else ""
        return f"tl.where({self.mask(u, order)}, {text}{value}, 0.0)"

    def mask(self, u: Update, order: tuple[str, ...]) -> str:
        return " & ".join(fit(self.tiles.range(d).mask, (d,), order) for d in u.over)

    def lse_order(self, c: str) -> tuple[str, ...]:
        return tuple(sorted({*self.program.state(c).dims, "col"}, key=dim_order))

    def relative(self, u: Update) -> None:
        tile = self.weighted(u, self.order(u))
        self.loop.add(f"{u.state} = {self.rescaled(u)} + {self.sum(tile, u)}")

    # ---- matrix products --------------------------------------------------------------------------------------------

    def product(self, u: Update) -> None:
        """state[p, q] += left[p, col] @ right[col, q], the tile of `left` rounded to the type `right` is stored in."""
        t, dims = self.tiles, self.program.state(u.state).dims
        left, right = sides(u)
        if u.over != ("col",) or len(dims) > 2 or (u.relative is not None and left is not u.value):
            raise refuse(f"the product {u.state} with dims {', '.join(dims)}")
        if len(dims) < 2:
            return self.vector_product(u, right)
        q, order = dims[1], (dims[0], "col")
        kind = dot_dtype(self.program, *([left] if left is not None and u.relative is None else []), right)
        if u.relative is not None:
            text, whole = self.weighted(u, order), {*self.lse_order(u.relative), *(left.dims if left else ())} == set(order)
        else:
            assert left is not None
            text, whole = f"tl.where({self.mask(u, order)}, {t.operand(left, order)}, 0.0)", set(left.dims) == set(order)
        if not whole:
            text = f"tl.broadcast_to({text}, {self.sizes(order)})"
        text = f"{text}.to({DTYPES[kind]})" if kind != "float32" else text
        acc = self.rescaled(u) if u.relative is not None else u.state
        line = f"{u.state} = {t.dot_call(text, t.dot_operand(right, ('col', q), kind, [t.range('col')]), acc, kind)}"
        if u.limit is not None and left is not None and left is u.value:
            self.loop.add(f"if {self.counts(left, u.limit, order)}:")
            line = f"    {line}"
        self.loop.add(line)

    def counts(self, value: Value, limit: Value, order: tuple[str, ...]) -> str:
        """Whether some element of the tile is neither below its limit nor 0; nan counts."""
        key = ("counts", value.id, limit.id)
        if key not in self.shared:
            x, least, name = self.tiles.operand(value, order), self.tiles.operand(limit, order), self.tiles.name("k")
            inside = " & ".join(fit(self.tiles.range(d).mask, (d,), order) for d in order)
            self.loop.add(f"{name} = {inside} & ~((tl.abs({x}) < {least}) | ({x} == 0.0))")
            self.shared[key] = f"tl.max(tl.max({name}.to(tl.int32), 1), 0) > 0"
        return self.shared[key]

    def vector_product(self, u: Update, right: Value) -> None:
        """A product that leaves a vector (no row axis, or no width): multiplied and summed."""
        order = self.order(u)
        if u.relative is not None:
            left, acc = self.weighted(u, order), self.rescaled(u)
        else:
            assert u.value is not None
            left, acc = self.tiles.operand(u.value, order), u.state
        tile = f"tl.where({self.mask(u, order)}, {left} * {self.tiles.operand(right, order)}, 0.0)"
        self.loop.add(f"{u.state} = {acc} + {self.sum(tile, u)}")


def sides(u: Update) -> tuple[Value | None, Value]:
    """(left, right) of a product: the one that has the state's last width axis, if any, is on the right."""
    assert u.wide is not None
    last = max((d for v in u.values for d in v.dims if d not in ("row", "col")), key=dim_order, default="")
    swap = u.relative is None and u.value is not None and last in u.value.dims and last not in u.wide.dims
    return (u.wide, u.value) if swap and u.value is not None else (u.value, u.wide)
