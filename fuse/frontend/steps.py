"""Proves that an unrolled loop is one step, repeated: its nodes fall into families of copies, one for each position.

    m1 = a[:, 1] * h0; h1 = m1 + x[:, 1]; m2 = a[:, 2] * h1; h2 = m2 + x[:, 2]; ...
    ->  h[t] = m[t] + x[:, t],  m[t] = a[:, t] * h[t - 1]            h is a state: a copy reads the one before it

Copies have the same call, the same context and the same kind of result; their arguments are the same node, copies of
another family, the state one step before, or equal constants. Only the integers that index a tensor may advance, by a
constant, and without changing their sign: x[:, t - 1] at t = 0 is the last column. Positions 1.. are compared with each
other and position 0 with what they have in common: it is the same step from a given state, or it gives the first state.
"""
from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from fuse.frontend.context import Context, mutated_arguments
from fuse.frontend.symbols import shape_of
from fuse.frontend.value import called, example
from fuse.reasons import Miss

INDEXING = ("getitem", "select", "narrow")     # the calls whose integers are positions
LONGEST = 64                                   # nodes from a result of the step to what it is made of


@dataclass(frozen=True)
class Place:
    """An integer that is `start + stride * t`."""

    start: int
    stride: int


@dataclass(frozen=True)
class Link:
    """A copy of `family`; `before`: the one of the step before."""

    family: Family
    before: bool = False


@dataclass(eq=False)
class Family:
    """The copies of one node. `first` is what stands at position 0: a node or, where there is none, a number."""

    rest: tuple[fx.Node, ...]                       # positions 1, 2, ...
    spec: Any = None                                # the arguments, with Place and Link for what changes
    first: Any = None
    previous: Any = None                            # of a state: what position 1 reads as the state before it
    start: Any = None                               # of a state: the state before position 0; None if `first` is given as such
    given: bool = False                             # of a state: position 0 is no step

    @property
    def is_state(self) -> bool:
        return self.previous is not None

    @property
    def nodes(self) -> Iterator[fx.Node]:
        yield from (n for n in (self.first, *self.rest) if isinstance(n, fx.Node))


class Mismatch(Exception):
    """The nodes are not copies of one step; the arguments are the node where that shows and why."""

    @property
    def miss(self) -> Miss:
        from fuse.frontend.value import where
        node, why = self.args
        return Miss("NOT_A_SCAN", where(node) if isinstance(node, fx.Node) else None, why)


