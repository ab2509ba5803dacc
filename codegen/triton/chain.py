"""The built kernels of a region as one callable."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from fuse.codegen import Schedule
from fuse.codegen.triton.kernel import Sweep
from fuse.codegen.triton.launch import Bound, Machine
from fuse.codegen.triton.pieces import Piece, Post
from fuse.codegen.triton.schedule import part
from fuse.codegen.triton.slab import run_slab
from fuse.codegen.triton.sweep import run_sweep
from fuse.ir.program import Kind, Region

REMEMBERED = 16      # bindings kept per region: one for each set of shapes and strides


class Chain:
    """Runs the kernels of a region one after the other: what one stores the next may read.

    A tile that needs more registers or shared memory than the device has is halved and tried again. Tile extents are
    launch constants, so the text stays what it is.
    """

    def __init__(self, region: Region, schedule: Schedule, machine: Machine, kernels: list[tuple[Piece, Sweep, Any]]):
        self.region, self.schedule, self.machine, self.kernels = region, schedule, machine, kernels
        self.dtypes = dtypes(region)
        self.bindings: dict[tuple, list[Bound]] = {}

    def __call__(self, env: Mapping[str, torch.Tensor], sizes: Mapping[str, int]) -> dict[str, torch.Tensor]:
        while True:
            try:
                return self.run(env, sizes)
            except Exception as error:
                smaller = halved(self.schedule) if type(error).__name__ == "OutOfResources" else None
                if smaller is None:
                    raise RuntimeError(f"{self.region.name}: {type(error).__name__}: {error}") from error
                self.schedule = smaller
                self.bindings.clear()

    def run(self, env: Mapping[str, torch.Tensor], sizes: Mapping[str, int]) -> dict[str, torch.Tensor]:
        found = dict(env)
        key = (tuple(sizes.items()), tuple((n, t.shape, t.stride(), t.device) for n, t in env.items()))
        bounds = self.bindings.pop(key, None) or []
        for k, (piece, kernel, function) in enumerate(self.kernels):
            if k == len(bounds):
                bounds.append(Bound(piece, kernel, part(self.schedule, k), self.machine, found, sizes))
            bounds[k].attach(found)
            found.update((run_slab if piece.slab else run_sweep)(bounds[k], function))
            bounds[k].release()
            found.update((p.name, finished(found[p.name], p)) for p in piece.post)
        self.bindings[key] = bounds
        if len(self.bindings) > REMEMBERED:
            del self.bindings[next(iter(self.bindings))]
        return {name: found[name].to(dtype) for name, dtype in self.dtypes}


def finished(x: torch.Tensor, post: Post) -> torch.Tensor:
    """The reductions that no kernel did."""
    x = x.sum(post.over) if post.kind is Kind.SUM else x.amax(post.over)
    return x.permute(post.order).contiguous()


def halved(schedule: Schedule) -> Schedule | None:
    """The schedule with the longer side of its tiles halved, or None below 16 x 16."""
    extent = lambda side: max(v for n, v in schedule.tile if n.partition(".")[0] == side)  # noqa: E731
    side = max(("row", "col"), key=extent)
    if extent(side) <= 16:
        return None
    tile = tuple((n, v // 2 if n.partition(".")[0] == side and v > 16 else v) for n, v in schedule.tile)
    return replace(schedule, tile=tile)


def dtypes(region: Region) -> list[tuple[str, torch.dtype]]:
    """Element type of every store; a carry that a later level reads was kept wide until now."""
    names: dict[str, str] = {e.name: e.value.dtype for e in region.emits}
    for c in region.carries:
        own = "int64" if c.kind is Kind.ARGMAX else c.body.dtype
        names.update({s: own if c.kind is Kind.LSE else c.storage or own for s in c.stores})
    return [(name, getattr(torch, names[name])) for name in region.stores]
