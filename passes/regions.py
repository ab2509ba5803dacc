"""regions: one streamed walk per stored value that reads a virtual one.

The frontier is every reduction whose operand is virtual and whose result is not, plus virtual outputs. Its stream is the
part of the anchor it reduces, its grid the rest of the anchor; where the anchor has a stream of its own (scans,
cascades), what keeps that axis is emitted along it. A sum over more than the stream that the anchor's
statistics use is split: the inner sum is streamed, the outer one is a small sum over stored values.
"""
from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from fuse.ir.expr import Axis, Expr, iota, make, rewrite, sum_, topological, where
from fuse.ir.program import Kind, Program
from fuse.passes.simplify import is_dot
from fuse.passes.virtualize import Anchor, Virtual
from fuse.reasons import Miss, Refused

KINDS = {"sum": Kind.SUM, "max": Kind.MAX, "argmax": Kind.ARGMAX, "lse": Kind.LSE}


@dataclass(eq=False)
class Leaf:
    """A frontier value: what is reduced, over what, and what it needs first."""

    value: Expr
    kind: Kind | None                                        # None: emitted at every position of the stream
    body: Expr
    streams: tuple[Axis, ...]
    grid: tuple[Axis, ...]
    dot: bool
    needs: list[Leaf] = field(default_factory=list)          # direct: leaves read by the body
    forward: bool = False                                    # a forward output depends on it
    cotangent: bool = False                                  # it depends on a cotangent
    reverse: bool = False                                    # it holds a scan that runs backwards
    given: bool = False                                      # the anchor names the stream; the grid is what all keep


    def all_needs(self) -> set[Leaf]:
        """The leaves this one depends on, however indirectly."""
        found, todo = set[Leaf](), list(self.needs)
        while todo:
            leaf = todo.pop()
            if leaf not in found:
                found.add(leaf)
                todo += leaf.needs
        return found


def expand_picks(roots: Iterable[Expr]) -> list[Expr]:
    """pick_v(x, y) -> sum_v where(v == y, x, 0): the form a sweep accumulates."""
    def rule(node: Expr) -> Expr | None:
        if node.op != "pick":
            return None
        x, index = node.args
        axis = node["axis"]
        return sum_(where(make("eq", iota(axis), index), x, 0), axis)
    return rewrite(roots, rule)


def split_sums(roots: Iterable[Expr], virtual: Virtual, hints: Mapping[str, int]) -> list[Expr]:
    """sum_nv(x) -> sum_n(sum_v(x)) where v is what the anchor's other reductions stream over (else its longest axis)."""
    roots = list(roots)
    nodes = [n for n in topological(roots) if n.op in KINDS and n.args[0] in virtual and n not in virtual]
    primary: dict[Anchor, frozenset[Axis]] = {}
    for node in nodes:
        anchor = virtual.anchor_of(node.args[0])
        assert anchor is not None
        reduced = anchor.axes & set(node["axes"])
        if anchor.stream:
            primary[anchor] = frozenset([anchor.stream])
        elif not is_dot(node) and reduced and (anchor not in primary or len(reduced) < len(primary[anchor])):
            primary[anchor] = reduced

    def rule(node: Expr) -> Expr | None:
        anchor = virtual.anchor_of(node.args[0]) if node.op == "sum" else None
        if anchor is None or (is_dot(node) and not anchor.stream):
            return None
        reduced = anchor.axes & set(node["axes"])
        inner = primary.get(anchor, reduced)
        if inner == anchor.axes and len(inner) > 1:
            inner = frozenset([max(sorted(inner, key=lambda a: a.name), key=lambda a: a.extent.evaluate(hints))])
        if not inner < reduced:
            return None
        extra = {a for a in node["axes"] if a not in anchor.axes}
        return sum_(sum_(node.args[0], *inner, *extra), *(reduced - inner))
    return rewrite(roots, rule)


def frontier(program: Program, virtual: Virtual) -> list[Leaf]:
    """The leaves in dependency order. Refused if a stored value reads a virtual one without reducing it, or is as large."""
    roots = [t.value for o in program.outputs for t in o.terms]
    emitted = [r for r in dict.fromkeys(roots) if r in virtual]
    leaves: dict[Expr, Leaf] = {}
    for node in topological(roots):
        if node not in virtual and any(a in virtual for a in node.args):
            leaves[node] = _leaf(node, virtual)
    gradients = {t.value for o in program.outputs if o.gradient_of for t in o.terms}
    leaves |= {r: _emitted(r, virtual, code="EXITS_TOO_BIG" if r in gradients else "ESCAPES") for r in emitted}
    _connect(leaves)
    _mark(program, leaves)
    return [leaves[e] for e in _by_need(leaves)]


