"""The operations of a captured graph, gathered into groups: every region, and what lies between regions.

Operations between regions are told apart by depth, the largest number of regions on a way to them: an operation as deep as
another can only reach it without passing a region, so the groups form a graph without cycles, small enough to be looked at.
"""
from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from typing import Any

import torch
from torch.fx import GraphModule, Node

from fuse.backend import TRANSPARENT, bodies
from fuse.frontend.value import called, where
from fuse.page.record import is_parameter
from fuse.report import RegionReport


@dataclass(eq=False)
class Operation:
    """A node that gives a tensor. `body` numbers the graph it stands in, as in RegionReport; `group` is its group's id."""

    node: Node
    body: int
    sources: list[Operation] = field(default_factory=list)
    parameters: list[str] = field(default_factory=list)
    group: str = ""

    @property
    def id(self) -> str:
        return f"{self.body}:{self.node.name}"

    @property
    def module(self) -> str:
        """'b.0.a' for what the submodule b[0].a computes, '' outside of modules."""
        stack = list((self.node.meta.get("nn_module_stack") or {}).values())
        return str(stack[-1][0]).partition("].")[2] if stack else ""

    def to_dict(self) -> dict[str, Any]:
        given, name = self.node.op == "placeholder", self.node.name
        return {"id": self.id, "group": self.group, "name": name, "input": given,
                "label": re.sub(r"^l_(.+)_$", r"\1", name) if given else called(self.node), "type": _type(self.node),
                "module": self.module, "where": None if given else where(self.node), "parameters": self.parameters}


def operations(gm: GraphModule) -> list[Operation]:
    """What the graph computes, in order, with the bodies of checkpoints and the like in their places.

    Parameters, sizes and whatever gives no tensor are left out.
    """
    numbers = {module: i for i, module in enumerate(bodies(gm))}
    return list(_operations(gm, numbers, {}))


def _operations(gm: GraphModule, numbers: dict[GraphModule, int], given: dict[Node, list[Operation]]) -> Iterator[Operation]:
    """`given`: what the placeholders of a body stand for."""
    made: dict[Node, list[Operation]] = dict(given)    # a node that is left out stands for what it reads
    body = numbers[gm]
    for node in gm.graph.nodes:
        if node in made or node.op in ("get_attr", "output"):
            continue
        sources = list(dict.fromkeys(o for a in node.all_input_nodes for o in made.get(a, [])))
        if not _gives_tensor(node) or (node.op == "placeholder" and is_parameter(node)):
            made[node] = sources
            continue
        operation = Operation(node, body, sources, [a.name for a in node.all_input_nodes if _learned(a)])
        inner = _body(gm, node)
        if inner is not None and inner in numbers:
            outer = [a for a in node.all_input_nodes if a.op != "get_attr"]
            entries = inner.graph.find_nodes(op="placeholder")
            passed = dict(zip(entries, [made.get(a, []) for a in outer[-len(entries):]], strict=False)) if entries else {}
            within = list(_operations(inner, numbers, passed))
            yield from within
            leaving = {n for n in inner.graph.output_node().all_input_nodes}
            operation.sources = [o for o in within if o.node in leaving] or sources
        made[node] = [operation]
        yield operation


def _body(gm: GraphModule, node: Node) -> GraphModule | None:
    if node.op != "call_function" or getattr(node.target, "__name__", "") not in TRANSPARENT:
        return None
    found = [getattr(gm, str(a.target), None) for a in node.all_input_nodes if a.op == "get_attr"]
    return next((m for m in found if isinstance(m, GraphModule)), None)


def _learned(node: Node) -> bool:
    return node.op == "placeholder" and is_parameter(node)


def _gives_tensor(node: Node) -> bool:
    value = node.meta.get("example_value")
    return any(isinstance(v, torch.Tensor) for v in (value if isinstance(value, (tuple, list)) else [value]))


def _type(node: Node) -> str:
    value = node.meta.get("example_value")
    tensors = [v for v in (value if isinstance(value, (tuple, list)) else [value]) if isinstance(v, torch.Tensor)]
    return ", ".join(f"{str(t.dtype)[6:]}[{', '.join(map(str, t.shape))}]" for t in tensors)


def gather(found: list[Operation], regions: Iterable[tuple[int, RegionReport]]) -> list[dict[str, Any]]:
    """Puts every operation into a group; the groups in order of first appearance. `regions` come with their numbers."""
    owner = {f"{r.body}:{name}": i for i, r in regions for name in r.nodes}
    for o in found:
        o.group = f"r{owner[o.id]}" if o.id in owner else ""
    depth = _depths(found)
    leader: dict[str, str] = {}

    def lead(name: str) -> str:
        while leader.setdefault(name, name) != name:
            name = leader[name]
        return name
    between = [o for o in found if not o.group]
    for o in between:
        for source in o.sources:
            if not source.group and depth[source.id] == depth[o.id]:
                leader[lead(o.id)] = lead(source.id)
    names: dict[str, str] = {}
    for o in between:
        names.setdefault(lead(o.id), f"s{len(names)}")
    for o in between:
        o.group = names[lead(o.id)]
    members: dict[str, list[Operation]] = {}
    for o in found:
        members.setdefault(o.group, []).append(o)
    return [{"id": group, "region": int(group[1:]) if group[0] == "r" else None, "label": _label(inside),
             "count": len(inside)} for group, inside in members.items()]


def _depths(found: list[Operation]) -> dict[str, int]:
    """How many regions lie on a way to each operation, at most; a region's operations are as deep as each other."""
    unit = {o.id: o.group or o.id for o in found}
    above: dict[str, set[str]] = {u: set() for u in unit.values()}
    for o in found:
        above[unit[o.id]] |= {unit[s.id] for s in o.sources} - {unit[o.id]}
    depth: dict[str, int] = {}
    for u in TopologicalSorter(above).static_order():
        depth[u] = max((depth[s] for s in above[u]), default=0) + (u[0] == "r")
    return {name: depth[u] for name, u in unit.items()}


def _label(inside: list[Operation]) -> str:
    """The module that computes all of it, or its commonest operations."""
    computed = [o for o in inside if o.node.op != "placeholder"]
    modules = {o.module for o in computed}
    whole = min(modules, key=len, default="")
    if whole and all(f"{m}.".startswith(f"{whole}.") for m in modules):
        return whole
    ops = Counter(called(o.node) for o in computed)
    return ", ".join(op for op, _ in ops.most_common(3)) or "inputs"
