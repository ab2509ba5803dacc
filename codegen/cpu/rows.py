"""Matrix products of some of the rows of a tile: those with an entry that counts, packed (see `Update.limit`).

Products of one tile value against one limit share what they leave out. The rows are those of the dim `lane`: of a product
that keeps it, the packed rows are multiplied and added to theirs; of one that sums over it, both operands are packed.
Where most rows stay, all of them do: packing would cost more than it saves.
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

WORTH = "3 / 4"      # of the rows: above, all are multiplied


@dataclass(frozen=True)
class Tile:
    """A value whose rows are packed: rows `lane`, columns `other`, and the C++ names of what was found about them."""

    value: Value
    lane: str
    other: str

    @property
    def kept(self) -> str:
        return f"kept{self.value.id}"

    @property
    def which(self) -> str:
        return f"rows{self.value.id}"


class Rows:
    def __init__(self, ctx: Context, nests: Nests, operands: Operands, states: States):
        self.ctx, self.nests, self.operands, self.states = ctx, nests, operands, states

    def products(self, updates: list[Update], col: Frame, plain: Callable[[Update, Frame], None]) -> None:
        """The updates of one value and one limit: packed, or as `plain` writes them."""
        value, limit = updates[0].value, updates[0].limit
        assert value is not None and limit is not None
        lane = updates[0].lane
        tile = Tile(value, lane, "col" if lane == "row" else "row")
        self.find(tile, limit, col)
        some = col.open(f"if ({tile.kept} <= int64_t({self.ctx.count(lane)}) * {WORTH}) {{")
        for u in updates:
            self.packed(tile, u, some)
        some.close()
        every = col.open("else {")
        for u in updates:
            plain(u, every)
        every.close()

    def find(self, tile: Tile, limit: Value, col: Frame) -> None:
        count, ctype = self.ctx.count(tile.lane), self.ctx.ctype(tile.value)
        limits = self.ctx.array(limit, col) or self.nests.materialise(limit)
        view = self.operands.view(tile.value, (tile.lane,), (tile.other,), col)
        top = self.ctx.task.take(f"top{tile.value.id}", ctype, self.ctx.capacity(tile.lane))
        self.ctx.task.take(tile.which, "int64_t", self.ctx.capacity(tile.lane))
        col.add(f"const int64_t {tile.kept} = significant({view}, {count}, {self.ctx.count(tile.other)}, {limits.name}, "
                f"{int(bool(limit.dims))}, {top}, {tile.which}, inner);")

    def packed(self, tile: Tile, u: Update, frame: Frame) -> None:
        assert u.value is not None and u.wide is not None
        out, state = self.states.array(u.state), self.ctx.program.state(u.state)
        m, n = (tuple(d for d in v.dims if d not in u.over) for v in (u.value, u.wide))
        ctype, (left, right) = self.operands.sides(frame, u.value, u.wide, u.over, m, n, out)
        beta, width, other = self.states.beta(state, u), self.operands.count(n), f"int64_t({self.ctx.count(tile.other)})"
        to, ld = self.operands.target(out, m, n)
        if tile.lane in u.over:
            some = self.gathered(tile, f"turned({left})", (tile.other,), ctype, f"v{u.value.id}", frame)
            wide = self.gathered(tile, right, n, ctype, u.state, frame)
            frame.add(f"gemm(blas, {other}, {width}, {tile.kept}, turned({some}), {wide}, {beta}, {to}, {ld});")
            return
        some = self.gathered(tile, left, (tile.other,), ctype, f"v{u.value.id}", frame)
        part = self.ctx.task.take(f"part_{u.state}", out.ctype, self.elements((tile.lane, *n)))
        count = f"int64_t({self.ctx.count(tile.lane)})"
        frame.add(f"gemm_rows(blas, {tile.which}, {count}, {tile.kept}, {width}, {other}, {some}, {right}, "
                  f"{out.ctype}({beta}), {to}, {ld}, {part}, inner);")

    def gathered(self, tile: Tile, matrix: str, columns: tuple[str, ...], ctype: str, label: str, frame: Frame) -> str:
        """The packed rows of a matrix lane x columns; made once per frame."""
        name = f"some_{label}" + ("_b" if ctype == "bf16" else "")
        if frame.thing(("some", name)) is None:
            copy = self.ctx.task.take(f"{name}_copy", ctype, self.elements((tile.lane, *columns)))
            frame.add(f"const Mat<{ctype}> {name} = rows_of({matrix}, {tile.which}, {tile.kept}, "
                      f"{self.operands.count(columns)}, {copy}, inner);")
            frame.things["some", name] = True
        return name

    def elements(self, dims: tuple[str, ...]) -> str:
        return " * ".join(map(self.ctx.capacity, dims))
