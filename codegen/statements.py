"""The statements of tile programs (see `tile`): `out` is defined by ..."""
from __future__ import annotations

from dataclasses import dataclass

from fuse.ir.size import Size


@dataclass(frozen=True)
class Value:
    """One SSA value: a tile with dimensions `dims` (no dims: one scalar per batch point)."""

    id: int
    dims: tuple[str, ...]
    dtype: str

    @property
    def scope(self) -> str:
        """"tile" (row and col), "col", "row", or "batch" (neither): how often it has to be computed."""
        row, col = "row" in self.dims, "col" in self.dims
        return "tile" if row and col else "col" if col else "row" if row else "batch"

    def __repr__(self) -> str:
        return f"v{self.id}"


# ---- statements: `out` is defined by ... ----------------------------------------------------------------------------

@dataclass(frozen=True)
class Const:
    """A literal."""

    out: Value
    value: float | int | bool


@dataclass(frozen=True)
class Param:
    """An extent as an int64 scalar: argument number `index` of `TileProgram.params`."""

    out: Value
    index: int


@dataclass(frozen=True)
class Position:
    """The int64 position along the axis `axis`: dims are () for a batch axis, else the dim the axis belongs to.

    If the dim flattens several axes, position = (flat // product of later extents) % extent.
    """

    out: Value
    axis: str


@dataclass(frozen=True)
class Affine:
    """offset + sum of coefficient * position(axis); never out of range (proved by `lower`)."""

    terms: tuple[tuple[str, Size], ...]
    offset: Size


Index = Affine | Value
"""An int64 Value is a computed index (data dependent, or not proved in range): `lower` has clamped it into range."""


@dataclass(frozen=True)
class Load:
    """`buffer[index...]`, one index per dimension of the buffer; out.dtype is the buffer's element type.

    Strides come from `launch.layout(load, tensor.stride(), sizes)`: element offset =
    base + sum over axes of stride(axis) * position + sum over computed indices of stride(dimension) * value.
    Beyond the end of a tile's dims the target masks.
    """

    out: Value
    buffer: str
    index: tuple[Index, ...]
    number: int    # of this load in the program, which names its stride arguments


@dataclass(frozen=True)
class Point:
    """A pointwise op of fuse.ir.ops, with that table's meaning. `cast` goes from args[0].dtype to out.dtype."""

    out: Value
    op: str
    args: tuple[Value, ...]


@dataclass(frozen=True)
class Dot:
    """out[m, n] = sum over k of a[m, k] * b[k, n], accumulated in out.dtype; a and b are of that dtype too.

    k: the contracted free dims, all of them in both operands. m and n are disjoint. Look through
    `TileProgram.source_of` to find the narrower load behind a cast operand.
    """

    out: Value
    a: Value
    b: Value
    k: tuple[str, ...]

    @property
    def m(self) -> tuple[str, ...]:
        return tuple(d for d in self.a.dims if d not in self.k)

    @property
    def n(self) -> tuple[str, ...]:
        return tuple(d for d in self.b.dims if d not in self.k)


@dataclass(frozen=True)
class Reduce:
    """`op` ("sum" or "max") of x over free dims: what is left of an inner reduction that is not a Dot."""

    out: Value
    op: str
    x: Value
    over: tuple[str, ...]


@dataclass(frozen=True)
class Final:
    """The finished state of a lower level, in its accumulation dtype: `state` is c0, or c0.m / c0.l for an LSE."""

    out: Value
    state: str


@dataclass(frozen=True)
class Staged:
    """Read back from the slab what level `level` computed for the same Value (only in staged programs)."""

    out: Value
    level: int


@dataclass(frozen=True)
class Scan:
    """out[t] = a[t] * out[t'] + b[t] for the columns t in order, t' = t - 1 (t + 1 if `reverse`); `a` None counts as 1.

    `state` holds out[t'] when a tile is entered, 0 at first. With an imaginary part all are complex: out + i imaginary.out...
    """

    out: Value
    a: Value | None
    b: Value
    state: str
    reverse: bool
    imaginary: ImaginaryPart | None = None


@dataclass(frozen=True)
class ImaginaryPart:
    out: Value
    a: Value | None
    b: Value
    state: str


@dataclass(frozen=True)
class Imaginary:
    """`out` is the imaginary part that the `Scan` of `scan` computes beside it."""

    out: Value
    scan: Value


@dataclass(frozen=True)
class Shift:
    """out[t] = x[t - by], by = 1 or -1, 0 beyond the ends: computed in an earlier tile, or what a `Scan` enters with."""

    out: Value
    x: Value
    by: int


Statement = Const | Param | Position | Load | Point | Dot | Reduce | Final | Staged | Scan | Imaginary | Shift


def operands(statement: Statement) -> tuple[Value, ...]:
    match statement:
        case Load():
            return tuple(i for i in statement.index if isinstance(i, Value))
        case Point():
            return statement.args
        case Dot():
            return (statement.a, statement.b)
        case Reduce() | Shift():
            return (statement.x,)
        case Scan():
            more = statement.imaginary
            return tuple(v for v in (statement.a, statement.b, *((more.a, more.b) if more else ())) if v is not None)
        case Imaginary():
            return (statement.scan,)
    return ()