@dataclass
class Steps:
    """The families behind some results of the loop. `resolve` sees through what a node reads back from a tensor that the
    loop fills."""

    length: int
    contexts: dict[fx.Node, Context]
    resolve: Callable[[Any], Any]
    families: list[Family] = field(default_factory=list)
    member: dict[fx.Node, tuple[Family, int]] = field(default_factory=dict)

    def add(self, nodes: Sequence[Any]) -> Family:
        """The family of these results, one a position. Mismatch if they are not one step repeated."""
        first, *rest = nodes
        link = self._link(tuple(rest))
        if not isinstance(link, Link) or link.before:
            raise Mismatch(rest[0], "the results of the steps are one value")
        self._match(link.family, first)
        for family in self.families:
            if family.is_state and not _identical(family.previous, family.first):
                raise Mismatch(family.rest[0], "the first step does not read what the others read")
        return link.family

    @property
    def states(self) -> list[Family]:
        return [f for f in self.families if f.is_state]

    # ---- positions 1 and after --------------------------------------------------------------------------------------

    def _link(self, nodes: tuple[Any, ...], depth: int = 0) -> Any:
        nodes = tuple(map(self.resolve, nodes))
        if all(n is nodes[0] for n in nodes):
            return nodes[0]
        family, position = self.member.get(nodes[-1], (None, 0))
        if family is not None and position == self.length - 1 and family.rest == nodes:
            return Link(family)
        if family is not None and position == self.length - 2 and family.rest[:-1] == nodes[1:]:
            if family.is_state and not _identical(family.previous, nodes[0]):
                raise Mismatch(nodes[0], "two values are read as the state before the loop")
            family.previous = nodes[0]
            return Link(family, before=True)
        if not all(isinstance(n, fx.Node) for n in nodes) or depth > LONGEST:
            raise Mismatch(nodes[-1], "a step has a number where another has a tensor")
        family = Family(nodes)
        for t, node in enumerate(nodes, 1):
            if node in self.member:
                raise Mismatch(node, "a step reads another step than the one before it")
            self.member[node] = (family, t)
        self.families.append(family)
        head = nodes[0]
        for node in nodes[1:]:
            self._alike(head, node)
        family.spec = self._common([(n.args, dict(n.kwargs)) for n in nodes], nodes, called(head) in INDEXING, depth + 1)
        return Link(family)

    def _alike(self, a: fx.Node, b: fx.Node) -> None:
        if (a.op, a.target) != (b.op, b.target) or a.op not in ("call_function", "call_method"):
            raise Mismatch(b, f"{called(a) or a.name} in one step is {called(b) or b.name} in another")
        if _kind(a) != _kind(b) or self.contexts[a] != self.contexts[b]:
            raise Mismatch(b, "the steps differ in shape, type or context")
        if mutated_arguments(b) or mutated_arguments(a):
            raise Mismatch(b, "a step changes a tensor in place")

    def _common(self, items: Sequence[Any], nodes: Sequence[fx.Node], indexing: bool, depth: int) -> Any:
        """What the arguments of the copies have in common."""
        head = items[0]
        if isinstance(head, fx.Node):
            return self._link(tuple(items), depth)
        if isinstance(head, (tuple, list, dict, slice)) and any(type(i) is not type(head) for i in items):
            raise Mismatch(nodes[0], "the steps differ in their arguments")
        if isinstance(head, (tuple, list)):
            if len({len(i) for i in items}) > 1:
                raise Mismatch(nodes[0], "the steps differ in how many arguments they have")
            return type(head)(self._common(part, nodes, indexing, depth) for part in zip(*items, strict=True))
        if isinstance(head, dict):
            if any(i.keys() != head.keys() for i in items):
                raise Mismatch(nodes[0], "the steps differ in their arguments")
            return {k: self._common([i.get(k) for i in items], nodes, indexing, depth) for k in head}
        if isinstance(head, slice):
            return slice(*(self._common([getattr(i, k) for i in items], nodes, indexing, depth)
                           for k in ("start", "stop", "step")))
        return _progression(items, nodes, indexing)

    # ---- position 0 -------------------------------------------------------------------------------------------------

    def _match(self, family: Family, first: Any) -> None:
        """Position 0 is the same step or, of a state, gives the first state."""
        first = self.resolve(first)
        if family.first is not None:
            if not _identical(family.first, first):
                raise Mismatch(first, "the first step reads something else twice")
            return
        family.first = first
        before = [(f, f.first, f.start, f.given) for f in self.families]
        try:
            if not isinstance(first, fx.Node):
                raise Mismatch(family.rest[0], "the first step is a number")
            self._alike(family.rest[0], first)
            self._same(family.spec, (first.args, dict(first.kwargs)), first)
        except Mismatch:
            if not family.is_state or (isinstance(first, fx.Node) and _kind(first) != _kind(family.rest[0])):
                raise
            for f, *old in before:
                f.first, f.start, f.given = old
            family.given = True
        if isinstance(first, fx.Node) and not family.given:
            self.member[first] = (family, 0)

    def _same(self, spec: Any, item: Any, node: fx.Node) -> None:
        if isinstance(spec, Link):
            if not spec.before:
                self._match(spec.family, item)
            else:
                self._begin(spec.family, self.resolve(item), node)
        elif isinstance(spec, Place):
            if type(item) is not int or item != spec.start or (item < 0) != (spec.start + spec.stride < 0):
                raise Mismatch(node, "the first step reads another position")
        elif isinstance(spec, (tuple, list)):
            if type(item) is not type(spec) or len(item) != len(spec):
                raise Mismatch(node, "the first step has other arguments")
            for a, b in zip(spec, item, strict=True):
                self._same(a, b, node)
        elif isinstance(spec, dict):
            if item.keys() != spec.keys():
                raise Mismatch(node, "the first step has other arguments")
            for k, a in spec.items():
                self._same(a, item[k], node)
        elif isinstance(spec, slice):
            for k in ("start", "stop", "step"):
                self._same(getattr(spec, k), getattr(item, k, "absent"), node)
        elif not _identical(spec, self.resolve(item)):
            raise Mismatch(node, "the first step has another argument")

    def _begin(self, state: Family, start: Any, node: fx.Node) -> None:
        """The state before the loop: a number, or a tensor just like the others."""
        number = isinstance(start, (int, float)) and not isinstance(start, bool)
        if state.start is not None and not _identical(state.start, start):
            raise Mismatch(node, "two values are read as the state before the loop")
        if not number and not (isinstance(start, fx.Node) and _kind(start) == _kind(state.rest[0])):
            raise Mismatch(node, "the state before the loop has another shape or type")
        state.start = start


def _kind(node: fx.Node) -> Any:
    """Type, shape and device of a node's result."""
    value = example(node)
    return (value.dtype, shape_of(value), value.device) if isinstance(value, torch.Tensor) else type(value)


def _identical(a: Any, b: Any) -> bool:
    return a is b or (not isinstance(a, fx.Node) and type(a) is type(b) and bool(a == b))


def _progression(items: Sequence[Any], nodes: Sequence[fx.Node], indexing: bool) -> Any:
    head = items[0]
    if all(_identical(head, i) for i in items):
        return head
    if not indexing or any(type(i) is not int for i in items):
        raise Mismatch(nodes[0], "the steps differ in a number")
    stride = items[1] - head
    if any(i != head + k * stride for k, i in enumerate(items)) or len({i < 0 for i in items}) > 1:
        raise Mismatch(nodes[0], "the steps do not walk through a tensor one by one")
    return Place(head - stride, stride)


def reads_back(node: fx.Node) -> tuple[fx.Node, Any] | None:
    """(tensor, index) of `tensor[index]`."""
    if node.op == "call_function" and node.target is operator.getitem and isinstance(node.args[0], fx.Node):
        return node.args[0], node.args[1]
    return None
