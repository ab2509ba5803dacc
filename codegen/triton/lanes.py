"""Schedules of walks: which axis is walked side by side, how much of it by one program, and by how many threads."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import prod
from typing import Any

from fuse.codegen import Schedule
from fuse.codegen.lower import lower
from fuse.codegen.roles import number_axes
from fuse.codegen.tile import State
from fuse.codegen.walk import lanes
from fuse.ir.expr import Axis
from fuse.ir.program import Kind, Region
from fuse.ir.size import Size

WALK = "walk"
UNKNOWN = 1024        # stands for a size without a hint
EACH = 16             # elements of a scan's state that a thread holds
PROGRAM = 32 * EACH   # and a program, where lanes can be shared out; in memory a tile's lanes lie side by side, so at
COALESCED = 16        # least this many of them
ALL = 32 * 64         # elements of all states and sums, by a warp
HELD = 1024           # a scan's state, in elements, that is worth splitting over programs
WARPS = (8, 16)       # at most, at first and if registers are short
STAGES = 3            # columns whose loads are under way, where those of a state read back take
AHEAD = 4096          # at most so many elements of shared memory each


def walked(region: Region, hints: Mapping[str, int], forced: Mapping[str, Any]) -> Schedule:
    """`forced` overrides the tile's lanes ("row"), and knobs: "lane" (an axis, or "" for none), "span" (columns per tile of
    a rehearsal), "warps", "stages"."""
    known = sizes_of(region, hints)
    lane = lane_of(region, known)
    name = str(forced.get("lane", lane.name if lane else ""))
    program = lower(region, False, name)

    def held(state: State) -> int:
        """Elements per lane."""
        return prod(padded(program.extent(d), known) for d in state.dims if d != "row")
    largest = max(held(s) for s in program.states if s.kind is Kind.AFFINE)
    rows = int(forced.get("row", max(COALESCED, PROGRAM // largest)))
    beside = min(rows, padded(program.extent("row"), known))
    everything = sum(held(s) for s in program.states if "col" not in s.dims)
    warps = max(1, beside * largest // PROGRAM, 1 << (beside * everything // ALL).bit_length())
    stages = STAGES if beside * largest <= AHEAD else 1
    knobs: dict[str, int | str] = {"lane": name, "warps": min(WARPS[0], warps), "stages": stages}
    knobs |= {k: forced[k] for k in ("warps", "stages", "span") if k in forced}
    return Schedule(WALK, (("row", rows), ("col", 1)), "grid", tuple(knobs.items()))


def crowded(region: Region, hints: Mapping[str, int]) -> bool:
    """Whether states are so large that it pays to store what their lanes are mixed by (see `stages`)."""
    known = sizes_of(region, hints)
    lane = lane_of(region, known)
    return (lane is None or lane not in region.grid) and largest_state(region, known) >= HELD


def sizes_of(region: Region, hints: Mapping[str, int]) -> dict[str, int]:
    return {s: hints.get(s, UNKNOWN) for a in number_axes(region).values() for s in a.extent.symbols}


def states(region: Region) -> list[list[Axis]]:
    """The widths of every scan."""
    return [[a for a in c.axes if a not in region.grid] for c in region.carries if c.kind is Kind.AFFINE]


def padded(extent: Size, sizes: Mapping[str, int]) -> int:
    return 1 << max(0, extent.evaluate(sizes) - 1).bit_length()


def lane_of(region: Region, sizes: Mapping[str, int]) -> Axis | None:
    """The longest grid axis if it is longer than the scans' widths: what they sum then stays in one program. Else a width,
    where states are large, over which the least is emitted as a sum: of that each program leaves a part. Each program
    repeats what all of its positions share."""
    found = lanes(region, dict(sizes))
    inside = [a for a in found if a not in region.grid]
    longest = max((a.extent.evaluate(sizes) for scan in states(region) for a in scan), default=1)
    if found and found[0] in region.grid and found[0].extent.evaluate(sizes) > longest:
        return found[0]
    if not inside or largest_state(region, sizes) < HELD:
        return None
    return min(inside, key=lambda a: sum(prod(b.extent.evaluate(sizes) for b in e.axes) for e in region.emits if a not in e.axes))


def largest_state(region: Region, sizes: Mapping[str, int]) -> int:
    return max(prod(padded(a.extent, sizes) for a in scan) for scan in states(region))


def lightened(schedule: Schedule) -> Schedule | None:
    """What is tried next if registers or shared memory are short: more threads, loads one column ahead, fewer lanes."""
    knobs, tile = dict(schedule.knobs), dict(schedule.tile)
    if schedule.knob("warps") < WARPS[0]:
        knobs["warps"] = 2 * schedule.knob("warps")
    elif schedule.knob("stages") > 1:
        knobs["stages"] = 1
    elif schedule.extent("row") > 1 and schedule.knob("lane"):
        tile["row"] = schedule.extent("row") // 2
    elif schedule.knob("warps") < WARPS[1]:
        knobs["warps"] = WARPS[1]
    else:
        return None
    return replace(schedule, tile=tuple(tile.items()), knobs=tuple(knobs.items()))
