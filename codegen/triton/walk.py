"""A region with scans as one kernel: for each (batch point, tile of lanes) = program id, the columns one after the other.

    for each column, in order                       values, scans, sums, stores

Where scans run against the walk their states are needed before it gets there. They are not stored for every column:

    for each tile of columns, the other way         keep the states it is entered with
      for each column                               those scans
    for each tile of columns, in order
      for each column, the other way                those scans again, from what was kept; write their values down
      for each column                               all else, which reads them back

With tiles of sqrt(columns) that is 2 sqrt(columns) states of memory and one more pass over the inputs. While scans run
against the walk the walk's own states wait in memory: registers hold one direction at a time. A sum over the lanes leaves
one part per tile of lanes.
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from fuse.codegen.roles import dim_order, refuse
from fuse.codegen.tile import Scan, State, TileProgram, Update, Value
from fuse.codegen.triton.block import Block, Range, fit
from fuse.codegen.triton.carry import parts_of
from fuse.codegen.triton.frame import Frame
from fuse.codegen.triton.kernel import Sweep
from fuse.codegen.triton.steps import Steps, states_of
from fuse.ir.program import Kind

PROLOGUE = """\
pid = tl.program_id(0)
lanes = tl.cdiv(row_end, R)
part = pid % lanes
batch = pid // lanes
row_0 = part * R
r = tl.arange(0, R).to(INDEX)
row = row_0 + r
row_ok = (row < row_end) | EVEN_R
"""
WITHOUT_LANES = """\
pid = tl.program_id(0)
batch = pid
"""
BARRIER = "tl.debug_barrier()"      # orders what different threads of a program read and write in memory


@dataclass(frozen=True)
class Walk(Sweep):
    """`entries`: buffers of one tile per tile of columns, `kept`: of one per column of such a tile, `parked`: of one; what a
    tile holds. `tiled`: outputs of which each tile of lanes leaves a part."""

    entries: tuple[tuple[str, Value], ...]
    kept: tuple[tuple[str, Value], ...]
    parked: tuple[tuple[str, Value], ...]
    tiled: tuple[tuple[str, State], ...]


def walk(name: str, program: TileProgram) -> Walk:
    """The kernel of a program with scans."""
    return _Walk(program).result(name)


class _Walk(Frame):
    def __init__(self, program: TileProgram):
        self.steps = t = Steps(program)
        super().__init__(t.program, t)
        (self.level,) = self.program.levels
        rows = bool(program.dims["row"])
        for scalar in ("row_end", "col_end", "span")[0 if rows else 1:]:
            t.arguments(scalar, "scalar", scalar)
        for constant, *what in (("R", "tile", "row"), ("EVEN_R", "even", "row"))[:2 if rows else 0]:
            t.arguments.constant(constant, *what)
        t.arguments.constant("INDEX", "index")
        t.arguments.constant("STAGES", "knob", "stages")
        for line in (PROLOGUE if rows else WITHOUT_LANES).splitlines():
            t.prologue.add(line)
        if rows:
            t.ranges["row"] = Range("row", "row", "row_ok", "R", t.prologue, "row_0", "r")
        self.against = [s for s in self.program.rehearsal if isinstance(s, Scan)]
        self.tiled: list[tuple[str, State]] = []
        self.entries: dict[str, Value] = {}
        self.carried: dict[str, Value] = {}      # variables of the walk and what they hold
        self.loops = Block(1)

    def result(self, name: str) -> Walk:
        self.early()
        if self.against:
            self.rehearsed()
        else:
            with self.columns(self.loops, "0", "col_end", self.program.reverse) as body:
                self.body(body)
            for variable, value in self.carried.items():
                self.steps.prologue.add(f"{variable} = {self.steps.zeros(value.dims, value.dtype)}")
        lines = [*self.steps.prologue.lines, *self.loops.lines, *self.after.lines]
        made = self.source(name, lines)
        kept = {f"h_{self.steps.scans[i][1]}": v for i, v in self.steps.held.items()}
        parked = tuple((f"w_{variable}", value) for variable, value in self.carried.items()) if self.against else ()
        return Walk(made.name, made.text, made.arguments, made.constants, self.program, (), (), None,
                    tuple(self.entries.items()), tuple(kept.items()), parked, tuple(self.tiled))

    # ---- loops ------------------------------------------------------------------------------------------------------

    @contextmanager
    def columns(self, outer: Block, first: str, end: str, reverse: bool, suffix: str = "") -> Iterator[Block]:
        """A loop over the columns first .. end - 1: values are emitted there."""
        loop = outer.inner()
        self.steps.enter(loop, reverse, suffix)
        yield loop
        outer.add(f"for step in tl.range({first}, {end}, num_stages=STAGES):")
        head = outer.inner()
        turned = f"{end} - 1 - step" if first == "0" else f"{first} + {end} - 1 - step"
        head.add(f"column = {turned if reverse else 'step'}")
        for name, state in self.steps.before.items():
            head.add(f"{name} = {state}")
        outer.lines += head.lines + loop.lines

    def stretch(self, reverse: bool) -> Block:
        """The body of a loop over the tiles of columns."""
        loop = self.loops.inner()
        loop.add(f"tile = {'spans - 1 - step' if reverse else 'step'}")
        loop.add("first = tile * span")
        loop.add("end = tl.minimum(first + span, col_end)")
        return loop

    def rehearsed(self) -> None:
        """The three loops over columns; the last is emitted first, since it tells what the others have to keep."""
        t, reverse = self.steps, self.program.reverse
        t.prologue.add("spans = tl.cdiv(col_end, span)")
        body, again, ahead = Block(2), Block(2), Block(2)
        with self.columns(body, "first", "end", reverse) as loop:
            self.body(loop)
        needed = dict(t.held)
        with self.columns(again, "first", "end", not reverse, "_again") as loop:
            for value in needed.values():
                loop.add(f"tl.store({t.kept(value, t.slot(value))}, {t.emit(value)})")
        repeated = t.walked
        with self.columns(ahead, "first", "end", not reverse, "_ahead") as loop:
            for s in self.against:
                t.emit(s.out)
        if dict(t.held) != needed:
            raise refuse("a rehearsal of scans that run both ways")
        for value, state in (part for s in self.against for part in states_of(s)):
            t.prologue.add(f"{state}_ahead = {t.zeros(value.dims, value.dtype)}")
        first = self.stretch(not reverse)
        entered = [part for s in repeated for part in states_of(s)]
        for value, state in entered:
            self.entries[f"e_{state}"] = value
            first.add(f"tl.store({t.entry(value)}, {state}_ahead)")
        self.loops.add("for step in range(0, spans):")
        self.loops.lines += first.lines + ahead.lines
        for name, value in self.carried.items():
            self.loops.add(f"tl.store({t.parked(name, value)}, {t.zeros(value.dims, value.dtype)})")
        self.loops.add(BARRIER)
        second = self.stretch(reverse)
        for value, state in entered:
            second.add(f"{state}_again = tl.load({t.entry(value)})")
            if value.id in needed:
                second.add(f"tl.store({t.kept(value, t.entered(value))}, {state}_again)")
        second.lines += again.lines
        second.add(BARRIER)
        for name, value in self.carried.items():
            second.add(f"{name} = tl.load({t.parked(name, value)})")
        second.lines += body.lines
        second.add(BARRIER)
        for name, value in self.carried.items():
            second.add(f"tl.store({t.parked(name, value)}, {name})")
        self.loops.add("for step in range(0, spans):")
        self.loops.lines += second.lines
        self.loops.add(BARRIER)
        for name in (s.name for s in self.program.states if s.name in self.carried):
            self.loops.add(f"{name} = tl.load({t.parked(name, self.carried[name])})")
        self.finish(self.against, "_ahead")

    # ---- what the walk does -----------------------------------------------------------------------------------------

    def early(self) -> None:
        """What does not depend on the column."""
        for s in self.level.stores:
            if not self.along(s.axes):
                self.emit(s, self.steps.prologue)

    def along(self, axes: Sequence[str]) -> bool:
        return self.steps.stream in axes

    def body(self, loop: Block) -> None:
        t = self.steps
        for s in self.level.stores:
            if self.along(s.axes):
                self.emit(s, loop)
        for u in self.level.updates:
            self.update(u, loop)
        own = [s for s in self.program.scans if s not in self.against]
        for scan in own:
            t.emit(scan.out)
        self.hand_on(loop)
        self.carried.update((state, value) for s in own for value, state in states_of(s))
        self.finish(own)

    def hand_on(self, loop: Block) -> None:
        """What the next column reads of this one; its values may read more."""
        t, new = self.steps, dict[str, str]()
        while len(new) < len(t.handed):
            for shift in list(t.handed.values()):
                new[f"p{shift.out.id}"] = t.operand(shift.x, shift.out.dims)
        if new:
            loop.add(f"{', '.join(new)} = {', '.join(new.values())}")
        self.carried.update((f"p{shift.out.id}", shift.out) for shift in t.handed.values())

    def finish(self, scans: Sequence[Scan], suffix: str = "") -> None:
        """The last states, where they are outputs."""
        for value, name in (part for s in scans for part in states_of(s)):
            state = self.program.state(name)
            dims = tuple(sorted(state.dims, key=dim_order))
            text = name + suffix
            if value.dims != dims:
                text = f"tl.broadcast_to({fit(text, value.dims, dims)}, [{', '.join(self.steps.sizes(dims))}])"
            self.leave(state, text, dims, self.after)

    def update(self, u: Update, loop: Block) -> None:
        """A sum over columns is a variable, summed over the lanes at the end; over lanes alone it is complete at once."""
        t, state = self.steps, self.program.state(u.state)
        if u.kind is not Kind.SUM or u.relative is not None or u.value is None or u.wide is not None:
            raise refuse(f"the carry {u.state} beside scans")
        order = tuple(sorted({*state.dims, *u.over} - {"col"}, key=dim_order))
        (part,) = parts_of(state)
        kept, block, text = tuple(d for d in order if d not in u.over), loop, t.boxed(u.value, order)
        if "col" in u.over:
            loop.add(f"{u.state} += {text}")
            self.carried[u.state] = Value(-1, order, part.dtype)
            text, block = u.state, self.after
        elif u.value.dims != order:
            text = f"tl.broadcast_to({text}, [{', '.join(t.sizes(order))}])"
        if "row" in u.over:
            text = t.over("sum", text, order, ("row",), part.dtype)
        self.leave(state, text, kept, block, "row" in u.over)

    def leave(self, state: State, text: str, dims: Sequence[str], block: Block, tiled: bool = False) -> None:
        """Stores a state, or this tile's part of it."""
        if not state.stores:
            return
        slot = self.program.slot(state.stores[0])
        out = self.steps.arguments(slot.name, "output", slot.name)
        more = []
        if tiled:
            self.tiled.append((slot.name, state))
            more = [f"far(part, {self.steps.arguments(f'{slot.name}_part', 'out', slot.name, 'part')})"]
        at = self.address(out, slot.name, slot.axes, dims, *more)
        block.add(f"tl.store({at}, {text}{self.mask(dims, dims)})")
