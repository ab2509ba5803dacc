"""The one place that says which candidates fuse takes today: a single distribution reduced to statistics of its rows.

The importer can express more (attention, several distributions); each is enabled here once passes and targets follow.
"""
from __future__ import annotations

from collections.abc import Iterable

from fuse.frontend.candidates import Candidate, contractions
from fuse.frontend.tables_contract import product_of
from fuse.frontend.value import where
from fuse.ir.expr import FLOATS, Axis, Expr, topological
from fuse.ir.program import Program
from fuse.ir.size import Size, product
from fuse.reasons import Miss

SWEEPS = ("sum", "max", "argmax", "lse", "pick")
WIDE, LONG = 16, 320      # numbers a row; products per element of a value made by one contraction


def worthwhile(candidate: Candidate) -> Miss | None:
    """The Miss of a candidate that recomputing makes slower: long contractions made again for a wide result.

    An element costs 2K flops to make again, K summed over the contractions it is made of, and saves about five accesses
    of 4 bytes, half as many more for each further contraction (two operands and their product are three values, not
    four). At 32 flops per byte, what a machine does while it moves a byte, that pays up to K = 320: attention's heads
    do, the hidden layer of an MLP does not, gated or not. A result of a few numbers a row is bought for its memory
    whatever K is.
    """
    def numbers(sizes: Iterable[Size]) -> int:
        total = product(sizes)
        return int(total.evaluate({s: candidate.hints.get(s, 1) for s in total.symbols}))

    total = 0
    for anchor in candidate.anchors:
        products = map(product_of, contractions(candidate.shadow.value(anchor)))
        total += max((numbers(p.extents[c] for c in p.contracted) for p in products), default=0)
    if 2 * total <= LONG * (1 + len(candidate.anchors)):
        return None
    for node in candidate.exits:
        for v in contractions(candidate.shadow.value(node)):
            p = product_of(v)
            virtual = [set(s) for s, o in zip(p.letters, p.operands, strict=True) if o.node in candidate.virtual]
            width = numbers(p.extents[c] for c in p.out if not any(c in s for s in virtual))
            if width >= WIDE:
                return Miss("NOT_WORTH_IT", candidate.where,
                            f"each element takes {2 * total} flops to make again, and a row gives {width} numbers")
    return None


def supported(candidate: Candidate) -> Miss | None:
    """The Miss of a candidate whose family is not taken yet, before it is imported."""
    if len(candidate.anchors) > 1:
        names = ", ".join(n.name for n in candidate.anchors)
        return Miss("TARGET_LACKS", candidate.where, f"{len(candidate.anchors)} contractions in one region: {names}")
    for node in candidate.exits:
        for _ in contractions(candidate.shadow.value(node)):
            return Miss("TARGET_LACKS", where(node), f"{node.name} contracts the large value with another tensor")
    return None


def streamable(program: Program, candidate: Candidate) -> Miss | None:
    """The Miss of an imported program that is not one sweep along one axis of one anchor."""
    if len(program.anchors) != 1:
        return Miss("TARGET_LACKS", candidate.where, f"the region reads the contraction in {len(program.anchors)} ways")
    anchor = frozenset(program.anchors[0].axes)
    if not anchor:
        return Miss("NOT_A_REDUCTION", candidate.where, "the contraction is a single number")
    roots = [t.value for o in program.outputs for t in o.terms]
    streams: set[Axis] | None = None
    for node in topological(roots):
        if _knife_edge(node, anchor):
            return Miss("NOT_A_REDUCTION", node.origin or candidate.where,
                        "the large value is compared with its own maximum, which one rounding decides: use argmax")
        virtual = [a for a in node.args if anchor <= set(a.axes)]
        if not virtual:
            continue
        if node.op in ("scan", "shift"):
            return Miss("TARGET_LACKS", candidate.where, f"a {node.op} over the large value")
        gone = _swept(node) & anchor
        if not gone:
            continue
        if set(node.axes) - anchor or set(virtual[0].axes) - anchor:
            return Miss("TARGET_LACKS", node.origin or candidate.where, "a statistic wider than one number a row")
        streams = gone if streams is None else streams & gone
        if not streams:
            return Miss("NOT_A_REDUCTION", node.origin or candidate.where,
                        "the large value is reduced along two different axes")
    if not streams:
        return Miss("NOT_A_REDUCTION", candidate.where, "nothing reduces the large value")
    for root in roots:
        if anchor <= set(root.axes):
            return Miss("ESCAPES", candidate.where)
    return None


def _knife_edge(node: Expr, anchor: frozenset[Axis]) -> bool:
    """x == max(x) and the like: x is computed again there and may differ from the stored maximum in its last bit."""
    if node.op not in ("eq", "ne", "lt", "le") or node.args[0].dtype not in FLOATS or not anchor <= set(node.axes):
        return False
    return any(e.op == "max" and anchor <= set(e.args[0].axes) for e in topological(node.args))


def _swept(node: Expr) -> set[Axis]:
    if node.op not in SWEEPS:
        return set()
    return {node["axis"]} if node.op == "pick" else set(node["axes"])
