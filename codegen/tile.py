"""Tile programs: what a region does to one tile, as straight-line SSA that a target only has to spell.

`lower.lower(region, staged)` makes one. Its meaning, with R rows and C columns per tile:

    for each point of `batch`                                  grid axes shared by both operands of some dot
      for each tile of dim "row"                               the other grid axes, flattened row-major
        for level in levels
          level.before                                         values without "col": once per row tile
          states of this level with scope "row" := identity    (see `Update`)
          for each tile of dim "col"                           the stream axes, flattened row-major
            level.body                                         values with "col", one level at a time
            level.updates                                      in order
            level.stores                                       those whose value set has "col"; the others once, before
          states of this level with scope "row": store, in their `storage` dtype
    states with scope "grid": `Update` accumulates in memory over all tiles; cast to `storage` once at the very end

A region with scans is a walk (`walk`): "row" holds at most one axis, the lanes; the column tiles are visited in order, from
the last if `reverse`, and carry the state of each `Scan`. A scan the other way needs its states before the walk gets there:
the state in which it enters each tile is one of `entries`, stored by another kernel, or kept by a first pass the other way,
which computes `rehearsal`. `counter` is the axis, a dim of its own, that counts the tiles in what is stored so; they then
have exactly `region.tile` columns.

Names are canonical: axes are i0, i1, ..., input buffers x0, x1, ..., states c0, ..., stores y0, ... in order of first
visit, so that regions which differ in names only give the same text. Sizes are never text: an axis's extent, a `Param`
and every stride are arguments of the kernel (`codegen.launch`).

A dim is a str: "row", "col", or the name of a free axis (a carry's width, or the contraction axis of an inner dot).
`Value.dims` is ordered row, col, then free axes by number. Values broadcast by dim name, whatever dims they lack.
"""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from fuse.codegen.statements import (
    Affine,
    Const,
    Dot,
    Final,
    Imaginary,
    ImaginaryPart,
    Index,
    Load,
    Param,
    Point,
    Position,
    Reduce,
    Scan,
    Shift,
    Staged,
    Statement,
    Value,
    operands,
)
from fuse.ir.expr import Axis
from fuse.ir.program import Kind, Region
from fuse.ir.size import Size

__all__ = [
    "Affine", "Const", "Dot", "Entry", "Final", "Imaginary", "ImaginaryPart", "Index", "Level", "Load", "Param",
    "Point", "Position", "Reduce", "Scan", "Shift", "Skip", "Slot", "Staged", "State", "Statement", "Store",
    "TileProgram", "Update", "Value", "operands",
]


# ---- carries --------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class State:
    """A carry's storage; that of a scan (AFFINE) is the `state` of its `Scan`. `dims`: its tile dims (free dims are its
    width); `keeps`: the batch axes it varies along.

    scope "row":  has every batch axis, reduces "col": lives in the target's registers or a row buffer, is complete
                  after its level's column loop.
    scope "grid": accumulates over row tiles or batch points: lives in memory of its full shape, starts at the identity,
                  complete when the kernel is. Nothing in the kernel reads it back as Final.

    `entered` is the output for the states with which a scan enters the tiles, all of them along the counter, if they are kept.
    """

    name: str
    kind: Kind
    dtype: str                    # accumulation dtype of the value (int64 for ARGMAX: the comparison is in `compare`)
    dims: tuple[str, ...]
    keeps: tuple[str, ...]
    scope: str
    level: int
    stores: tuple[str, ...]       # output buffers (canonical): one, or (m, l) for an LSE, or () if internal
    compare: str                  # dtype of the body
    entered: str = ""


@dataclass(frozen=True)
class Update:
    """state op= contribution of this tile, reduced over `over` (tile dims; () if the state has all of them).

    SUM            state += sum_over value [* wide]
    MAX / ARGMAX   value; nan wins; ARGMAX keeps the first position along `position` (an axis name)
    LSE            s = value: m' = max(m, max_over s); l = l * exp(m - m') + sum_over exp(s - m');
                   m starts at -inf, l at 0; s - m' is s where m' = -inf, and m - m' is 0 where m = -inf
    SUM with `relative` = an LSE state whose Update precedes it in the list, with operand s, old maximum m and new m':
                   weight = exp(exponent * (s - m')) * (s - m')**moment
                   T_n = rho * sum_j C(n, j) * delta**(n - j) * T_j + sum_over weight * value [* wide]
                   with delta = m - m' (0 where m = -inf), rho = exp(exponent * delta); T_j for j < n are the states
                   `lower[j]` (c0.l for the LSE's own l), all as they were before this tile: so update the
                   highest moment first (the list is ordered so).

    `wide`, if there is one, makes it a matrix product: it lacks one of the state's other dims, value lacks wide's width.
    `value` None counts as 1. Values may lack dims of state.dims + over: broadcast (a sum counts each position).

    With a `limit` (dims (), ("row",) or ("col",); value then has row and col) a target may leave out what a row of the
    tile - a column, if the limit varies along it - adds, where each |value| in it is below the limit, or all are 0.
    """

    state: str
    kind: Kind
    value: Value | None
    wide: Value | None
    over: tuple[str, ...]
    relative: str | None = None
    operand: Value | None = None
    exponent: int | float = 1
    moment: int = 0
    lower: tuple[str, ...] = ()
    position: str | None = None
    limit: Value | None = None

    @property
    def values(self) -> tuple[Value, ...]:
        return tuple(v for v in (self.value, self.wide, self.operand, self.limit) if v is not None)

    @property
    def lane(self) -> str:
        """The dim of what may be left out together: "row" or "col"."""
        return "col" if self.limit is not None and "col" in self.limit.dims else "row"


