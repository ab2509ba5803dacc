"""A walk as C++: column tiles in order, scans from column to column, values of other columns.

A value that depends on columns is an array [column, widths, lanes] of one tile. That of a scan, and of what is read one
column away, has one column more: what the tile is entered with, in front of the first column or behind the last.
"""
from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from fuse.codegen.cpu.blocks import Blocks, Group, Groups, Pass
from fuse.codegen.cpu.context import Array
from fuse.codegen.cpu.emit import Dims, Emitter
from fuse.codegen.cpu.folds import Fold
from fuse.codegen.cpu.frame import Frame
from fuse.codegen.cpu.recurrence import Step
from fuse.codegen.cpu.riders import Rider, Riders, Riding, states_of, summand
from fuse.codegen.cpu.spell import LOWEST
from fuse.codegen.tile import (
    Affine,
    Imaginary,
    Level,
    Load,
    Point,
    Reduce,
    Scan,
    Shift,
    Statement,
    Store,
    TileProgram,
    Value,
    operands,
)
from fuse.codegen.walk import lanes_last

FORWARD = "for (int j = 0; j < nc; ++j) {"
BACKWARD = "for (int j = int(nc) - 1; j >= 0; --j) {"


class WalkEmitter(Emitter):
    def __init__(self, program: TileProgram, native: bool):
        super().__init__(program, native)
        self.against = [s for s in program.rehearsal if isinstance(s, Scan) and s.reverse != program.reverse]
        self.against_states = [part for s in self.against for part in states_of(s)]
        self.passed = {s.x.id for s in program.statements() if isinstance(s, Shift)}
        self.ctx.sheets = {s.out.id for s in program.levels[0].body if isinstance(s, Load) and self.is_sheet(s)}
        repeated = self.repeated(program.levels[0])
        self.riders = Riders(program, self.below, repeated)
        self.groups = Groups(program, self.riders, self.below, repeated)
        self.rehearsing = False

    @property
    def apart(self) -> list[Value]:
        """The states that a whole tile keeps, one for each of its columns."""
        return [v for s in self.riders.scans if s.out.id not in self.riders.spent
                for v, _ in states_of(s) if v.id not in self.groups.of[s.out.id].local]

    # ---- passes over the columns ------------------------------------------------------------------------------------

    def level(self, number: int, level: Level, row: Frame) -> None:
        frame = self.ctx.level = row.open("{")
        self.states.open_rows(row, frame, list(self.program.states))
        early = [s for s in level.stores if "col" not in s.value.dims and "col" not in s.dims]
        for store in early:
            self.nests.over(frame, store.dims, [self.nests.emit(store)])
        if self.against:
            self.rehearse(frame)
        col = self.columns(frame, self.program.reverse)
        self.enter(col)
        apart = tuple(u for u in level.updates if u not in self.riders.all)
        sheets = [s for s in level.stores if s.dims == ("col", "row")]
        self.tile(replace(level, updates=apart), [s for s in level.stores if s not in early and s not in sheets], col)
        for store in sheets:
            self.store_sheet(store, col)
        self.leave(col)
        self.states.close_rows(frame, [s for s in self.program.states if s.name not in dict(self.against_states).values()])
        frame.close()
        self.ctx.level = None

    def columns(self, frame: Frame, reverse: bool) -> Frame:
        steps = "col0 = (cols + C - 1) / C * C - C; col0 >= 0; col0 -= C" if reverse else "col0 = 0; col0 < cols; col0 += C"
        col = self.ctx.col = frame.open(f"for (int64_t {steps}) {{")
        col.add("const int nc = int(cols - col0 < C ? cols - col0 : C);")
        return col

    def enter(self, col: Frame) -> None:
        """The states with which scans enter the tile: those against the walk come from memory, others may be stored there."""
        for value, state in self.against_states:
            col.add(f"copy_to({self.entered(value, state)}, {self.size(value)}, {state});")
        if not self.program.counter:
            return
        here = col.open("{", {self.program.counter: "(col0 / C)"})
        for entry in self.program.entries:
            self.fetch(entry.load, self.states.array(entry.state), here)
        for kept in (s for s in self.program.states if s.entered):
            self.nests.copy_out(here, kept.entered, self.states.array(kept.name), kept.dims)
        here.close()

    def fetch(self, load: Load, array: Array, here: Frame) -> None:
        def sink(frame: Frame) -> None:
            frame.add(f"{self.nests.target(array, frame)} = {self.values.load(load.out, load, frame)};")
        self.nests.over(here, array.layout, [sink])

    def leave(self, col: Frame) -> None:
        col.close()
        self.ctx.col = None

    def rehearse(self, frame: Frame) -> None:
        """The pass the other way: keeps the state with which each scan enters each tile."""
        self.rehearsing = True
        col = self.columns(frame, not self.program.reverse)
        read = {v.id for s in self.program.rehearsal for v in operands(s)}
        for value, state in self.against_states:
            self.ctx.task.take(f"{state}_at", self.ctx.ctype(value), f"((cols + C - 1) / C) * {self.size(value)}")
            col.add(f"copy_to({state}, {self.size(value)}, {self.entered(value, state)});")
        for s in self.program.rehearsal:
            if isinstance(s, Scan) and s.out.id not in read:
                self.nest(Group([s], set(), [s]), col, alone=True)
            elif self.ctx.is_stored(s.out):
                self.ensure(s.out)
        self.leave(col)
        self.rehearsing = False
        self.states.close_rows(frame, [self.program.state(name) for _, name in self.against_states])

    def size(self, value: Value) -> str:
        return f"({' * '.join(map(self.ctx.capacity, self.widths(value))) or '1'})"

    def entered(self, value: Value, state: str) -> str:
        return f"{state}_at + col0 / C * {self.size(value)}"

    # ---- values of one tile -----------------------------------------------------------------------------------------

    def widths(self, value: Value) -> Dims:
        return lanes_last(tuple(d for d in value.dims if d != "col"))

    def repeated(self, level: Level) -> set[Value]:
        """What is read one column away is kept, in order, before anything reads it."""
        return super().repeated(level) | {s.out for s in level.body if s.out.id in self.passed}

    def together(self, todo: list[Statement]) -> list[Statement]:
        """One after the other: what a scan needs comes before it."""
        self.ensure(todo[0].out)
        return todo[:1]

    def ensure(self, value: Value) -> None:
        statement, home = self.program.defines[value.id], self.ctx.home(value)
        if self.ctx.array(value, home) is not None or home.thing(("walked", value.id)):
            return
        match statement:
            case _ if value.id in self.groups.of and not self.rehearsing:
                self.nest(self.groups.of[value.id], home)
            case Scan():
                self.nest(Group([statement], set(), [statement]), home)
            case Imaginary():
                self.ensure(statement.scan)
            case Shift():
                self.shift(statement, home)
            case Reduce() if value.id in self.riders.host:
                self.ensure(self.riders.host[value.id])
            case Reduce():
                self.reduce(statement, home, self.allocate(value, home))
            case Load() if self.is_sheet(statement):
                self.lay_out(statement, home)
            case Load() | Point():
                array = self.allocate(value, home)
                self.nests.over(home, array.layout, [self.nests.writer(value, array)])
                home.things["array", value.id] = array
            case _:
                super().ensure(value)

    # ---- memory that runs along the stream --------------------------------------------------------------------------

    def is_sheet(self, load: Load) -> bool:
        """Does it read a column and a lane, each at its own position?"""
        affine = load.out.id not in self.passed and all(isinstance(i, Affine) for i in load.index)
        walked = {*self.program.dims["row"], *self.program.dims["col"]}
        return affine and load.out.dims == ("row", "col") and walked <= self.ctx.affine_axes(load)

    def lay_out(self, load: Load, col: Frame) -> None:
        """Lanes side by side, whatever runs along in memory: lines of it are read whole."""
        array, base = self.nests.allocate(load.out, ("col", "row")), self.values.base(load, col)
        walks = ", ".join(self.values.walk(load, d, col) for d in ("col", "row"))
        col.add(f"lay_out({base}, {walks}, nc, nr, {array.name}, R);")
        col.things["array", load.out.id] = array

    def store_sheet(self, store: Store, col: Frame) -> None:
        array = self.ctx.array(store.value, col)
        if array is None or array.layout != ("col", "row") or array.start:
            array, count = self.ctx.row_major(f"s_{store.buffer}", self.ctx.ctype(store.value), ("col", "row"))
            self.ctx.task.take(array.name, array.ctype, count)
            self.nests.over(col, array.layout, [self.nests.writer(store.value, array)])
        walks = ", ".join(self.nests.output_walk(store.buffer, d, col) for d in ("col", "row"))
        col.add(f"lay_back({self.nests.output_base(store.buffer)}, {walks}, nc, nr, {array.name}, R);")

    def allocate(self, value: Value, home: Frame) -> Array:
        """An array of one tile; with what was computed for the neighbouring column before, if that is read."""
        if value.id not in self.passed:
            return self.nests.allocate(value, lanes_last(value.dims))
        array, count = self.longer(value, self.program.reverse)
        first, entry, last = ("col0 + nc == cols", "nc", "0") if self.program.reverse else ("col0 == 0", "0", "C")
        home.add(f"enter({array.name}, {count}, {first}, {entry}, {last});")
        return array

    def longer(self, value: Value, reverse: bool) -> tuple[Array, str]:
        """(array with a column more, elements of one column)."""
        layout = ("col", *self.widths(value))
        array, _ = self.ctx.row_major(f"t{value.id}", self.ctx.ctype(value), layout)
        count = array.stride("col")
        self.ctx.task.take(array.name, array.ctype, f"(C + 1) * {count}")
        return (array if reverse else replace(array, start=count)), count

    def shift(self, s: Shift, home: Frame) -> None:
        """The array of x, a column further on."""
        self.ensure(s.x)
        array = self.ctx.array(s.x, home)
        assert array is not None
        home.things["array", s.out.id] = replace(array, start="" if s.by == 1 else array.stride("col"))

    def nest(self, group: Group, col: Frame, alone: bool = False) -> None:
        """The scans of a group, one after the other for each block of lanes; `alone`: for the states only."""
        members, widths = group.members, self.widths(group.scans[0].out)
        for s in members:
            col.things["walked", s.out.id] = True
        loops = self.nests.outer(col, widths[:-1], parallel=False)
        blocks = Blocks(self.nests, loops, widths[-1] if widths else "")
        for s in members:
            match s:
                case Scan():
                    self.scan(s, Pass(blocks, BACKWARD if s.reverse else FORWARD), col, group.local, alone)
                case Shift():
                    self.shift(s, blocks.frame)
                case _:
                    self.fill(s.out, blocks)
        self.nests.close(blocks.frame, col)

    def scan(self, s: Scan, at: Pass, col: Frame, local: Collection[int], alone: bool) -> None:
        """h = a h + b, one column after the other, and the sums that ride along."""
        parts, body = states_of(s), at.body
        for value, state in parts:
            self.hold_state(state, self.ctx.ctype(value), at)
        keep = not alone and s.out.id not in self.riders.spent
        arrays = [self.kept(s, value, state, at, col, value.id in local) for value, state in parts] if keep else []
        riding = [] if alone else [self.board(r, col) for r in self.riders.of(s) if not self.rehearsing or isinstance(r, Reduce)]
        for r in riding:
            self.hold_sum(r, at)
        self.hold_steady([*operands(s), *(r.value for r in riding)], {v.id for v, _ in parts}, at)
        for (value, _), new in zip(parts, Step(s, self.program, self.values, at).states, strict=True):
            body.add(f"const {self.ctx.ctype(value)} h{value.id} = {new};")
        for k, (value, state) in enumerate(parts):
            body.add(*([f"{at.at(f'h_{state}')} = h{value.id};"] if s.a is not None else []),
                     *([f"{self.nests.target(arrays[k], body)} = h{value.id};"] if keep else []))
            body.names[value.id] = f"h{value.id}"
        for r in riding:
            self.add_to(r, at)
        at.close()

    def hold_state(self, state: str, ctype: str, at: Pass) -> None:
        array = self.states.array(state)
        if state in self.states.running:
            at.hold(f"e_{state}", ctype, lambda each: self.nests.target(array, each))
            at.sum(f"h_{state}", ctype, array)
        else:
            at.state(f"h_{state}", ctype, array)

    def fill(self, value: Value, blocks: Blocks) -> None:
        """A local value for all columns of a block; if it is read one column away, that of the tile before comes along."""
        at, reverse = Pass(blocks, FORWARD), self.program.reverse
        array = blocks.local(value, reverse)
        if value.id in self.passed:
            widths = self.widths(value)
            past, count = self.ctx.row_major(f"t{value.id}_past", array.ctype, widths)
            self.ctx.task.take(past.name, past.ctype, count)
            first = "col0 + nc == cols" if reverse else "col0 == 0"
            entry = at.column_of(array, "nc") if reverse else at.column_of(replace(array, start=""), "0")
            at.assign(lambda each: (entry(each), "=", f"{first} ? {array.ctype}(0) : {self.nests.target(past, each)}"))
            last = at.column_of(array, "0" if reverse else "(nc - 1)")
            at.finish(lambda each: (self.nests.target(past, each), "=", last(each)))
        self.hold_steady([value], set(), at)
        at.body.add(f"{self.nests.target(array, at.body)} = {self.values.get(value, at.body)};")
        at.close()
        blocks.frame.things["array", value.id] = array

    def hold_steady(self, roots: Sequence[Value], scanned: set[int], at: Pass) -> None:
        for v in self.steady(roots, scanned, at.blocks.dims):
            if self.ctx.expensive(v):
                self.ensure(v)
            at.value(v)

    def steady(self, roots: Sequence[Value], scanned: set[int], lane: Dims) -> list[Value]:
        """The largest values below `roots` that vary along the lane but not along the columns."""
        found, seen, todo = list[Value](), set[int](scanned), list(roots)
        while todo:
            v = todo.pop()
            if v.id in seen:
                continue
            seen.add(v.id)
            if "col" not in v.dims and v.dims and set(lane) <= set(v.dims):
                found.append(v)
            elif not self.ctx.is_stored(v):
                todo += operands(self.program.defines[v.id])
        return found

    def kept(self, s: Scan, value: Value, state: str, at: Pass, col: Frame, local: bool) -> Array:
        """The array of a state. Where it is read one column away, it has the state with which the tile is entered."""
        if not local:
            array, count = self.longer(value, s.reverse)
            if value.id in self.passed:
                col.add(f"copy_to({state}, {count}, {array.name}{f' + nc * {count}' if s.reverse else ''});")
            col.things["array", value.id] = array
            return array
        array = at.blocks.local(value, s.reverse)
        if value.id in self.passed:
            entry = at.column_of(array, "nc") if s.reverse else at.column_of(replace(array, start=""), "0")
            at.assign(lambda each: (entry(each), "=", at.at(f"{'h' if s.a is not None else 'e'}_{state}")))
        at.blocks.frame.things["array", value.id] = array
        return array

    # ---- sums that ride along with a scan ---------------------------------------------------------------------------

    def board(self, rider: Rider, col: Frame) -> Riding:
        """Where it adds up: the array of an inner sum, else that of the carry."""
        if isinstance(rider, Reduce):
            array = self.allocate(rider.out, col)
            col.add(f"start({array.name} + {array.offset({})}, {self.elements(array)}, {array.ctype}(0));")
            col.things["array", rider.out.id] = array
            return Riding(rider, rider.x, array)
        value = summand(rider)
        assert value is not None
        return Riding(rider, value, self.states.array(rider.state))

    def elements(self, array: Array) -> str:
        return " * ".join(map(self.ctx.capacity, array.layout))

    def hold_sum(self, r: Riding, at: Pass) -> None:
        """A sum along the columns is added up where the block ends, one along the lanes after each column."""
        ctype = self.ctx.ctype(r.value)
        if r.rider.over == ("col",):
            at.sum(r.name, ctype, r.array)
        elif at.blocks.lane in r.rider.over:
            at.lanes(r.name, ctype, at.column, zero=True)

    def add_to(self, r: Riding, at: Pass) -> None:
        body, value = at.body, self.values.get(r.value, at.body)
        if r.rider.over == ("col",) or at.blocks.lane in r.rider.over:
            body.add(f"{at.at(r.name)} += {value};")
        else:
            body.add(f"{self.nests.target(r.array, body)} += {value};")
        if at.blocks.lane in r.rider.over:
            target = r.array.at({d: i for d, i in at.column.bound.items() if d in r.array.layout})
            body.after.append(f"{target} += total_of<{r.array.ctype}>({r.name});")

    def reduce(self, s: Reduce, home: Frame, array: Array) -> None:
        """Along the strip, or across it: whichever keeps the strip contiguous in memory."""
        order = lanes_last(s.x.dims)
        if order[-1] in s.over:
            self.nests.inner(home, [(replace(s, over=tuple(d for d in order if d in s.over)), array)])
        else:
            self.across(s, home, array, tuple(d for d in order if d not in s.over))
        home.things["array", s.out.id] = array

    def across(self, s: Reduce, home: Frame, array: Array, kept: Dims) -> None:
        ctype, strip = self.ctx.ctype(s.out), kept[-1]
        chunk = self.nests.chunk(self.nests.outer(home, kept[:-1], parallel=False), strip)
        chunk.add(f"{ctype} h[CHUNK]; start(h, n, {ctype}({'0' if s.op == 'sum' else LOWEST[ctype]}));")
        body = self.nests.strip(self.nests.outer(chunk, s.over, parallel=False), strip)
        value = self.values.get(s.x, body)
        body.add(f"h[c] += {value};" if s.op == "sum" else f"h[c] = max_(h[c], {value});")
        self.nests.close(body, chunk)
        chunk.add(f"put({array.name}, Walk{{{array.offset({**chunk.bound, strip: 'first'})}, 1, nullptr}}, n, h);")
        self.nests.close(chunk, home)

    # ---- sums -------------------------------------------------------------------------------------------------------

    def rides(self, dims: Dims, over: Dims) -> bool:
        return False

    def fold(self, dims: Dims, over: Dims, fold: Fold, col: Frame) -> None:
        if "row" in over:
            self.folds.along(col, fold, dims, tuple(d for d in over if d != "row"), "row")
        elif over and dims:
            self.folds.across(col, fold, dims[:-1], over, dims[-1])
        else:
            super().fold(dims, over, fold, col)

