"""One kernel's text: program ids to a row tile and a range of columns, the column loop, and what is stored.

    for each (batch point, row tile, split) = program id        rows of one group of row tiles run side by side
      for each tile of columns in the split's span              values, updates of carries, stores
      store each carry's parts at [split, batch, row, width]    `combine` joins the splits
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fuse.codegen import Schedule
from fuse.codegen.roles import refuse
from fuse.codegen.tile import Dot, Reduce, Store, TileProgram, Update, Value
from fuse.codegen.triton.block import Block, Range, fit
from fuse.codegen.triton.carry import Carries, Part, parts_of, sides
from fuse.codegen.triton.emit import Tiles, dot_dtype
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
class Sweep:
    """The text of one kernel, what its arguments mean (see `launch.bind`), and what it leaves behind."""

    name: str
    text: str
    program: TileProgram
    arguments: dict[str, tuple[Any, ...]]
    constants: dict[str, tuple[Any, ...]]
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
    work = _Sweep(program, schedule)
    updates = () if stages else level.updates
    stores = () if stages else level.stores
    work.walk(updates, stores, stages)
    return work.result(name, tuple(stages))


class _Sweep:
    def __init__(self, program: TileProgram, schedule: Schedule):
        self.program, self.schedule = program, schedule
        deep = contracted_dims(program) if schedule.extent("deep") else frozenset()
        folded = deep if has_rows(program) else frozenset[str]()
        self.tiles = t = Tiles(program, deep, str(schedule.knob("precision", "ieee")), folded)
        args = t.arguments
        for scalar in SCALARS:
            args(scalar, "scalar", scalar)
        for constant, *what in (("R", "tile", "row"), ("C", "tile", "col"), ("GROUP", "knob", "group"),
                                ("EVEN_R", "even", "row"), ("EVEN_C", "even", "col"), ("INDEX", "index")):
            args.constant(constant, *what)
        self.batch_arguments: list[str] = []
        for line in PROLOGUE.format(batch=BATCH if program.batch else "").splitlines():
            t.prologue.add(line)
        self.single = bool(schedule.knob("single"))
        self.loop = t.prologue.inner(flat=self.single)
        self.loop.add("col = column + c")
        self.loop.add("col_ok = (col < end) | EVEN_C")
        t.ranges["row"] = Range("row", "row", "row_ok", "R", t.prologue, "row_0", "r")
        t.ranges["col"] = Range("col", "col", "col_ok", "C", self.loop, "column", "c")
        self.chunked = self.chunk()
        self.carries = Carries(t, program, self.loop, lazy=not has_tile_dot(program))
        self.parts: list[Part] = []
        self.after = Block(1)

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

    # ---- stores -----------------------------------------------------------------------------------------------------

    def address(self, out: str, name: str, axes: Sequence[str], order: Sequence[str], *more: str) -> str:
        """out + sum of position * stride over `axes`, in `order`, with strides named after the buffer."""
        strides = {a: self.tiles.arguments(f"{name}_{a}", "out", name, a) for a in axes}
        return self.tiles.address([out, *more], strides, order)

    def mask(self, dims: Sequence[str], order: Sequence[str]) -> str:
        text = " & ".join(fit(self.tiles.range(d).mask, (d,), order) for d in dims)
        return f", mask={text}" if text else ""

    def store_part(self, part: Part, keeps: Sequence[str]) -> None:
        out = self.tiles.arguments(f"o_{part.var}", "part", part.name)
        split = self.tiles.arguments(f"o_{part.var}_split", "out", f"o_{part.var}", "split")
        axes = [*keeps, *(a for d in part.dims for a in self.program.dims[d])]
        at = self.address(out, f"o_{part.var}", axes, part.dims, f"far(split, {split})")
        self.after.add(f"tl.store({at}, {part.var}{self.mask(part.dims, part.dims)})")

    def emit(self, s: Store) -> None:
        t = self.tiles
        out = t.arguments(s.buffer, "output", s.buffer)
        text = t.boxed(s.value, s.dims)
        block = t.home(s.dims)
        if set(s.value.dims) != set(s.dims):
            text = f"tl.broadcast_to({text}, [{', '.join(t.range(d).size for d in s.dims)}])"
        block.add(f"tl.store({self.address(out, s.buffer, s.axes, s.dims)}, {text}{self.mask(s.dims, s.dims)})")

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
        return f"for column in {'tl.range' if told else 'range'}(begin, end, C{told}):"

    # ---- text -------------------------------------------------------------------------------------------------------

    def result(self, name: str, stages: tuple[Stage, ...]) -> Sweep:
        t = self.tiles
        body = [*t.prologue.lines, f"    {self.walk_columns()}", *self.loop.lines, *self.after.lines]
        constants = [f"{c}: tl.constexpr" for c in t.arguments.constants]
        head = wrapped([*t.arguments.table, *constants])
        text = f"\n\n@triton.jit\ndef {name}(\n{head}):\n" + "\n".join(body) + "\n"
        return Sweep(name, text, self.program, dict(t.arguments.table), dict(t.arguments.constants), tuple(self.parts),
                     stages, self.chunked)


def wrapped(names: Sequence[str], width: int = 116) -> str:
    """Parameters, four to a line or so."""
    lines, line = [], ""
    for name in names:
        if len(line) + len(name) + 2 > width:
            lines.append(line)
            line = ""
        line += f"{name}, "
    return "".join(f"    {line.rstrip()}\n" for line in (*lines, line))


def contracted_dims(program: TileProgram) -> frozenset[str]:
    """Free dims that some inner dot or reduction sums over."""
    over = [s.k if isinstance(s, Dot) else s.over for s in program.statements() if isinstance(s, (Dot, Reduce))]
    return frozenset(d for dims in over for d in dims)


def chunked_dim(program: TileProgram) -> str | None:
    """The width that can be cut into chunks: the last one of the widest accumulators, if that is one dim. Every chunk's
    program computes what does not have it."""
    widths = [tuple(d for d in s.dims if d not in ("row", "col")) for s in program.states]
    most = max(map(len, widths), default=0)
    last = {w[-1] for w in widths if w and len(w) == most}
    return last.pop() if len(last) == 1 else None


def has_rows(program: TileProgram) -> bool:
    """Does any tile have a row dim? Without one a program walks columns alone, each as wide as what is kept of it."""
    return any("row" in dims for dims in tiles(program)[1:]) or any("row" in s.dims for s in program.states)


def has_tile_dot(program: TileProgram) -> bool:
    """Does some dot or matrix product run in the column loop? Without rows a dot with a vector is none: it is summed."""
    rows = has_rows(program)
    inner = any("col" in d.out.dims and (rows or (len(d.m), len(d.n)) == (1, 1)) for d in program.dots)
    return inner or any(u.wide is not None for level in program.levels for u in level.updates)


def tiles(program: TileProgram) -> list[tuple[str, ...]]:
    """The dims of every tile that the kernel makes, a dot's product excepted where the hardware forms it."""
    found: list[tuple[str, ...]] = [("row", "col")]
    for s in program.statements():
        found.append(s.out.dims)
        if isinstance(s, Reduce):
            found.append(s.x.dims)
        elif isinstance(s, Dot) and (len(s.k), len(s.m), len(s.n)) != (1, 1, 1):
            found.append(tuple({*s.a.dims, *s.b.dims}))
    for u in (u for level in program.levels for u in level.updates):
        if u.wide is None:
            found.append(tuple({*program.state(u.state).dims, *u.over}))
    return found


def rank(program: TileProgram) -> int:
    """The most dimensions that a tile of the program has."""
    return max(map(len, tiles(program)))
