"""Region -> TileProgram: the lowering that all targets share, and what a target lacks for it."""
from __future__ import annotations

from functools import lru_cache

from fuse.codegen import Capabilities
from fuse.codegen.levels import Levels
from fuse.codegen.roles import refuse
from fuse.codegen.tile import Dot, Point, TileProgram
from fuse.codegen.walk import Walk, walks
from fuse.ir.program import Kind, Region
from fuse.reasons import Miss, Refused


@lru_cache(maxsize=256)
def lower(region: Region, staged: bool = False, lane: str = "") -> TileProgram:
    """The tile program of `region`; `staged`: level 0 keeps the dots that later levels need again (see `Staged`); `lane`:
    the axis of a region with scans whose positions are walked side by side (see `walk`).

    Raises Refused(TARGET_LACKS) for regions no target can walk yet: prefix reads, and (staged) when there is nothing to stage.
    """
    if walks(region):
        return Walk(region, lane).program(staged)
    if region.reverse:
        raise refuse(f"{region.name} is walked backwards without a scan")
    return Levels(region).program(staged)


def refusal(region: Region, capabilities: Capabilities, staged: bool = False) -> Miss | None:
    """Why a target with these capabilities cannot run the region, or None if it can."""
    try:
        program = lower(region, staged)
    except Refused as refused:
        return refused.miss
    if len(program.levels) > capabilities.levels:
        return Miss("TARGET_LACKS", None, f"{len(program.levels)} sweeps in one kernel")
    for state in program.states:
        if state.kind.value not in capabilities.kinds or (state.scope == "grid" and not capabilities.shared):
            return Miss("TARGET_LACKS", None, f"a {state.kind.value} carry over {state.scope}")
    for slot in (*program.inputs, *program.outputs):
        if slot.dtype not in capabilities.dtypes:
            return Miss("UNSUPPORTED_DTYPE", None, f"{slot.source} is {slot.dtype}")
    for s in program.statements():
        if isinstance(s, Point) and s.op not in capabilities.ops:
            return Miss("TARGET_LACKS", None, f"no spelling for {s.op}")
        if isinstance(s, Dot) and s.out.dtype not in capabilities.compute:
            return Miss("UNSUPPORTED_DTYPE", None, f"a product in {s.out.dtype}")
        if s.out.dtype not in capabilities.dtypes:
            return Miss("UNSUPPORTED_DTYPE", None, f"a value of type {s.out.dtype}")
    for u in (u for level in program.levels for u in level.updates):
        state = program.state(u.state)
        if (u.kind is Kind.LSE or u.wide is not None) and state.dtype not in capabilities.compute:
            return Miss("UNSUPPORTED_DTYPE", None, f"{state.name} is accumulated in {state.dtype}")
    return None
