"""A graph in which scans are looked for, and the regions around those that are found.

    region   the scan, back through maps that only it reads (exp(dt A)), and on through views, and while values are larger
             than all it reads
"""
from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property

from torch import fx

from fuse.frontend.candidates import Candidate, consumers, contractions, dependents, elements, tensors_of
from fuse.frontend.cascades import Cascades, leaving
from fuse.frontend.importer import import_candidate
from fuse.frontend.shadow import Shadow
from fuse.frontend.symbols import symbol_hints
from fuse.frontend.tables import kind_of
from fuse.frontend.tables_contract import product_of
from fuse.frontend.value import example, flat, where
from fuse.reasons import Miss

LARGE = 2                # times all that a region reads: what grows so is not stored
READERS = 8              # who reads a value in more places is another loop, position by position


class Scope:
    """One graph: positions of its nodes, its shadow and the sizes seen, made when first asked for."""

    def __init__(self, graph: fx.Graph):
        self.graph = graph

    @cached_property
    def position(self) -> dict[fx.Node, int]:
        return {n: i for i, n in enumerate(self.graph.nodes)}

    @cached_property
    def shadow(self) -> Shadow:
        return Shadow(self.graph)

    @cached_property
    def hints(self) -> dict[str, int]:
        return symbol_hints(t for n in self.graph.nodes for t in tensors_of(example(n)))

    def candidate(self, nodes: set[fx.Node], results: Iterable[fx.Node], covered: tuple[fx.Node, ...] = ()) -> Candidate:
        """The region grown from `nodes`, the calls that a scan takes the place of; `results` are what it gives.

        It does not grow beyond its results where what is made of them cannot be imported: a part of the states, say.
        `nodes` and what is `covered` besides go together or not at all.
        """
        covered = (*nodes, *covered)
        grown = Region(self, nodes).back()
        onward = self._bounded(grown.on(results), covered)
        if onward.virtual != (bare := self._bounded(grown.nodes, covered)).virtual:
            return bare if isinstance(import_candidate(onward), Miss) else onward
        return bare

    def _bounded(self, nodes: set[fx.Node], covered: tuple[fx.Node, ...]) -> Candidate:
        virtual, exits = (tuple(sorted(found, key=self.position.__getitem__)) for found in (nodes, leaving(nodes)))
        return Candidate((), virtual, exits, dependents(virtual), self.shadow, self.hints, where(virtual[0]),
                         covered=covered)


class Region(Cascades):
    """The nodes of a region, which grows to what is as well computed with it."""

    def __init__(self, scope: Scope, nodes: set[fx.Node]):
        super().__init__(scope.shadow, scope.hints, nodes)
        self.nodes = nodes

    def _inputs(self) -> set[fx.Node]:
        return {a for n in self.nodes for a in n.all_input_nodes} - self.nodes

    def back(self) -> Region:
        """With the maps that only the region reads."""
        todo = list(self._inputs())
        while todo:
            node = todo.pop()
            if node not in self.nodes and self._is_map(node) and set(consumers(node)) <= self.nodes:
                self.nodes.add(node)
                todo += node.all_input_nodes
        return self

    def _is_map(self, node: fx.Node) -> bool:
        """A value that is made element by element: a product too, if nothing is summed; or several views of one."""
        if isinstance(example(node), (tuple, list)):
            return all(kind_of(v) == "view" for v in flat(self.shadow.value(node)))
        kind = self.kind(node)
        if kind == "contraction":
            return all(not product_of(v).contracted for v in contractions(self.shadow.value(node)))
        return kind == "map"

    def on(self, results: Iterable[fx.Node]) -> set[fx.Node]:
        """With what is made of the results, up to where it is no larger than all that the region reads."""
        nodes, todo = set(self.nodes), list(results)
        most = max((elements(a) or 0 for a in self._inputs()), default=0)
        below = dependents(tuple(self.nodes))
        while todo:
            node = todo.pop()
            users = set(consumers(node)) - nodes
            large = (elements(node) or 0) >= LARGE * most
            taken = all(self._takes(u, nodes, below) and (large or self._is_view(u, node)) for u in users)
            if taken and 0 < len(users) <= READERS:
                nodes |= users
                todo += users
        return nodes

    def _is_view(self, user: fx.Node, of: fx.Node) -> bool:
        """Are these the same elements in another arrangement?"""
        values = list(flat(self.shadow.value(user)))
        return len(values) == 1 and kind_of(values[0]) == "view" and elements(user) == elements(of)

    def _takes(self, user: fx.Node, nodes: set[fx.Node], below: frozenset[fx.Node]) -> bool:
        return self.kind(user) != "" and all(a in nodes or a not in below for a in user.all_input_nodes)
