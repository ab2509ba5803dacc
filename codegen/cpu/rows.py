"""Matrix products of some of the rows of a tile: those with an entry that counts, packed (see `Update.limit`).

Products of one tile value against one limit share what they leave out, judged in narrow strips of the tile (fuse_rows.h).
The rows are those of the dim `lane`: of a product that keeps it, the packed rows are multiplied and added to theirs; of one
that sums over it, both operands are packed. Where most rows stay, all of them do: packing would cost more than it saves.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fuse.codegen.cpu.context import Context
from fuse.codegen.cpu.frame import Frame
from fuse.codegen.cpu.nests import Nests
from fuse.codegen.cpu.operands import Operands
from fuse.codegen.cpu.states import States
from fuse.codegen.tile import Update, Value


@dataclass(frozen=True)
class Tile:
    """A value whose rows (positions of `lane`) are packed, strip by strip along `other`; extents are C++ text."""

    value: Value
    lane: str
    other: str
    rows: str
    columns: str

    @property
    def found(self) -> tuple[str, str]:
        """Arrays: which rows of each strip count, and how many."""
        return f"which{self.value.id}", f"kept{self.value.id}"


class Rows:
    def __init__(self, ctx: Context, nests: Nests, operands: Operands, states: States):
        self.ctx, self.nests, self.operands, self.states = ctx, nests, operands, states

    def products(self, updates: list[Update], col: Frame, plain: Callable[[Update, Frame], None]) -> None:
        """The updates of one value and one limit: packed, or as `plain` writes them."""
        value, limit, lane = updates[0].value, updates[0].limit, updates[0].lane
        assert value is not None and limit is not None
        other = "col" if lane == "row" else "row"
        tile = Tile(value, lane, other, *(f"int64_t({self.ctx.count(d)})" for d in (lane, other)))
        which, kept = tile.found
        some = col.open(f"if ({self.significant(tile, limit, col)}) {{")
        strips = some.open(f"for (int64_t first = 0, s = 0; first < {tile.columns}; first += STRIP, ++s) {{")
        strips.add(f"const int64_t wide = {tile.columns} - first < STRIP ? {tile.columns} - first : STRIP, kept = {kept}[s];",
                   f"const int64_t* const which = {which} + s * {tile.rows};")
        for u in updates:
            self.packed(tile, u, strips)
        strips.close()
        some.close()
        every = col.open("else {")
        for u in updates:
            plain(u, every)
        every.close()

    def significant(self, tile: Tile, limit: Value, col: Frame) -> str:
        limits = self.ctx.array(limit, col) or self.nests.materialise(limit)
        view = self.operands.view(tile.value, (tile.lane,), (tile.other,), col)
        which, kept = tile.found
        strips = f"strips_of({self.ctx.capacity(tile.other)})"
        self.ctx.task.take(which, "int64_t", f"{strips} * {self.ctx.capacity(tile.lane)}")
        self.ctx.task.take(kept, "int64_t", strips)
        return (f"significant({view}, {tile.rows}, {tile.columns}, {limits.name}, {int(bool(limit.dims))}, {which}, {kept}, "
                "inner)")

    def packed(self, tile: Tile, u: Update, frame: Frame) -> None:
        """state += sum_over value * wide, on one strip."""
        assert u.value is not None and u.wide is not None
        out, state = self.states.array(u.state), self.ctx.program.state(u.state)
        m, n = (tuple(d for d in v.dims if d not in u.over) for v in (u.value, u.wide))
        ctype, (left, right) = self.operands.sides(frame, u.value, u.wide, u.over, m, n, out)
        beta, width, (to, ld) = self.states.beta(state, u), self.operands.count(n), self.operands.target(out, m, n)
        label, columns = f"v{u.value.id}" + ("_b" if ctype == "bf16" else ""), self.elements(n)
        if tile.lane in u.over:
            some = self.gathered(tile, f"from(turned({left}), 0, first)", "wide", "STRIP", ctype, label, frame)
            right = self.gathered(tile, right, width, columns, ctype, u.state, frame)
            frame.add(f"gemm(blas, wide, {width}, kept, turned({some}), {right}, {beta}, {to} + first * {ld}, {ld});")
            return
        some = self.gathered(tile, f"from({left}, 0, first)", "wide", "STRIP", ctype, label, frame)
        part = self.ctx.task.take(f"part_{u.state}", out.ctype, f"{self.ctx.capacity(tile.lane)} * {columns}")
        beta = beta if beta == "1" else f"first > 0 || !({beta.partition(' ? ')[0]}) ? 1 : 0"
        frame.add(f"gemm_rows(blas, which, kept, {tile.rows}, {width}, wide, {some}, from({right}, first, 0), "
                  f"{out.ctype}({beta}), {to}, {ld}, {part}, inner);")

    def gathered(self, tile: Tile, matrix: str, width: str, capacity: str, ctype: str, label: str, frame: Frame) -> str:
        """The packed rows of a matrix lane x width; made once per frame."""
        name = f"some_{label}"
        if frame.thing(("some", name)) is None:
            copy = self.ctx.task.take(f"{name}_copy", ctype, f"{self.ctx.capacity(tile.lane)} * {capacity}")
            frame.add(f"const Mat<{ctype}> {name} = rows_of({matrix}, which, kept, {tile.rows}, {width}, {copy}, inner);")
            frame.things["some", name] = True
        return name

    def elements(self, dims: tuple[str, ...]) -> str:
        return " * ".join(map(self.ctx.capacity, dims)) or "1"
