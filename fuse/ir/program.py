"""Programs: what goes in, the steps that store something, what comes out.

Before region forming a program has no steps and its outputs are plain expressions of the inputs. Afterwards every step
defines stored buffers (`Define` by dense evaluation, `Region` by streaming) and outputs read those.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from enum import Enum

from fuse.ir.expr import Axis, Buffer, Expr, make
from fuse.ir.size import Size


class Kind(Enum):
    """What a carry keeps while the stream goes by."""

    SUM = "sum"
    MAX = "max"
    ARGMAX = "argmax"
    LSE = "lse"          # the pair (m, l): defines the buffers NAME.m and NAME.l, value m + log l
    AFFINE = "affine"    # h = a h + b: `body` is the scan expression, whose arguments are a and b


@dataclass(frozen=True)
class Carry:
    """A value accumulated over the axes `over`, stored as the buffer `name` with dimensions `axes`.

    A plain SUM / MAX / ARGMAX / LSE accumulates `body`. A SUM `relative_to` the LSE carry c with operand s accumulates
    `body * exp(exponent * (s - m)) * (s - m)**moment`, m being the maximum of s: it is rescaled when the running
    maximum moves, and what is stored is relative to the final m. `level` is the sweep of the region in which the carry
    is computed: its body may read `carry(part="final")` of lower levels.

    `eps` and `scale` allow an approximation of a plain SUM: of the factors of `body` without the carry's width (what it
    keeps beside walked axes), a target may count as 0 all those entries of a tile that lie in one row of it, if each is
    smaller in magnitude than eps * scale. A row is a point of the grid or of the streams, whichever `scale` varies along.
    The meaning of a program (`fuse.ir.reference`) leaves nothing out.

    An AFFINE carry stores its last state if that is `final`. With a `boundary` it also stores the state with which each tile of
    `Region.tile` positions is entered, as at.NAME[boundary]: an axis that counts the tiles, then `axes` in any order. One
    with an `entry`, a read of what another region stored so, stores nothing: a target that walks against the scan may read
    there what it would have to find out in a walk before. The meaning of a program does not depend on it.
    """

    name: str
    kind: Kind
    body: Expr
    over: tuple[Axis, ...]
    axes: tuple[Axis, ...]
    relative_to: str | None = None
    exponent: int | float = 1
    moment: int = 0
    level: int = 0
    storage: str | None = None    # element type it is stored in, if not the body's (accumulation stays in the body's)
    eps: float | None = None
    scale: Expr | None = None
    final: bool = True
    boundary: tuple[Axis, ...] = ()
    entry: Expr | None = None

    @property
    def buffers(self) -> dict[str, tuple[Axis, ...]]:
        """What it stores: names and axes."""
        if self.kind is Kind.LSE:
            return {f"{self.name}.m": self.axes, f"{self.name}.l": self.axes}
        if self.entry is not None:
            return {}
        at = {f"at.{self.name}": self.boundary} if self.boundary else {}
        return {self.name: self.axes, **at} if self.final else at

    @property
    def stores(self) -> tuple[str, ...]:
        return tuple(self.buffers)


@dataclass(frozen=True)
class Slab:
    """Where gradients may be computed in the forward, from rows of the virtual value that are staged: if at most `elements` of
    a gradient are accumulated in memory beside them, over at least `rows` rows."""

    elements: float = math.inf
    rows: int = 0


@dataclass(frozen=True)
class Emit:
    """A value stored at every position of the stream, at buffer `name` with dimensions `axes`."""

    name: str
    value: Expr
    axes: tuple[Axis, ...]
    level: int = 0


@dataclass(frozen=True)
class Define:
    """A stored value computed from stored values alone, densely: `name[axes] = value`."""

    name: str
    value: Expr
    axes: tuple[Axis, ...]


@dataclass(frozen=True)
class Region:
    """One walk (or `sweeps` walks) along `streams`, for every point of `grid`.

    `streams` with several axes means their product, row-major. `reverse` walks from the end.
    `tile` is the number of positions in a tile of the stream where states at its boundaries are stored or read, else 0.
    """

    name: str
    streams: tuple[Axis, ...]
    grid: tuple[Axis, ...]
    carries: tuple[Carry, ...]
    emits: tuple[Emit, ...] = ()
    reverse: bool = False
    tile: int = 0

    @property
    def sweeps(self) -> int:
        return 1 + max([*(c.level for c in self.carries), *(e.level for e in self.emits)], default=0)

    @property
    def bodies(self) -> tuple[Expr, ...]:
        """Every expression of the region: of carries, of emits, then scales of what may be left out and states at hand."""
        rest = tuple(e for c in self.carries for e in (c.scale, c.entry) if e is not None)
        return tuple(c.body for c in self.carries) + tuple(e.value for e in self.emits) + rest

    def carry(self, name: str) -> Carry:
        return next(c for c in self.carries if c.name == name)

    @property
    def stores(self) -> tuple[str, ...]:
        return tuple(n for c in self.carries for n in c.stores) + tuple(e.name for e in self.emits)


Step = Define | Region


@dataclass(frozen=True)
class Term:
    """`value` added into an output at `index`, one integer expression per dimension (a data index scatters)."""

    index: tuple[Expr, ...]
    value: Expr


@dataclass(frozen=True)
class Output:
    """A result of the program: the sum of its terms over a zero tensor. Positions no term reaches are zero.

    `gradient_of` names the input whose gradient this is, or is None for a forward result.
    """

    buffer: Buffer
    terms: tuple[Term, ...]
    gradient_of: str | None = None


@dataclass(frozen=True)
class Check:
    """Every element of `index` must lie in 0 .. extent - 1, as the operation `op` demands in eager mode."""

    op: str
    index: Expr
    extent: Size


@dataclass(frozen=True)
class Program:
    """`cotangents` are the inputs that arrive only in the backward; `anchors` the values the importer found virtual;
    `checks` hold before anything else is computed, or the program raises."""

    inputs: tuple[Buffer, ...]
    outputs: tuple[Output, ...]
    steps: tuple[Step, ...] = ()
    cotangents: tuple[str, ...] = ()
    anchors: tuple[Expr, ...] = ()
    checks: tuple[Check, ...] = ()
    hints: tuple[tuple[str, int], ...] = field(default=(), compare=False)

    @property
    def regions(self) -> tuple[Region, ...]:
        return tuple(s for s in self.steps if isinstance(s, Region))

    def roots(self) -> Iterator[Expr]:
        """Every expression of the program: steps in order, outputs, checks."""
        for step in self.steps:
            yield from (step.value,) if isinstance(step, Define) else step.bodies
        for output in self.outputs:
            for term in output.terms:
                yield from (*term.index, term.value)
        yield from (check.index for check in self.checks)


def on_values(program: Program, f: Callable[[list[Expr]], list[Expr]]) -> Program:
    """Applies a rewrite of expressions to the outputs and the anchors alike."""
    roots = [e for o in program.outputs for t in o.terms for e in (*t.index, t.value)]
    done = iter(f([*roots, *program.anchors]))
    outputs = tuple(Output(o.buffer, tuple(Term(tuple(next(done) for _ in t.index), next(done)) for t in o.terms),
                           o.gradient_of) for o in program.outputs)
    return replace(program, outputs=outputs, anchors=tuple(done))


def stored(name: str, dtype: str, axes: tuple[Axis, ...]) -> Expr:
    """A read of the stored value `name` at its own axes."""
    buffer = Buffer(name, dtype, tuple(a.extent for a in axes))
    return make("read", *(make("iota", axis=a) for a in axes), buffer=buffer)


def carry_part(carry: Carry, part: str, suffix: str = "") -> Expr:
    """A carry of the same region, read inside it: `running`, `final` or `prefix`; suffix .m or .l for an LSE.

    A prefix has a value at every position of the stream, so it varies along it.
    """
    dtype = "int64" if carry.kind is Kind.ARGMAX else carry.body.dtype
    axes = carry.axes + carry.over if part == "prefix" else carry.axes
    return make("carry", name=carry.name + suffix, part=part, dtype=dtype, axes=axes)
