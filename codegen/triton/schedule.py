"""Schedules as data: what to try, best first. `tests/codegen_triton/test_ahead.py` prints the figures behind the rows."""
from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch

from fuse.codegen import Schedule
from fuse.codegen.roles import refuse
from fuse.codegen.tile import Load, Point, TileProgram
from fuse.codegen.triton.emit import dot_dtype
from fuse.codegen.triton.lanes import WALK, crowded, lightened, walked
from fuse.codegen.triton.pieces import KINDS, RECOMPUTE, Piece, pieces
from fuse.codegen.triton.shapes import chunked_dim, contracted_dims, has_rows, has_tile_dot, rank, tiles
from fuse.codegen.triton.spell import COSTLY
from fuse.codegen.triton.stages import staged
from fuse.codegen.walk import walks
from fuse.ir.program import Kind, Region
from fuse.reasons import Refused

VOLUME = 2 ** 14     # elements of a tile that is no operand of a dot
CHUNK = 128          # columns of an accumulator that does not fit, one chunk per program, each recomputing the tile
ON_CHIP = 256        # widest accumulators of one row, in elements, that stay in registers
LARGE = 128 * 128
LIGHT, MODERATE, HEAVY = 8, 12, 28      # `work` for 4 warps on a LARGE tile, for 8 with all of a contraction, for 8 at all
WHOLE = 128          # a contraction up to this long is one tile beside an accumulator, half of it otherwise (AMD: spills)


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


# For 2-byte operands, by the width of what is accumulated. 0 is row vectors only, or a slab that is written: then each
# program has one tile of columns. 128 x 128 by 4 warps leaves few registers to what follows the dot (see `work`).
HALF: dict[str, dict[int, tuple[Config, ...]]] = {
    "sm80": {
        0: (Config(128, 128, 32, 8, 4, 16), Config(128, 64, 64, 8, 3)),
        64: (Config(128, 64, 64, 8, 2), Config(64, 64, 64, 8, 2)),
        256: (Config(64, 64, 64, 8, 2), Config(64, 32, 64, 8, 2)),
    },
    "sm90": {
        0: (Config(128, 128, 64, 4, 3, 16), Config(128, 128, 64, 8, 3, 16), Config(128, 64, 64, 8, 3)),
        128: (Config(128, 64, 64, 8, 2), Config(64, 64, 64, 8, 2)),
        256: (Config(64, 64, 64, 8, 2), Config(64, 32, 64, 8, 2)),
    },
    "gfx942": {
        0: (Config(128, 128, 64, 8, 2, 16), Config(128, 64, 64, 8, 2)),
        64: (Config(128, 64, 32, 8, 2), Config(64, 64, 32, 8, 2)),
        128: (Config(64, 64, 32, 8, 2), Config(64, 32, 32, 8, 2)),
        256: (Config(64, 32, 32, 8, 2), Config(32, 32, 32, 8, 2)),
    },
}
HALF["sm100"] = HALF["sm90"] | {
    0: (*HALF["sm90"][0][1:], Config(64, 64, 64, 8, 3)),
    256: (Config(64, 32, 64, 8, 2), Config(32, 32, 64, 8, 2)),
}
# For float32 operands, multiplied on the ordinary units: small tiles, everything in registers.
FULL: dict[int, tuple[Config, ...]] = {
    0: (Config(128, 64, 16, 8, 2), Config(64, 64, 16, 4, 2)),
    256: (Config(32, 32, 16, 8, 2), Config(16, 32, 16, 8, 2)),
}
# Without dots: bound by memory. Tiles of three dimensions (a width, or a contraction that is no dot) have to be small.
NO_DOT: dict[int, tuple[Config, ...]] = {
    2: (Config(8, 128, 0, 4, 3), Config(1, 256, 0, 4, 3)),
    3: (Config(1, 64, 0, 4, 3), Config(1, 16, 0, 4, 2)),
}
# Without rows: columns of at most this width, and what is kept of them, [width] or [width x width]. Beside a matrix product
# by 8 warps, contracted at once where that is short.
WALKS: dict[int, tuple[Config, Config]] = {      # width -> (products, none)
    64: (Config(1, 64, 0, 8, 2), Config(1, 128, 0, 4, 3)),
    128: (Config(1, 64, 16, 8, 2), Config(1, 64, 0, 4, 3)),
    256: (Config(1, 32, 16, 8, 2), Config(1, 32, 0, 4, 3)),
}
REGISTERS, REGISTER_FILE = 255, 65536      # of a thread at most; of a multiprocessor (NVIDIA)
CUBE: tuple[Config, ...] = (Config(16, 16, 16, 4, 2),)
KNOBS = ("warps", "stages", "group", "splits", "slab", "chunk", "apart", "precision", "single", "parts", "registers", "lane",
         "span", "staged")


