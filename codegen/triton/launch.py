"""Running the pieces of a region: arguments read off the tensors, grids, splits, slabs and their GEMMs."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from fuse.codegen import Schedule
from fuse.codegen.launch import Layout, layout
from fuse.codegen.tile import Load, TileProgram, Update
from fuse.codegen.triton.combine import combine
from fuse.codegen.triton.gemm import accumulate, multiply
from fuse.codegen.triton.kernel import Sweep
from fuse.codegen.triton.pieces import Piece

Env = Mapping[str, Tensor]
INT32 = 2 ** 31 - 1


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


class Bound:
    """A piece at given tensors and sizes: extents, layouts, and every argument of its kernel but the window's."""

    def __init__(self, piece: Piece, kernel: Sweep, schedule: Schedule, machine: Machine, env: Env, sizes: Mapping[str, int]):
        self.piece, self.kernel, self.schedule, self.machine = piece, kernel, schedule, machine
        self.program = program = piece.program
        self.extent = {axis.name: axis.extent.evaluate(sizes) for axis in program.axes}
        self.params = tuple(p.evaluate(sizes) for p in program.params)
        self.inputs = {slot.name: env[slot.source] for slot in program.inputs}
        self.layouts = {s.number: layout(s, self.inputs[s.buffer].stride(), sizes) for s in program.loads}
        self.rows, self.cols = self.dim("row"), self.dim("col")
        self.batch = prod(self.extent[a] for a in program.batch)
        self.device = next(iter(self.inputs.values())).device
        self.tensors: dict[str, Tensor] = {}
        self.strides: dict[tuple[str, str], int] = {}

    def dim(self, name: str) -> int:
        return prod(self.extent[a] for a in self.program.dims[name])

    def tile(self, dim: str) -> int:
        """Tile extents: the schedule's, made no larger than the dim needs (dots want 16)."""
        wanted = self.schedule.extent(dim if dim in ("row", "col") else "deep")
        return min(wanted, power_of_two(self.dim(dim), self.schedule.knob("least", 16)))

    def constant(self, what: tuple, window: Window) -> Any:
        match what:
            case ("tile", dim):
                return self.tile(dim)
            case ("whole", dim):
                return power_of_two(self.dim(dim), self.schedule.knob("least", 16))
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
                return tl.int64 if self.wide_index() else tl.int32
            case ("widen",):
                return self.machine.interpreted
        raise AssertionError(what)

    def wide_index(self) -> bool:
        """Does some offset not fit an int32?"""
        tensors = [*self.inputs.values(), *self.tensors.values()]
        return any(sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True)) + t.numel() > INT32 for t in tensors)

    def argument(self, what: tuple, window: Window) -> Any:
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
        chunks = -(-self.dim(self.kernel.chunked) // self.schedule.knob("chunk")) if self.kernel.chunked else 1
        arguments = [self.argument(what, window) for what in self.kernel.arguments.values()]
        constants = {name: self.constant(what, window) for name, what in self.kernel.constants.items()}
        function[(tiles * window.splits * self.batch, chunks)](
            *arguments, **constants, num_warps=self.schedule.knob("warps", 4), num_stages=self.schedule.knob("stages", 2))

    def window(self) -> Window:
        """The whole piece, its columns split until the machine is full."""
        col = self.tile("col")
        tiles = -(-self.cols // col)
        programs = -(-self.rows // self.tile("row")) * self.batch
        splits = self.schedule.knob("splits") or min(tiles, max(1, 2 * self.machine.units // programs))
        span = -(-tiles // max(1, min(splits, tiles))) * col
        return Window((0, self.rows), (0, self.cols), span, max(1, -(-self.cols // span)))


def run_sweep(bound: Bound, function: Any) -> dict[str, Tensor]:
    """Every carry and emit of a piece: partial parts per split, then combined."""
    program, window = bound.program, bound.window()
    outputs = {slot.name: torch.empty([bound.extent[a] for a in slot.axes], dtype=getattr(torch, slot.dtype),
                                      device=bound.device) for slot in program.outputs}
    for store in (s for level in program.levels for s in level.stores):
        place(bound, store.buffer, store.buffer, outputs[store.buffer], store.axes)
    parts: dict[str, Tensor] = {}
    for part in bound.kernel.parts:
        state = program.state(part.name.partition(".")[0])
        axes = [*state.keeps, *(a for d in state.dims for a in program.dims[d])]
        direct = direct_output(program, part.name, window)
        if direct is not None:
            tensor = outputs[direct.name]
            place(bound, part.name, f"o_{part.var}", tensor, direct.axes)
        else:
            shape = [window.splits, *(bound.extent[a] for a in axes)]
            tensor = parts[part.name] = torch.empty(shape, dtype=getattr(torch, part.dtype), device=bound.device)
            place(bound, part.name, f"o_{part.var}", tensor, ("split", *axes))
        bound.strides.setdefault((f"o_{part.var}", "split"), 0)
    bound.run(function, window)
    if window.splits > 1:
        for name, value in combine(program, parts).items():
            state = program.state(name.partition(".")[0])
            axes = [*state.keeps, *(a for d in state.dims for a in program.dims[d])]
            slot = output_of(program, name)
            if slot is not None:
                outputs[slot.name].copy_(value.permute([axes.index(a) for a in slot.axes]))
    return {slot.source: outputs[slot.name] for slot in program.outputs}


def output_of(program: TileProgram, part: str) -> Any:
    """The output slot of a part, or None for a hidden one."""
    name, _, suffix = part.partition(".")
    stores = program.state(name).stores
    if not stores or suffix == "v":
        return None
    return program.slot(stores[1] if suffix == "l" else stores[0])


def direct_output(program: TileProgram, part: str, window: Window) -> Any:
    return output_of(program, part) if window.splits == 1 else None


def place(bound: Bound, key: str, prefix: str, tensor: Tensor, axes: tuple[str, ...]) -> None:
    bound.tensors[key] = tensor
    for axis, stride in zip(axes, tensor.stride(), strict=True):
        bound.strides[prefix, axis] = stride


# ---- column slab ----------------------------------------------------------------------------------------------------

def run_slab(bound: Bound, function: Any) -> dict[str, Tensor]:
    """Blocks of the slab are written, then multiplied: by rows if nothing is summed over them, else by columns."""
    program = bound.program
    by_rows = all(u.over == ("col",) for u in program.levels[0].updates)
    sums = [Sum(bound, u) for u in program.levels[0].updates]
    row, col = bound.tile("row"), bound.tile("col")
    room = bound.schedule.knob("slab", 2 ** 28) // max(1, bound.batch * sum(itemsize(s.dtype) for s in bound.kernel.stages))
    step = max(room // max(1, bound.cols if by_rows else bound.rows), 1)
    unit, total = (row, bound.rows) if by_rows else (col, bound.cols)
    step = min(-(-step // unit) * unit, -(-total // unit) * unit)
    for begin in range(0, total, step):
        end = min(begin + step, total)
        rows, cols = ((begin, end), (0, bound.cols)) if by_rows else ((0, bound.rows), (begin, end))
        shape = (bound.batch, rows[1] - rows[0], cols[1] - cols[0])
        for stage in bound.kernel.stages:
            old = bound.tensors.get(stage.name)
            if old is None or old.shape != shape:
                bound.tensors[stage.name] = torch.empty(shape, dtype=getattr(torch, stage.dtype), device=bound.device)
        bound.run(function, Window(rows, cols, col, -(-shape[2] // col)))
        for s in sums:
            s.add(rows, cols)
    return {program.slot(name).source: s.result(name) for s in sums for name in program.state(s.update.state).stores}


def itemsize(dtype: str) -> int:
    return getattr(torch, dtype).itemsize


class Sum:
    """One carry over a slab: out[batch, kept, width] += sum over the other of slab * wide."""

    def __init__(self, bound: Bound, update: Update):
        self.bound, self.update = bound, update
        program = bound.program
        self.state = program.state(update.state)
        self.over_rows = update.over == ("row",)
        self.stage = next(s for s in bound.kernel.stages if update.state in s.states)
        self.width = tuple(a for d in self.state.dims if d not in ("row", "col") for a in program.dims[d])
        self.kept = program.dims["col" if self.over_rows else "row"]
        (slot,) = (program.slot(n) for n in self.state.stores)
        self.slot = slot
        shape = [bound.batch, bound.cols if self.over_rows else bound.rows, prod(bound.extent[a] for a in self.width)]
        self.wide = self.right() if update.wide is not None else None
        self.out = torch.empty(shape, dtype=getattr(torch, slot.dtype), device=bound.device)
        self.total: Tensor | None = None

    def right(self) -> Tensor:
        """The stored right factor as [batch, summed, width], a view where its strides allow it."""
        bound, program = self.bound, self.bound.program
        source = program.source_of(self.update.wide)
        assert isinstance(source, Load)
        tensor, at = bound.inputs[source.buffer], bound.layouts[source.number]
        summed = program.dims["row" if self.over_rows else "col"]
        axes = (*program.batch, *summed, *self.width)
        view = strided(tensor, at, axes, bound.extent)
        return view.reshape(bound.batch, prod(bound.extent[a] for a in summed), self.out_width())

    def out_width(self) -> int:
        return prod(self.bound.extent[a] for a in self.width)

    def add(self, rows: tuple[int, int], cols: tuple[int, int]) -> None:
        slab = self.bound.tensors[self.stage.name]
        left = slab.transpose(1, 2) if self.over_rows else slab
        kept, summed = (cols, rows) if self.over_rows else (rows, cols)
        complete = summed == (0, self.bound.rows if self.over_rows else self.bound.cols)
        right = None if self.wide is None else self.wide[:, summed[0]:summed[1]]
        if complete:
            multiply(left, right, self.out[:, kept[0]:kept[1]])
            return
        if self.total is None:
            self.total = torch.zeros(self.out.shape, dtype=torch.float32, device=self.out.device)
        accumulate(self.total[:, kept[0]:kept[1]], left, right)

    def result(self, name: str) -> Tensor:
        """As a contiguous tensor in the order of the output's axes."""
        out = self.out if self.total is None else self.total.to(self.out.dtype)
        axes = (*self.bound.program.batch, *self.kept, *self.width)
        full = out.reshape([self.bound.extent[a] for a in axes])
        return full.permute([axes.index(a) for a in self.slot.axes]).contiguous()


def strided(tensor: Tensor, at: Layout, axes: tuple[str, ...], extent: Mapping[str, int]) -> Tensor:
    return tensor.as_strided([extent[a] for a in axes], [at.axes.get(a, 0) for a in axes], tensor.storage_offset() + at.base)
