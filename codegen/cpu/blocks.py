"""Scans of one shape for a block of lanes at a time: what a block holds stays in registers, its columns in the first cache.

    blocks(lanes, [&](int first, auto n) {           n is SPAN, or what is left
      {
        float h[SPAN]; ...                           held: states, sums, values that no column changes
        for (int j ...) lanes(n, [&](int c) { h[c] = a * h[c] + b; t[j * SPAN + c] = h[c]; });
        ...                                          and put back
      }
      ...                                            the next scan, which may read t
    });

Scans `belong together` if none needs a sum over lanes or widths of another. What only they read is `local`: it has memory
for one block.
"""
from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

from fuse.codegen.cpu.context import Array
from fuse.codegen.cpu.frame import Frame
from fuse.codegen.cpu.nests import Nests
from fuse.codegen.cpu.riders import Riders, summand
from fuse.codegen.cpu.values import Strip
from fuse.codegen.tile import Dot, Imaginary, Point, Reduce, Scan, Shift, Statement, TileProgram, Value, operands

LOOP = "lanes(n, [&](int c) EACH {"
Assignment = Callable[[Frame], tuple[str, str, str]]      # (target, = or +=, value) for one lane


@dataclass
class Group:
    """Scans that share a nest, the ids of the values that are local to it, and both in the order of their computation."""

    scans: list[Scan]
    local: set[int]
    members: list[Statement]


class Groups:
    """`below(values)`: ids of what they are computed from, down to what is stored; `repeated`: values stored besides."""

    def __init__(self, program: TileProgram, riders: Riders, below: Callable[[list[Value]], set[int]],
                 repeated: Collection[Value]):
        self.program, self.riders, self.below, self.repeated = program, riders, below, repeated
        self.of: dict[int, Group] = {}
        groups: list[Group] = []
        for scan in riders.scans:
            if not groups or not self.joins(scan, groups[-1]):
                groups.append(Group([], set(), []))
            groups[-1].scans.append(scan)
        for group in groups:
            group.local = self.local(group)
            members = [s for s in program.levels[0].body if s in group.scans or s.out.id in group.local]
            group.members = self.ordered([s for s in members if not isinstance(s, Imaginary)])
            self.of.update({s.out.id: group for s in group.members})

    def joins(self, scan: Scan, group: Group) -> bool:
        """Point by point, so to speak: does nothing it needs depend on the group but by maps and shifts?"""
        if set(scan.out.dims) != set(group.scans[0].out.dims) or len(scan.out.dims) < 2:
            return False
        mine = {v.id for s in group.scans for v in states(s)}
        todo, seen = self.reads(scan), set[int]()
        while todo:
            v = todo.pop()
            if v.id in seen or v.id in mine:
                continue
            seen.add(v.id)
            statement = self.program.defines[v.id]
            if isinstance(statement, (Reduce, Dot)) and self.riders.needs(v.id, mine):
                return False
            todo += operands(statement)
        return True

    def ordered(self, members: list[Statement]) -> list[Statement]:
        """Each as soon as what it reads is there, scans last: the sums that ride along read more than their scan."""
        rest, done = list(members), list[Statement]()
        while rest:
            missing = {v.id for s in rest for v in states(s)}
            ready = [s for s in rest if not self.below(self.reads(s)) & missing - {v.id for v in states(s)}]
            done.append(next((s for s in ready if not isinstance(s, Scan)), ready[0]))
            rest.remove(done[-1])
        return done

    def reads(self, s: Statement) -> list[Value]:
        return [*operands(s), *(self.ridden(s) if isinstance(s, Scan) else ())]

    def ridden(self, scan: Scan) -> list[Value]:
        return [v for r in self.riders.of(scan) if (v := r.x if isinstance(r, Reduce) else summand(r)) is not None]

    def local(self, group: Group) -> set[int]:
        """Of what the scans read or leave at all their points: that which nothing outside of the group reads."""
        level, dims = self.program.levels[0], set(group.scans[0].out.dims)
        if len(dims) < 2:
            return set()
        found = {v.id for s in group.scans for v in states(s) if s.out.id not in self.riders.spent}
        found |= {s.out.id for s in level.body if set(s.out.dims) == dims and isinstance(s, (Point, Shift))
                  and (isinstance(s, Shift) or s.out in self.repeated)}
        inside = {s.out.id for s in group.scans}
        riding = [r for s in group.scans for r in self.riders.of(s)]
        while True:
            reads = [v for s in level.body if s.out.id in found | inside for v in self.reads(s)]
            reach = self.below(reads) | {v.id for s in group.scans for v in states(s)}
            stored = [s for s in level.body if isinstance(s, (Scan, Reduce, Dot, Shift)) or s.out in self.repeated]
            outside = [s for s in stored if s.out.id not in found | inside and s not in riding]
            roots = [v for s in outside for v in operands(s)] + [s.value for s in level.stores]
            roots += [v for u in level.updates if u not in riding for v in u.values]
            hidden = {s.out.id for s in level.body if isinstance(s, Shift) and s.x.id not in found}
            kept = (found & reach) - self.below(roots) - hidden
            if kept == found:
                return found
            found = kept