def candidates(region: Region, hints: Mapping[str, int], arch: str, options: Any) -> Sequence[Schedule]:
    """Schedules for `region` on `arch`. `options.tile` overrides tile extents (row, col, deep) and knobs."""
    forced = dict(getattr(options, "tile", None) or {})
    if walks(region):
        return [s for s in (in_stages(region, hints, arch, forced), walked(region, hints, forced)) if s is not None]
    found = [s for plan in plans(region, hints) for s in plan.schedules(hints, arch, forced)]
    return list(dict.fromkeys(found))


def in_stages(region: Region, hints: Mapping[str, int], arch: str, forced: Mapping[str, Any]) -> Schedule | None:
    """The schedule of a walk that is cut into stages; None where it is one kernel."""
    if not forced.get("staged", "lane" not in forced and crowded(region, hints)):
        return None
    tile: dict[str, int] = {}
    knobs: dict[str, Any] = {"staged": 1}
    try:
        found = [walked(r, hints, forced) if walks(r) else flat(r, hints, arch, forced) for r in staged(region)]
    except Refused:
        return None
    for k, mine in enumerate(found):
        tile |= own(dict(mine.tile), tile, k)
        knobs |= own(dict(mine.knobs), knobs, k)
    return Schedule(WALK, tuple(tile.items()), "grid", tuple(knobs.items())) if len(found) > 1 else None


def flat(region: Region, hints: Mapping[str, int], arch: str, forced: Mapping[str, Any]) -> Schedule:
    """The schedule of a stage without scans. Refused if it is more than one kernel."""
    parts = pieces(region, RECOMPUTE)
    if len(parts) > 1:
        raise refuse("a stage of several sweeps")
    plan = Plan(RECOMPUTE, False, parts, accumulated(parts[0], hints))
    found = next(plan.schedules(hints, arch, forced), None)
    if found is None:
        raise refuse("a stage without a schedule")
    return replace(found, knobs=(*found.knobs, ("flat", 1)))


@dataclass(frozen=True)
class Plan:
    """One way to cut the region into kernels. `width`: what the most demanding one accumulates, in elements per row."""

    kind: str
    apart: bool
    parts: tuple[Piece, ...]
    width: int

    def schedules(self, hints: Mapping[str, int], arch: str, forced: Mapping[str, Any]) -> Iterator[Schedule]:
        """The n-th schedule has the n-th best configuration of every piece."""
        widths = [accumulated(p, hints) for p in self.parts]
        chunks = [chunk(p, hints) if w > ON_CHIP else 0 for p, w in zip(self.parts, widths, strict=True)]
        choices = [configs(p, min(accumulated(p, hints, chunk), ON_CHIP), hints, arch)
                   for p, chunk in zip(self.parts, chunks, strict=True)]
        for n in range(max(map(len, choices)) if all(choices) else 0):
            tile: dict[str, int] = {}
            knobs: dict[str, int | str] = {"apart": int(self.apart)}
            for k, found in enumerate(choices):
                c = found[min(n, len(found) - 1)]
                single = int(bool(c.deep) and not widths[k] and tile_dots(self.parts[k].program) > 0)
                tile |= own({"row": c.row, "col": c.col, "deep": c.deep}, tile, k)
                knobs |= own({"precision": precision(arch, self.parts[k].program), "warps": c.warps, "stages": c.stages,
                              "group": c.group, "single": single, "chunk": chunks[k]}, knobs, k)
            yield Schedule(self.kind, nonzero(force(tile, forced)), "grid", nonzero(force(knobs, forced)))


def own(values: Mapping[str, Any], base: Mapping[str, Any], piece: int) -> dict[str, Any]:
    """The entries that piece number `piece` adds: under their plain names if it is the first, else with its number."""
    return dict(values) if not piece else {f"{n}.{piece}": v for n, v in values.items() if base.get(n) != v}


def part(schedule: Schedule, piece: int) -> Schedule:
    """`schedule` as piece number `piece` sees it."""
    def seen(entries: tuple[tuple[str, Any], ...]) -> tuple[tuple[str, Any], ...]:
        table = {n: v for n, v in entries if "." not in n}
        return tuple((table | {n.partition(".")[0]: v for n, v in entries if n.endswith(f".{piece}")}).items())
    return replace(schedule, tile=seen(schedule.tile), knobs=seen(schedule.knobs))


