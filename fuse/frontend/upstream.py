"""What a scan is made of joins its walk: a chain of prefix sums is one pass over its inputs.

    c = cumsum(k);  z = 1 / (q . c);  s = cumsum(outer(k * z, v));  y = q . s        one walk for c, z, s and y

Taken in are maps, other scans and dots that cost no more than reading their operands (every operand has all dimensions of
the result: a weight has not), if nobody else reads them; then what is made of members alone. The walk is one only if
every scan of the imported program runs along one axis and nothing is reduced along it, which `one_walk` checks.
"""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from torch import fx

from fuse.frontend.candidates import Candidate, consumers, contractions, dependents
from fuse.frontend.cascades import floats, leaving, plain_ops
from fuse.frontend.tables import kind_of
from fuse.frontend.tables_contract import product_of
from fuse.frontend.tables_reduce import SCANS
from fuse.frontend.value import flat
from fuse.ir.expr import Axis, topological
from fuse.ir.program import Program


def with_sources(candidate: Candidate) -> Candidate | None:
    """The candidate with what its scans are made of; None if it has no scan, or nothing to take in."""
    if not any(v.op in SCANS for n in candidate.virtual for v in flat(candidate.shadow.value(n))):
        return None
    given = {*candidate.virtual, *_between(candidate)}
    region = _without_shared(_grown(candidate, given), given)
    if region == given:
        return None
    position = candidate.shadow.position.__getitem__
    virtual = tuple(sorted(region, key=position))
    below = dependents(virtual)
    if ({a for n in region for a in n.all_input_nodes} - region) & below:
        return None
    return replace(candidate, virtual=virtual, exits=tuple(sorted(leaving(region), key=position)), dependent=below, chained=True)


def _between(candidate: Candidate) -> Iterator[fx.Node]:
    """The exits, and what lies between them and the virtual values."""
    todo = list(candidate.exits)
    seen = set(todo)
    while todo:
        node = todo.pop()
        yield node
        new = [a for a in node.all_input_nodes if a in candidate.dependent and a not in seen]
        seen.update(new)
        todo += new


def _grown(candidate: Candidate, given: set[fx.Node]) -> set[fx.Node]:
    found, todo = set(given), list(given)
    while todo:
        node = todo.pop()
        new = [a for a in node.all_input_nodes if _belongs(candidate, a)]
        new += [u for u in consumers(node) if _belongs(candidate, u) and set(floats(u)) <= found]
        new = [n for n in dict.fromkeys(new) if n not in found]
        found.update(new)
        todo += new
    return found


def _belongs(candidate: Candidate, node: fx.Node) -> bool:
    ops = plain_ops(candidate.shadow, node)
    products = [product_of(v) for v in contractions(candidate.shadow.value(node))] if ops else []
    return bool(ops) and all(set(p.out) <= set(letters) for p in products for letters in p.letters) \
        and len(products) == sum(kind_of(v) == "contraction" for v in ops)


def _without_shared(region: set[fx.Node], given: set[fx.Node]) -> set[fx.Node]:
    """Without what somebody else reads too, unless a given value is part of it: it is stored anyway."""
    position = {n: k for k, n in enumerate(next(iter(region)).graph.nodes)}
    made = {n for n in dependents(tuple(given)) if n in region}
    while True:
        shared = set(leaving(region)) - made
        if not shared:
            return region
        region = region - {max(shared, key=position.__getitem__)}


def one_walk(program: Program) -> bool:
    """Do all scans run along one axis, and nothing else across it?"""
    nodes = topological(t.value for o in program.outputs for t in o.terms)
    along = {n["axis"] for n in nodes if n.op == "scan"}
    if len(along) != 1:
        return False
    (axis,) = along
    return not any(axis in _mixed(n) for n in nodes) and all(t.value.has(axis) for o in program.outputs for t in o.terms)


def _mixed(node: object) -> tuple[Axis, ...]:
    attrs = dict(getattr(node, "attrs", ()))
    return tuple(attrs["axes"]) if getattr(node, "op", "") in ("sum", "max", "argmax", "lse") else ()
