"""Moves what a region reads up in Dynamo's graph, where its results are used before all its inputs are made.

    s = logsumexp(x); t = f(s); i = g(y); p = x[i]   ->   i = g(y); s = logsumexp(x); t = f(s); p = x[i]

Nothing moves past a write to memory it reads, out of its autograd context, or above what it depends on; nothing that
draws random numbers moves.
"""
from __future__ import annotations

from collections.abc import Collection, Sequence

from torch.fx import Graph, Node

from fuse.frontend.context import contexts


def raise_inputs(graph: Graph, inputs: Sequence[Node], exits: Sequence[Node], members: Collection[Node]) -> None:
    """Puts the producers of late inputs before the first use of an exit; leaves the graph as it is if one cannot move."""
    from fuse.frontend.splice import has_effect, mutated, storages

    order = {n: i for i, n in enumerate(graph.nodes)}
    uses = [u for e in exits for u in e.users if u not in members]
    if not uses:
        return
    first = min(uses, key=order.__getitem__)
    late = _producers([i for i in inputs if order[i] >= order[first]], order, order[first])
    if not late:
        return
    context, nodes = contexts(list(order)), list(order)
    span = nodes[order[first]:max(order[n] for n in late) + 1]
    written = storages(w for n in span for w in mutated(n))
    read = storages(a for n in late for a in (n, *n.all_input_nodes))
    dependent = _depends_on(exits, span)
    if written & read or any(n in dependent or has_effect(n) or _is_random(n) or context[n] != context[first] for n in late):
        return
    for node in sorted(late, key=order.__getitem__):
        first.prepend(node)


RANDOM = ("rand", "dropout", "bernoulli", "multinomial", "normal", "uniform", "exponential", "poisson")


def _is_random(node: Node) -> bool:
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return any(word in name for word in RANDOM)


def _producers(late: list[Node], order: dict[Node, int], start: int) -> set[Node]:
    found: set[Node] = set()
    while late:
        node = late.pop()
        if node not in found and order[node] >= start:
            found.add(node)
            late += node.all_input_nodes
    return found


def _depends_on(exits: Sequence[Node], span: Sequence[Node]) -> set[Node]:
    """What in `span` is computed from an exit."""
    found = set(exits)
    for node in span:
        if not found.isdisjoint(node.all_input_nodes):
            found.add(node)
    return found
