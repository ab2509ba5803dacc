"""Large values that the graph also gives back: logits beside their loss.

    x = linear(h, W); loss = cross_entropy(x, y); return loss, x

Such a value is stored once, for whoever reads the output. The region takes what the contraction left in memory and reads it
tile by tile, so that no contraction is done twice; its gradient goes past the stored value, to h and W. Worth it where a
number is differentiated: what the backward would store besides (the softmax, the gradient of the logits) is never made.
"""
from __future__ import annotations

from collections.abc import Collection, Container, Iterable
from dataclasses import dataclass

import torch
from torch import fx

from fuse.frontend.context import mutated_arguments
from fuse.frontend.shadow import Shadow
from fuse.frontend.symbols import numel_hint
from fuse.frontend.tables import kind_of
from fuse.frontend.value import example, flat, where
from fuse.private import memory_of
from fuse.reasons import Miss, size_text

PASSED = ("pointwise", "view")


@dataclass(frozen=True)
class Escape:
    """A virtual value that is an output: what makes it, in graph order, is `made`, which ends in its `base`, then `views`."""

    made: tuple[fx.Node, ...]
    views: tuple[fx.Node, ...]

    @property
    def base(self) -> fx.Node:
        return self.made[-1]

    @property
    def node(self) -> fx.Node:
        return (*self.made, *self.views)[-1]

    @property
    def cost(self) -> str:
        """'logits: float32 of 196.5 MiB', by hints."""
        tensor = example(self.node)
        size = (numel_hint(tensor) or 0) * tensor.element_size()
        return f"{self.node.name}: {tensor.dtype} of {size_text(size)}".replace("torch.", "")


def escaping(shadow: Shadow, virtual: Collection[fx.Node], anchors: Collection[fx.Node]) -> tuple[Escape, ...]:
    """The values that the graph gives back."""
    def escape(node: fx.Node) -> Escape:
        views: list[fx.Node] = []
        while node not in anchors and sum(a in virtual for a in node.all_input_nodes) == 1 \
                and all(kind_of(v) == "view" for v in flat(shadow.value(node))):
            views.insert(0, node)
            node = next(a for a in node.all_input_nodes if a in virtual)
        return Escape(tuple(sorted(within([node], virtual), key=shadow.position.__getitem__)), tuple(views))
    return tuple(escape(n) for n in virtual if any(user.op == "output" for user in n.users))


def stored_for(shadow: Shadow, anchors: Iterable[fx.Node], virtual: set[fx.Node], dependent: frozenset[fx.Node],
               escapes: tuple[Escape, ...]) -> frozenset[fx.Node] | Miss:
    """The contractions that are stored because `escapes` are made of them, or ESCAPES where that is not worth it."""
    ends = [e.node for e in escapes]
    made = within(ends, virtual)
    anchors = set(anchors)
    miss = Miss("ESCAPES", where(ends[0]), escapes[0].cost)
    if not _differentiated(ends[0].graph, dependent) or not all(differentiable(e.base) for e in escapes):
        return miss
    for node in made - anchors:
        if any(kind_of(v) not in PASSED for v in flat(shadow.value(node))):
            return miss
    read = {a for n in made for a in n.all_input_nodes}
    return miss if _written(ends[0].graph, made | read) else frozenset(made & anchors)


def within(ends: Iterable[fx.Node], virtual: Container[fx.Node]) -> set[fx.Node]:
    """The virtual values that `ends` are made of."""
    found, todo = set[fx.Node](), list(ends)
    while todo:
        node = todo.pop()
        if node in virtual and node not in found:
            found.add(node)
            todo += node.all_input_nodes
    return found


def _differentiated(graph: fx.Graph, dependent: frozenset[fx.Node]) -> bool:
    """Does the graph give a number made of the large value that a backward can start from?"""
    given = [n for n in graph.output_node().all_input_nodes if n in dependent]
    return any(differentiable(n) and example(n).dim() == 0 for n in given)


def differentiable(node: fx.Node) -> bool:
    tensor = example(node)
    return isinstance(tensor, torch.Tensor) and tensor.requires_grad


def _written(graph: fx.Graph, nodes: Iterable[fx.Node]) -> bool:
    """Does any node write to the memory of one of these?"""
    written = _memory(a for n in graph.nodes for a in mutated_arguments(n))
    return bool(written & _memory(nodes))


def _memory(nodes: Iterable[fx.Node]) -> set[int]:
    return {memory_of(t) for n in nodes if isinstance(t := example(n), torch.Tensor)}
