"""Calls of fuse.scan: they say themselves what they are.

    states, final = fuse::scan(a, b, initial, dim, reverse, stamp)
"""
from __future__ import annotations

from typing import Any

import torch
from torch import fx

from fuse.frontend.candidates import Candidate
from fuse.frontend.index import Linear
from fuse.frontend.operands import compute_type
from fuse.frontend.recurrence import scanned
from fuse.frontend.scope import Scope
from fuse.frontend.value import Value, arguments, example
from fuse.ir.size import Size
from fuse.reasons import Miss


def find_calls(scope: Scope) -> tuple[list[Candidate], list[Miss]]:
    """A candidate for each call."""
    found: list[Candidate] = []
    for node in scope.graph.nodes:
        if str(node.target) in ("fuse.scan", "fuse.scan.default"):
            scope.shadow.memo[node] = _results(scope, node)
            items = [n for n in node.users if n.op == "call_function"]
            found.append(scope.candidate({node, *items}, items, (node,)))
    return found, []


def _results(scope: Scope, node: fx.Node) -> tuple[Value, Value]:
    """States and final state. In half precision both are made of states in float32."""
    a, b, initial, dim, reverse = arguments(node)[:5]
    a, b = (scope.shadow.value(x) for x in (a, b))
    start = None if initial is None else scope.shadow.value(initial)
    dtype = str(example(node)[0].dtype)[6:]
    states = scanned(a, b, dim, node, reverse=reverse, start=start, dtype=compute_type(dtype))
    last = Linear() if reverse else Linear.of(states.shape[dim] - Size.of(1))
    shape = states.shape[:dim] + states.shape[dim + 1:]
    final = Value("select", {"self": states, "dim": dim, "index": last}, states.dtype, shape, node, stored=True, grad=states.grad)
    return _rounded(states, dtype, node), final


def _rounded(states: Value, dtype: str, node: fx.Node) -> Value:
    if states.dtype == dtype:
        return states
    args: dict[str, Any] = {"self": states, "dtype": getattr(torch, dtype)}
    return Value("_to_copy", args, dtype, states.shape, node, stored=True, grad=states.grad)
