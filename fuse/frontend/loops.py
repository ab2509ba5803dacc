"""Unrolled loops whose steps are a linear recurrence, as candidates: Dynamo leaves L copies of the step in the graph.

    collector   what puts the steps' results side by side: a stack, a cat, or a fresh tensor filled position by position
    steps       the families of copies behind it (steps.py); a loop has at least one state

Found from the collectors or, where only the last state is wanted, from the copies' regular places (repeats.py). What the loop
gives becomes values of the shadow that know the loop (recurrence.py), so that the importer sees one step at a symbolic
position; the graph is not changed.
"""
from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import fx

from fuse.frontend.candidates import Candidate, asks_for_shape, tensors_of
from fuse.frontend.cascades import leaving
from fuse.frontend.index import Linear
from fuse.frontend.recurrence import Loop, one_step, rolled
from fuse.frontend.repeats import SHORTEST, uncollected
from fuse.frontend.scope import Scope
from fuse.frontend.shadow import Shadow
from fuse.frontend.steps import Mismatch, Steps, reads_back
from fuse.frontend.symbols import shape_of
from fuse.frontend.unrolled import Unrolled
from fuse.frontend.value import arguments, called, example, where
from fuse.ir.size import Size
from fuse.private import memory_of
from fuse.reasons import Miss, Refused

STACKS = ("stack", "cat", "concat", "concatenate")
FILLED = {"zeros_like": 0, "zeros": 0, "new_zeros": 0, "empty_like": None, "empty": None, "new_empty": None}


@dataclass(eq=False)
class Collector:
    """The results of all steps in one tensor, along `dim`; `kept`: each has that dimension, of size 1."""

    node: fx.Node
    members: list[Any]                  # in the order of the loop
    dim: int
    flipped: bool = False
    kept: bool = False
    writes: tuple[fx.Node, ...] = ()


@dataclass(eq=False)
class Fill:
    """Writes `tensor[.., i, ..] = value` into a fresh tensor, one for each i; `kept`: as slices [.., i:i + 1, ..]."""

    node: fx.Node
    dim: int
    kept: bool
    writes: dict[int, tuple[int, fx.Node]] = field(default_factory=dict)       # index -> (when, the write)

    @property
    def empty(self) -> Any:
        """The number a position holds before it is written; None if that is not known."""
        return FILLED[called(self.node)]

    def place(self, index: Any) -> int | None:
        found = _place(index, example(self.node))
        return found.position if found is not None and (found.dim, found.kept) == (self.dim, self.kept) else None


def find_loops(scope: Scope) -> tuple[list[Candidate], list[Miss]]:
    """Candidates for linear recurrences, and a Miss for each loop with a state that is none."""
    stacks = [n for n in scope.graph.nodes if _is_stack(n)]
    writes = [n for n in scope.graph.nodes if n.op == "call_function" and n.target is operator.setitem]
    return Finder(scope, writes).run(stacks)


def _is_stack(node: fx.Node) -> bool:
    if node.op != "call_function" or called(node) not in STACKS or not arguments(node):
        return False
    parts = arguments(node)[0]
    return isinstance(parts, (list, tuple)) and len(parts) >= SHORTEST and all(isinstance(p, fx.Node) for p in parts)


class Position(NamedTuple):
    """One position of a dimension; `kept`: as a slice, with that dimension of size 1."""

    dim: int
    position: int
    kept: bool


def _place(index: Any, tensor: torch.Tensor) -> Position | None:
    """What an index takes, if that is one position of one dimension and all of the others."""
    parts = list(index) if isinstance(index, tuple) else [index]
    if parts and parts[0] is Ellipsis:
        parts = [slice(None)] * (tensor.dim() - len(parts) + 1) + parts[1:]
    single = [d for d, p in enumerate(parts) if p != slice(None)]
    if len(single) != 1:
        return None
    (d,) = single
    extent, part = shape_of(tensor)[d].constant, parts[d]
    kept = isinstance(part, slice)
    start = part.start if kept else part
    if extent is None or type(start) is not int or (kept and part != slice(start, start + 1)):
        return None
    return Position(d, start + extent if start < 0 else start, kept)


