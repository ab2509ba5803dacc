"""The built kernels of a region as one callable."""
from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch

from fuse.codegen import Schedule
from fuse.codegen.triton.kernel import Sweep
from fuse.codegen.triton.launch import Bound, Machine
from fuse.codegen.triton.passage import run_walk
from fuse.codegen.triton.pieces import Piece, Post, Right
from fuse.codegen.triton.schedule import part, relieved
from fuse.codegen.triton.slab import run_slab
from fuse.codegen.triton.sweep import run_sweep
from fuse.codegen.triton.walk import Walk
from fuse.ir.evaluate import evaluate
from fuse.ir.program import Kind, Region

REMEMBERED = 16      # bindings kept per region: one for each set of shapes and strides
REMEDIES = 4


class Chain:
    """Runs the kernels of a region one after the other: what one stores the next may read.

    A kernel that needs more shared memory than the device has, or spills registers, is launched otherwise: with all
    registers, then with tiles of half the size. Both are constants of a launch, so the text stays what it is.
    """

    def __init__(self, region: Region, schedule: Schedule, machine: Machine, kernels: list[tuple[Piece, Sweep, Any]],
                 source: str = ""):
        self.region, self.schedule, self.machine, self.kernels, self.source = region, schedule, machine, kernels, source
        self.dtypes = dtypes(region)
        self.bindings: dict[tuple[Any, ...], dict[int, Bound]] = {}
        self.tried: dict[int, int] = {}

    def __call__(self, env: Mapping[str, torch.Tensor], sizes: Mapping[str, int]) -> dict[str, torch.Tensor]:
        """What the region stores. RuntimeError if a launch fails."""
        device = device_of(env)
        found = {n: t if t.device == device else t.to(device) for n, t in env.items()}
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            return self.launch(found, sizes)

    def launch(self, found: dict[str, torch.Tensor], sizes: Mapping[str, int]) -> dict[str, torch.Tensor]:
        key = (tuple(sizes.items()), tuple((n, t.shape, t.stride(), t.device) for n, t in found.items()))
        bounds = self.bindings.pop(key, {})
        for k, (piece, _, _) in enumerate(self.kernels):
            found.update((r.buffer.name, stored(r, found, sizes)) for r in piece.before)
            found.update(self.run(k, bounds, found, sizes))
            found.update((p.name, finished(found[p.name], p)) for p in piece.post)
            for r in piece.before:
                del found[r.buffer.name]
        self.bindings[key] = bounds
        if len(self.bindings) > REMEMBERED:
            del self.bindings[next(iter(self.bindings))]
        return {name: found[name].to(dtype) for name, dtype in self.dtypes}

    def run(self, k: int, bounds: dict[int, Bound], env: Mapping[str, torch.Tensor],
            sizes: Mapping[str, int]) -> dict[str, torch.Tensor]:
        """Piece number `k`, launched otherwise if the device has not room for it, or had to spill."""
        piece, kernel, function = self.kernels[k]
        while True:
            bound = bounds.get(k) or Bound(piece, kernel, part(self.schedule, k), self.machine, env, sizes)
            bound.attach(env)
            try:
                runner = run_walk if isinstance(kernel, Walk) else run_slab if piece.slab else run_sweep
                out = runner(bound, function)
            except Exception as error:
                if type(error).__name__ != "OutOfResources" or not self.relieve(k, spills=False):
                    raise RuntimeError(f"{self.region.name}: {type(error).__name__}: {error}") from error
                continue
            finally:
                bound.release()
            if not bound.spilled or not self.relieve(k, spills=True):
                bounds[k] = bound
            return out

    def relieve(self, k: int, spills: bool) -> bool:
        """Another schedule for piece `k`; False if there is none, or that has been done often enough."""
        other = relieved(self.schedule, k, spills, self.machine.arch) if self.tried.get(k, 0) < REMEDIES else None
        if other is None:
            return False
        self.schedule, self.tried[k] = other, self.tried.get(k, 0) + 1
        for bounds in self.bindings.values():
            bounds.pop(k, None)
        return True


def device_of(env: Mapping[str, torch.Tensor]) -> torch.device:
    """Where the kernels run: scalars may live on the CPU anyway."""
    devices = [t.device for t in env.values()]
    return next((d for d in devices if d.type != "cpu"), devices[0])


def stored(right: Right, env: Mapping[str, torch.Tensor], sizes: Mapping[str, int]) -> torch.Tensor:
    """The value of a right factor, dense, in its buffer's type."""
    found: torch.Tensor = evaluate(right.value, env, sizes)
    return found.expand([a.extent.evaluate(sizes) for a in right.axes]).to(getattr(torch, right.buffer.dtype)).contiguous()


def finished(x: torch.Tensor, post: Post) -> torch.Tensor:
    """The reductions that no kernel did."""
    x = x.sum(post.over) if post.kind is Kind.SUM else x.amax(post.over)
    return x.permute(post.order).contiguous()


def dtypes(region: Region) -> list[tuple[str, torch.dtype]]:
    """Element type of every store; a carry that a later level reads was kept wide until now."""
    names: dict[str, str] = {e.name: e.value.dtype for e in region.emits}
    for c in region.carries:
        own = "int64" if c.kind is Kind.ARGMAX else c.body.dtype
        names.update({s: own if c.kind is Kind.LSE else c.storage or own for s in c.stores})
    return [(name, getattr(torch, names[name])) for name in region.stores]