def relieved(schedule: Schedule, piece: int, spills: bool, arch: str) -> Schedule | None:
    """What that piece is tried with next if its kernel does not fit; None if its tile is 16 x 16 already.

    First every register that a thread can have: left alone, NVIDIA's assembler keeps a few values in memory so that more
    programs run at once. Then half of the tile's longer side. A walk has remedies of its own.
    """
    mine = part(schedule, piece)
    if schedule.kind == WALK and not mine.knob("flat"):
        lighter = lightened(mine)
        return lighter and replaced(schedule, piece, lighter)
    if spills and arch.startswith("sm") and not mine.knob("registers"):
        most = min(REGISTERS, REGISTER_FILE // (32 * mine.knob("warps", 4)))
        return replace(schedule, knobs=(*schedule.knobs, (f"registers.{piece}", most)))
    side = "row" if mine.extent("row") >= mine.extent("col") else "col"
    if mine.extent(side) <= 16:
        return None
    return replace(schedule, tile=(*schedule.tile, (f"{side}.{piece}", mine.extent(side) // 2)))


def replaced(schedule: Schedule, piece: int, mine: Schedule) -> Schedule:
    """`schedule` with `mine` for piece number `piece`, if that is one of several."""
    if not schedule.knob("staged"):
        return mine
    now = part(schedule, piece)
    tile = tuple((f"{n}.{piece}", v) for n, v in mine.tile if (n, v) not in now.tile)
    knobs = tuple((f"{n}.{piece}", v) for n, v in mine.knobs if (n, v) not in now.knobs)
    return replace(schedule, tile=(*schedule.tile, *tile), knobs=(*schedule.knobs, *knobs))


def force(table: Mapping[str, Any], forced: Mapping[str, Any]) -> dict[str, Any]:
    """`table` with the user's own values for every piece."""
    mine = {n: v for n, v in forced.items() if (n in KNOBS) == ("warps" in table)}
    return {n: v for n, v in table.items() if n.partition(".")[0] not in mine} | mine


def nonzero(table: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple((k, v) for k, v in table.items() if v or "." in k)


def precision(arch: str, program: TileProgram) -> str:
    """What float32 products may be rounded to on the way in: what the user allows eager. Where not at all, NVIDIA multiplies
    on the ordinary units, from registers; [width x width] factors leave none, and go to matrix units in three parts."""
    if not arch.startswith("sm"):
        return "ieee"
    exact = "ieee" if has_rows(program) else "tf32x3"
    return "tf32" if torch.get_float32_matmul_precision() != "highest" else exact


def plans(region: Region, hints: Mapping[str, int]) -> list[Plan]:
    """Everything on chip if it fits, each accumulator in its own kernel if only that fits, else a slab; the rest after,
    where what is cut into chunks recomputes all that it shares a kernel with."""
    found: list[Plan] = []
    for kind, apart in KINDS:
        try:
            parts = pieces(region, kind, apart)
        except Refused:
            continue
        if not any(parts == plan.parts for plan in found):
            found.append(Plan(kind, apart, parts, max(accumulated(p, hints) for p in parts)))
    return sorted(found, key=lambda p: (p.width > ON_CHIP, p.width > ON_CHIP and not p.apart))


def accumulated(piece: Piece, hints: Mapping[str, int], chunk: int = 0) -> int:
    """Elements per row (of 64, if no row axis is left) that the piece's carries keep in registers beside row scalars; of
    which `chunk` at a time, if it is not 0."""
    if piece.slab:
        return 0
    total = 0
    for state in piece.program.states:
        widths = [piece.program.extent(d).evaluate(hints) for d in state.dims if d not in ("row", "col")]
        if widths:
            kept = prod(widths) if "row" in state.dims else -(-prod(1 << (w - 1).bit_length() for w in widths) // 64)
            total += min(kept, chunk) if chunk else kept
    return total


def chunk(piece: Piece, hints: Mapping[str, int]) -> int:
    """How much of the last width a program keeps: `CHUNK`, less where that is kept for each of another width."""
    program, dim = piece.program, chunked_dim(piece.program)
    if dim is None or has_rows(program):
        return CHUNK
    others = max(prod(program.extent(d).evaluate(hints) for d in s.dims if d != dim) for s in program.states if dim in s.dims)
    room = max(1, 64 * ON_CHIP // others)
    return max(16, min(CHUNK, 1 << (room.bit_length() - 1)))


def configs(piece: Piece, width: int, hints: Mapping[str, int], arch: str) -> Sequence[Config]:
    """The rows of the tables for a piece that accumulates `width` elements per row."""
    program = piece.program
    if rank(program) <= 2 and not has_rows(program):
        return columns(program, hints, arch)
    if rank(program) > 2 or not has_tile_dot(program):
        small = CUBE if has_tile_dot(program) else NO_DOT[rank(program)]
        return [c for c in (narrowed(c, program, hints) for c in small) if c]
    table = HALF[family(arch)] if half(program) else FULL
    found = table[min(w for w in table if w >= width or w == max(table))]
    found = tuple(c for c in found if bearable(c, width, work(program), arch))
    deepest = max((program.extent(d).evaluate(hints) for d in contracted_dims(program)), default=0)
    whole = half(program) and deepest <= (WHOLE if width else WHOLE // 2) and arch.startswith("sm")
    if not whole:
        return found
    eight = [replace(c, deep=0) for c in found if c.warps > 4]
    return eight if width or work(program) <= MODERATE else eight[-1:]


def columns(program: TileProgram, hints: Mapping[str, int], arch: str) -> Sequence[Config]:
    """The row of `WALKS` for a program without rows; none if a tile of 16 columns is too large already."""
    widest = max((program.extent(d).evaluate(hints) for dims in tiles(program) for d in dims if d not in ("row", "col")),
                 default=1)
    found = WALKS[min((w for w in WALKS if w >= widest), default=max(WALKS))][0 if has_tile_dot(program) else 1]
    if not found.deep and family(arch) in ("sm80", "gfx942"):
        found = replace(found, deep=32)
    return [c for c in [narrowed(found, program, hints)] if c]


def narrowed(c: Config, program: TileProgram, hints: Mapping[str, int]) -> Config | None:
    """`c` with fewer columns, so that no tile has more than `VOLUME` elements; None if even one column is too many."""
    least = 16 if has_tile_dot(program) else 1
    extents = {d: program.extent(d).evaluate(hints) for dims in tiles(program) for d in dims}
    deep = contracted_dims(program)
    while True:
        size = {"row": min(c.row, extents.get("row", 1)), "col": c.col}
        size |= {d: min(n, c.deep) if c.deep and d in deep else n for d, n in extents.items() if d not in size}
        if max(prod(size[d] for d in dims) for dims in tiles(program)) <= VOLUME:
            return c
        if c.col <= least:
            return None
        c = replace(c, col=c.col // 2)


def family(arch: str) -> str:
    """The table for a device: gfx942's for AMD; by the matrix unit for NVIDIA (sm89 and sm120 have that of sm80)."""
    if arch in HALF:
        return arch
    return "gfx942" if arch.startswith("gfx") else "sm100" if arch in ("sm101", "sm103", "sm110") else "sm80"


def bearable(c: Config, width: int, total: int, arch: str) -> bool:
    """Do the registers suffice for `total` work on this tile? An accumulator takes half of them; on sm100 a thread holds
    many columns of one row, so that vectors along the columns weigh twice."""
    if width:
        return c.row * c.col < LARGE // 2 or total <= (HEAVY if family(arch) == "sm100" else 2 * HEAVY)
    return c.row * c.col < LARGE or total <= (LIGHT if c.warps <= 4 else HEAVY)


def work(program: TileProgram) -> int:
    """Instructions on each element of a tile that comes out of a dot, very roughly: what follows the dot needs registers
    in proportion, since its steps on neighbouring elements overlap."""
    total = 8 * (tile_dots(program) - 1)
    for s in program.statements():
        if isinstance(s, Load) and s.out.dims in (("row", "col"), ("col",)):    # a thread has many columns of few rows
            total += 8
        elif isinstance(s, Point) and s.out.scope == "tile":
            total += 8 if s.op in COSTLY else 1
    for u in program.levels[0].updates:
        total += 6 if u.kind is Kind.ARGMAX else 4 if u.relative is not None else 2
    return total


def tile_dots(program: TileProgram) -> int:
    """How many row x col tiles come out of dots: each takes registers of its own."""
    return sum(d.out.scope == "tile" for d in program.dots)


def half(program: TileProgram) -> bool:
    """Do all dots run on 2-byte operands?"""
    inner = [dot_dtype(program, d.a, d.b) for d in program.dots]
    outer = [dot_dtype(program, u.wide) for level in program.levels for u in level.updates if u.wide is not None]
    return "float32" not in inner + outer