class Finder:
    """The loops of one graph."""

    def __init__(self, scope: Scope, writes: list[fx.Node]):
        self.scope, self.position = scope, scope.position
        self.fills = self._fills(writes)

    @property
    def shadow(self) -> Shadow:
        """Made when a loop is in sight: a graph without one pays nothing for it."""
        return self.scope.shadow

    def run(self, stacks: list[fx.Node]) -> tuple[list[Candidate], list[Miss]]:
        groups: list[tuple[Steps, list[tuple[Collector, Any]]]] = []
        misses: list[Miss] = []
        for collector in self.collectors(stacks):
            try:
                self._add(groups, collector)
            except Mismatch as why:
                if self._recurs(collector):
                    misses.append(why.miss)
        claimed = {n for steps, _ in groups for n in steps.member}
        groups += [(steps, []) for steps in uncollected(self.scope, claimed, self.resolve)]
        found: list[Candidate] = []
        for steps, results in groups:
            try:
                if steps.states:
                    found.append(self.candidate(steps, results))
            except Refused as refused:
                misses.append(refused.miss)
        return found, misses

    # ---- collectors -------------------------------------------------------------------------------------------------

    def _fills(self, writes: list[fx.Node]) -> dict[fx.Node, Fill]:
        """Tensors of the graph's own that are written position by position, and read meanwhile only where written."""
        found: dict[fx.Node, Fill] = {}
        refused: set[fx.Node] = set()
        for node in writes:
            base, index, value = arguments(node)
            place = _place(index, example(base)) if isinstance(base, fx.Node) and called(base) in FILLED else None
            if place is None or not self._fits(base, place, value):
                refused.add(base)
                continue
            fill = found.setdefault(base, Fill(base, place.dim, place.kept))
            if (fill.dim, fill.kept) != (place.dim, place.kept) or place.position in fill.writes:
                refused.add(base)
            fill.writes[place.position] = (self.position[node], node)
        return {b: f for b, f in found.items() if b not in refused and len(f.writes) >= SHORTEST - 1 and self._private(f)}

    def _fits(self, base: fx.Node, place: Position, value: Any) -> bool:
        tensor, part = example(base), example(value) if isinstance(value, fx.Node) else None
        if not isinstance(part, torch.Tensor):
            return False
        shape, one = shape_of(tensor), (Size.of(1),) if place.kept else ()
        return part.dtype == tensor.dtype and shape_of(part) == (*shape[:place.dim], *one, *shape[place.dim + 1:])

    def _private(self, fill: Fill) -> bool:
        """Is the tensor, until it is full, only written, and read where it was written?"""
        last = max(when for when, _ in fill.writes.values())
        writes = {node for _, node in fill.writes.values()}
        for user in fill.node.users:
            back = reads_back(user)
            if user in writes or self.position[user] > last or asks_for_shape(user):
                continue
            if back is None or back[0] is not fill.node or self._outlives(user, fill, fill.place(back[1])):
                return False
        return True

    def _outlives(self, read: fx.Node, fill: Fill, place: int | None) -> bool:
        """Is a position read that is written later, and may that be seen through the view? Else the read is what it was."""
        if place is None:
            return True
        when = fill.writes[place][0] if place in fill.writes else len(self.position)
        memory = memory_of(example(fill.node))
        return self.position[read] < when and any(
            self.position[u] > when or any(memory_of(t) == memory for t in tensors_of(example(u))) for u in read.users)

    def resolve(self, item: Any) -> Any:
        """What a read of a tensor that is being filled gives: the value written there."""
        back = reads_back(item) if isinstance(item, fx.Node) else None
        fill = self.fills.get(back[0]) if back is not None else None
        if fill is None or back is None:
            return item
        place = fill.place(back[1])
        written = fill.writes.get(place) if place is not None else None
        if place is None:
            return item
        if written is None or written[0] > self.position[item]:
            return item if fill.empty is None else fill.empty
        return self.resolve(arguments(written[1])[2])

    def collectors(self, stacks: list[fx.Node]) -> Iterator[Collector]:
        for node in stacks:
            parts = list(arguments(node)[0])
            options: dict[str, Any] = dict(node.kwargs)
            dim = int(options.get("dim", options.get("axis", arguments(node)[1] if len(arguments(node)) > 1 else 0)))
            kept = called(node) != "stack"
            if kept and any(shape_of(example(p))[dim] != 1 for p in parts):
                continue
            flipped = self.position[parts[0]] > self.position[parts[-1]]
            yield Collector(node, parts[::-1] if flipped else parts, dim % example(node).dim(), flipped, kept)
        for fill in self.fills.values():
            collector = self._filled(fill)
            if collector is not None:
                yield collector

    def _filled(self, fill: Fill) -> Collector | None:
        """The collector of a tensor that is filled from one end to the other; the first position may be left as it was."""
        extent = shape_of(example(fill.node))[fill.dim].constant or 0
        places = sorted(fill.writes, key=lambda i: fill.writes[i][0])
        flipped = places[0] > places[-1]
        order = list(range(extent))[::-1] if flipped else list(range(extent))
        values: list[Any] = [self.resolve(arguments(fill.writes[i][1])[2]) for i in places]
        if places == order[1:] and fill.empty is not None:
            values.insert(0, fill.empty)
        elif places != order:
            return None
        return Collector(fill.node, values, fill.dim, flipped, fill.kept, tuple(n for _, n in fill.writes.values()))

    def _add(self, groups: list[tuple[Steps, list[tuple[Collector, Any]]]], collector: Collector) -> None:
        """Adds the collector to the loop whose steps it shares, or to a new one."""
        last = self.resolve(collector.members[-1])
        for steps, results in groups:
            if steps.length == len(collector.members) and self._touches(steps, last):
                results.append((collector, steps.add(collector.members)))
                return
        steps = Steps(len(collector.members), self.shadow.context, self.resolve)
        groups.append((steps, [(collector, steps.add(collector.members))]))

    def _touches(self, steps: Steps, node: fx.Node, depth: int = 8) -> bool:
        """Is the node made from one of the steps' nodes, a few calls away?"""
        if node in steps.member:
            return True
        return depth > 0 and any(self._touches(steps, a, depth - 1) for a in node.all_input_nodes
                                 if self.position[a] > self.position[steps.families[0].rest[-2]])

    def _recurs(self, collector: Collector) -> bool:
        """Is the last result made from the one before it, so that a user would call this a recurrence?"""
        nodes = [n for n in map(self.resolve, collector.members) if isinstance(n, fx.Node)]
        if len(nodes) < SHORTEST - 1:
            return False
        sources = _above(nodes[-2], 6, self.resolve)
        return bool(_above(nodes[-1], 24, self.resolve) & {n for n in sources if n.op.startswith("call")
                                                             and self.position[n] > self.position[nodes[-3]]})

    # ---- regions ----------------------------------------------------------------------------------------------------

    def candidate(self, steps: Steps, results: list[tuple[Collector, Any]]) -> Candidate:
        named = [c.node for c, _ in results] or [steps.families[0].rest[-1]]
        loop = Unrolled(named[0].name, steps, self.shadow, any(c.flipped for c, _ in results[:1]))
        writes = tuple(w for c, _ in results for w in c.writes)
        region = {n for f in steps.families for n in f.nodes} | {c.node for c, _ in results} | set(writes)
        region |= {u for c, _ in results if c.writes for u in c.node.users if self.resolve(u) is not u}
        self._unwritten(region, set(writes))
        for collector, family in results:
            self._show(loop, collector, family)
        for node in leaving(region):
            family, step = steps.member.get(self.resolve(node), (None, 0))
            if family is not None:
                if step < 3:
                    raise Refused(Miss("NOT_A_SCAN", where(node), "one of the first steps is read by itself"))
                self.shadow.given[node] = one_step(loop, family, Linear.of(step), node)
        return self.scope.candidate(region, named, writes)

    def _unwritten(self, region: set[fx.Node], own: set[fx.Node]) -> None:
        """Refused if anything but the loop's own results is written between its first and its last step."""
        when = [self.position[n] for n in region if n not in own]
        memory = {memory_of(t) for n in region for a in (n, *n.all_input_nodes) for t in tensors_of(example(a))}
        for position, node, target in self.shadow.mutations:
            if node not in own and min(when) < position < max(when) and memory_of(example(target)) in memory:
                raise Refused(Miss("MUTATION", where(node), f"{node.name} writes to what the loop reads"))

    def _show(self, loop: Loop, collector: Collector, family: Any) -> None:
        """Lets the shadow see the collector as the loop's results."""
        node = collector.node
        last = max(self.position[n] for n in (node, *collector.writes))
        found = rolled(loop, family, collector.dim, node, kept=collector.kept, flipped=collector.flipped, since=last)
        self.shadow.given[node] = found
        if not collector.writes:
            self.shadow.memo[node] = found
        for write in collector.writes:
            if self.position[write] == last:
                self.shadow.mutated[node, write] = found


def _above(node: fx.Node, depth: int, resolve: Any) -> set[fx.Node]:
    """What a node is made of, a few calls deep."""
    found, level = {node}, {node}
    for _ in range(depth):
        level = {r for n in level for a in n.all_input_nodes if isinstance(r := resolve(a), fx.Node)} - found
        if not level or len(found) > 200:
            break
        found |= level
    return found
