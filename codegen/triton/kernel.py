"""One kernel's text: program ids to a row tile and a range of columns, the column loop, and what is stored.

    for each (batch point, row tile, split) = program id        rows of one group of row tiles run side by side
      for each tile of columns in the split's span              values, updates of carries, stores; without the tiles at
                                                                either end that add nothing (`bounds`)
      store each carry's parts at [split, batch, row, width]    `combine` joins the splits
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fuse.codegen import Schedule
from fuse.codegen.roles import refuse
from fuse.codegen.tile import Skip, Store, TileProgram, Update, Value
from fuse.codegen.triton.block import Range
from fuse.codegen.triton.bounds import narrowed
from fuse.codegen.triton.carry import Carries, Part, parts_of, sides
from fuse.codegen.triton.emit import Tiles, dot_dtype
from fuse.codegen.triton.frame import Frame, Source
from fuse.codegen.triton.shapes import chunked_dim, contracted_dims, has_rows, has_tile_dot
from fuse.codegen.triton.spell import DTYPES


@dataclass(frozen=True)
class Stage:
    """A tile value written to the slab `name` in element type `dtype`, at [batch, row, col]; `states` consume it."""

    name: str
    value: Value
    dtype: str
    states: tuple[str, ...]


def stages_of(program: TileProgram) -> tuple[Stage, ...]:
    """One slab per left factor and element type; a sum without a right factor reads any slab of its value."""
    table: dict[tuple[Value, str], list[str]] = {}
    for u in sorted(program.levels[0].updates, key=lambda u: u.wide is None):
        if u.wide is None:
            assert u.value is not None
            key = next((k for k in table if k[0] == u.value), (u.value, "float32"))
        else:
            left, right = sides(u)
            assert left is not None
            key = (left, dot_dtype(program, right))
        table.setdefault(key, []).append(u.state)
    return tuple(Stage(f"slab{k}", value, dtype, tuple(states)) for k, ((value, dtype), states) in enumerate(table.items()))


@dataclass(frozen=True)
class Sweep(Source):
    """A kernel that walks columns, and what it leaves behind."""

    program: TileProgram
    parts: tuple[Part, ...]
    stages: tuple[Stage, ...]
    chunked: str | None             # the free dim that is cut into chunks, one per program


SCALARS = ("row_begin", "row_end", "col_begin", "col_end", "span", "splits")
PROLOGUE = """\
pid = tl.program_id(0)
tiles = tl.cdiv(row_end - row_begin, R)
{batch}group = pid // (GROUP * splits)
height = tl.minimum(tiles - group * GROUP, GROUP)
inside = pid % (GROUP * splits)
split = inside // height
row_0 = row_begin + (group * GROUP + inside % height) * R
r = tl.arange(0, R).to(INDEX)
row = row_0 + r
row_ok = (row < row_end) | EVEN_R
begin = col_begin + split * span
end = tl.minimum(begin + span, col_end)
c = tl.arange(0, C).to(INDEX)
"""
BATCH = "batch = pid // (tiles * splits)\npid = pid % (tiles * splits)\n"


def sweep(name: str, program: TileProgram, schedule: Schedule, stages: Sequence[Stage] = ()) -> Sweep:
    """The kernel of a program with one level. With `stages` it writes those and no carry is updated."""
    (level,) = program.levels
    work = _Sweep(program, schedule, () if stages else level.skips)
    updates = () if stages else level.updates
    stores = () if stages else level.stores
    work.walk(updates, stores, stages)
    return work.result(name, tuple(stages))


class _Sweep(Frame):
    def __init__(self, program: TileProgram, schedule: Schedule, skips: Sequence[Skip]):
        deep = contracted_dims(program) if schedule.extent("deep") else frozenset()
        folded = deep if has_rows(program) else frozenset[str]()
        super().__init__(program, Tiles(program, deep, str(schedule.knob("precision", "ieee")), folded))
        self.schedule, t = schedule, self.tiles
        args = t.arguments
        for scalar in SCALARS:
            args(scalar, "scalar", scalar)
        for constant, *what in (("R", "tile", "row"), ("C", "tile", "col"), ("GROUP", "knob", "group"),
                                ("EVEN_R", "even", "row"), ("EVEN_C", "even", "col"), ("INDEX", "index")):
            args.constant(constant, *what)
        for line in PROLOGUE.format(batch=BATCH if program.batch else "").splitlines():
            t.prologue.add(line)
        t.ranges["row"] = Range("row", "row", "row_ok", "R", t.prologue, "row_0", "r")
        self.bounds = narrowed(t, skips)
        self.single = bool(schedule.knob("single")) and self.bounds == ("begin", "end")
        self.loop = t.prologue.inner(flat=self.single)
        self.loop.add("col = column + c")
        self.loop.add("col_ok = (col < end) | EVEN_C")
        t.ranges["col"] = Range("col", "col", "col_ok", "C", self.loop, "column", "c")
        self.chunked = self.chunk()
        self.carries = Carries(t, program, self.loop, lazy=not has_tile_dot(program))

    def chunk(self) -> str | None:
        """Binds the free dim that the schedule cuts into chunks over program_id(1)."""
        if not self.schedule.knob("chunk"):
            return None
        dim, t = chunked_dim(self.program), self.tiles
        if dim is None:
            raise refuse("chunks of accumulators that differ in their widths")
        n = dim[1:]
        t.arguments.constant(f"W{n}", "knob", "chunk")
        t.arguments.constant(f"EVEN_W{n}", "even", dim, f"W{n}")
        t.prologue.add(f"w{n}_0 = tl.program_id(1) * W{n}")
        t.prologue.add(f"w{n} = w{n}_0 + {t.steps(f'u{n}', f'W{n}')}")
        t.prologue.add(f"w{n}_ok = (w{n} < {t.extent(dim)}) | EVEN_W{n}")
        t.ranges[dim] = Range(dim, f"w{n}", f"w{n}_ok", f"W{n}", t.prologue, f"w{n}_0", f"u{n}")
        return dim

    def walk(self, updates: Sequence[Update], stores: Sequence[Store], stages: Sequence[Stage]) -> None:
        for u in updates:
            self.carries.update(u)
        self.carries.commit()
        for u in updates:
            for line in self.carries.start(u):
                self.tiles.prologue.add(line)
            for line in self.carries.finish(u):
                self.after.add(line)
            for part in parts_of(self.program.state(u.state)):
                self.parts.append(part)
                self.store_part(part, self.program.state(u.state).keeps)
        for s in stores:
            self.emit(s)
        for stage in stages:
            self.stage(stage)

    def stage(self, s: Stage) -> None:
        """slab[batch, row - row_begin, col - col_begin] = value."""
        t, order = self.tiles, ("row", "col")
        out = t.arguments(s.name, "slab", s.name)
        text = t.operand(s.value, order)
        if set(s.value.dims) != set(order):
            text = f"tl.broadcast_to({text}, [R, C])"
        stride = t.arguments(f"{s.name}_row", "slab stride", s.name, 1)
        batch = f"far(batch, {t.arguments(f'{s.name}_batch', 'slab stride', s.name, 0)}) + " if self.program.batch else ""
        at = f"{out} + {batch}far(row_0 - row_begin, {stride}) + (column - col_begin) + ((r * {stride})[:, None] + c[None, :])"
        self.loop.add(f"tl.store({at}, {text}.to({DTYPES[s.dtype]}){self.mask(order, order)})")

    def walk_columns(self) -> str:
        """A loop without dots is pipelined only if it is told to; a single tile of columns needs no loop."""
        if self.single:
            return "column = begin"
        told = f", num_stages={self.schedule.knob('stages', 1)}" if not has_tile_dot(self.program) else ""
        return f"for column in {'tl.range' if told else 'range'}({', '.join(self.bounds)}, C{told}):"

    def result(self, name: str, stages: tuple[Stage, ...]) -> Sweep:
        body = [*self.tiles.prologue.lines, f"    {self.walk_columns()}", *self.loop.lines, *self.after.lines]
        made = self.source(name, body)
        return Sweep(made.name, made.text, made.arguments, made.constants, self.program, tuple(self.parts), stages,
                     self.chunked)
