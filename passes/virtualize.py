"""virtualize: which values are never stored.

A value is virtual if it varies along all axes of an anchor. The anchors come from the importer (a contraction that
amplifies: logits, scores) or are found here: a dot whose result outnumbers everything stored that is made from it.
Outputs are stored by definition; a virtual output is emitted tile by tile.
"""
from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from fuse.ir.expr import Axis, Expr, topological
from fuse.ir.program import Program
from fuse.passes.simplify import is_dot

AxisSet = frozenset[Axis]


class Virtual:
    """The predicate `expr in virtual`, and which anchor's axes an expression spans."""

    def __init__(self, anchors: Iterable[Expr]):
        self.anchors: tuple[AxisSet, ...] = tuple(dict.fromkeys(frozenset(a.axes) for a in anchors))

    def anchor_of(self, x: Expr) -> AxisSet | None:
        """The axes of the widest anchor that x spans."""
        axes = set(x.axes)
        spanned = [a for a in self.anchors if a <= axes]
        return max(spanned, key=len) if spanned else None

    def __contains__(self, x: Expr) -> bool:
        return self.anchor_of(x) is not None


def find_anchors(program: Program, hints: Mapping[str, int]) -> tuple[Expr, ...]:
    """Dots at least twice as large as each operand's reads and not outputs; scans that are not outputs."""
    roots = [t.value for o in program.outputs for t in o.terms]
    outputs = set(roots)
    found = []
    for node in topological(roots):
        if node in outputs:
            continue
        if node.op == "scan" or (is_dot(node) and _amplifies(node, hints)):
            found.append(node)
    return tuple(found)


def _amplifies(node: Expr, hints: Mapping[str, int]) -> bool:
    numel = node.type.numel.evaluate(hints)
    reads = [e for e in topological([node]) if e.op == "read"]
    return bool(reads) and all(numel >= 2 * r.type.numel.evaluate(hints) for r in reads)


def virtualize(program: Program, hints: Mapping[str, int]) -> Program:
    """Fills in `program.anchors` if the importer named none."""
    return program if program.anchors else replace(program, anchors=find_anchors(program, hints))
