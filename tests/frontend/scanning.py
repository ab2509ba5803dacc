"""Runs the scan that the frontend made of a graph, forward and backward, tile by tile, against autograd of the graph itself."""
from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import fx

from fuse.frontend import Imported, find
from fuse.ir.expr import topological
from fuse.ir.reference import run, run_steps
from fuse.ir.verify import verify
from fuse.options import Options
from fuse.passes import Context, compile_program
from fuse.reasons import Miss
from tests.frontend.tracing import Float64, capture, error, sizes_of

WIDE = {torch.float32: torch.float64, torch.complex64: torch.complex128}


class Graph(fx.Interpreter):
    """All values of a graph, as they are at its end. Those of `cut` count as given: no derivative goes beyond them."""

    def __init__(self, gm: fx.GraphModule, cut: Collection[fx.Node]):
        super().__init__(gm, garbage_collect_values=False)
        self.values: dict[str, Any] = {}
        self.cut = cut

    def run_node(self, node: fx.Node) -> Any:
        value = super().run_node(node)
        if node in self.cut:
            value = value.detach().requires_grad_(value.requires_grad)
        self.values[node.name] = value
        return value


def widened(x: Any) -> Any:
    if not isinstance(x, torch.Tensor):
        return int(x.node.hint)
    return x.detach().to(WIDE.get(x.dtype, x.dtype)).clone().requires_grad_(x.requires_grad)


def graph_values(gm: fx.GraphModule, inputs: list[Any], cut: Collection[fx.Node]) -> dict[str, Any]:
    old = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with Float64():
            graph = Graph(gm, cut)
            graph.run(*map(widened, inputs))
    finally:
        torch.set_default_dtype(old)
    return graph.values


def scans(function: Callable[..., Any], args: list[Any], **options: Any) -> tuple[list[Imported], list[Miss], float]:
    """The regions that hold scans, the misses, and the largest error of outputs and gradients in float64."""
    def look(gm: fx.GraphModule, inputs: list[Any]) -> tuple[list[Imported], list[Miss], float]:
        found, misses = find(gm, Options(min_virtual_bytes=0))
        found = [i for i in found if any(e.op == "scan" for e in topological(i.program.roots()))]
        return found, misses, max((difference(i, graph_values(gm, inputs, i.inputs)) for i in found), default=0.0)
    torch.manual_seed(0)
    (seen,) = capture(function, args, look=look, **options)
    return seen


def difference(imported: Imported, values: dict[str, Any]) -> float:
    program = imported.program
    verify(program)
    inputs = [values[n.name] for n in imported.inputs]
    expected = [values[n.name] for n in imported.exits]
    wrt = tuple(b.name for b, t in zip(program.inputs, inputs, strict=True) if t.requires_grad)
    wrt = wrt if any(e.requires_grad for e in expected) else ()
    sizes = sizes_of(program.inputs, inputs)
    plan = compile_program(program, Context(hints=dict(program.hints), wrt=wrt))
    env = {b.name: t.detach() for b, t in zip(program.inputs, inputs, strict=True)}
    found = run(plan.forward, env, sizes, tile=4)
    worst = max(error(found[o.buffer.name], e) for o, e in zip(program.outputs, expected, strict=True))
    if not wrt:
        return worst
    assert plan.backward is not None
    seeds = {f"ct.{o.buffer.name}": torch.randn_like(e) for o, e in zip(program.outputs, expected, strict=True)
             if e.requires_grad}
    stored = run_steps(plan.forward, env, sizes, tile=4)
    back = run(plan.backward, {**env, **seeds, **{n: stored[n] for n in plan.saved}}, sizes, tile=4)
    leaves = [t for b, t in zip(program.inputs, inputs, strict=True) if b.name in wrt]
    with Float64():
        gradients = torch.autograd.grad([e for e in expected if e.requires_grad], leaves, list(seeds.values()),
                                        allow_unused=True, retain_graph=True)
    for name, gradient in zip(wrt, gradients, strict=True):
        if gradient is not None:
            worst = max(worst, error(back[f"grad.{name}"], gradient))
    return worst
