"""virtualize: which values are never stored.

A value is virtual if it varies along all axes of an anchor. There are three kinds of anchor:
  - a dot that amplifies (logits, scores): twice as large as each operand; the importer names those it has found;
  - a scan: its states are streamed along the scan's own axis;
  - a cascade: a sum along an axis whose result meets that axis again (a normalisation), or another one that it is
    nowhere beside (keys summed for queries). Nothing is larger than the inputs, but every stored intermediate costs a
    pass over memory: values along the axis are computed on the way.
Outputs are stored by definition; where the anchor has a stream of its own, a virtual output is emitted tile by tile.
"""
from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from fuse.ir.expr import Axis, Expr, topological
from fuse.ir.program import Program
from fuse.passes.simplify import is_dot

POOLED = 4               # what a sum of a cascade reads against its result


@dataclass(frozen=True)
class Anchor:
    """Values spanning `axes` are virtual. `stream` is set where the walk's axis is given (scans, cascades)."""

    axes: frozenset[Axis]
    stream: Axis | None = None


class Virtual:
    """The predicate `expr in virtual`, and which anchor an expression spans."""

    def __init__(self, anchors: Iterable[Anchor]):
        self.anchors = tuple(dict.fromkeys(anchors))

    def anchor_of(self, x: Expr) -> Anchor | None:
        """The widest anchor that x spans; among equals one with a stream."""
        axes = set(x.axes)
        spanned = [a for a in self.anchors if a.axes <= axes]
        return max(spanned, key=lambda a: (len(a.axes), a.stream is not None)) if spanned else None

    def __contains__(self, x: Expr) -> bool:
        return bool(x.axes) and self.anchor_of(x) is not None


def virtual_of(program: Program, hints: Mapping[str, int]) -> Virtual:
    """Dots from `program.anchors`, scans and, where there is neither, cascades from the expressions themselves."""
    roots = [t.value for o in program.outputs for t in o.terms]
    scans = [Anchor(frozenset(n.axes), n["axis"]) for n in topological(roots) if n.op == "scan"]
    dots = [Anchor(frozenset(a.axes)) for a in program.anchors]
    return Virtual([*dots, *scans] or _cascades(roots, hints))


def _cascades(roots: list[Expr], hints: Mapping[str, int]) -> list[Anchor]:
    """One anchor per axis of a chain, longest first; what occurs beside a longer one is a feature."""
    order = [n for n in topological(roots) if n.op != "iota"]
    met: dict[Axis, None] = {}
    summed: dict[Expr, frozenset[Axis]] = {}
    pooled: dict[Expr, frozenset[Axis]] = {}
    crossed: dict[tuple[Axis, Axis], None] = {}
    for node in order:
        below, pools = (frozenset().union(*(table.get(a, frozenset()) for a in node.args)) for table in (summed, pooled))
        met.update(dict.fromkeys(a for a in node.axes if a in below))
        crossed.update(dict.fromkeys((a, b) for a in sorted(pools, key=lambda a: a.name) for b in node.axes if a != b))
        over = frozenset(node["axes"] if node.op in ("sum", "lse", "max") else ())
        summed[node] = below | over
        pooled[node] = pools | (over if over and _pools(node, hints) else frozenset())
    for a, b in crossed:
        if a not in met and not any(n.has(a) and n.has(b) for n in order):
            met.update({a: None, b: None})
    streams: list[Axis] = []
    for axis in sorted(met, key=lambda a: -a.extent.evaluate(hints)):
        if not any(n.has(axis) and n.has(s) for n in order for s in streams):
            streams.append(axis)
    return [Anchor(frozenset.intersection(*(frozenset(n.axes) for n in order if n.has(s))), s) for s in streams]


def _pools(node: Expr, hints: Mapping[str, int]) -> bool:
    """Is the reduction's result much smaller than a buffer it reads?"""
    longest = max((e.type.numel.evaluate(hints) for e in topological([node]) if e.op == "read"), default=0)
    return bool(longest >= POOLED * node.type.numel.evaluate(hints))


def find_anchors(program: Program, hints: Mapping[str, int]) -> tuple[Expr, ...]:
    """Dots at least twice as large as each operand's reads, and not outputs."""
    roots = [t.value for o in program.outputs for t in o.terms]
    outputs = set(roots)
    found = []
    for node in topological(roots):
        if node in outputs:
            continue
        if is_dot(node) and _amplifies(node, hints):
            found.append(node)
    return tuple(found)


def _amplifies(node: Expr, hints: Mapping[str, int]) -> bool:
    numel = node.type.numel.evaluate(hints)
    reads = [e for e in topological([node]) if e.op == "read"]
    return bool(reads) and all(numel >= 2 * r.type.numel.evaluate(hints) for r in reads)


def virtualize(program: Program, hints: Mapping[str, int]) -> Program:
    """Fills in `program.anchors` if the importer named none."""
    return program if program.anchors else replace(program, anchors=find_anchors(program, hints))
