"""Values of a walk as Triton text, one column at a time: a tile has lanes and widths, and what varies along the columns is
emitted in the loop over them.

A scan's state is a variable of the loop. What a value was one column before is either such a state before its update, or
a variable that the loop hands on. A scan against the direction of the loop was computed beforehand and is read back.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fuse.codegen.roles import dim_order, refuse
from fuse.codegen.tile import (
    Dot,
    Imaginary,
    ImaginaryPart,
    Level,
    Position,
    Reduce,
    Scan,
    Shift,
    State,
    Statement,
    Store,
    TileProgram,
    Update,
    Value,
)
from fuse.codegen.triton.block import Block, Order, fit
from fuse.codegen.triton.emit import Tiles
from fuse.codegen.triton.spell import DTYPES, literal, lowest

RANK = 3      # dimensions of a tile, at most


def one_column(x: Any) -> Any:
    """A tile program, or a part of one, without the dim "col": of tiles that are one column each."""
    if isinstance(x, tuple):
        return tuple(map(one_column, x))
    if isinstance(x, (Value, State)):
        return replace(x, dims=tuple(d for d in x.dims if d != "col"))
    if isinstance(x, Store):
        return replace(x, value=one_column(x.value), dims=tuple(d for d in x.dims if d != "col"))
    if isinstance(x, TileProgram):
        return replace(x, states=one_column(x.states), levels=one_column(x.levels), rehearsal=one_column(x.rehearsal),
                       defines={i: one_column(s) for i, s in x.defines.items()})
    if isinstance(x, Statement | ImaginaryPart | Update | Level):
        return replace(x, **{name: one_column(part) for name, part in vars(x).items()})
    return x


def states_of(s: Scan) -> list[tuple[Value, str]]:
    """(value, state) of a scan: of both parts of a complex one."""
    return [(s.out, s.state), *([(s.imaginary.out, s.imaginary.state)] if s.imaginary else [])]


class Steps(Tiles):
    """Emits into the loop that `enter` names. `held`: scans against that loop which were read back; `walked`: those that
    it computes; `handed`: what it hands from one column to the next, by the `Shift` that reads it."""

    def __init__(self, program: TileProgram):
        self.varying = frozenset(s.out.id for s in program.statements() if "col" in s.out.dims)
        super().__init__(one_column(program), frozenset(), "ieee")
        (self.stream,) = program.dims["col"]
        self.scans = {v.id: (s, state) for s in self.program.scans for v, state in states_of(s)}
        self.held: dict[int, Value] = {}
        self.handed: dict[int, Shift] = {}
        self.enter(self.prologue, program.reverse)

    def enter(self, loop: Block, reverse: bool, suffix: str = "") -> None:
        """From now on values are those of the columns of `loop`; states are named with `suffix`."""
        self.loop, self.reverse, self.suffix = loop, reverse, suffix
        self.walked: list[Scan] = []
        self.before: dict[str, str] = {}       # variables that the loop sets first: states before their update

    # ---- places -----------------------------------------------------------------------------------------------------

    def block_of(self, value: Value) -> Block:
        return self.loop if value.id in self.varying else super().block_of(value)

    def position(self, axis: str) -> tuple[str, tuple[str, ...]]:
        return ("column", ()) if axis == self.stream else super().position(axis)

    def sizes(self, dims: Order) -> list[str]:
        return [self.range(d).size for d in dims]

    def flat(self, dims: Order) -> str:
        """Offsets of a tile's elements in memory that holds nothing but such tiles."""
        terms = []
        for k, d in enumerate(dims):
            step = fit(self.range(d).step or self.range(d).var, (d,), dims)
            terms.append(" * ".join([step, *self.sizes(dims[k + 1:])]))
        return " + ".join(terms)

    # ---- statements -------------------------------------------------------------------------------------------------

    def has_dot(self, value: Value) -> bool:
        """Nothing here is computed in another order than that of its dims."""
        return False

    def spell(self, s: object, order: Order, block: Block) -> str:
        match s:
            case Scan() | Imaginary():
                return self.scanned(s.out)
            case Shift():
                return self.shifted(s)
            case Position() if s.axis == self.stream:
                return "tl.cast(column, tl.int64)"
            case Dot():
                dims = tuple(sorted({*s.a.dims, *s.b.dims}, key=dim_order))
                return self.over("sum", f"{self.operand(s.a, dims)} * {self.operand(s.b, dims)}", dims, s.k, s.out.dtype)
            case Reduce():
                return self.over(s.op, self.operand(s.x, s.x.dims), s.x.dims, s.over, s.out.dtype)
        return super().spell(s, order, block)

    def over(self, op: str, text: str, dims: Order, over: Sequence[str], dtype: str) -> str:
        """The sum or maximum of a tile of dims `dims`."""
        if len(dims) > RANK:
            raise refuse(f"a tile of {len(dims)} dimensions")
        rest = lowest(dtype) if op == "max" else literal(0.0) if dtype == "float32" else "0"
        text = f"tl.where({' & '.join(fit(self.range(d).mask, (d,), dims) for d in over)}, {text}, {rest})"
        for axis in sorted((dims.index(d) for d in over), reverse=True):
            text = f"tl.sum({text}, {axis})" if op == "sum" else f"tl.reduce({text}, {axis}, nanmax)"
        return text

    def state(self, value: Value) -> str:
        """The variable that holds a scan's value at the column before."""
        return self.scans[value.id][1] + self.suffix

    def scanned(self, value: Value) -> str:
        s, _ = self.scans[value.id]
        if s.reverse != self.reverse:
            return self.read_back(value, 0)
        if s not in self.walked:
            self.walked.append(s)
            parts = states_of(s)
            for (out, _), text in zip(parts, self.recurrence(s, [self.state(v) for v, _ in parts]), strict=True):
                self.loop.add(f"h{out.id} = {text}")
            for out, _ in parts:
                self.loop.add(f"{self.state(out)} = h{out.id}")
        return f"h{value.id}"

    def recurrence(self, s: Scan, old: list[str]) -> list[str]:
        def text(value: Value | None) -> str:
            assert value is not None
            return self.boxed(value, s.out.dims)
        if s.imaginary is None:
            return [f"{text(s.a)} * {old[0]} + {text(s.b)}" if s.a is not None else f"{old[0]} + {text(s.b)}"]
        summands, (re, im) = [text(s.b), text(s.imaginary.b)], old
        if s.a is None:
            return [f"{h} + {b}" for h, b in zip(old, summands, strict=True)]
        a, i = text(s.a), text(s.imaginary.a)
        return [f"{a} * {re} - {i} * {im} + {summands[0]}", f"{a} * {im} + {i} * {re} + {summands[1]}"]

    def shifted(self, s: Shift) -> str:
        if s.x.id not in self.scans:
            if self.suffix:
                raise refuse("a value one position away within a rehearsal")
            self.handed[s.out.id] = s
            return f"p{s.out.id}"
        if self.scans[s.x.id][0].reverse != self.reverse:
            return self.read_back(s.x, s.by)
        self.before[f"p{s.x.id}"] = self.state(s.x)
        return f"p{s.x.id}"

    # ---- what is kept in memory -------------------------------------------------------------------------------------

    def slot(self, value: Value, by: int = 0) -> str:
        """Where the value of a scan `by` columns before this one is kept: a tile of columns has one place more than columns,
        before them or behind, for the state that it is entered with."""
        offset = (0 if self.scans[value.id][0].reverse else 1) - by
        return f"column - first{f' + {offset}' if offset > 0 else f' - {-offset}' if offset else ''}"

    def entered(self, value: Value) -> str:
        """The place of that state."""
        return "end - first" if self.scans[value.id][0].reverse else ""

    def kept(self, value: Value, slot: str) -> str:
        memory = self.arguments(f"h_{self.scans[value.id][1]}", "part", f"h_{self.scans[value.id][1]}")
        return self.in_memory(memory, f"far(pid, span + 1){f' + {slot}' if slot else ''}", value.dims)

    def entry(self, value: Value) -> str:
        """Where the state with which the scan enters the present tile is kept."""
        memory = self.arguments(f"e_{self.scans[value.id][1]}", "part", f"e_{self.scans[value.id][1]}")
        return self.in_memory(memory, "far(pid, spans) + tile", value.dims)

    def parked(self, name: str, value: Value) -> str:
        """Where a variable of the walk waits."""
        return self.in_memory(self.arguments(f"w_{name}", "part", f"w_{name}"), "far(pid, 1)", value.dims)

    def in_memory(self, memory: str, number: str, dims: Order) -> str:
        at = " * ".join([f"({number})" if " + " in number and dims else number, *self.sizes(dims)])
        return f"{memory} + {at}{f' + ({self.flat(dims)})' if dims else ''}"

    def read_back(self, value: Value, by: int) -> str:
        self.held[value.id] = value
        name = self.name()
        self.loop.add(f"{name} = tl.load({self.kept(value, self.slot(value, by))})")
        return name

    def zeros(self, dims: Order, dtype: str) -> str:
        return f"tl.full([{', '.join(self.sizes(dims))}], {literal(0.0) if dtype == 'float32' else 0}, {DTYPES[dtype]})"
