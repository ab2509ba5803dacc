"""Cascades: nothing is larger than the inputs, but a chain of sums along one long axis reads them again and again.

    pool      a reduction, or a contraction, whose result is much smaller than what it reads
    return    a contraction that brings a pooled value back to what is long: its result is much larger than that value
    region    everything both are made of, back to what an everyday contraction, an opaque op or an input gives,
              and forward while all operands are in the region
    exits     what depends on a pool and is read outside

Evaluated one by one, each pool and each return passes over its long operands; swept together, only once per link of the
chain. Layers and normalisations have no return: a weight is no pooled value, and what a mean is broadcast by is no
contraction. Sizes are compared by hints alone.
"""
from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import fx

from fuse.frontend.candidates import (
    CONTRACTS,
    Candidate,
    asks_for_shape,
    consumers,
    contractions,
    dependents,
    elements,
    tensors_of,
)
from fuse.frontend.context import mutated_arguments
from fuse.frontend.shadow import Shadow
from fuse.frontend.symbols import symbol_hints
from fuse.frontend.tables import kind_of
from fuse.frontend.tables_contract import product_of
from fuse.frontend.tables_gather import ARRANGED
from fuse.frontend.value import Value, called, example, flat, where
from fuse.reasons import Miss, size_text

POOLED = 4               # a pool's largest operand against its result; a return's result against its pooled operand
PASSES = 2               # what they move one by one against inputs and exits
CACHED = 8               # times min_virtual_bytes to be saved: below, caches hold much of what is read again (measured)
DEVICES = ("cpu", "cuda")
PLAIN = ("pointwise", "view", "reduction", "shaped", "free", "contraction")


def find_cascades(graph: fx.Graph, others: Iterable[Candidate], floor: int) -> tuple[list[Candidate], list[Miss]]:
    """Candidates among the nodes that no other candidate has taken, and a Miss for each that does not pay.

    `floor`: bytes that a region has to save; 0 switches every test of cost off.
    """
    others = list(others)
    seeds = [n for n in graph.nodes if _may_return(n)]
    if not seeds:
        return [], []
    shadow = others[0].shadow if others else Shadow(graph)
    hints = symbol_hints(t for n in graph.nodes for t in tensors_of(example(n)))
    cascades = Cascades(shadow, hints, {n for c in others for n in (*c.virtual, *c.exits)})
    found: list[Candidate] = []
    misses: list[Miss] = []
    for seed in reversed(seeds):          # the last of a chain has the others among what it is made of
        if seed not in cascades.taken and cascades.returns(seed):
            region = cascades.region(seed)
            miss = cascades.unpaid(region, seed, floor) if floor else None
            candidate = cascades.candidate(region, seed)
            cascades.taken |= region
            if candidate is not None and miss is not None:
                misses.append(miss)
            elif candidate is not None:
                found.append(candidate)
    return found, misses


def _may_return(node: fx.Node) -> bool:
    """By metadata alone: a contraction much larger than an operand that the graph computes."""
    if node.op not in ("call_function", "call_method") or called(node) not in CONTRACTS:
        return False
    whole = elements(node) or 0
    return any(a.op not in ("placeholder", "get_attr") and 0 < POOLED * (elements(a) or 0) <= whole for a in floats(node))


