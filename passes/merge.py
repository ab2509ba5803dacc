"""merge: leaves over the same stream share a sweep.

In dependency order, a leaf joins the earliest region of the same phase, streams and grid that
  - computes nothing the leaf needs (they are independent), or
  - computes statistics the leaf needs and the leaf is separable in them (see separate.py), or
  - holds the same row: under the slab schedule a sum that depends on its own row's statistics alone, and a gradient that
    does so up to one common factor, joins the forward region one level up and is swept from the staged rows.
Two plain sums over different axes of one anchor (both gradients of a contraction, a bias's) may share the recomputed tile:
the second is accumulated `over` the grid. Axes that both keep, and both operands of the contraction have, are a batch of such
regions.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from fuse.ir.expr import Axis, Expr, topological
from fuse.ir.program import Kind, Slab
from fuse.ir.size import product
from fuse.passes.products import product_of
from fuse.passes.regions import Leaf, rows_only
from fuse.passes.separate import Separated, separate
from fuse.passes.simplify import is_dot
from fuse.reasons import Miss


@dataclass(eq=False)
class Member:
    """A leaf inside a region: at which level, over which axes, and split into which moments."""

    leaf: Leaf
    level: int
    over: tuple[Axis, ...]
    separated: Separated | None = None


@dataclass(eq=False)
class Group:
    """A region in the making."""

    streams: tuple[Axis, ...]
    grid: tuple[Axis, ...]
    backward: bool
    reverse: bool = False
    members: list[Member] = field(default_factory=list)

    def add(self, member: Member) -> None:
        self.reverse |= member.leaf.reverse                 # a walk backwards can carry forward scans along, rehearsed
        if member.leaf.given:
            self.grid = tuple(a for a in self.grid if a in member.leaf.grid)
        self.members.append(member)

    def member(self, leaf: Leaf) -> Member | None:
        return next((m for m in self.members if m.leaf is leaf), None)


def merge(leaves: list[Leaf], *, slab: bool, shared_sweep: bool,
          note: Callable[[Miss], None] = lambda _: None) -> list[Group]:
    """The regions in execution order, forward first. `note` receives why a sweep could not be shared."""
    table = {leaf.value: leaf for leaf in leaves}
    groups: list[Group] = []
    forward = [leaf for leaf in leaves if leaf.forward]
    for leaf in forward:
        _place(leaf, groups, table, backward=False, shared=False, note=note)
    if slab:
        _climb(groups, table)
    rest = [leaf for leaf in leaves if not leaf.forward]
    for leaf in rest:
        if not leaf.dot:
            _join_statistics(leaf, groups, table)
    if slab and not _slab(rest, groups, table, shared_sweep):
        slab = False
    for leaf in _streams_first(rest, groups):
        if not any(g.member(leaf) for g in groups):
            _place(leaf, groups, table, backward=True, shared=shared_sweep, note=note)
    return groups


def fits_beside(slab: Slab, leaves: list[Leaf], hints: Mapping[str, int]) -> bool:
    """Whether the gradients summed over the rows of a slab are small enough, and the rows many enough."""
    if slab == Slab():
        return True
    streams = {frozenset(leaf.streams) for leaf in leaves if leaf.forward}
    sums = [leaf for leaf in leaves if not leaf.forward and frozenset(leaf.streams) not in streams]

    def size(axes: tuple[Axis, ...]) -> int:
        return product(a.extent for a in axes).evaluate(hints)
    return bool(sums) and all(size(s.value.axes) <= slab.elements and size(s.streams) >= slab.rows for s in sums)


def _place(leaf: Leaf, groups: list[Group], table: Mapping[Expr, Leaf], *, backward: bool, shared: bool,
           note: Callable[[Miss], None]) -> None:
    for i, group in enumerate(groups):
        if group.backward is not backward:
            continue
        if _follows(leaf, groups, i):
            member = _fits(leaf, group, table, note) or (_shares(leaf, group) if shared else None)
        else:
            member = _accumulated(leaf, group, groups[:i + 1], table)
        if member:
            group.add(member)
            return
    streams = _across(leaf) if shared else leaf.streams
    grid = leaf.grid if streams == leaf.streams else leaf.streams + tuple(a for a in leaf.grid if a not in streams)
    groups.append(Group(streams, grid, backward, leaf.reverse, [Member(leaf, 0, leaf.streams)]))


def _follows(leaf: Leaf, groups: list[Group], position: int) -> bool:
    """Nothing the leaf needs is computed after `position`."""
    later = {m.leaf for g in groups[position + 1:] for m in g.members}
    return later.isdisjoint(leaf.all_needs())


def _fits(leaf: Leaf, group: Group, table: Mapping[Expr, Leaf], note: Callable[[Miss], None]) -> Member | None:
    if set(leaf.streams) != set(group.streams) or not (leaf.given or set(leaf.grid) == set(group.grid)):
        return None
    if leaf.reverse and not group.reverse and not group.backward:
        return None
    here = [n for n in leaf.needs if group.member(n) and n.kind is not None]    # what is emitted is inlined
    if not here:
        return Member(leaf, 0, leaf.streams)
    if leaf.kind is not Kind.SUM or (leaf.dot and group.backward):
        return None
    statistics = [m.leaf.value for m in group.members if m.leaf in here and m.leaf.kind is Kind.LSE and m.level == 0]
    found = separate(leaf.body, leaf.streams, statistics, _reads({n.value for n in here}, table))
    if isinstance(found, Miss):
        note(found)
        return None
    return Member(leaf, 0, leaf.streams, found)


def _shares(leaf: Leaf, group: Group) -> Member | None:
    """dW and db beside dX, or the gradient of a bias that a batch shares: a sum over other axes of the same anchor.

    Stream and grid are exchanged but for a batch, or all that is summed over is a batch. It needs nothing the region computes.
    """
    plain = _exchangeable(leaf) and all(_exchangeable(m.leaf) and m.separated is None for m in group.members)
    if not plain or {*leaf.streams, *leaf.grid} != {*group.streams, *group.grid} or any(group.member(n) for n in leaf.needs):
        return None
    batch, common = _batch(leaf.body), set(leaf.grid) & set(group.grid)
    exchanged = set(group.streams) == set(leaf.grid) - common and common <= batch
    return Member(leaf, 0, leaf.streams) if exchanged or batch.issuperset(leaf.streams) else None


def _across(leaf: Leaf) -> tuple[Axis, ...]:
    """What to walk for a leaf of its own: if it sums over a batch alone, the columns of the products it adds up."""
    batch = _batch(leaf.body)
    rest = [a for a in leaf.grid if a not in batch]
    if not _exchangeable(leaf) or not batch.issuperset(leaf.streams) or len(rest) < 2:
        return leaf.streams
    wide = [e for e in topological([leaf.body]) if set(e.axes).issuperset(rest)]
    columns = min(wide, key=lambda e: e.op != "read").axes[-1]       # along a bias as it lies in memory
    return (columns,) if columns in rest else leaf.streams


def _exchangeable(leaf: Leaf) -> bool:
    """A sum is the same whichever of its anchor's axes is walked."""
    return leaf.kind is Kind.SUM and not leaf.given


