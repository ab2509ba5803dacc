"""A region as single-level, one-kernel pieces: what this target runs one after the other.

    levels              each is its own piece; the final values of lower levels are stored and read back
    carries over grid   swapped: grid and stream exchange places, the tile is recomputed in the other orientation
    column slab         matrix products leave the kernel: it writes the tile of their left factor to a slab, block by
                        block, and library GEMMs consume that. Both orientations read one slab, nothing is atomic.
"""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from fuse.codegen.lower import lower
from fuse.codegen.roles import refuse
from fuse.codegen.tile import Affine, Load, TileProgram, Update
from fuse.ir.expr import Axis, Buffer, Expr, make, rewrite, topological
from fuse.ir.program import Carry, Emit, Kind, Region
from fuse.reasons import Refused

RECOMPUTE, COLUMN_SLAB = "recompute", "column slab"


@dataclass(frozen=True)
class Piece:
    """`slab`: every carry of `region` is a sum that is finished by a GEMM (or a row or column sum) over the slab."""

    region: Region
    program: TileProgram
    slab: bool


def pieces(region: Region, kind: str, apart: bool = False) -> tuple[Piece, ...]:
    """In execution order; `apart`: no two accumulators share a kernel. Refused if `kind` cannot compute some carry."""
    out: list[Piece] = []
    for level in range(region.sweeps):
        carries, emits = one_level(region, level)
        grid = set(region.grid)
        slab = [c for c in carries if kind == COLUMN_SLAB and on_slab(region, c)]
        rest = [c for c in carries if c not in slab]
        own = [c for c in rest if not set(c.over) & grid]
        single = [c for c in own if apart and wide_sum(c, region)]
        if len(own) > len(single) or emits:
            out.append(piece(region, [c for c in own if c not in single], emits, region.streams, region.grid))
        out += [piece(region, [c], (), region.streams, region.grid) for c in single]
        if slab:
            out.append(piece(region, slab, (), region.streams, region.grid, slab=True))
        for group in by_over([c for c in rest if set(c.over) & grid], apart):
            out.append(swapped(region, group))
    return tuple(out)


def on_slab(region: Region, carry: Carry) -> bool:
    """A plain sum that is a matrix product with a stored factor, or that accumulates row vectors over the grid."""
    grid = set(region.grid)
    if carry.kind is not Kind.SUM or carry.relative_to is not None or carry.body.dtype != "float32":
        return False
    if not set(carry.over) & grid and not set(carry.axes) - grid:
        return False
    try:
        piece(region, [carry], (), region.streams, region.grid, slab=True)
    except Refused:
        return False
    return True


def piece(region: Region, carries: Iterable[Carry], emits: Iterable[Emit], streams: tuple[Axis, ...],
          grid: tuple[Axis, ...], slab: bool = False) -> Piece:
    part = replace(region, carries=tuple(carries), emits=tuple(emits), streams=streams, grid=grid)
    program = lower(part)
    if slab:
        for u in program.levels[0].updates:
            check_slab(program, u)
    return Piece(part, program, slab)


def check_slab(program: TileProgram, u: Update) -> None:
    """The right factor must be a stored tensor, so that a library can read it."""
    if u.over not in (("row",), ("col",)):
        raise refuse(f"a slab reduced over {', '.join(u.over)}")
    if u.wide is None:
        if set(program.state(u.state).dims) - {"row", "col"}:
            raise refuse("a wide sum that is no matrix product")
        return
    source = program.source_of(u.wide)
    if not isinstance(source, Load) or not all(isinstance(i, Affine) for i in source.index):
        raise refuse("the right factor of a product is computed")


def swapped(region: Region, carries: list[Carry]) -> Piece:
    """The carries over grid axes as a region that streams those and whose grid has the stream axes."""
    over = set(carries[0].over)
    if over & set(region.streams):
        raise refuse("a total over grid and stream")
    streams = tuple(a for a in region.grid if a in over)
    grid = tuple(a for a in region.grid if a not in over) + region.streams
    return piece(region, carries, (), streams, grid)


def by_over(carries: Sequence[Carry], apart: bool) -> list[list[Carry]]:
    groups: dict[tuple, list[Carry]] = {}
    for carry in carries:
        if carry.relative_to is not None:
            raise refuse("a relative sum over the grid")
        groups.setdefault((frozenset(carry.over), carry.name if apart else ""), []).append(carry)
    return list(groups.values())


def wide_sum(carry: Carry, region: Region) -> bool:
    return carry.kind is Kind.SUM and carry.relative_to is None and bool(set(carry.axes) - {*region.grid, *region.streams})


def one_level(region: Region, level: int) -> tuple[list[Carry], list[Emit]]:
    """The carries and emits of `level`, as if of level 0: finals of lower levels are reads of what those stored."""
    wide = read_later(region)

    def rule(node: Expr) -> Expr | None:
        if node.op != "carry" or node["part"] != "final":
            return None
        buffer = Buffer(node["name"], node["dtype"], tuple(a.extent for a in node["axes"]))
        return make("read", *(make("iota", axis=a) for a in node["axes"]), buffer=buffer)

    carries = [c for c in region.carries if c.level == level]
    emits = [e for e in region.emits if e.level == level]
    bodies = rewrite([c.body for c in carries] + [e.value for e in emits], rule) if level else None
    if bodies:
        carries = [replace(c, body=b, level=0) for c, b in zip(carries, bodies[:len(carries)], strict=True)]
        emits = [replace(e, value=b, level=0) for e, b in zip(emits, bodies[len(carries):], strict=True)]
    return [replace(c, storage=None) if c.name in wide else c for c in carries], emits


def read_later(region: Region) -> set[str]:
    """Carries whose finals some level reads: stored unrounded until the region is done."""
    return {e["name"] for e in topological(region.bodies) if e.op == "carry"}