def states(s: Statement) -> list[Value]:
    """What a statement computes: two values if it is a complex scan."""
    return [s.out, *([s.imaginary.out] if isinstance(s, Scan) and s.imaginary else [])]


# ---- loops ----------------------------------------------------------------------------------------------------------

class Blocks:
    """The loop over blocks of the dim `lane` ("": one lane) inside `loops`."""

    def __init__(self, nests: Nests, loops: Frame, lane: str):
        self.nests, self.ctx, self.loops, self.lane = nests, nests.ctx, loops, lane
        count = f"int({self.ctx.count(lane)})" if lane else ""
        self.frame = loops.open(f"blocks({count}, [&](int first, auto n) EACH {{", footer="});") if lane else loops.open("{")
        if lane:
            self.frame.things["strip"] = Strip(lane, limit="SPAN")

    def local(self, value: Value, reverse: bool) -> Array:
        """An array of the block with a column more: behind the last one, or in front of the first."""
        name, ctype = f"t{value.id}", self.ctx.ctype(value)
        layout, width = ("col", *self.dims), "SPAN" if self.lane else "1"
        self.ctx.task.take(name, ctype, f"(C + 1) * {width}")
        if self.lane:
            self.frame.add(f"{ctype}* const {name}_here = {name} - first;")
        strides = (width, "1") if self.lane else ("1",)
        return Array(f"{name}_here" if self.lane else name, ctype, layout, strides, "" if reverse else width)

    @property
    def dims(self) -> tuple[str, ...]:
        return (self.lane,) if self.lane else ()


class Pass:
    """One pass over the columns of a block; `body` is what it does for one lane of one column."""

    def __init__(self, blocks: Blocks, order: str):
        self.blocks, self.nests, self.ctx = blocks, blocks.nests, blocks.ctx
        self.frame = blocks.frame.open("{")
        self.column = self.frame.open(order, {"col": "j"})
        self.body = self.each(self.column)
        self.ends: list[Assignment] = []

    def each(self, frame: Frame) -> Frame:
        return frame.open(LOOP, {self.blocks.lane: "c"}, footer="});") if self.blocks.lane else frame.open("{")

    def at(self, name: str) -> str:
        return f"{name}[c]" if self.blocks.lane else name

    def lanes(self, name: str, ctype: str, frame: Frame, zero: bool = False) -> None:
        if self.blocks.lane:
            frame.add(f"{ctype} {name}[SPAN];" + (f" fill({name}, {ctype}(0));" if zero else ""))
        else:
            frame.add(f"{ctype} {name}{' = 0' if zero else ''};")

    def sum(self, name: str, ctype: str, array: Array) -> None:
        """A sum along the columns that starts at zero and is added to an array where the pass ends."""
        self.lanes(name, ctype, self.frame, zero=True)
        self.finish(lambda each: (self.nests.target(array, each), "+=", self.at(name)))

    def state(self, name: str, ctype: str, array: Array) -> None:
        """An array's elements, which are put back where the pass ends."""
        self.hold(name, ctype, lambda each: self.nests.target(array, each))
        self.finish(lambda each: (self.nests.target(array, each), "=", self.at(name)))

    def value(self, value: Value) -> None:
        self.hold(f"b{value.id}", self.ctx.ctype(value), lambda each: self.nests.values.get(value, each))
        self.body.names[value.id] = self.at(f"b{value.id}")

    def hold(self, name: str, ctype: str, text: Callable[[Frame], str]) -> None:
        self.lanes(name, ctype, self.frame)
        self.assign(lambda each: (self.at(name), "=", text(each)))

    def finish(self, assignment: Assignment) -> None:
        self.ends.append(assignment)

    def assign(self, assignment: Assignment) -> None:
        """For every lane, before the loop over the columns; after it once that is closed."""
        each = self.each(self.frame)
        to, how, value = assignment(each)
        each.add(f"{to} {how} {value};")
        self.nests.close(each, self.frame)

    def column_of(self, array: Array, at: str) -> Callable[[Frame], str]:
        """The element of the array in the column `at`."""
        here = replace(array, layout=array.layout[1:], strides=array.strides[1:],
                       start=" + ".join(filter(None, (array.start, f"{at} * {array.strides[0]}" if at != "0" else ""))))
        return lambda each: here.at({d: f"(first + {each.bound[d]})" for d in here.layout if d == self.blocks.lane}
                                    | {d: each.bound[d] for d in here.layout if d != self.blocks.lane})

    def close(self) -> None:
        self.nests.close(self.body, self.frame)
        for end in self.ends:
            self.assign(end)
        self.nests.close(self.frame, self.blocks.frame)