@dataclass(frozen=True)
class Store:
    """An emit: y[axes] = value, contiguous, in axis order; `dims` are the tile dims among those axes."""

    buffer: str
    value: Value
    axes: tuple[str, ...]
    dims: tuple[str, ...]


@dataclass(frozen=True)
class Entry:
    """The scan of `state` enters the tile with what `load` finds there; it varies along the counter of tiles."""

    state: str
    load: Load


@dataclass(frozen=True)
class Skip:
    """The tile adds nothing if the least value of `form` over its positions is >= `bound`."""

    form: Affine
    bound: int


@dataclass(frozen=True)
class Level:
    """`skips`: a column tile may be left out if any of them holds (a causal mask); ignoring them is always right."""

    before: tuple[Statement, ...]
    body: tuple[Statement, ...]
    updates: tuple[Update, ...]
    stores: tuple[Store, ...]
    skips: tuple[Skip, ...] = ()
    stage: tuple[Value, ...] = ()     # staged programs: values of `body` that later levels read back as Staged


# ---- the program ----------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Slot:
    """A buffer of the kernel: canonical `name`, the region's own name `source`, element type, and for an output the
    axes (canonical) that make its shape."""

    name: str
    source: str
    dtype: str
    axes: tuple[str, ...] = ()


@dataclass(frozen=True)
class TileProgram:
    region: Region
    axes: tuple[Axis, ...]                          # canonical axes (i0, ...) with their extents
    batch: tuple[str, ...]
    dims: dict[str, tuple[str, ...]]                # dim -> the axes it flattens; "row" and "col" are always there
    params: tuple[Size, ...]
    inputs: tuple[Slot, ...]
    outputs: tuple[Slot, ...]                       # one per region.stores name, in that order
    states: tuple[State, ...]
    levels: tuple[Level, ...]
    defines: dict[int, Statement] = field(default_factory=dict)   # Value.id -> its (first) definition
    reverse: bool = False                           # the column tiles are visited from the last one
    rehearsal: tuple[Statement, ...] = ()           # of the body: what scans against the walk are made of, and they
    entries: tuple[Entry, ...] = ()
    counter: str = ""

    def axis(self, name: str) -> Axis:
        return self.axes[int(name[1:])]

    def state(self, name: str) -> State:
        return next(s for s in self.states if s.name == name)

    def slot(self, name: str) -> Slot:
        return next(s for s in (*self.inputs, *self.outputs) if s.name == name)

    def extent(self, dim: str) -> Size:
        """The number of positions of a dim."""
        out = Size.of(1)
        for name in self.dims[dim]:
            out = out * self.axis(name).extent
        return out

    def statements(self) -> Iterator[Statement]:
        for level in self.levels:
            yield from level.before
            yield from level.body
        yield from (e.load for e in self.entries)

    @property
    def scans(self) -> tuple[Scan, ...]:
        return tuple(s for s in self.statements() if isinstance(s, Scan))

    @property
    def loads(self) -> tuple[Load, ...]:
        """Every load, by number."""
        found = {s.number: s for s in self.statements() if isinstance(s, Load)}
        return tuple(found[k] for k in sorted(found))

    @property
    def dots(self) -> tuple[Dot, ...]:
        return tuple({s.out.id: s for s in self.statements() if isinstance(s, Dot)}.values())

    def source_of(self, value: Value) -> Statement:
        """The statement behind `value`, looking through widening float casts (exact, so a target may load narrow)."""
        widens = {("bfloat16", "float32"), ("float16", "float32"), ("float32", "float64"),
                  ("bfloat16", "float64"), ("float16", "float64")}
        statement = self.defines[value.id]
        while isinstance(statement, Point) and statement.op == "cast" \
                and (statement.args[0].dtype, statement.out.dtype) in widens:
            statement = self.defines[statement.args[0].id]
        return statement
