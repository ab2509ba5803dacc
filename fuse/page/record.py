"""What a page needs beyond a report: the graphs as Dynamo captured them, and the values that enter regions."""
from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from fuse.report import GraphReport, RegionReport

MAX_VALUE = 1 << 22    # elements of a tensor that is kept
PICTURED = {"attention", "flow-attention", "linear-attention", "scan"}    # kinds with a matrix of interactions


class Record:
    """`fuse.report.explain(..., fuse_watch=record.watch)` fills it: `graphs[i]` belongs to the i-th graph of the report."""

    def __init__(self) -> None:
        self.graphs: list[GraphModule] = []
        self.values: list[dict[str, Tensor]] = []

    def watch(self, gm: GraphModule, report: GraphReport) -> Callable[..., Any]:
        """Runs the graph as it is, and keeps what enters the regions that can be pictured."""
        wanted = {name for region in pictured(report.regions) for name in region.operands}
        values = dict[str, Tensor]()
        self.graphs.append(gm)
        self.values.append(values)
        return _Keeper(gm, wanted, values).run if wanted else gm.forward

    def environment(self, graph: int, region: RegionReport) -> dict[str, Tensor] | None:
        """The inputs of the region's program by name; None if they were not kept (never run, too large, in a body)."""
        if region.program is None or region.body or graph >= len(self.values):
            return None
        found = [self.values[graph].get(name) for name in region.operands]
        tensors = [t for t in found if t is not None]
        if len(tensors) < len(found):
            return None
        return {b.name: t for b, t in zip(region.program.inputs, tensors, strict=True)}

    def parameters(self, graph: int, region: RegionReport) -> set[str]:
        """The names of those inputs of the region's program that are parameters of the model."""
        assert region.program is not None
        learned = {n.name for n in self.graphs[graph].graph.find_nodes(op="placeholder") if is_parameter(n)}
        return {b.name for b, name in zip(region.program.inputs, region.operands, strict=True) if name in learned}


def pictured(regions: Collection[RegionReport]) -> Iterator[RegionReport]:
    """The first of every set of equal regions whose kind has a matrix."""
    seen = set[str]()
    for region in regions:
        if PICTURED & set(region.kinds[:1]) and region.program is not None and not region.body and region.key not in seen:
            seen.add(region.key)
            yield region


def streams_of(region: RegionReport) -> list[str]:
    """The names of the axes that the region walks."""
    return [text.rpartition(":")[0] for text in region.streams]


def is_parameter(node: Node) -> bool:
    """Is a placeholder a parameter or a buffer of the user's module?"""
    learned = isinstance(node.meta.get("example_value"), torch.nn.Parameter)
    return learned or "_parameters_" in node.name or "_buffers_" in node.name


class _Keeper(Interpreter):
    """Runs a graph, and keeps the values of some of its nodes."""

    def __init__(self, gm: GraphModule, wanted: Collection[str], values: dict[str, Tensor]):
        super().__init__(gm)
        self.wanted, self.kept = wanted, values

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if n.name in self.wanted and isinstance(value, Tensor) and value.numel() <= MAX_VALUE:
            self.kept[n.name] = value.detach().clone()    # the user's code may write to it later
        return value
