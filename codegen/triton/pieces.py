"""A region as single-level, one-kernel pieces: what this target runs one after the other.

    levels              each is its own piece; the final values of lower levels are stored and read back
    carries over grid   swapped: grid and stream exchange places, the tile is recomputed in the other orientation
    totals              sum_ij = sum_i sum_j: the inner one is a carry of the row, the outer one is left to torch
    column slab         matrix products leave the kernel: it writes the tile of their left factor to a slab, block by
                        block, and library GEMMs consume that. Both orientations read one slab, nothing is atomic.
                        A right factor that is computed (rows that are gathered, tanh(W)) is stored beforehand.
"""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from fuse.codegen.lower import lower
from fuse.codegen.roles import factors, multiply, refuse, roles
from fuse.codegen.tile import Affine, Load, TileProgram, Update
from fuse.codegen.triton.carry import sides
from fuse.codegen.updates import weighted
from fuse.ir.expr import FLOATS, Axis, Buffer, Expr, cast, make, reads_of, rewrite, topological
from fuse.ir.program import Carry, Emit, Kind, Region
from fuse.reasons import Refused

RECOMPUTE, COLUMN_SLAB = "recompute", "column slab"
KINDS = ((RECOMPUTE, False), (RECOMPUTE, True), (COLUMN_SLAB, False))      # (kind, apart): every way to cut a region


@dataclass(frozen=True)
class Post:
    """What is left to do on a stored carry: reduce the dimensions `over`, then bring the rest into the order `order`."""

    name: str
    kind: Kind
    over: tuple[int, ...]
    order: tuple[int, ...]


@dataclass(frozen=True)
class Piece:
    """`slab`: every carry of `region` is a sum that is finished by a GEMM (or a row or column sum) over the slab.

    `before` is computed first, in plain torch: right factors, each as large as what its product is stored with.
    """

    region: Region
    program: TileProgram
    slab: bool
    post: tuple[Post, ...] = ()
    before: tuple[Right, ...] = ()


@dataclass(frozen=True)
class Right:
    """`buffer[axes] = value` in the buffer's element type."""

    buffer: Buffer
    axes: tuple[Axis, ...]
    value: Expr


def pieces(region: Region, kind: str, apart: bool = False) -> tuple[Piece, ...]:
    """In execution order; `apart`: no two accumulators share a kernel. Refused if `kind` cannot compute some carry."""
    return tuple(p for level in range(region.sweeps) for p in _Level(region, level, kind == COLUMN_SLAB, apart).pieces())


class _Level:
    """One level of a region, its carries sorted by the piece they go to."""

    def __init__(self, region: Region, level: int, slab: bool, apart: bool):
        self.region, self.apart = region, apart
        carries, self.emits = one_level(region, level)
        self.rights: list[Right] = []
        self.slab: list[Carry] = []
        if slab:
            carries = [self.through_slab(c) for c in carries]
        batch = set(roles(region).batch)
        names = {axis for axis, canonical in roles(region).name.items() if canonical in batch}
        inner = [self.inner(c, names) for c in carries if c not in self.slab]
        self.carries, self.posts = [c for c, _ in inner], {p.name: p for _, p in inner if p}

    def through_slab(self, carry: Carry) -> Carry:
        """The carry as one that a slab can finish, then listed in `slab`; or as it is."""
        if on_slab(self.region, carry):
            self.slab.append(carry)
            return carry
        found = with_stored_factor(self.region, carry)
        if found is None or not on_slab(self.region, found[0]):
            return carry
        self.slab.append(found[0])
        self.rights.append(found[1])
        return found[0]

    def inner(self, carry: Carry, batch: set[str]) -> tuple[Carry, Post | None]:
        """The part of a sum or maximum that one kernel can keep, and what then remains to be reduced.

        Over grid and stream: the stream first. Over the grid with some of its batch axes: the other axes first.
        """
        grid, over = set(self.region.grid), set(carry.over)
        if not over & grid:
            return carry, None
        later = {a for a in carry.over if a in grid and (over - grid or a.name in batch)}
        first = tuple(a for a in carry.over if a not in later)
        rest = tuple(a for a in carry.over if a not in first)
        if not first or not rest:
            return carry, None
        if carry.kind not in (Kind.SUM, Kind.MAX) or carry.relative_to is not None:
            raise refuse(f"a {carry.kind.value} over grid and stream")
        kept = {*carry.axes, *rest}
        walked = tuple(a for a in (*self.region.grid, *self.region.streams) if a in kept)
        axes = (*walked, *(a for a in carry.axes if a not in walked))
        left = tuple(a for a in axes if a not in rest)
        post = Post(carry.name, carry.kind, tuple(axes.index(a) for a in rest), tuple(left.index(a) for a in carry.axes))
        return replace(carry, over=first, axes=axes, storage=None), post

    def pieces(self) -> list[Piece]:
        region, grid, out = self.region, set(self.region.grid), []
        own = [c for c in self.carries if not set(c.over) & grid]
        single = [c for c in own if self.apart and is_wide(c, region)]
        together = [c for c in own if c not in single]
        if together or self.emits:
            out.append(self.piece(together, region.streams, region.grid, self.emits))
        out += [self.piece([c], region.streams, region.grid) for c in single]
        if self.slab:
            made = self.piece(self.slab, region.streams, region.grid, slab=True)
            out.append(replace(made, before=tuple(self.rights)))
        return out + [self.swapped(group) for group in self.by_over([c for c in self.carries if set(c.over) & grid])]

    def piece(self, carries: Sequence[Carry], streams: tuple[Axis, ...], grid: tuple[Axis, ...],
              emits: Iterable[Emit] = (), slab: bool = False) -> Piece:
        part = replace(self.region, carries=tuple(carries), emits=tuple(emits), streams=streams, grid=grid)
        program = lower(part)
        if slab:
            for u in program.levels[0].updates:
                check_slab(program, u)
        return Piece(part, program, slab, tuple(self.posts[c.name] for c in carries if c.name in self.posts))

    def swapped(self, carries: Sequence[Carry]) -> Piece:
        """The carries over grid axes as a region that streams those and whose grid has the stream axes."""
        region, over = self.region, set(carries[0].over)
        streams = tuple(a for a in region.grid if a in over)
        return self.piece(carries, streams, tuple(a for a in region.grid if a not in over) + region.streams)

    def by_over(self, carries: Iterable[Carry]) -> list[list[Carry]]:
        """Carries that can share a kernel: same axes summed; `apart` gives each accumulator one of its own."""
        groups: dict[tuple[frozenset[Axis], str], list[Carry]] = {}
        for carry in carries:
            alone = self.apart and is_wide(carry, self.region)
            groups.setdefault((frozenset(carry.over), carry.name if alone else ""), []).append(carry)
        return list(groups.values())


