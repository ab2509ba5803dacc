"""Schedules as data: what to try, best first. `tests/codegen_triton/test_ahead.py` prints the figures behind the rows."""
from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fuse.codegen import Schedule
from fuse.codegen.triton.pieces import COLUMN_SLAB, RECOMPUTE, Piece, pieces
from fuse.codegen.triton.kernel import contracted_dims, has_tile_dot
from fuse.ir.program import Region
from fuse.reasons import Refused

ON_CHIP = 256        # widest accumulators of one row, in elements, that stay in registers
WHOLE = 128          # a contraction up to this long is one tile, and its row operand stays on chip


@dataclass(frozen=True)
class Config:
    """A tile of `row` x `col`, contracted `deep` at a time (0: at once), `stages` loads in flight, `group` row tiles
    side by side."""

    row: int
    col: int
    deep: int
    warps: int
    stages: int
    group: int = 8


# For 2-byte operands, by the width of what is accumulated: 0 is row vectors only, or a slab that is written.
HALF: dict[str, dict[int, tuple[Config, ...]]] = {
    "sm90": {
        0: (Config(128, 128, 64, 8, 3, 16), Config(64, 128, 64, 8, 3), Config(64, 64, 64, 4, 3)),
        64: (Config(128, 64, 64, 8, 2), Config(64, 64, 32, 4, 2)),
        128: (Config(128, 64, 64, 8, 2), Config(64, 64, 32, 8, 2)),
        256: (Config(64, 64, 64, 8, 2), Config(32, 64, 32, 8, 2)),
    },
}
# For float32 operands, multiplied on the ordinary units: small tiles, everything in registers.
FULL: dict[int, tuple[Config, ...]] = {
    0: (Config(64, 64, 32, 8, 2), Config(32, 64, 32, 4, 2)),
    64: (Config(64, 32, 32, 8, 2), Config(32, 32, 32, 4, 2)),
    128: (Config(32, 32, 32, 8, 2), Config(16, 32, 32, 4, 2)),
    256: (Config(16, 32, 32, 8, 2), Config(16, 16, 16, 8, 1)),
}
NO_DOT = (Config(8, 128, 0, 4, 3), Config(1, 256, 0, 4, 3))
KNOBS = ("warps", "stages", "group", "splits", "slab", "chunk", "precision", "pipeline", "lazy")


def candidates(region: Region, hints: Mapping[str, int], arch: str, options: Any) -> Sequence[Schedule]:
    """Schedules for `region` on `arch`. `options.tile` overrides tile extents (row, col, deep) and knobs."""
    forced = dict(getattr(options, "tile", None) or {})
    found: list[Schedule] = []
    for kind in kinds(region, hints):
        parts = pieces_or_none(region, kind)
        if parts is None:
            continue
        width = max(accumulated(p, hints) for p in parts)
        chunk = 128 if width > ON_CHIP else 0
        for config in configs(parts, min(chunk or width, ON_CHIP), hints, arch):
            found.append(schedule(kind, config, parts, chunk, forced))
    return list(dict.fromkeys(found))


def pieces_or_none(region: Region, kind: str) -> tuple[Piece, ...] | None:
    try:
        return pieces(region, kind)
    except Refused:
        return None


def kinds(region: Region, hints: Mapping[str, int]) -> Iterator[str]:
    """Products too wide for registers go through a slab first; the others recompute first."""
    parts = pieces_or_none(region, RECOMPUTE)
    wide = parts is None or any(accumulated(p, hints) > ON_CHIP for p in parts)
    yield from (COLUMN_SLAB, RECOMPUTE) if wide else (RECOMPUTE, COLUMN_SLAB)


def accumulated(piece: Piece, hints: Mapping[str, int]) -> int:
    """Elements per row that the piece's carries keep in registers beside row scalars."""
    if piece.slab:
        return 0
    total = 0
    for state in piece.program.states:
        width = 1
        for dim in state.dims:
            if dim not in ("row", "col"):
                width *= piece.program.extent(dim).evaluate(hints)
        total += width if width > 1 else 0
    return total


def configs(parts: Sequence[Piece], width: int, hints: Mapping[str, int], arch: str) -> Sequence[Config]:
    programs = [p.program for p in parts]
    if not any(map(has_tile_dot, programs)):
        return NO_DOT
    narrow = all(s.dtype != "float32" for p in programs for s in p.inputs if s.dtype in ("float32", "bfloat16", "float16")
                 and any(load.buffer == s.name and len(load.out.dims) > 1 for load in p.loads))
    table = HALF.get(arch, HALF["sm90"]) if narrow else FULL
    return table[min(w for w in table if w >= width or w == max(table))]


def schedule(kind: str, config: Config, parts: Sequence[Piece], chunk: int, forced: Mapping[str, Any]) -> Schedule:
    dots = any(has_tile_dot(p.program) for p in parts)
    tile = {"row": config.row, "col": config.col, "deep": config.deep}
    knobs = {"warps": config.warps, "stages": config.stages, "group": config.group, "chunk": chunk,
             "pipeline": 0 if dots else config.stages, "lazy": 0 if dots else 1, "least": 16 if dots else 1}
    for name, value in forced.items():
        (knobs if name in KNOBS else tile)[name] = value
    return Schedule(kind, tuple((k, v) for k, v in tile.items() if v), "grid", tuple((k, v) for k, v in knobs.items() if v))
