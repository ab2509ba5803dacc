"""Running a piece through a slab: blocks of it are written by the kernel, then multiplied by library GEMMs."""
from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor

from fuse.codegen.launch import Layout
from fuse.codegen.tile import Load, Update
from fuse.codegen.triton.carry import sides
from fuse.codegen.triton.gemm import accumulate, multiply
from fuse.codegen.triton.launch import Bound, Window

ROOM = 2 ** 28       # bytes of slab at a time


def run_slab(bound: Bound, function: Any) -> dict[str, Tensor]:
    """Blocks of the slab are written, then multiplied: by rows if nothing is summed over them, else by columns."""
    program = bound.program
    by_rows = all(u.over == ("col",) for u in program.levels[0].updates)
    sums = [Sum(bound, u) for u in program.levels[0].updates]
    row, col = bound.tile("row"), bound.tile("col")
    room = bound.schedule.knob("slab", ROOM) // max(1, bound.batch * sum(itemsize(s.dtype) for s in bound.kernel.stages))
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
    return int(getattr(torch, dtype).itemsize)


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
        self.shape = [bound.batch, bound.cols if self.over_rows else bound.rows, self.out_width()]
        self.wide = self.right() if update.wide is not None else None
        self.out: Tensor | None = None      # filled block by block, or
        self.total: Tensor | None = None    # accumulated

    def right(self) -> Tensor:
        """The stored right factor as [batch, summed, width], a view where its strides allow it."""
        bound, program = self.bound, self.bound.program
        source = program.source_of(sides(self.update)[1])
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
            if self.out is None:
                self.out = torch.empty(self.shape, dtype=getattr(torch, self.slot.dtype), device=slab.device)
            multiply(left, right, self.out[:, kept[0]:kept[1]])
            return
        if self.total is None:
            self.total = torch.zeros(self.shape, dtype=torch.float32, device=slab.device)
        accumulate(self.total[:, kept[0]:kept[1]], left, right)

    def result(self, name: str) -> Tensor:
        """As a contiguous tensor in the order of the output's axes."""
        out = self.out if self.total is None else self.total.to(getattr(torch, self.slot.dtype))
        if out is None:     # there was nothing to sum
            out = torch.zeros(self.shape, dtype=getattr(torch, self.slot.dtype), device=self.bound.device)
        axes = (*self.bound.program.batch, *self.kept, *self.width)
        full = out.reshape([self.bound.extent[a] for a in axes])
        return full.permute([axes.index(a) for a in self.slot.axes]).contiguous()


def strided(tensor: Tensor, at: Layout, axes: tuple[str, ...], extent: Mapping[str, int]) -> Tensor:
    return tensor.as_strided([extent[a] for a in axes], [at.axes.get(a, 0) for a in axes], tensor.storage_offset() + at.base)
