"""The integer arguments of a kernel: one list gives their names to the source and their values to the launch."""
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from fuse.codegen.launch import Layout, extents, layout, params
from fuse.codegen.tile import Affine, Load, TileProgram


@dataclass(frozen=True)
class Launch:
    """What is known when a kernel is called. `tile`: R, C, spread (see emit)."""

    tensors: Mapping[str, torch.Tensor]     # by canonical name, inputs and outputs
    sizes: Mapping[str, int]
    tile: tuple[int, int, int]


def arguments(program: TileProgram) -> list[tuple[str, Callable[[Launch], int]]]:
    """(name, value at launch) of every argument, in order."""
    out: list[tuple[str, Callable[[Launch], int]]] = []
    out += [(f"n{k}", lambda at, k=k: extents(program, at.sizes)[k]) for k in range(len(program.axes))]
    out += [(f"p{k}", lambda at, k=k: params(program, at.sizes)[k]) for k in range(len(program.params))]
    out += [(name, lambda at, k=k: at.tile[k]) for k, name in enumerate(("R", "C", "spread"))]
    for load in program.loads:
        out += load_arguments(load, program)
    for slot in program.outputs:
        for k, axis in enumerate(slot.axes):
            out.append((f"{slot.name}_{axis}", lambda at, s=slot.name, k=k: at.tensors[s].stride(k)))
    return out


def load_arguments(load: Load, program: TileProgram) -> list[tuple[str, Callable[[Launch], int]]]:
    name = f"l{load.number}"

    def at(launch: Launch) -> Layout:
        return layout(load, launch.tensors[load.buffer].stride(), launch.sizes)
    axes = sorted({a for i in load.index if isinstance(i, Affine) for a, _ in i.terms}, key=lambda a: int(a[1:]))
    out: list[tuple[str, Callable[[Launch], int]]] = [(f"{name}_b", lambda launch: at(launch).base)]
    out += [(f"{name}_{a}", lambda launch, a=a: at(launch).axes[a]) for a in axes]
    data = sum(not isinstance(i, Affine) for i in load.index)
    return out + [(f"{name}_d{k}", lambda launch, k=k: at(launch).data[k]) for k in range(data)]
