"""Schedules of the CPU target: where threads work and how large tiles are, from likely sizes.

Threads share row tiles or batch points where there are enough of them and no sum crosses them; otherwise they work inside
one tile, with GEMMs that thread themselves. Tile extents are upper bounds (a launch evens tiles out); the figures were
measured at 2048 x 768 x 50304 and at 8 heads of 2048 x 64. A GEMM wants both of its free extents large: a slab, which is
short to stay small, is as wide as the stream; other tiles take 12 MiB.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from fuse.codegen import Schedule
from fuse.codegen.cpu.kernel import independent, modes, native_bfloat16
from fuse.codegen.cpu.walk import WalkEmitter
from fuse.codegen.lower import lower
from fuse.codegen.roles import number_axes, roles
from fuse.codegen.tile import State, TileProgram
from fuse.codegen.walk import lanes, walks
from fuse.ir.expr import Axis, topological
from fuse.ir.program import Kind, Region
from fuse.ir.size import Size, product
from fuse.reasons import Refused

SLAB_BYTES = 32 << 20      # of a staged tile value: at most this, or SLAB_SHARE of what accumulates beside them all
SLAB_SHARE = 0.4
UNKNOWN = 1024             # stands for a size without a hint
INSIDE = {"row": 1024, "col": 3072}
LEAST = {"row": 1024, "col": 1024}        # a third of the memory of a tile, for a little time
SLAB = {"row": 512, "col": 1 << 20}       # at fewer than 256 rows the GEMMs are bound by memory
AT_ONCE = 2048            # rows of all threads together, where tiles are tall because a contraction is long
SPREAD = {"row": 128, "col": 512}
BOUNDED = {"row": 128, "col": 256}        # tiles may be skipped: fewer of a long one's columns are needed
PLAIN = {"row": 32, "col": 2048}          # no product is computed: a tile is a loop nest, not memory
LANES = 64
UNROLLED = 256            # elements of a width
HELD = 1 << 14                  # elements of a scan's state at one point of the stream
WALK = {"least": 4, "most": 128, "elements": 1 << 15}     # columns; elements of a scan's values that a tile keeps


def schedules(region: Region, hints: Mapping[str, int], options: Any) -> Sequence[Schedule]:
    """The slab first where one is legal and wanted, then recomputation."""
    wanted = getattr(options, "schedule", None) or "auto"
    forced = dict(getattr(options, "tile", None) or {})
    if walks(region):
        return [walked(region, hints, forced)]
    staged = staged_program(region) if wanted not in ("recompute", "least-memory") else None
    turn = turned(region, hints)
    again = choose("recompute", lower(exchanged(region) if turn else region), hints, forced)
    if wanted == "least-memory":
        again = replace(again, tile=tuple((d, forced.get(d, min(n, LEAST[d]))) for d, n in again.tile))
    found = [replace(again, knobs=(*again.knobs, ("exchanged", 1))) if turn else again]
    return [choose("slab", staged, hints, forced), *found] if staged is not None else found


def walked(region: Region, hints: Mapping[str, int], forced: Mapping[str, int]) -> Schedule:
    """A walk: tiles of the stream that the cache holds, side by side along an axis if there is a good one."""
    lane = lane_of(region, hints)
    program = lower(region, False, lane.name if lane else "")
    rows = min(LANES, likely(lane.extent, hints)) if lane else 1
    held = [product(program.extent(d) for d in v.dims if d not in ("row", "col")) for v in WalkEmitter(program, False).apart]
    each = rows * max([likely(size, hints) for size in held], default=1)
    tile = {"row": LANES, "col": max(WALK["least"], min(WALK["most"], WALK["elements"] // each))}
    tile.update({d: n for d, n in forced.items() if d in tile})
    tile["col"] = region.tile or tile["col"]
    return Schedule("recompute", tuple(tile.items()), "grid", (("lane", lane.name),) if lane else ())


def lane_of(region: Region, hints: Mapping[str, int]) -> Axis | None:
    """A grid axis longer than the scans' widths; one of these where there is too little to do at a time or too much to hold."""
    found = lanes(region, {s: hints.get(s, UNKNOWN) for a in number_axes(region).values() for s in a.extent.symbols})
    if not found:
        return None
    states = [[a for a in c.axes if a not in region.grid] for c in region.carries if c.kind is Kind.AFFINE]
    longest = max((likely(a.extent, hints) for widths in states for a in widths), default=1)
    held = max(likely(product(a.extent for a in widths), hints) for widths in states)
    points = likely(product(a.extent for a in region.grid), hints)
    if found[0] in region.grid:
        return found[0] if likely(found[0].extent, hints) > longest else None
    return found[0] if points < torch.get_num_threads() or held > HELD else None


