"""The integer arguments of a kernel: one list gives their names to the source and their values to the launch."""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fuse.codegen.launch import Layout, extents, layout, params
from fuse.codegen.tile import Affine, Load, Slot, TileProgram


@dataclass(frozen=True)
class Launch:
    """What is known when a kernel is called: strides by canonical buffer name, and the tile (R, C, spread; see emit)."""

    strides: Mapping[str, Sequence[int]]
    sizes: Mapping[str, int]
    tile: tuple[int, int, int]


Argument = Callable[[Launch], Sequence[int]]


def arguments(program: TileProgram) -> list[tuple[tuple[str, ...], Argument]]:
    """(names, values at launch) of groups of arguments, in order."""
    out: list[tuple[tuple[str, ...], Argument]] = [
        (tuple(a.name.replace("i", "n") for a in program.axes), lambda at: extents(program, at.sizes)),
        (tuple(f"p{k}" for k in range(len(program.params))), lambda at: params(program, at.sizes)),
        (("R", "C", "spread"), lambda at: at.tile),
    ]
    out += [load_arguments(load) for load in program.loads]
    return [*out, *(output_arguments(slot) for slot in program.outputs)]


def output_arguments(slot: Slot) -> tuple[tuple[str, ...], Argument]:
    return tuple(f"{slot.name}_{a}" for a in slot.axes), lambda at: at.strides[slot.name]


def load_arguments(load: Load) -> tuple[tuple[str, ...], Argument]:
    name = f"l{load.number}"
    axes = sorted({a for i in load.index if isinstance(i, Affine) for a, _ in i.terms}, key=lambda a: int(a[1:]))
    data = sum(not isinstance(i, Affine) for i in load.index)
    names = (f"{name}_b", *(f"{name}_{a}" for a in axes), *(f"{name}_d{k}" for k in range(data)))

    def values(launch: Launch) -> Sequence[int]:
        found: Layout = layout(load, launch.strides[load.buffer], launch.sizes)
        return (found.base, *(found.axes[a] for a in axes), *found.data)
    return names, values
