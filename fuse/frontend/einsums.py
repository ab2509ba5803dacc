"""An einsum of many operands as products of two, from the left, where one of those is larger than all that goes in and comes out.

    blhn,bshn,bhls,bshp->blhp   ->   blhn,bshn->blhs;  blhs,bhls->blhs;  blhs,bshp->blhp

That is how torch computes it. The large product becomes a value of the graph, so that it can be found and streamed.
"""
from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import fx

from fuse.frontend.candidates import AMPLIFICATION
from fuse.frontend.symbols import hint
from fuse.frontend.value import arguments, called, example, origin_of


def split_einsums(graph: fx.Graph) -> None:
    """Respells, in place, each einsum of three operands or more of which a part amplifies."""
    for node in list(graph.nodes):
        if node.op == "call_function" and called(node) == "einsum":
            _split(graph, node)


def _split(graph: fx.Graph, node: fx.Node) -> None:
    equation, *rest = arguments(node)
    operands = list(rest[0]) if len(rest) == 1 and isinstance(rest[0], (list, tuple)) else rest
    if len(operands) < 3 or not isinstance(equation, str) or "." in equation or "->" not in equation or node.kwargs:
        return
    letters, out = _spelled(equation)
    products = _products(letters, out)
    if not _amplifies(operands, letters, products):
        return
    result, origin = operands[0], origin_of(node)
    made, recorded = example(result), example(node)
    with graph.inserting_before(node), torch.set_grad_enabled(recorded.requires_grad):
        for product, operand in zip(products, operands[1:], strict=True):
            # autocast, which leaves no node behind, rounds the operands
            made = torch.einsum(product, made.to(recorded.dtype), example(operand).to(recorded.dtype))
            result = graph.create_node(node.op, node.target, (product, result, operand))
            result.meta.update(origin, example_value=made)
    node.replace_all_uses_with(result)
    graph.erase_node(node)


def _spelled(equation: str) -> tuple[list[str], str]:
    left, out = equation.replace(" ", "").split("->")
    return left.split(","), out


def _products(letters: Sequence[str], out: str) -> list[str]:
    """The equations of the products, each of the result before it and the next operand."""
    found, have = [], letters[0]
    for i, other in enumerate(letters[1:], 1):
        later = set(out).union(*letters[i + 1:])
        kept = out if i == len(letters) - 1 else "".join(c for c in dict.fromkeys(have + other) if c in later)
        found.append(f"{have},{other}->{kept}")
        have = kept
    return found


def _amplifies(operands: Sequence[fx.Node], letters: Sequence[str], products: Sequence[str]) -> bool:
    """Is a product that is summed over later far larger than its two operands and than the result?"""
    sizes = {c: hint(n) or 0 for spelled, operand in zip(letters, operands, strict=True)
             for c, n in zip(spelled, example(operand).shape, strict=True)}

    def count(spelled: str) -> int:
        return prod(sizes[c] for c in set(spelled))
    for product in products[:-1]:
        parts, made = _spelled(product)
        if count(made) >= AMPLIFICATION * max(map(count, (*parts, _spelled(products[-1])[1]))):
            return True
    return False