def _batch(body: Expr) -> set[Axis]:
    """The axes along which some dot in `body` is one of many of the same shape: both its operands have them."""
    found = set[Axis]()
    for dot in (e for e in topological([body]) if is_dot(e)):
        operands = [set(f.axes) for f in product_of(dot.args[0]).factors if len(f.axes) > 1]
        found |= set.intersection(*operands).difference(dot["axes"]) if operands else set()
    return found


def _streams_first(rest: list[Leaf], groups: list[Group]) -> list[Leaf]:
    """Sums along the forward's own stream found a shared sweep; the exchanged ones join it."""
    streams = [set(g.streams) for g in groups]
    needed = {n for leaf in rest for n in leaf.needs}
    later = [leaf for leaf in rest if _exchangeable(leaf) and leaf not in needed and set(leaf.streams) not in streams]
    return [leaf for leaf in rest if leaf not in later] + later


def _join_statistics(leaf: Leaf, groups: list[Group], table: Mapping[Expr, Leaf]) -> None:
    """A gradient's own statistic rides in the forward sweep if what it accumulates is known there."""
    for i, group in enumerate(groups):
        member = _accumulated(leaf, group, groups[:i + 1], table)
        if member:
            group.add(member)
            return


def _accumulated(leaf: Leaf, group: Group, groups: list[Group], table: Mapping[Expr, Leaf]) -> Member | None:
    """The leaf as moments that `group` can accumulate, whatever its coefficients wait for.

    Cotangents and statistics of later sweeps may stand in the coefficients: those are applied to the stored moments.
    """
    if (set(leaf.streams), set(leaf.grid)) != (set(group.streams), set(group.grid)) or leaf.kind in (None, Kind.AFFINE):
        return None
    earlier = [m.leaf.value for g in groups if g is not group for m in g.members]
    if leaf.kind is not Kind.SUM:
        return Member(leaf, 0, leaf.streams) if _known(leaf.body, table, earlier) else None
    statistics = [m.leaf.value for m in group.members if m.leaf.kind is Kind.LSE and m.level == 0]
    values = {m.leaf.value for m in group.members}
    found = separate(leaf.body, leaf.streams, statistics, _reads(values, table))
    if isinstance(found, Miss):
        return None
    known = all(_known(body, table, earlier) for body in found.bodies)
    return Member(leaf, 0, leaf.streams, found) if known else None


