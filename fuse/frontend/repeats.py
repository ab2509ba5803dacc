"""Unrolled loops of which only the last state is read: nothing in the graph puts their steps side by side.

    h1 = a[:, 1] * h0 + x[:, 1]; h2 = a[:, 2] * h1 + x[:, 2]; ...; return h9

The copies of a node in such a loop have one call, one line of the user's and one distance in the graph from step to step. That
only finds them: steps.py proves that they are one step, repeated.
"""
from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

from torch import fx

from fuse.frontend.scope import Scope
from fuse.frontend.steps import Mismatch, Steps

SHORTEST = 4             # steps
TWINS = 4                # calls of one kind on one line, at most


def uncollected(scope: Scope, claimed: set[fx.Node], resolve: Callable[[Any], Any]) -> list[Steps]:
    """The loops with a state outside of what is `claimed`, found from the last node of each."""
    found: list[Steps] = []
    taken = claimed | {n for n in scope.graph.nodes if resolve(n) is not n}
    for line in _repeated(scope, taken):
        while len(line := [n for n in line if n not in taken]) >= SHORTEST:
            runs = list(_regular(scope, line))
            steps = next((s for run in runs if (s := _loop(scope, run, resolve)) is not None), None)
            if steps is not None:
                found.append(steps)
            taken |= set(max(runs, key=len) if steps is None else steps.member)
    return found


def _repeated(scope: Scope, taken: set[fx.Node]) -> list[list[fx.Node]]:
    """Calls of one line that may be copies, in groups; first the group that ends last."""
    alike: dict[Any, list[fx.Node]] = defaultdict(list)
    for node in scope.graph.nodes:
        if node.op in ("call_function", "call_method") and node not in taken:
            alike[node.op, node.target, node.meta.get("stack_trace")].append(node)
    lines = sorted((nodes for nodes in alike.values() if len(nodes) >= SHORTEST), key=lambda nodes: scope.position[nodes[-1]])
    line = {n: i for i, nodes in enumerate(lines) for n in nodes}
    other: set[int] = set()                        # lines whose copies read what are no copies: another weight in each layer
    for i, nodes in enumerate(lines):
        one, two = (nodes[k].all_input_nodes for k in (-2, -1))
        if len(one) != len(two) or any(x is not y and (line.get(x, -1) != line.get(y, -2) or line[x] in other)
                                       for x, y in zip(one, two, strict=True)):
            other.add(i)
    return [nodes for i, nodes in enumerate(lines) if i not in other][::-1]


def _regular(scope: Scope, line: list[fx.Node]) -> Iterator[list[fx.Node]]:
    """The last of these nodes at one distance from each other and the one before; every second of them, and so on."""
    for n in range(1, TWINS + 1):
        nodes = line[::-n]
        apart = [scope.position[a] - scope.position[b] for a, b in pairwise(nodes)]
        end = next((i for i, distance in enumerate(apart) if distance != apart[0]), len(apart))
        yield nodes[end + 1::-1]


def _loop(scope: Scope, run: list[fx.Node], resolve: Callable[[Any], Any]) -> Steps | None:
    """The loop whose steps these are, with or without the first of them."""
    for members in (run, run[1:]):
        if len(members) >= SHORTEST:
            steps = Steps(len(members), scope.shadow.context, resolve)
            try:
                steps.add(members)
            except Mismatch:
                continue
            if steps.states:
                return steps
    return None