class Cascades:
    """Regions of one graph. `taken`: nodes that belong to another candidate."""

    def __init__(self, shadow: Shadow, hints: dict[str, int], taken: set[fx.Node]):
        self.shadow, self.hints, self.taken = shadow, hints, taken
        self.kinds: dict[fx.Node, str] = {}

    # ---- one node ---------------------------------------------------------------------------------------------------

    def kind(self, node: fx.Node) -> str:
        """"contraction", "reduction", "map", or "" for what a region does not take in."""
        if node not in self.kinds:
            self.kinds[node] = self._kind(node)
        return self.kinds[node]

    def _kind(self, node: fx.Node) -> str:
        kinds = {kind_of(v) for v in plain_ops(self.shadow, node)}
        return next((k for k in ("contraction", "reduction") if k in kinds), "map" if kinds else "")

    def pools(self, node: fx.Node) -> bool:
        longest = max((elements(a) or 0 for a in floats(node)), default=0)
        return self.kind(node) in ("contraction", "reduction") and longest >= POOLED * (elements(node) or longest)

    def returns(self, node: fx.Node) -> bool:
        """Has the contraction a pooled operand, with a dimension that another operand and the result have as well?"""
        if self.kind(node) != "contraction":
            return False
        for v in contractions(self.shadow.value(node)):
            p = product_of(v)
            for i, operand in enumerate(p.operands):
                others = {c for j, letters in enumerate(p.letters) if j != i for c in letters}
                if others & set(p.letters[i]) & set(p.out) and self.pooled(operand.node, node):
                    return True
        return False

    def pooled(self, operand: fx.Node, user: fx.Node) -> bool:
        """Is the operand a pool, or maps of one that are no larger, and much smaller than what the user makes of it?"""
        size, todo = elements(operand) or 0, [operand]
        if not 0 < POOLED * size <= (elements(user) or 0):
            return False
        while todo:
            node = todo.pop()
            if self.pools(node) and size <= (elements(node) or 0):
                return True
            todo += floats(node) if self.kind(node) == "map" else []
        return False

    # ---- one region -------------------------------------------------------------------------------------------------

    def candidate(self, region: set[fx.Node], seed: fx.Node) -> Candidate | None:
        """None where the region depends on something outside that depends on the region."""
        position = self.shadow.position.__getitem__
        virtual = tuple(sorted(region, key=position))
        below = dependents(virtual)
        read = {a for n in region for a in n.all_input_nodes} - region
        if read & below:
            return None
        return Candidate((), virtual, tuple(sorted(leaving(region), key=position)), below, self.shadow, self.hints, where(seed))

    def region(self, seed: fx.Node) -> set[fx.Node]:
        found, todo = {seed}, [seed]
        while todo:
            node = todo.pop()
            new = [a for a in node.all_input_nodes if self.belongs(a)]
            new += [u for u in consumers(node) if self.belongs(u) and self.kind(u) != "reduction"
                    and all(a in found or self.returned(a) for a in floats(u))]
            new = [n for n in dict.fromkeys(new) if n not in found]
            found.update(new)
            todo += new
        return self.without_shared(found)

    def belongs(self, node: fx.Node) -> bool:
        kind = "" if node in self.taken else self.kind(node)
        return kind in ("map", "reduction") or (kind == "contraction" and (self.pools(node) or self.returns(node)))

    def returned(self, node: fx.Node) -> bool:
        """Is the node a return, or made from one by what belongs to regions: the other arm of the same chain?"""
        seen, todo = {node}, [node]
        while todo:
            at = todo.pop()
            if not self.belongs(at):
                continue
            if self.returns(at):
                return True
            new = [a for a in floats(at) if a not in seen]
            seen.update(new)
            todo += new
        return False

    def without_shared(self, region: set[fx.Node]) -> set[fx.Node]:
        """Without what no pool is part of and somebody else reads too: that is stored anyway."""
        for node in sorted(region, key=self.shadow.position.__getitem__, reverse=True):
            if node in leaving(region) and not any(self.pools(a) for a in (node, *above(node, region))):
                region.discard(node)
        return region

    def unpaid(self, region: set[fx.Node], seed: fx.Node, floor: int) -> Miss | None:
        """The Miss of a region whose pools and returns, one by one, move too little beside its inputs and exits."""
        if example(seed).device.type not in DEVICES:
            return Miss("NOT_WORTH_IT", where(seed), f"offered on {' and '.join(DEVICES)} alone")
        one_by_one = _bytes(a for n in region if self.kind(n) != "map" for a in (n, *floats(n)))
        least = _bytes({a for n in region for a in floats(n)} - region) + _bytes(leaving(region))
        if one_by_one < PASSES * least:
            return Miss("NOT_WORTH_IT", where(seed),
                        f"one by one its sums move {size_text(one_by_one)}, at least {size_text(least)}")
        if one_by_one - least < CACHED * floor:
            saved, limit = size_text(one_by_one - least), size_text(CACHED * floor)
            return Miss("TOO_SMALL", where(seed), f"{saved} of traffic; the limit is {limit}")
        return None


def leaving(region: set[fx.Node]) -> list[fx.Node]:
    """What somebody outside reads."""
    return [n for n in region if any(u not in region and (u.op == "output" or not asks_for_shape(u)) for u in n.users)]


def plain_ops(shadow: Shadow, node: fx.Node) -> list[Value]:
    """The ops that one node stands for, all of them ones that a region takes in; none if any is not."""
    if node.op not in ("call_function", "call_method") or mutated_arguments(node):
        return []
    if not isinstance(example(node), torch.Tensor) or shadow.context[node].functorch:
        return []
    ops = list(ops_of(shadow.value(node), node))
    return ops if all(v.op is not None and v.op not in ARRANGED and kind_of(v) in PLAIN for v in ops) else []


def ops_of(value: object, node: fx.Node) -> Iterator[Value]:
    """The ops that one node stands for."""
    for v in flat(value):
        todo, seen = [v], {v}
        while todo:
            at = todo.pop()
            yield at
            new = [s for s in at.sources() if s.node is node and s not in seen]
            seen.update(new)
            todo += new


def floats(node: fx.Node) -> list[fx.Node]:
    return [a for a in node.all_input_nodes if isinstance(t := example(a), torch.Tensor) and t.is_floating_point()]


def above(node: fx.Node, region: set[fx.Node]) -> set[fx.Node]:
    """What the node is made of inside the region."""
    found, todo = set[fx.Node](), [node]
    while todo:
        new = [a for a in todo.pop().all_input_nodes if a in region and a not in found]
        found.update(new)
        todo += new
    return found


def _bytes(nodes: Iterable[fx.Node]) -> int:
    return sum((elements(n) or 0) * int(example(n).element_size()) for n in nodes)
