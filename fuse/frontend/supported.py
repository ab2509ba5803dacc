"""Which candidates are taken: those that pay (before they are imported) and whose large values can be swept (after)."""
from __future__ import annotations

from collections.abc import Callable, Iterable

from fuse.frontend.candidates import Candidate, contractions
from fuse.frontend.tables_contract import product_of
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


def streamable(program: Program, candidate: Candidate) -> Miss | None:
    """The Miss of an imported program whose large values cannot each be swept along one axis."""
    anchors = [frozenset(a.axes) for a in program.anchors]
    if not anchors or not all(anchors):
        return Miss("NOT_A_REDUCTION", candidate.where, "the contraction is a single number")
    if len(anchors) > len(candidate.anchors):       # each way is a sweep that makes the value again
        return Miss("TARGET_LACKS", candidate.where,
                    f"the region reads {len(candidate.anchors)} contraction(s) in {len(anchors)} ways")

    def spanned(x: Expr) -> list[frozenset[Axis]]:
        return [a for a in anchors if a <= set(x.axes)]
    summed = [frozenset(a.axes) for a in program.anchors if a.op == "sum"]
    roots = [t.value for o in program.outputs for t in o.terms]
    swept = False
    for node in topological(roots):
        large = {a for arg in node.args for a in spanned(arg)}
        if node.op in ("scan", "shift") and any(a <= set(node.axes) for a in summed):
            return Miss("TARGET_LACKS", node.origin or candidate.where, f"a {node.op} along a value that sums make")
        if spanned(node) and node.op in ("lse", "argmax"):
            return Miss("TARGET_LACKS", node.origin or candidate.where, f"a {node.op} as large as the large value")
        if spanned(node) and _knife_edge(node, spanned):
            return Miss("NOT_A_REDUCTION", node.origin or candidate.where,
                        "the large value is compared with its own maximum, which one rounding decides: use argmax")
        swept |= any(_swept(node) & anchor for anchor in large)
    if not swept:
        return Miss("NOT_A_REDUCTION", candidate.where, "nothing reduces the large value")
    if _turns(roots, spanned):
        return Miss("NOT_A_REDUCTION", candidate.where,
                    "the large value is reduced along two different axes, one after the other")
    return Miss("ESCAPES", candidate.where) if any(map(spanned, roots)) else None


def _knife_edge(node: Expr, spanned: Callable[[Expr], object]) -> bool:
    """x == max(x) and the like: x is computed again there and may differ from the stored maximum in its last bit."""
    if node.op not in ("eq", "ne", "lt", "le") or node.args[0].dtype not in FLOATS:
        return False
    return any(e.op == "max" and spanned(e.args[0]) for e in topological(node.args))


def _turns(roots: Iterable[Expr], spanned: Callable[[Expr], list[frozenset[Axis]]]) -> bool:
    """Does a reduction of a large value wait for one along other axes? Each turn would be a sweep that makes it again."""
    streams: dict[Expr, set[tuple[frozenset[Axis], frozenset[Axis]]]] = {}      # of an anchor, what a chain's reductions share
    for node in topological(roots):
        below = {chain for arg in node.args for chain in streams[arg]}
        for anchor in {a for arg in node.args for a in spanned(arg)}:
            if gone := frozenset(_swept(node) & anchor):
                below = {(a, axes & gone if a == anchor else axes) for a, axes in below} | {(anchor, gone)}
        if any(not axes for _, axes in below):
            return True
        streams[node] = below
    return False


def _swept(node: Expr) -> set[Axis]:
    if node.op not in SWEEPS:
        return set()
    return {node["axis"]} if node.op == "pick" else set(node["axes"])
