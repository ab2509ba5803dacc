"""What the parts of the CPU emitter share: the program, the frames being written, the workspace, names of extents."""
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from fuse.codegen.cpu.frame import Frame
from fuse.codegen.cpu.spell import CTYPE, EXPENSIVE
from fuse.codegen.tile import (
    Affine,
    Dot,
    Final,
    Imaginary,
    Load,
    Point,
    Reduce,
    Scan,
    Shift,
    Staged,
    Statement,
    Store,
    TileProgram,
    Value,
    operands,
)
from fuse.ir.size import Size

INDEX = {"row": "r", "col": "j"}


@dataclass(frozen=True)
class Array:
    """Memory with dimensions `layout`, row-major. `strides` and `start` are C++ expressions.

    `start` is the element offset of the tile's first position (a slab or a whole-grid state starts at the tile).
    """

    name: str
    ctype: str
    layout: tuple[str, ...]
    strides: tuple[str, ...]
    start: str = ""

    def stride(self, dim: str) -> str:
        return self.strides[self.layout.index(dim)] if dim in self.layout else "0"

    def offset(self, index: dict[str, str]) -> str:
        """Element offset at `index`; dims that `index` lacks are at 0."""
        parts = [self.start] if self.start else []
        for dim, stride in zip(self.layout, self.strides, strict=True):
            if dim in index:
                parts.append(index[dim] if stride == "1" else f"{index[dim]} * {stride}")
        return " + ".join(parts) or "0"

    def at(self, index: dict[str, str]) -> str:
        return f"{self.name}[{self.offset(index)}]"


@dataclass
class Work:
    """Workspace pieces in order: (name, C++ type, number of elements)."""

    pieces: list[tuple[str, str, str]] = field(default_factory=list)

    def take(self, name: str, ctype: str, count: str) -> str:
        if all(p[0] != name for p in self.pieces):
            self.pieces.append((name, ctype, count))
        return name


class Context:
    """`task`: workspace of each outer thread; `shared`: of the whole launch. Frames are None while not open. `native`: the
    CPU multiplies bfloat16 faster than float32. `inside`: threads may share the loops of a tile. `fixed`: axes whose extents
    are part of the text. `awaited`: stores of the tile, and what its products read in place, that no loop has asked for yet."""

    def __init__(self, program: TileProgram, native: bool = False, inside: bool = True, fixed: Mapping[str, int] | None = None):
        self.program, self.native, self.walking = program, native, bool(program.scans)
        self.inside, self.fixed = inside, dict(fixed or {})
        self.awaited: list[Store | Load] = []
        self.task, self.shared = Work(), Work()
        self.sheets: set[int] = set()         # loads that a walk lays out
        self.top = Frame("")
        self.batch: Frame | None = None
        self.row: Frame | None = None
        self.level: Frame | None = None
        self.col: Frame | None = None
        self._final: dict[int, bool] = {}
        self._cost: dict[int, bool] = {}

    # ---- names ------------------------------------------------------------------------------------------------------

    def ctype(self, value: Value) -> str:
        return CTYPE[value.dtype]

    def count(self, dim: str) -> str:
        """How many positions of `dim` this tile has."""
        return {"row": "nr", "col": "nc"}.get(dim) or f"n{dim[1:]}"

    def capacity(self, dim: str) -> str:
        return {"row": "R", "col": "C"}.get(dim) or f"n{dim[1:]}"

    def extent(self, name: str) -> str:
        return f"n{name[1:]}"

    def size(self, extent: Size) -> str:
        """An extent as C++: a number, the extent of an axis, or a parameter."""
        if extent.constant is not None:
            return f"int64_t({extent.constant})"
        known = [a.name for a in self.program.axes if a.extent == extent]
        return self.extent(known[0]) if known else f"p{self.program.params.index(extent)}"

    def range_of(self, axis: str) -> tuple[str, str]:
        """The least and the greatest position of an axis in the tile at hand."""
        if axis in self.program.batch:
            return axis, axis
        dim = next(d for d, axes in self.program.dims.items() if axis in axes)
        axes, count = self.program.dims[dim], self.count(dim)
        first = {"row": "row0", "col": "col0"}.get(dim, "0")
        if len(axes) == 1:
            return first, f"({first} + {count} - 1)"
        later = " * ".join(map(self.extent, axes[axes.index(axis) + 1:])) or "1"
        at = f"({first}, {count}, {later}, {self.extent(axis)})"
        return f"lowest{at}", f"highest{at}"

    def row_major(self, name: str, ctype: str, layout: tuple[str, ...], sizes: dict[str, str] | None = None,
                  start: str = "") -> tuple[Array, str]:
        """An array of the tile's capacities (or `sizes`), and its number of elements."""
        sizes = {d: self.capacity(d) for d in layout} | (sizes or {})
        strides = [" * ".join(sizes[d] for d in layout[k + 1:]) or "1" for k in range(len(layout))]
        strides = [f"({s})" if " " in s else s for s in strides]
        return Array(name, ctype, layout, tuple(strides), start), " * ".join(sizes[d] for d in layout) or "1"

    # ---- where values live ------------------------------------------------------------------------------------------

    def final(self, value: Value) -> bool:
        """Whether the value depends on a finished state, so that it belongs to a level."""
        return self._below(value, self._final, lambda s: isinstance(s, Final))

    def expensive(self, value: Value) -> bool:
        """Whether the chain from stored values to this one is worth storing rather than repeating."""
        found = self._cost.get(value.id)
        if found is None:
            statement = self.program.defines[value.id]
            match statement:
                case Point():
                    found = statement.op in EXPENSIVE or any(self.expensive(a) for a in statement.args)
                case Load():
                    strided = self.walking and len(value.dims) > 1
                    found = bool(value.dims) and (strided or bool(operands(statement)))
                case _:
                    found = False
            self._cost[value.id] = found
        return found

    def _below(self, value: Value, memo: dict[int, bool], test: Callable[[Statement], bool]) -> bool:
        todo, seen = [value], set[int]()
        while todo:
            v = todo.pop()
            if v.id in memo:
                if memo[v.id]:
                    return True
                continue
            seen.add(v.id)
            statement = self.program.defines[v.id]
            if test(statement):
                memo[value.id] = True
                return True
            todo += [a for a in operands(statement) if a.id not in seen]
        memo[value.id] = False
        return False

    def home(self, value: Value) -> Frame:
        """The frame in which a stored copy of the value lives."""
        if "col" in value.dims:
            frame = self.col
        elif self.final(value):
            frame = self.level
        else:
            frame = self.row if "row" in value.dims else self.batch
        assert frame is not None
        return frame

    def array(self, value: Value, frame: Frame) -> Array | None:
        found = frame.thing(("array", value.id))
        assert found is None or isinstance(found, Array)
        return found

    def is_stored(self, value: Value) -> bool:
        """Dots, inner reductions, what depends on other columns and sheets always have an array."""
        statement = self.program.defines[value.id]
        return value.id in self.sheets or isinstance(statement, (Dot, Reduce, Staged, Scan, Imaginary, Shift))

    def joint(self, load: Load) -> list[Value]:
        """Computed indices that vary along more than the rows or the columns: added element by element."""
        return [i for i in load.index if isinstance(i, Value) and i.dims not in ((), ("row",), ("col",))]

    def affine_axes(self, load: Load) -> set[str]:
        return {axis for i in load.index if isinstance(i, Affine) for axis, _ in i.terms}
