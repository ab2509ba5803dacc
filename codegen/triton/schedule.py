"""Schedules as data: what to try, best first. Figures behind the rows: tests/codegen_triton/test_ahead.py prints them."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from fuse.codegen import Schedule
from fuse.codegen.triton.pieces import COLUMN_SLAB, RECOMPUTE
from fuse.ir.expr import topological
from fuse.ir.program import Region

ON_CHIP = 256        # widest accumulator, in elements per row, that stays in registers


@dataclass(frozen=True)
class Config:
    """A tile of `row` x `col`, contracted `deep` at a time, by `warps` warps, with `stages` loads in flight."""

    row: int
    col: int
    deep: int
    warps: int
    stages: int
    group: int = 8


# A kernel is limited by what it keeps in registers: nothing but the tile, or an accumulator of so many columns.
NARROW: dict[str, dict[int, tuple[Config, ...]]] = {
    "sm90": {0: (Config(128, 128, 64, 8, 3, 16), Config(64, 128, 64, 4, 3), Config(64, 64, 64, 4, 3))},
}
