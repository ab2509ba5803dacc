"""Running a walk: one launch, the memory that it keeps states in, and the parts of sums over its lanes added up."""
from __future__ import annotations

from math import isqrt, prod
from typing import Any

import torch
from torch import Tensor

from fuse.codegen.tile import Value
from fuse.codegen.triton.launch import Bound, Window, power_of_two
from fuse.codegen.triton.walk import Walk


def run_walk(bound: Bound, function: Any) -> dict[str, Tensor]:
    """Every output of a piece that walks its columns in order."""
    kernel = bound.kernel
    assert isinstance(kernel, Walk)
    tiles = -(-bound.rows // bound.tile("row"))
    span = bound.schedule.knob("span") or power_of_two(isqrt(max(1, bound.cols - 1)))
    tiled, outputs = dict(kernel.tiled), dict[str, Tensor]()
    for slot in bound.program.outputs:
        shape, state = [bound.extent[a] for a in slot.axes], tiled.get(slot.name)
        shape, axes = ([tiles, *shape], ("part", *slot.axes)) if state else (shape, slot.axes)
        dtype = getattr(torch, state.dtype if state else slot.dtype)
        outputs[slot.name] = torch.empty(shape, dtype=dtype, device=bound.device)
        bound.place(slot.name, slot.name, outputs[slot.name], axes)
    for places, buffers in ((-(-bound.cols // span), kernel.entries), (span + 1, kernel.kept), (1, kernel.parked)):
        for name, value in buffers:
            count = tiles * bound.batch * places * elements(bound, value)
            bound.tensors[name] = torch.empty(count, dtype=getattr(torch, value.dtype), device=bound.device)
    bound.run(function, Window((0, bound.rows), (0, bound.cols), span, 1))
    return {slot.source: total(outputs[slot.name], tiles) if slot.name in tiled else outputs[slot.name]
            for slot in bound.program.outputs}


def total(parts: Tensor, tiles: int) -> Tensor:
    return parts[0] if tiles == 1 else parts.sum(0)


def elements(bound: Bound, value: Value) -> int:
    """Of a tile, as it lies in memory: extents are those of the kernel's tiles."""
    return prod(bound.tile("row") if d == "row" else bound.size(f"F{d[1:]}") for d in value.dims)