def _known(body: Expr, table: Mapping[Expr, Leaf], earlier: list[Expr]) -> bool:
    below = topological([body], table)
    return not any(e.op == "read" and e["buffer"].name.startswith("ct.") for e in below) \
        and all(e in earlier for e in below if e in table)


def _reads(values: set[Expr], table: Mapping[Expr, Leaf]) -> Callable[[Expr], bool]:
    return lambda x: any(e in values for e in topological([x], table))


def _slab(rest: list[Leaf], groups: list[Group], table: Mapping[Expr, Leaf], shared_sweep: bool) -> bool:
    """All gradients join one forward region one level up, or none does."""
    pending = [leaf for leaf in rest if not any(g.member(leaf) for g in groups)]
    if not pending or not shared_sweep or any(leaf.cotangent or not _exchangeable(leaf) for leaf in pending):
        return False
    if any(not leaf.all_needs().isdisjoint(pending) for leaf in pending):
        return False
    for i, group in enumerate(groups):
        members = _all_staged(pending, groups, i, table)
        group.members += members
        if members:
            return True
    return False


def _climb(groups: list[Group], table: Mapping[Expr, Leaf]) -> None:
    """A group that waits for the statistics of its own rows in another is the next level there: the rows are still at hand."""
    for later in list(groups):
        if not all(m.separated is None and _exchangeable(m.leaf) for m in later.members):
            continue
        for i, group in enumerate(groups[:groups.index(later)]):
            if (set(later.streams), set(later.grid)) != (set(group.streams), set(group.grid)):
                continue
            members = _all_staged([m.leaf for m in later.members], groups, i, table)
            group.members += members
            if members:
                groups.remove(later)
                break


def _all_staged(leaves: list[Leaf], groups: list[Group], position: int, table: Mapping[Expr, Leaf]) -> list[Member]:
    """The leaves as members of that group one level up; none if it cannot take them all."""
    members = [_staged(leaf, groups[position], table) if _follows(leaf, groups, position) else None for leaf in leaves]
    return [m for m in members if m] if all(members) else []


def _staged(leaf: Leaf, group: Group, table: Mapping[Expr, Leaf]) -> Member | None:
    ours, theirs = {frozenset(leaf.streams), frozenset(leaf.grid)}, {frozenset(group.streams), frozenset(group.grid)}
    if ours != theirs:
        return None
    here = [n for n in leaf.needs if group.member(n)]
    if not all(rows_only(leaf, n, table, group.grid) for n in here):
        return None
    level = 1 + max((m.level for m in group.members if m.leaf in here), default=0)
    return Member(leaf, level, leaf.streams)