def exchanged(region: Region) -> Region:
    """The same sums with stream and rows exchanged; batch axes and what no sum reduces stay in the grid."""
    found, reduced = roles(region), {a for c in region.carries for a in c.over}
    rows = tuple(a for a in region.grid if a in reduced and found.name[a.name] in found.row)
    return replace(region, streams=rows, grid=tuple(a for a in region.grid if a not in rows) + region.streams)


def turned(region: Region, hints: Mapping[str, int]) -> bool:
    """Whether to exchange stream and grid, where both are summed over: what a tile loads should be walked as it lies in
    memory, and what is summed over the grid accumulates in memory, so it should be the smaller."""
    if region.emits or any(c.kind is not Kind.SUM or c.relative_to or c.level for c in region.carries):
        return False

    def held(reduced: set[Axis]) -> int:
        return sum(likely(product(a.extent for a in c.axes), hints) for c in region.carries if set(c.over) & reduced)
    other = exchanged(region)
    now, then = held(set(other.streams)), held(set(region.streams))
    if not now or not then:
        return False
    across = strided(region)
    return across if across != strided(other) else then < now


def strided(region: Region) -> bool:
    """Whether a load that has an element for each point of a tile lies in memory along the grid, not along the stream."""
    streams, grid = set(region.streams), set(region.grid)
    loads = [e for e in topological(region.bodies) if e.op == "read" and streams & set(e.axes) and grid & set(e.axes)]
    return any(grid & set(e.args[-1].axes) and not streams & set(e.args[-1].axes) for e in loads)


def staged_program(region: Region) -> TileProgram | None:
    try:
        return lower(region, staged=True)
    except Refused:
        return None


def likely(size: Size, hints: Mapping[str, int]) -> int:
    return size.evaluate({s: hints.get(s, UNKNOWN) for s in size.symbols})


def choose(kind: str, program: TileProgram, hints: Mapping[str, int], forced: Mapping[str, int]) -> Schedule:
    rows, cols = (likely(program.extent(d), hints) for d in ("row", "col"))
    points = likely(product(program.axis(a).extent for a in independent(program)), hints)
    allowed, threads = modes(program), torch.get_num_threads()
    products = any(d.out.scope == "tile" for d in program.dots) or any(u.wide for level in program.levels for u in level.updates)
    bounded = any(level.skips for level in program.levels)
    spread = (BOUNDED if bounded else SPREAD) if products else PLAIN
    if "grid" in allowed and points * -(-rows // spread["row"]) >= 2 * threads:
        parallel, tile = "grid", dict(spread)
        if products and not bounded and deep(program, hints) > SPREAD["row"]:
            each = -(-min(points * rows, AT_ONCE) // threads)
            tile = {"row": max(each, SPREAD["row"]), "col": INSIDE["col"]}
    elif "batch" in allowed and independent(program) and points >= threads:
        parallel, tile = "batch", dict(spread)
    else:
        parallel, tile = "inside", dict(INSIDE if products else PLAIN)
    if kind == "slab":
        staged = len(program.levels[0].stage)
        slabs = (1 if parallel == "inside" else threads) * staged
        held = 4 * sum(likely(product(a.extent for a in accumulated(program, s)), hints) for s in program.states)
        budget = max(SLAB_BYTES * staged, int(SLAB_SHARE * held))
        tile["row"] = max(16, min(tile["row"], SLAB["row"], rows // 2, budget // max(4 * cols * slabs, 1)))
        if parallel == "inside":
            tile["col"] = SLAB["col"]
    tile.update({d: n for d, n in forced.items() if d in tile})
    half = any(slot.dtype == "bfloat16" for slot in program.inputs) and native_bfloat16()
    return Schedule(kind, tuple(tile.items()), parallel, ((("native", 1),) if half else ()) + fixed(program))


def fixed(program: TileProgram) -> tuple[tuple[str, int], ...]:
    """Short widths that the region itself fixes: the text may hold them, so that loops over them unroll."""
    widths = ((dim, program.extent(dim).constant) for dim, axes in program.dims.items() if axes == (dim,))
    return tuple((dim, n) for dim, n in widths if n is not None and n <= UNROLLED)


def accumulated(program: TileProgram, state: State) -> list[Axis]:
    """The axes of a state that lives in memory of its full shape; those of any other are none."""
    names = state.keeps + tuple(a for d in state.dims for a in program.dims[d])
    return [program.axis(a) for a in names] if state.scope == "grid" else []


def deep(program: TileProgram, hints: Mapping[str, int]) -> int:
    """The longest contraction of a tile's dots: long ones want tall tiles, so that columns are packed less often."""
    return max((likely(product(program.extent(d) for d in dot.k), hints) for dot in program.dots), default=0)
