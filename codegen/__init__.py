"""From a kernel-ready region to a kernel: region -> schedule -> tile program -> source text -> built kernel.

Everything a target shares lies here: `tile` (the program both targets spell), `lower` (Region -> TileProgram), `launch`
(sizes and strides read off the tensors), `build` (compilers and the cache on disk). A target is a package with one
object that satisfies `Target`.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from fuse.codegen.pairs import ComplexKernel, complex_names
from fuse.ir.program import Region, Slab
from fuse.reasons import Miss, Refused

Kernel = Callable[[Mapping[str, torch.Tensor], Mapping[str, int]], dict[str, torch.Tensor]]
"""`kernel(env, sizes)`: the buffers the region reads and the value of every size symbol -> one tensor per
`region.stores` name. Raises RuntimeError if the launch fails."""


@dataclass(frozen=True)
class Capabilities:
    """What a target can emit; `refuses` looks nothing up elsewhere.

    ops        pointwise ops it can spell (fuse.ir.ops names)
    dtypes     element types it can load and store
    compute    element types it can compute in
    kinds      carry kinds (`Kind.value`)
    shared     carries may accumulate over grid axes (shared sweep)
    levels     how many sweeps one kernel may hold
    slab       element types of the factors of a product for which gradients in the forward pay, and where
    recomputes exponentials are cheaper computed again at every point of the grid than read
    """

    ops: frozenset[str]
    dtypes: frozenset[str]
    compute: frozenset[str]
    kinds: frozenset[str]
    shared: bool = True
    levels: int = 2
    recomputes: bool = False
    slab: Mapping[str, Slab] = field(default_factory=lambda: dict.fromkeys(("float64", "float32", "bfloat16", "float16"), Slab()))


@dataclass(frozen=True)
class Schedule:
    """How a tile program is walked.

    kind      "recompute": every level recomputes the tile; "slab": level 0 stages it for a block of rows x the whole
              stream and later levels read it back (TileProgram of `lower(region, staged=True)`)
    tile      extent of a tile per dim: ("row", R), ("col", C) and, if the target splits it, free dims by their name;
              a dim that is missing, or 0, is not split
    parallel  the target's word for where its parallelism lies (cpu: "inside" a tile or over the "grid")
    knobs     what only this target understands (warps, stages, ...)
    """

    kind: str = "recompute"
    tile: tuple[tuple[str, int], ...] = ()
    parallel: str = ""
    knobs: tuple[tuple[str, int | str], ...] = ()

    def extent(self, dim: str) -> int:
        """Tile extent of `dim`; 0 means the dim is not split."""
        return dict(self.tile).get(dim, 0)

    def __str__(self) -> str:
        """'slab, tiles of row 512 x col 2048, threads over the grid'; extents are upper bounds."""
        tile = " x ".join(f"{dim} {extent}" for dim, extent in self.tile if extent)
        where = {"": "", "inside": ", threads inside a tile"}.get(self.parallel, f", threads over the {self.parallel}")
        return self.kind + (f", tiles of {tile}" if tile else "") + where

    def knob(self, name: str, default: int | str = 0) -> Any:
        return dict(self.knobs).get(name, default)


class Target(Protocol):
    """What fuse asks of a backend for one device. `source` is pure: same region and schedule, same text."""

    name: str
    capabilities: Capabilities

    def refuses(self, region: Region) -> Miss | None: ...

    def schedules(self, region: Region, hints: Mapping[str, int], options: Any) -> Sequence[Schedule]: ...

    def walk_tile(self, region: Region, hints: Mapping[str, int], options: Any) -> tuple[int, str] | None:
        """How many positions a tile of a region with scans has, and the axis ("" for none) that is walked side by side, if the
        target can store and read states at the boundaries of tiles."""
        ...

    def source(self, region: Region, schedule: Schedule) -> str: ...

    def build(self, region: Region, schedule: Schedule, source: str) -> Kernel: ...


def compile_region(region: Region, target: Target, hints: Mapping[str, int], options: Any = None) -> Kernel | Miss:
    """The kernel of the first schedule that builds, or the Miss that says why there is none.

    `hints` gives a likely value of every size symbol (they choose the schedule, never the meaning); `options` has
    the attributes `tile` and `schedule`, or is None for the defaults.
    """
    miss: Miss | None = target.refuses(region)
    if miss is not None:
        return miss
    for schedule in target.schedules(region, hints, options):
        try:
            kernel = target.build(region, schedule, target.source(region, schedule))
            reads, stores = complex_names(region)
            return ComplexKernel(kernel, reads, stores) if reads or stores else kernel
        except Refused as refusal:
            miss = refusal.miss
            if miss.code == "NO_COMPILER":
                break
    return miss if miss is not None else Miss("TARGET_LACKS", None, f"{target.name} has no schedule for {region.name}")
