"""boundaries: a walk backwards enters its tiles with states that the forward has stored.

The gradient of a scan needs the scan's own states, from the last one on. The region that walks that way makes those of a tile
again, from the state with which the scan enters it:

    h[k T - 1], k = 0, 1, ...          stored by the forward region that carries the same scan, T being the length of a tile

Without them the walk is rehearsed: the whole scan, once more, for these states alone. They are stored where they take little
memory beside what the forward region emits (as much would cost more than a rehearsal), for lengths that are known here.
"""
from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

from fuse.ir.expr import COMPLEXES, Axis, Expr, topological
from fuse.ir.program import Carry, Kind, Program, Region, stored
from fuse.ir.size import Size, product

SHARE = 0.5       # of the elements that the forward region emits
Tile = Callable[[Region], tuple[int, str] | None]


def boundaries(program: Program, backward: Collection[str], tile: Tile, hints: Mapping[str, int]) -> Program:
    """`tile` tells how many positions a tile of a region's walk has, and the name of the axis that should be contiguous in what
    is stored; or None if nothing is to be stored for it."""
    read = {e["buffer"].name for e in topological(program.roots()) if e.op == "read"}
    steps = {s.name: s for s in program.steps}
    for late in (r for r in program.regions if r.name in backward):
        scans = {c.body for c in late.carries if c.kind is Kind.AFFINE and c.body["reverse"] != late.reverse}
        early = next((r for r in program.regions if r.name not in backward and scans <= _along(r)), None)
        if early is None or not scans or not _length(early) or any(c.name in read for c in late.carries if c.body in scans):
            continue
        length, lane = tile(late) or (0, "")
        first = steps[early.name]
        assert isinstance(first, Region)
        if length and _few(early, scans, length, hints) and first.tile in (0, length):
            steps[early.name] = first = _storing(first, scans, length, lane)
            steps[late.name] = _entered(late, first, scans)
    return replace(program, steps=tuple(steps.values()))


def _along(region: Region) -> set[Expr]:
    return {c.body for c in region.carries if c.kind is Kind.AFFINE and c.body["reverse"] == region.reverse}


def _length(region: Region) -> int:
    """The positions of the stream, 0 if that is not known."""
    return region.streams[0].extent.constant or 0


def _tiles(region: Region, tile: int) -> int:
    return -(-_length(region) // tile)


def _few(region: Region, scans: Collection[Expr], tile: int, hints: Mapping[str, int]) -> bool:
    """Do the states at boundaries take little memory beside what the region emits along the stream?"""
    def each(axes: Collection[Axis]) -> int:
        return product(a.extent for a in axes if a not in region.streams).evaluate(hints)
    kept = sum(_tiles(region, tile) * each(s.axes) * (2 if s.dtype in COMPLEXES else 1) for s in scans)
    return 0 < kept <= SHARE * sum(_length(region) * each(e.axes) for e in region.emits)


def _storing(region: Region, scans: Collection[Expr], tile: int, lane: str) -> Region:
    counter = Axis(f"{region.streams[0].name}.tile", Size.of(_tiles(region, tile)))

    def one(c: Carry) -> Carry:
        if c.kind is not Kind.AFFINE or c.body not in scans or c.boundary:
            return c
        return replace(c, boundary=(counter, *sorted(c.axes, key=lambda a: a.name == lane)))
    return replace(region, carries=tuple(map(one, region.carries)), tile=tile)


def _entered(region: Region, early: Region, scans: Collection[Expr]) -> Region:
    found = {c.body: stored(f"at.{c.name}", c.body.dtype, c.boundary) for c in early.carries if c.boundary}

    def one(c: Carry) -> Carry:
        return replace(c, entry=found[c.body]) if c.kind is Kind.AFFINE and c.body in scans else c
    return replace(region, carries=tuple(map(one, region.carries)), tile=early.tile)
