"""Edits Dynamo's graph in place: one op call takes the place of everything between a region's inputs and its exits.

    a = linear(h, W); b = log_softmax(a); c = pick(b, y)   ->   s = fuse.forward([h, W, y], key); c = s[0]

Nothing is touched until it is known that the call can be placed: after all inputs, before the first use of an exit, in
the grad mode of the exits, and with no write to an input's memory between there and where the inputs used to be read.
"""
from __future__ import annotations

import operator
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from fuse.frontend.context import contexts, mutated_arguments
from fuse.frontend.reorder import raise_inputs
from fuse.frontend.value import origin_of, where
from fuse.private import HigherOrderOperator, OpOverload, memory_of, schema_of
from fuse.reasons import Miss
from fuse.runtime import ops  # noqa: F401  (defines torch.ops.fuse)


@dataclass(frozen=True)
class Place:
    """The call goes before the node `before`; afterwards the nodes `dead` are not needed."""

    before: Node
    dead: tuple[Node, ...]


def splice(graph: Graph, inputs: Sequence[Node], exits: Sequence[Node], key: str, *,
           moved: dict[Node, Node] | None = None, takes: Sequence[str] | None = None,
           gives: Sequence[str] | None = None, covered: Sequence[Node] = ()) -> Node | Miss:
    """The call, whose meta names the nodes it `replaced`, or a Miss with the graph as it was.

    `moved` maps exits of regions spliced before to what took their place, and is added to: one region may read what
    another gives. `takes` and `gives` are the element types of the op's operands and results. Where they differ from
    what the graph records (ambient autocast leaves no node behind) the cast is written out.
    `covered` leave the graph together, though no exit may read them: writes that fill an exit, calls with effects.
    """
    moved = {} if moved is None else moved
    inputs = [moved.get(n, n) for n in inputs]
    if not set(graph.nodes).issuperset((*inputs, *exits)):
        return Miss("OTHER_USER", where(exits[0]), "another region has taken what this one reads or gives")
    raise_inputs(graph, inputs, exits, between(inputs, (*exits, *covered)))
    place = find_place(graph, inputs, exits, covered)
    if isinstance(place, Miss):
        return place
    origin = origin_of(exits[0])
    recorded = [example(e) for e in exits]
    grad = any(r.requires_grad for r in recorded)
    with graph.inserting_before(place.before):
        operands = [_cast(graph, node, dtype, origin)
                    for node, dtype in zip(inputs, takes or _dtypes(inputs), strict=True)]
        call = graph.call_function(torch.ops.fuse.forward.default, (operands, key))
        made = [_converted(like, dtype) for like, dtype in zip(recorded, gives or _dtypes(exits), strict=True)]
        call.meta.update(origin, example_value=made, replaced=tuple(n.name for n in place.dead))
        results = []
        for i, (like, value) in enumerate(zip(recorded, made, strict=True)):
            result = graph.call_function(operator.getitem, (call, i))
            result.meta.update(origin, example_value=value)
            result = _cast(graph, result, _name(like.dtype), origin)
            if grad and not like.requires_grad and like.dtype.is_floating_point:
                result = _new_method(graph, "detach", (result,), like, origin)
            results.append(result)
    dead = set(place.dead)
    for leaving, result in zip(exits, results, strict=True):
        leaving.replace_all_uses_with(result, delete_user_cb=lambda user: user not in dead)
        moved[leaving] = result
    for node in reversed(place.dead):
        graph.erase_node(node)
    return call


def example(node: Node) -> Tensor:
    value = node.meta.get("example_value")
    if not isinstance(value, Tensor):
        raise TypeError(f"{node.format_node()} is not a tensor")
    return value


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _dtypes(nodes: Iterable[Node]) -> list[str]:
    return [_name(example(n).dtype) for n in nodes]


def _converted(value: Tensor, dtype: str) -> Tensor:
    return value if _name(value.dtype) == dtype else value.to(getattr(torch, dtype))


def _cast(graph: Graph, node: Node, dtype: str, origin: dict[str, Any]) -> Node:
    value = example(node)
    if _name(value.dtype) == dtype:
        return node
    return _new_method(graph, "to", (node, getattr(torch, dtype)), _converted(value, dtype), origin)


def _new_method(graph: Graph, name: str, args: tuple[Any, ...], value: Tensor, origin: dict[str, Any]) -> Node:
    node = graph.call_method(name, args)
    node.meta.update(origin, example_value=value)
    return node


# ---- where the call may go --------------------------------------------------------------------------------------

