"""Running a piece whose carries stay on chip: one launch, then its splits combined."""
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fuse.codegen.tile import TileProgram
from fuse.codegen.triton.carry import Part
from fuse.codegen.triton.combine import combine
from fuse.codegen.triton.launch import Bound, Window


def run_sweep(bound: Bound, function: Any) -> dict[str, Tensor]:
    """Every carry and emit of a piece. What the splits of the columns leave is combined, round after round."""
    program, windows = bound.program, bound.windows()
    outputs = {slot.name: torch.empty([bound.extent[a] for a in slot.axes], dtype=getattr(torch, slot.dtype),
                                      device=bound.device) for slot in program.outputs}
    for store in (s for level in program.levels for s in level.stores):
        bound.place(store.buffer, store.buffer, outputs[store.buffer], store.axes)
    most = max(w.splits for w in windows)
    parts = {p.name: partial(bound, p, most) for p in bound.kernel.parts if most > 1 or not output_of(program, p.name)}
    for part in bound.kernel.parts:
        slot = output_of(program, part.name)
        if part.name in parts:
            bound.place(part.name, f"o_{part.var}", parts[part.name], ("split", *axes_of(bound, part.name)))
        elif slot is not None:
            bound.place(part.name, f"o_{part.var}", outputs[slot.name], slot.axes)
            bound.strides[f"o_{part.var}", "split"] = 0
    combined = rounds(bound, function, windows, parts)
    for name, value in combined.items():
        slot, axes = output_of(program, name), axes_of(bound, name)
        if slot is not None:
            outputs[slot.name].copy_(value.permute([axes.index(a) for a in slot.axes]))
    return {slot.source: outputs[slot.name] for slot in program.outputs}


def rounds(bound: Bound, function: Any, windows: list[Window], parts: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every window is launched; what the windows before it left counts as one more split, before its own."""
    if len(windows) == 1 and windows[0].splits == 1:
        bound.run(function, windows[0])
        return {}
    out: dict[str, Tensor] = {}
    for k, window in enumerate(windows):
        bound.run(function, window)
        seen = {name: torch.cat([out[name][None], x[:window.splits]]) if k else x[:window.splits] for name, x in parts.items()}
        out = combine(bound.program, seen)
    return out


def partial(bound: Bound, part: Part, splits: int) -> Tensor:
    shape = [splits, *(bound.extent[a] for a in axes_of(bound, part.name))]
    return torch.empty(shape, dtype=getattr(torch, part.dtype), device=bound.device)


def axes_of(bound: Bound, part: str) -> list[str]:
    """The axes of a part as the kernel's own order has them: batch, row, width."""
    state = bound.program.state(part.partition(".")[0])
    return [*state.keeps, *(a for d in state.dims for a in bound.program.dims[d])]


def output_of(program: TileProgram, part: str) -> Any:
    """The output slot of a part, or None for a hidden one."""
    name, _, suffix = part.partition(".")
    stores = program.state(name).stores
    if not stores or suffix == "v":
        return None
    return program.slot(stores[1] if suffix == "l" else stores[0])
