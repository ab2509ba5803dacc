"""What a kernel learns at launch: extents and strides, read off the tensors, so that one source serves any layout."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from fuse.codegen.tile import Affine, Load, TileProgram


@dataclass(frozen=True)
class Layout:
    """Element offset of a load = base + sum axes[a] * position(a) + sum data[k] * (k-th computed index)."""

    base: int
    axes: dict[str, int]
    data: tuple[int, ...]


def layout(load: Load, strides: Sequence[int], sizes: Mapping[str, int]) -> Layout:
    """`strides` are the buffer's, in elements; axes the load does not vary along affinely are absent."""
    base, data = 0, list[int]()
    axes: dict[str, int] = {}
    for index, stride in zip(load.index, strides, strict=True):
        if isinstance(index, Affine):
            base += index.offset.evaluate(sizes) * stride
            for axis, coefficient in index.terms:
                axes[axis] = axes.get(axis, 0) + coefficient.evaluate(sizes) * stride
        else:
            data.append(stride)
    return Layout(base, axes, tuple(data))


def extents(program: TileProgram, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The extent of every axis of the program, in order i0, i1, ..."""
    return tuple(axis.extent.evaluate(sizes) for axis in program.axes)


def params(program: TileProgram, sizes: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(p.evaluate(sizes) for p in program.params)


def shapes_of(program: TileProgram, sizes: Mapping[str, int]) -> tuple[tuple[tuple[int, ...], torch.dtype], ...]:
    """(shape, element type) of every output."""
    by_name = {axis.name: axis.extent for axis in program.axes}
    return tuple((tuple(by_name[a].evaluate(sizes) for a in slot.axes), getattr(torch, slot.dtype)) for slot in program.outputs)


def allocate(program: TileProgram, sizes: Mapping[str, int], device: torch.device) -> dict[str, torch.Tensor]:
    """One uninitialised contiguous tensor per output, by canonical name."""
    return {slot.name: torch.empty(shape, dtype=dtype, device=device)
            for slot, (shape, dtype) in zip(program.outputs, shapes_of(program, sizes), strict=True)}
