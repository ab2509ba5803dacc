"""Takes the tail of a loss into the region, down to the scalar that is differentiated.

    s = logsumexp(x); t = x[y]; loss = (s - t).mean()      exits s, t   ->   exit loss

The region then sees that all rows share one upstream gradient, which is what allows gradients to be computed in the
forward; and spellings that differ in where the large value ends and the tail begins become one program. Only a tail of
pointwise ops, views and reductions that ends in one number is taken; otherwise the exits stay where they are.
"""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from torch import fx

from fuse.frontend.candidates import Candidate, consumers, elements
from fuse.frontend.context import mutated_arguments
from fuse.frontend.tables import kind_of
from fuse.frontend.value import Value, example, flat

TAIL = ("pointwise", "view", "reduction", "shaped", "gather")


def with_tail(candidate: Candidate) -> Candidate | None:
    """The candidate with the scalar at the end of its tail as its one exit; None if there is no such scalar."""
    inside = set(candidate.exits)
    for node in _downstream(candidate):
        if _belongs(candidate, node, inside):
            inside.add(node)
    leaving = tuple(n for n in inside if any(u not in inside for u in consumers(n)))
    if len(leaving) != 1 or leaving == candidate.exits:
        return None
    (loss,) = leaving
    tensor = example(loss)
    return replace(candidate, exits=leaving) if tensor.requires_grad and tensor.dim() == 0 else None


def _downstream(candidate: Candidate) -> Iterator[fx.Node]:
    position = candidate.shadow.position
    rest = candidate.dependent.difference(candidate.virtual, candidate.exits)
    return iter(sorted(rest, key=position.__getitem__))


def _belongs(candidate: Candidate, node: fx.Node, inside: set[fx.Node]) -> bool:
    """Is everything of the region that `node` reads already inside, and is it something an expression can say?"""
    operands = [a for a in node.all_input_nodes if a in candidate.dependent]
    if not set(operands) <= inside or mutated_arguments(node):
        return False
    limit = max(elements(e) or 0 for e in candidate.exits)
    values = list(flat(candidate.shadow.value(node)))
    return len(values) == 1 and (elements(node) or 0) <= limit and _expressible(values[0], node)


def _expressible(v: Value, node: fx.Node) -> bool:
    """One Dynamo node may stand for several ATen ops."""
    if v.op is None or kind_of(v) not in TAIL:
        return False
    return all(_expressible(s, node) for s in v.sources() if s.node is node and s is not v)