def _leaf(node: Expr, virtual: Virtual) -> Leaf:
    anchor = virtual.anchor_of(max(node.args, key=lambda a: (a in virtual, len(a.axes))))
    assert anchor is not None
    if anchor.stream is not None and node.has(anchor.stream):
        return _emitted(node, virtual, anchor)
    if node.op not in KINDS:
        raise Refused(Miss("NOT_A_REDUCTION", node.origin, node.op))
    in_order = [a for a in node.args[0].axes if a in anchor.axes]
    streams = tuple(a for a in in_order if a in node["axes"])
    if not streams:
        raise Refused(Miss("NOT_A_REDUCTION", node.origin, node.op))
    grid = tuple(a for a in in_order if a not in node["axes"])
    given = anchor.stream is not None
    return Leaf(node, KINDS[node.op], node.args[0], streams, grid, is_dot(node) and not given, given=given)


def _emitted(node: Expr, virtual: Virtual, anchor: Anchor | None = None, code: str = "ESCAPES") -> Leaf:
    anchor = anchor or virtual.anchor_of(node)
    if anchor is None or anchor.stream is None:
        raise Refused(Miss(code, node.origin, "a gradient has all of its axes" if code != "ESCAPES" else ""))
    grid = tuple(a for a in node.axes if a in anchor.axes and a != anchor.stream)
    return Leaf(node, None, node, (anchor.stream,), grid, dot=False, given=True)


def _by_need(leaves: dict[Expr, Leaf]) -> list[Expr]:
    """Dependency order: an emitted output may read leaves found after it."""
    order: dict[Expr, None] = {}

    def visit(leaf: Leaf) -> None:
        if leaf.value not in order:
            for need in leaf.needs:
                visit(need)
            order[leaf.value] = None
    for leaf in leaves.values():
        visit(leaf)
    return list(order)


def _connect(leaves: dict[Expr, Leaf]) -> None:
    for leaf in map(leaves.__getitem__, _by_need(leaves)):
        below = inside(leaf, leaves)
        leaf.needs = [leaves[e] for e in below if e in leaves and e is not leaf.value]
        scans = [e for e in below if e.op == "scan"]
        leaf.reverse = any(e["reverse"] for e in scans)
        if leaf.given:                                   # a state without an axis is one for all that have it
            leaf.grid = tuple(a for a in leaf.grid if all(e.has(a) for e in scans))


def inside(leaf: Leaf, leaves: Collection[Expr]) -> list[Expr]:
    """What is evaluated in the leaf's own sweep: everything below it, down to other leaves."""
    others = {e for e in leaves if e is not leaf.value}
    return topological([leaf.body], others)


def _mark(program: Program, leaves: dict[Expr, Leaf]) -> None:
    results = [t.value for o in program.outputs if o.gradient_of is None for t in o.terms]
    for value in topological(results, leaves):
        if value in leaves:
            for leaf in {leaves[value], *leaves[value].all_needs()}:
                leaf.forward = True
    for leaf in map(leaves.__getitem__, _by_need(leaves)):
        below = inside(leaf, leaves)
        reads_cotangent = any(e.op == "read" and e["buffer"].name in program.cotangents for e in below)
        leaf.cotangent = reads_cotangent or any(n.cotangent for n in leaf.needs)


def rows_only(leaf: Leaf, needed: Leaf, leaves: Mapping[Expr, Leaf], grid: tuple[Axis, ...]) -> bool:
    """Does `leaf` read `needed` through pointwise row values alone, so that a row's sweep has all it needs?"""
    reach = {needed.value}
    for node in inside(leaf, leaves):
        if node in leaves or not any(a in reach for a in node.args):
            continue
        reach.add(node)
        if node.op in KINDS or node.op in ("shift", "scan", "pick"):
            if not (set(node["axes"]) if node.op in KINDS else set()).isdisjoint(grid):
                return False
    return True
