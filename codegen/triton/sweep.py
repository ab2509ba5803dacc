"""Running a piece whose carries stay on chip: one launch, then its splits combined."""
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fuse.codegen.tile import TileProgram
from fuse.codegen.triton.combine import combine
from fuse.codegen.triton.launch import Bound, Window


def run_sweep(bound: Bound, function: Any) -> dict[str, Tensor]:
    """Every carry and emit of a piece: partial parts per split, then combined."""
    program, window = bound.program, bound.window()
    outputs = {slot.name: torch.empty([bound.extent[a] for a in slot.axes], dtype=getattr(torch, slot.dtype),
                                      device=bound.device) for slot in program.outputs}
    for store in (s for level in program.levels for s in level.stores):
        bound.place(store.buffer, store.buffer, outputs[store.buffer], store.axes)
    parts: dict[str, Tensor] = {}
    for part in bound.kernel.parts:
        state = program.state(part.name.partition(".")[0])
        axes = [*state.keeps, *(a for d in state.dims for a in program.dims[d])]
        direct = direct_output(program, part.name, window)
        if direct is not None:
            tensor = outputs[direct.name]
            bound.place(part.name, f"o_{part.var}", tensor, direct.axes)
        else:
            shape = [window.splits, *(bound.extent[a] for a in axes)]
            tensor = parts[part.name] = torch.empty(shape, dtype=getattr(torch, part.dtype), device=bound.device)
            bound.place(part.name, f"o_{part.var}", tensor, ("split", *axes))
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
