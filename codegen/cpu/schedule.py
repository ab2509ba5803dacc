"""Schedules of the CPU target, chosen by size."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fuse.codegen import Schedule
from fuse.codegen.lower import lower
from fuse.codegen.tile import TileProgram
from fuse.ir.program import Region
from fuse.reasons import Refused


def schedules(region: Region, hints: Mapping[str, int], options: Any) -> Sequence[Schedule]:
    forced = dict(getattr(options, "tile", None) or {})
    wanted = getattr(options, "schedule", "auto") or "auto"
    tile = (("row", forced.get("row", 256)), ("col", forced.get("col", 1024)))
    program = lower(region)
    parallel = forced.get("parallel", "inside")
    out = [Schedule("recompute", tile, parallel)]
    if wanted in ("slab", "fastest", "auto") and len(program.levels) > 1:
        try:
            lower(region, staged=True)
            out.insert(0, Schedule("slab", tile, parallel))
        except Refused:
            pass
    return out
