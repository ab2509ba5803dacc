"""Where states live, how they start, and how they are stored.

A state of scope "row" is a workspace array of one row tile. One of scope "grid" accumulates in memory of its full shape:
in the output itself if that has the same element type and axis order, else in shared workspace that is copied at the end.
Plain sums of float32 are kept in double, running sums from tile to tile; matrix products accumulate in their own type.
"""
from __future__ import annotations

from dataclasses import replace

from fuse.codegen.cpu.context import Array, Context
from fuse.codegen.cpu.frame import Frame
from fuse.codegen.cpu.nests import Nests
from fuse.codegen.cpu.riders import states_of
from fuse.codegen.cpu.spell import CTYPE, LOWEST
from fuse.codegen.cpu.values import ctype_of_sum
from fuse.codegen.tile import State, Update
from fuse.ir.program import Kind


class States:
    def __init__(self, ctx: Context, nests: Nests):
        self.ctx, self.nests, self.program = ctx, nests, ctx.program
        self.arrays: dict[str, Array] = {}
        self.slab: dict[int, Array] = {}
        updates = [u for level in self.program.levels for u in level.updates]
        self.update_of: dict[str, Update] = {u.state: u for u in updates}
        self.running = {state for s in self.program.scans if s.a is None for _, state in states_of(s)}

    def array(self, name: str) -> Array:
        return self.arrays[name]

    def parts(self, state: State) -> list[tuple[str, str, str]]:
        """(name, C++ type, identity) of the arrays that make up a state."""
        dtype = CTYPE[state.compare]
        if state.kind is Kind.AFFINE:
            dtype = ctype_of_sum(state.dtype) if state.name in self.running else dtype
            return [(state.name, dtype, f"{dtype}(0)")]
        u = self.update_of[state.name]
        if state.kind is Kind.LSE:
            return [(f"{state.name}_m", dtype, LOWEST[dtype]), (f"{state.name}_o", dtype, LOWEST[dtype]),
                    (f"{state.name}_l", ctype_of_sum(state.dtype), f"{ctype_of_sum(state.dtype)}(0)")]
        if state.kind is Kind.ARGMAX:
            return [(f"{state.name}_v", dtype, LOWEST[dtype]), (state.name, "int64_t", "int64_t(0)")]
        if state.kind is Kind.MAX:
            return [(state.name, dtype, LOWEST[dtype])]
        wide = u.wide is not None or not u.over
        ctype = dtype if wide else ctype_of_sum(state.dtype)
        return [(state.name, ctype, f"{ctype}(0)")]

    def layout(self, state: State) -> tuple[str, ...]:
        """Dims of the array: as the matrix product makes them (rows of the result, then columns), else canonical."""
        u = self.update_of.get(state.name)
        if u is None or u.wide is None:
            return state.dims
        columns = [d for d in u.wide.dims if d not in u.over]
        return (*(d for d in state.dims if d not in columns), *columns)

    def stored_from(self, state: State) -> list[tuple[str, str]]:
        """(output, array) pairs."""
        names = [f"{state.name}_m", f"{state.name}_l"] if state.kind is Kind.LSE else [state.name]
        return list(zip(state.stores, names, strict=False))

    # ---- one tile of rows -------------------------------------------------------------------------------------------

    def open_rows(self, row: Frame, frame: Frame, states: list[State]) -> None:
        for state in (s for s in states if s.scope == "row"):
            for name, ctype, identity in self.parts(state):
                array, count = self.ctx.row_major(name, ctype, self.layout(state))
                self.ctx.task.take(name, ctype, count)
                self.arrays[name] = array
                row.things["state", name] = array
                frame.add(f"start({name}, {count}, {identity});")

    def close_rows(self, frame: Frame, states: list[State]) -> None:
        for state in (s for s in states if s.scope == "row"):
            for buffer, name in self.stored_from(state):
                self.nests.copy_out(frame, buffer, self.arrays[name], state.dims)

    def open_slab(self, row: Frame) -> None:
        """Staged values: one row tile x the whole stream."""
        for value in self.program.levels[0].stage:
            array, count = self.ctx.row_major(f"t{value.id}", CTYPE[value.dtype], ("row", "col"), {"col": "cols"}, "col0")
            self.ctx.task.take(array.name, array.ctype, count)
            self.slab[value.id] = array
            row.things["array", value.id] = array

    # ---- the whole grid ---------------------------------------------------------------------------------------------

    def axes(self, state: State) -> tuple[str, ...]:
        return state.keeps + tuple(a for d in self.layout(state) for a in self.program.dims[d])

    def direct(self, state: State) -> bool:
        """Whether the state accumulates in its output."""
        u = self.update_of[state.name]
        if state.kind is not Kind.SUM or (u.wide is None and u.over) or not state.stores or self.ctx.walking:
            return False
        slot = self.program.slot(state.stores[0])
        return slot.dtype == state.dtype and slot.axes == self.axes(state)

    def open_grid(self, top: Frame) -> None:
        for state in (s for s in self.program.states if s.scope == "grid"):
            layout = self.layout(state)
            sizes = {"row": "rows", "col": "cols"}
            total = self.total(state)
            for name, ctype, identity in self.parts(state):
                place = state.stores[0] if self.direct(state) else name
                array, count = self.ctx.row_major(place, ctype, layout, sizes)
                array = Array(place, ctype, layout, array.strides, self.offset(state, array, count))
                if self.ctx.walking:
                    array, total = replace(array, start=f"{array.start} + tile * ({total})"), f"((rows + R - 1) / R) * {total}"
                self.arrays[name] = array
                top.things["state", name] = array
                if place == name:
                    self.ctx.shared.take(name, ctype, total)
                if self.overwrites(state):
                    top.add(f"if (rows * cols{''.join(f' * {self.ctx.extent(a)}' for a in self.program.batch)} == 0) "
                            f"start({place}, {total}, {identity});")
                else:
                    top.add(f"start({place}, {total}, {identity});")

    def total(self, state: State) -> str:
        """The number of elements of a state of scope "grid"."""
        return " * ".join(map(self.ctx.extent, self.axes(state))) or "1"

    def offset(self, state: State, array: Array, count: str) -> str:
        """The first element of the tile at this batch point."""
        parts = []
        for k, axis in enumerate(state.keeps):
            later = " * ".join([*map(self.ctx.extent, state.keeps[k + 1:]), count])
            parts.append(f"{axis} * {later}")
        for dim, start in (("row", "row0"), ("col", "col0")):
            if dim in array.layout:
                stride = array.stride(dim)
                parts.append(start if stride == "1" else f"{start} * {stride}")
        return " + ".join(parts)

    def overwrites(self, state: State) -> bool:
        """Whether the first matrix product into the state replaces what is there, so that it needs no start."""
        u = self.update_of[state.name]
        return u.wide is not None and u.relative is None and not self.program.levels[state.level].skips

    def beta(self, state: State, u: Update) -> str:
        if state.scope == "row" or not self.overwrites(state):
            return "1"
        first = [f"{d}0 == 0" for d in u.over]
        first += [f"{a} == 0" for a in self.program.batch if a not in state.keeps]
        return f"{' && '.join(first)} ? 0 : 1"

    def close_grid(self, top: Frame) -> None:
        """Copies what did not accumulate in its output, converting and permuting; in a walk each tile of lanes has its own."""
        for state in (s for s in self.program.states if s.scope == "grid" and not self.direct(s)):
            if self.ctx.walking:
                top.lines += [f"add_up({name}, {self.total(state)}, tiles);" for name, _, _ in self.parts(state)]
            for buffer, name in self.stored_from(state):
                slot, axes = self.program.slot(buffer), self.axes(state)
                if slot.axes == axes:
                    top.add(f"put({buffer}, Walk{{0, 1, nullptr}}, {self.total(state)}, {name});")
                    continue
                frame = top
                for axis in slot.axes:
                    frame = frame.open(f"for (int64_t {axis} = 0; {axis} < {self.ctx.extent(axis)}; ++{axis}) {{")
                to = " + ".join(f"{a} * {buffer}_{a}" for a in slot.axes)
                at = " + ".join(" * ".join([a, *map(self.ctx.extent, axes[k + 1:])]) for k, a in enumerate(axes))
                frame.add(f"{buffer}[{to}] = {CTYPE[slot.dtype]}({name}[{at}]);")
                self.nests.close(frame, top)