def find_place(graph: Graph, inputs: Sequence[Node], exits: Sequence[Node], covered: Sequence[Node] = ()) -> Place | Miss:
    """The first place that keeps the meaning of the graph, trying each exit and the point after the last input."""
    order = {n: i for i, n in enumerate(graph.nodes)}
    members = between(inputs, (*exits, *covered))
    dead = removable(graph, members, exits, covered)
    if (left := next((n for n in covered if n not in dead), None)) is not None:
        return Miss("OTHER_USER", where(left), f"{left.name} is needed by something else as well")
    users = [order[u] for e in exits for u in e.users if u not in dead]
    first_use, last_input = min(users, default=len(order)), max(order[n] for n in inputs)
    readers = {i: [order[m] for m in i.users if m in members] for i in inputs}
    others = [(order[n], storages(written)) for n in graph.nodes if (written := mutated(n)) and n not in dead]
    nodes = list(order)
    context = contexts(nodes)
    mode = context[next((e for e in exits if example(e).requires_grad), exits[0])].grad
    why = Miss("OTHER_USER", where(exits[0]), "a result of the region is used before all its inputs exist")
    for at in sorted({order[e] for e in exits} | {last_input + 1}):
        if not last_input < at <= first_use or context[nodes[at]].grad != mode:
            continue
        clash = next((w for w, written in others for i, r in readers.items()
                      if min([at, *r]) <= w < max([at, *r]) and written & storages([i])), None) if others else None
        if clash is None:
            return Place(nodes[at], tuple(n for n in nodes if n in dead))
        why = Miss("MUTATION", where(nodes[clash]), f"{nodes[clash].name} writes to an input of the region")
    return why


def between(inputs: Iterable[Node], exits: Iterable[Node]) -> set[Node]:
    """Every node an exit needs, down to the inputs; placeholders and constants are nobody's."""
    stop, found, todo = set(inputs), set[Node](), list(exits)
    while todo:
        node = todo.pop()
        if node not in found and node not in stop and node.op not in ("placeholder", "get_attr"):
            found.add(node)
            todo.extend(node.all_input_nodes)
    return found


def removable(graph: Graph, members: set[Node], exits: Sequence[Node], covered: Collection[Node] = ()) -> set[Node]:
    """The members nobody needs once the exits come from elsewhere.

    A node that writes in place goes only if nothing that stays, and no exit that is read, shares the memory it writes;
    what is `covered` is part of what the region gives.
    """
    leaving, own, covered = set(exits), storages(members), set(covered)
    dead = {m for m in members if m in covered or not has_effect(m)}
    dead |= {n for n in graph.nodes if (written := mutated(n)) and storages(written) <= own and not has_effect(n)}
    writers = [m for m in dead.difference(covered) if mutated(m)]
    while True:
        kept = {m for m in dead - leaving if not dead.issuperset(m.users)}
        if writers:
            alive = storages(n for n in graph.nodes if n not in dead and n.op != "output")
            given = [e for e in exits if not dead.issuperset(e.users)]
            kept |= {m for m in writers if m in dead
                     and storages(mutated(m)) & (alive | storages(e for e in given if e is not m))}
        if not kept:
            return dead
        dead -= kept


def has_effect(node: Node) -> bool:
    """True for what must run even if nobody reads its result and it writes to no tensor."""
    target = node.target
    if isinstance(target, OpOverload):
        return schema_of(target).is_mutable
    return node.op == "call_module" or isinstance(target, HigherOrderOperator) \
        or getattr(target, "__name__", "").startswith(("_assert", "_set_grad", "_enter_", "_exit_", "_check"))


def mutated(node: Node) -> list[Node]:
    """The nodes whose tensors `node` writes to."""
    if isinstance(node.target, HigherOrderOperator):
        return node.all_input_nodes if _body_writes(node) else []
    return mutated_arguments(node)


def _body_writes(node: Node) -> bool:
    """Does a higher-order op write to what it is given? Without a body to look into: assume so."""
    owner = node.graph.owning_module
    found = [getattr(owner, str(a.target), None) for a in node.all_input_nodes if a.op == "get_attr"]
    graphs = [b.graph for b in found if isinstance(b, torch.fx.GraphModule)]
    return not graphs or any(storages(mutated(n)) & storages(g.find_nodes(op="placeholder")) for g in graphs for n in g.nodes)


def _flat(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (tuple, list)) else [value]


def storages(nodes: Iterable[Node]) -> set[int]:
    """Identities of the memory behind the nodes' tensors; Dynamo's fake tensors alias as the real ones will."""
    found: set[int] = set()
    for node in nodes:
        for value in _flat(node.meta.get("example_value")):
            if isinstance(value, Tensor):
                found.add(memory_of(value))
    return found