def is_wide(carry: Carry, region: Region) -> bool:
    """A plain sum that keeps axes which are not walked."""
    return carry.kind is Kind.SUM and carry.relative_to is None and bool(set(carry.axes) - {*region.grid, *region.streams})


def on_slab(region: Region, carry: Carry) -> bool:
    """A plain sum that is a matrix product with a stored factor, or that accumulates row vectors over the grid."""
    grid, over = set(region.grid), set(carry.over)
    if carry.kind is not Kind.SUM or carry.relative_to is not None or carry.body.dtype != "float32":
        return False
    if over - grid if over & grid else not set(carry.axes) - grid:
        return False
    try:
        program = lower(replace(region, carries=(carry,), emits=()))
        check_slab(program, program.levels[0].updates[0])
    except Refused:
        return False
    return True


def with_stored_factor(region: Region, carry: Carry) -> tuple[Carry, Right] | None:
    """The sum of left * right, right being the factors with the carry's width, as a sum of left * (a read of right).

    Does not apply where no factor has all of the width: a product of two widths is larger than what it is made of.
    """
    width = set(carry.axes) - {*region.grid, *region.streams}
    parts = factors(carry.body)
    right = [f for f in parts if width & set(f.axes)]
    left = [f for f in parts if f not in right]
    if not left or not any(width <= set(f.axes) for f in right):
        return None
    value = multiply(right)
    kinds = {e["buffer"].dtype for e in reads_of([value]) if e["buffer"].dtype in FLOATS}
    buffer = Buffer(f"{carry.name}.right", kinds.pop() if len(kinds) == 1 else value.dtype, tuple(a.extent for a in value.axes))
    read = cast(make("read", *(make("iota", axis=a) for a in value.axes), buffer=buffer), value.dtype)
    return replace(carry, body=multiply(left) * read), Right(buffer, value.axes, value)


def check_slab(program: TileProgram, u: Update) -> None:
    """The right factor must be a stored tensor, so that a library can read it."""
    if u.over not in (("row",), ("col",)) or set(program.state(u.state).keeps) != set(program.batch):
        raise refuse(f"a slab reduced over {', '.join(u.over)}")
    if u.wide is None:
        if set(program.state(u.state).dims) - {"row", "col"}:
            raise refuse("a wide sum that is no matrix product")
        return
    left, right = sides(u)
    source = program.source_of(right)
    if left is None or set(left.dims) - {"row", "col"}:
        raise refuse("a product of two wide factors")
    if not isinstance(source, Load) or not all(isinstance(i, Affine) for i in source.index):
        raise refuse("the right factor of a product is computed")


def one_level(region: Region, level: int) -> tuple[list[Carry], list[Emit]]:
    """The carries and emits of `level`, as if of level 0: finals of lower levels are reads of what those stored."""
    wide = read_later(region)

    def rule(node: Expr) -> Expr | None:
        if node.op != "carry" or node["part"] != "final":
            return None
        buffer = Buffer(node["name"], node["dtype"], tuple(a.extent for a in node["axes"]))
        return make("read", *(make("iota", axis=a) for a in node["axes"]), buffer=buffer)

    carries = [absolute(c, region) for c in region.carries if c.level == level]
    emits = [e for e in region.emits if e.level == level]
    bodies = rewrite([c.body for c in carries] + [e.value for e in emits], rule) if level else None
    if bodies:
        carries = [replace(c, body=b, level=0) for c, b in zip(carries, bodies[:len(carries)], strict=True)]
        emits = [replace(e, value=b, level=0) for e, b in zip(emits, bodies[len(carries):], strict=True)]
    return [replace(c, storage=None) if c.name in wide else c for c in carries], emits


def absolute(carry: Carry, region: Region) -> Carry:
    """A sum relative to a carry of a lower level is a plain sum: that maximum is final."""
    source = region.carry(carry.relative_to) if carry.relative_to else None
    if source is None or source.level == carry.level:
        return carry
    return replace(carry, body=weighted(carry, source), relative_to=None, exponent=1, moment=0)


def read_later(region: Region) -> set[str]:
    """Carries whose finals some level reads: stored unrounded until the region is done."""
    return {e["name"] for e in topological(region.bodies) if e.op == "carry"}
