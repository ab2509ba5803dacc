"""Lets large outputs leave a compiled graph without a gradient of their own.

AOTAutograd gives every differentiable output a cotangent, and makes zeros where nobody has one: for logits that are looked
at and not differentiated, a tensor as large as they are, and two products with it. So the graph gives them detached:

    x = linear(h, W); ...; return loss, x   ->   x = linear(h, W); ...; return loss, x.detach(), h
    outside:                                     loss, x, h = compiled(...);  x = attached(x, h, W)

What is attached has the history of linear(h, W): if a gradient does arrive, it is passed through the contraction once
more, in eager mode. Views are taken outside as well, so that they share memory and history as in eager mode.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from fuse.frontend.context import Context, contexts
from fuse.frontend.escapes import Escape
from fuse.frontend.value import example
from fuse.runtime.escaped import attached

Compiled = Callable[..., Any]


@dataclass(frozen=True)
class Source:
    """Where a value is found when the graph has run: among its arguments or among its results."""

    argument: bool
    position: int

    def read(self, args: Sequence[Any], results: Sequence[Any]) -> Any:
        return (args if self.argument else results)[self.position]


@dataclass(frozen=True)
class Piece:
    """Nodes of a graph as a function of what they read: called with that, it gives the last of them."""

    module: fx.GraphModule
    reads: tuple[fx.Node, ...]
    copies: dict[fx.Node, fx.Node]

    def remade(self, context: dict[fx.Node, Context]) -> Compiled:
        return Remade(self.module, {copy.name: context[node] for node, copy in self.copies.items()}).run

    @classmethod
    def of(cls, owner: fx.GraphModule, nodes: Sequence[fx.Node], first: Sequence[fx.Node] = ()) -> Piece:
        """`first`: what the piece reads before anything else."""
        reads = tuple(dict.fromkeys([*first, *(a for n in nodes for a in n.all_input_nodes if a not in nodes)]))
        graph = fx.Graph()
        copies = {n: graph.placeholder(n.name) for n in reads}
        for node in nodes:
            copies[node] = graph.node_copy(node, copies.__getitem__)
        graph.output(copies[nodes[-1] if nodes else reads[0]])
        return cls(fx.GraphModule(owner, graph), reads, {n: copies[n] for n in nodes})


class Remade(fx.Interpreter):
    """A piece that runs node by node, each under the autocast that surrounds the node it is a copy of."""

    def __init__(self, module: fx.GraphModule, context: dict[str, Context]):
        super().__init__(module)
        self.context = context

    def run_node(self, n: fx.Node) -> Any:
        with self.context.get(n.name, Context()).applied():
            return super().run_node(n)


class Outputs:
    """The outputs of a graph in the making, and where values will be found."""

    def __init__(self, graph: fx.Graph):
        self.arguments = {n: i for i, n in enumerate(graph.find_nodes(op="placeholder"))}
        self.nodes: list[Any] = []

    def place(self, node: Any) -> Source:
        if isinstance(node, fx.Node) and node in self.arguments:
            return Source(True, self.arguments[node])
        known = next((i for i, n in enumerate(self.nodes) if n is node), None)
        if known is None:
            self.nodes.append(node)
        return Source(False, len(self.nodes) - 1 if known is None else known)


def detach(gm: fx.GraphModule, escapes: Iterable[Escape]) -> Callable[[Compiled], Compiled]:
    """Edits the outputs of `gm`; returns what puts them together again around the compiled graph."""
    graph, output = gm.graph, gm.graph.output_node()
    table = {e.node: e for e in escapes}
    outputs = Outputs(graph)
    given = [None if n in table else outputs.place(n) for n in output.args[0]]    # type: ignore[union-attr]
    context = contexts(tuple(graph.nodes))
    values: dict[fx.Node, tuple[Source, Compiled, list[Source]]] = {}
    views: list[tuple[int, fx.Node, fx.GraphModule, list[Source]]] = []
    for place, node in enumerate(output.args[0]):    # type: ignore[arg-type]
        if node not in table:
            continue
        escape = table[node]
        if escape.base not in values:
            with graph.inserting_before(output):
                loose = graph.call_method("detach", (escape.base,))
            loose.meta["example_value"] = example(escape.base).detach()
            make = Piece.of(gm, escape.made)
            values[escape.base] = outputs.place(loose), make.remade(context), [outputs.place(n) for n in make.reads]
        view = Piece.of(gm, escape.views, [escape.base])
        views.append((place, escape.base, view.module, [outputs.place(n) for n in view.reads[1:]]))
    output.args = (tuple(outputs.nodes),)
    gm.recompile()

    def around(compiled: Compiled) -> Compiled:
        def run(*args: Any) -> list[Any]:
            results = compiled(*args)

            def read(sources: Iterable[Source]) -> list[Any]:
                return [s.read(args, results) for s in sources]
            attach = {base: attached(make, value.read(args, results), read(roots))
                      for base, (value, make, roots) in values.items()}
            found = [None if s is None else s.read(args, results) for s in given]
            for place, base, view, others in views:
                found[place] = view(attach[base], *read(others))
            return found
        return run
    return around
