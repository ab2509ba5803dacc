"""One launch: arguments read off the tensors, tile extents as constants, the grid and its splits."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

from torch import Tensor

from fuse.codegen import Schedule
from fuse.codegen.launch import layout
from fuse.codegen.triton.kernel import Sweep
from fuse.codegen.triton.pieces import Piece
from fuse.codegen.triton.shapes import has_tile_dot

Env = Mapping[str, Tensor]
INT32 = 2 ** 31 - 1
PARTS = 2 ** 26       # bytes of partial results at a time
WIDEST = 1024        # extent that one tile may have: schedules are chosen on hints, and sizes may turn out otherwise


@dataclass(frozen=True)
class Machine:
    """`units`: programs that run at once; `interpreted`: kernels run in Python, where bfloat16 dots are broken."""

    arch: str
    units: int
    interpreted: bool = False


@dataclass(frozen=True)
class Window:
    """Which rows and columns one launch walks, and over how many splits of `span` columns."""

    rows: tuple[int, int]
    cols: tuple[int, int]
    span: int
    splits: int

    def scalar(self, name: str) -> int:
        return {"row_begin": self.rows[0], "row_end": self.rows[1], "col_begin": self.cols[0], "col_end": self.cols[1],
                "span": self.span, "splits": self.splits}[name]


def power_of_two(n: int, least: int = 1) -> int:
    return max(least, 1 << (n - 1).bit_length())


def reach(steps: int, axes: Sequence[tuple[int, int]]) -> int:
    """A bound on the distance between two positions `steps` apart in a walk over axes given by (extent, stride).

    Each step moves by the last axis's stride; where an earlier axis moves on, also by what its stride differs from that.
    """
    total, period, inner = 0, 1, 0
    for extent, stride in reversed(axes):
        total += -(-steps // period) * abs(stride - inner)
        period, inner = period * max(1, extent), stride * extent
    return total


class Bound:
    """A piece at given tensors and sizes: extents, layouts, and every argument of its kernel but the window's."""

    def __init__(self, piece: Piece, kernel: Sweep, schedule: Schedule, machine: Machine, env: Env, sizes: Mapping[str, int]):
        self.piece, self.kernel, self.schedule, self.machine = piece, kernel, schedule, machine
        self.program = program = piece.program
        self.extent = {axis.name: axis.extent.evaluate(sizes) for axis in program.axes}
        self.params = tuple(p.evaluate(sizes) for p in program.params)
        self.inputs = {slot.name: env[slot.source] for slot in program.inputs}
        self.layouts = {s.number: layout(s, self.inputs[s.buffer].stride(), sizes) for s in program.loads}
        self.least = 16 if has_tile_dot(program) or program.dots else 1
        self.rows, self.cols = self.dim("row"), self.dim("col")
        self.batch = prod(self.extent[a] for a in program.batch)
        self.device = next(iter(self.inputs.values())).device
        self.tensors: dict[str, Tensor] = {}
        self.strides: dict[tuple[str, str], int] = {}
        self.spilled = False

    def attach(self, env: Env) -> None:
        """Other tensors of the same shapes and strides."""
        self.inputs = {slot.name: env[slot.source] for slot in self.program.inputs}

    def release(self) -> None:
        """Keep no tensor alive."""
        self.inputs, self.tensors = {}, {}

    def place(self, key: str, prefix: str, tensor: Tensor, axes: Sequence[str]) -> None:
        """`tensor` is what the argument `key` stands for; its strides are those of `prefix`, one per axis."""
        self.tensors[key] = tensor
        for axis, stride in zip(axes, tensor.stride(), strict=True):
            self.strides[prefix, axis] = stride

    def dim(self, name: str) -> int:
        return prod(self.extent[a] for a in self.program.dims[name])

    def tile(self, dim: str) -> int:
        """Tile extents: the schedule's, made no larger than the dim needs (dots want 16)."""
        wanted = self.schedule.extent(dim if dim in ("row", "col") else "deep")
        return min(wanted, power_of_two(self.dim(dim), self.least))

    def constant(self, what: tuple[Any, ...], window: Window) -> Any:
        match what:
            case ("tile", dim):
                return self.tile(dim)
            case ("whole", dim):
                if self.dim(dim) > WIDEST:
                    raise RuntimeError(f"an axis of {self.dim(dim)} elements does not fit a tile of this schedule")
                return power_of_two(self.dim(dim), self.least)
            case ("even", "row"):
                return (window.rows[1] - window.rows[0]) % self.tile("row") == 0
            case ("even", "col"):
                return (window.cols[1] - window.cols[0]) % self.tile("col") == 0 and window.span % self.tile("col") == 0
            case ("even", dim, size):
                return self.dim(dim) % self.constant(self.kernel.constants[size], window) == 0
            case ("knob", name):
                return self.schedule.knob(name)
            case ("index",):
                import triton.language as tl
                return tl.int64 if self.wide_index else tl.int32
            case ("widen",):
                return self.machine.interpreted
        raise AssertionError(what)

    @cached_property
    def wide_index(self) -> bool:
        """Does a position, or an offset from where a tile begins, not fit an int32?"""
        tables = [(s.out.dims, self.layouts[s.number].axes) for s in self.program.loads]
        names = dict.fromkeys(name for name, _ in self.strides)
        dims = {axis: dim for dim, axes in self.program.dims.items() for axis in axes}
        for name in names:
            axes = {axis: stride for (owner, axis), stride in self.strides.items() if owner == name and axis in dims}
            tables.append((tuple(dict.fromkeys(dims[a] for a in axes)), axes))
        spans = [sum(self.span(dim, axes) for dim in found) for found, axes in tables]
        slabs = [self.tile("row") * self.tensors[s.name].stride(1) for s in self.kernel.stages]
        return max(*spans, *slabs, self.rows + WIDEST, self.cols + WIDEST) > INT32

    def span(self, dim: str, strides: Mapping[str, int]) -> int:
        """How far apart, at most, two elements of a tile lie along `dim`; 0 if this kernel has no tile along it."""
        sizes = (self.tile(dim),) if dim in ("row", "col") else [
            self.size(name) for name in (f"F{dim[1:]}", f"K{dim[1:]}", f"W{dim[1:]}") if name in self.kernel.constants]
        return reach(max(sizes, default=1) - 1, [(self.extent[a], strides.get(a, 0)) for a in self.program.dims[dim]])

    def size(self, name: str) -> int:
        """The extent of a tile, by the name of the constant."""
        return int(self.constant(self.kernel.constants[name], Window((0, 0), (0, 0), 1, 1)))

    def argument(self, what: tuple[Any, ...], window: Window) -> Any:
        match what:
            case ("scalar", name):
                return window.scalar(name)
            case ("input", name):
                return self.inputs[name]
            case ("stride", number, axis):
                return self.layouts[number].axes.get(axis, 0)
            case ("gather", number, k):
                return self.layouts[number].data[k]
            case ("base", number):
                return self.layouts[number].base
            case ("extent", axis):
                return self.extent[axis]
            case ("param", index):
                return self.params[index]
            case ("part" | "output" | "slab", name):
                return self.tensors[name]
            case ("out", name, axis):
                return self.strides[name, axis]
            case ("slab stride", name, dim):
                return self.tensors[name].stride(dim)
        raise AssertionError(what)

    def run(self, function: Any, window: Window) -> None:
        """One launch over `window`."""
        tiles = -(-(window.rows[1] - window.rows[0]) // self.tile("row"))
        if tiles * self.batch == 0:
            return
        chunks = -(-self.dim(self.kernel.chunked) // self.schedule.knob("chunk")) if self.kernel.chunked else 1
        arguments = [self.argument(what, window) for what in self.kernel.arguments.values()]
        constants = {name: self.constant(what, window) for name, what in self.kernel.constants.items()}
        kernel = function[(tiles * window.splits * self.batch, chunks)](
            *arguments, **constants, **self.compilation())
        self.spilled = self.spilled or getattr(kernel, "n_spills", 0) > 0

    def compilation(self) -> dict[str, int]:
        """Triton's own options."""
        limit = {"maxnreg": self.schedule.knob("registers")} if self.schedule.knob("registers") else {}
        return {"num_warps": self.schedule.knob("warps", 4), "num_stages": self.schedule.knob("stages", 2), **limit}

    def windows(self) -> list[Window]:
        """The whole piece, its columns split until the machine is full, in rounds whose partial results take `PARTS`."""
        col = self.tile("col")
        tiles = max(1, -(-self.cols // col))
        programs = max(1, -(-self.rows // self.tile("row")) * self.batch)
        single = tiles if self.schedule.knob("single") else 0
        splits = single or self.schedule.knob("splits") or min(tiles, max(1, 2 * self.machine.units // programs))
        span = -(-tiles // min(splits, tiles)) * col
        splits = max(1, -(-self.cols // span))
        most = max(2, self.schedule.knob("parts", PARTS) // max(1, self.partial_bytes()))
        if splits <= most:
            return [Window((0, self.rows), (0, self.cols), span, splits)]
        return [Window((0, self.rows), (k * span, min((k + most) * span, self.cols)), span, min(most, splits - k))
                for k in range(0, splits, most)]

    def partial_bytes(self) -> int:
        """What one split of the columns stores."""
        return sum(4 * self.batch * prod(self.dim(d) for d in part.dims) for part in self.kernel.parts)
