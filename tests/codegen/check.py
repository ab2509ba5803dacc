"""Numbers: a kernel's results against the float64 interpreter."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fuse.ir.program import Kind, Region
from fuse.ir.reference import run_region

EPS = {torch.float64: 2.0 ** -52, torch.float32: 2.0 ** -23, torch.bfloat16: 2.0 ** -8, torch.float16: 2.0 ** -11}


def reference(region: Region, env: Mapping[str, Tensor], sizes: Mapping[str, int], tile: int = 7) -> dict[str, Tensor]:
    return run_region(region, env, sizes, dtype="float64", tile=tile)


def agrees(region: Region, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], ulps: float = 64.0) -> None:
    """Every store, elementwise, to `ulps` units of its type relative to the largest element beside 1. LSE pairs are
    compared as m + log l too, since their m may differ."""
    for carry in region.carries:
        if carry.kind is Kind.LSE:
            pair = [x[f"{carry.name}.m"].double() + x[f"{carry.name}.l"].double().log() for x in (found, wanted)]
            same(f"{carry.name} (lse)", pair[0], pair[1], EPS[found[f"{carry.name}.l"].dtype] * ulps)
            continue
        for name in carry.stores:
            same(name, found[name], wanted[name], tolerance(found[name], ulps))
    for emit in region.emits:
        same(emit.name, found[emit.name], wanted[emit.name], tolerance(found[emit.name], ulps))


def tolerance(x: Tensor, ulps: float) -> float:
    x = torch.view_as_real(x) if x.is_complex() else x
    return EPS[x.dtype] * (ulps if x.dtype in (torch.float32, torch.float64) else 2) if x.is_floating_point() else 0.0


def same(name: str, found: Tensor, wanted: Tensor, tol: float) -> None:
    assert found.shape == wanted.shape, f"{name}: {tuple(found.shape)}, expected {tuple(wanted.shape)}"
    x, y = (torch.view_as_real(t) if t.is_complex() else t for t in (found, wanted))
    x, y = x.double(), y.double()
    finite = y.isfinite()
    odd = (x != y) & ~(x.isnan() & y.isnan()) & ~finite
    assert not odd.any(), f"{name}: {x[odd][:4].tolist()}, expected {y[odd][:4].tolist()}"
    scale = y[finite].abs().amax().clamp_min(1.0) if finite.any() else 1.0
    error = (x[finite] - y[finite]).abs() / scale
    assert not error.numel() or error.max() <= tol, f"{name}: error {error.max():.1e}, allowed {tol:.1e}"


def strided(x: Tensor, seed: int) -> Tensor:
    """The same values in memory with gaps and permuted dimensions."""
    if x.dim() == 0:
        return x
    order = torch.randperm(x.dim(), generator=torch.Generator().manual_seed(seed)).tolist()
    back: list[Any] = [order.index(k) for k in range(x.dim())]
    room = x.permute(order)
    big = room.new_zeros([2 * n + 1 for n in room.shape])
    big[tuple(slice(1, 2 * n + 1, 2) for n in room.shape)] = room
    return big[tuple(slice(1, 2 * n + 1, 2) for n in room.shape)].permute(back)
