"""pieces: a reduction over tensors that were joined becomes one reduction for each of them.

    sum_v f(where(v < n, a[v], b[v - n]))  ->  sum_p f(a[p]) + sum_q f(b[q])          v < N, p < n, q < N - n
    max, lse                               ->  by maximum, logaddexp

Two sets of scores under one softmax, or a sink beside them, are then swept each along its own axis. Does not apply where
something inside binds v again.
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from fuse.frontend.index import ONE, Linear, decided, linear
from fuse.frontend.tables_reduce import over
from fuse.ir.expr import Axis, Expr, const, iota, make, rewrite, sum_, topological
from fuse.ir.program import Output, Term
from fuse.ir.size import Size

COMBINE = {"sum": "add", "max": "maximum", "lse": "logaddexp"}
Joints = Mapping[str, list[Size]]      # name of an axis -> where the tensors behind it meet
Outputs = tuple[Output, ...]


def split_pieces(outputs: Outputs, anchors: tuple[Expr, ...], joints: Joints) -> tuple[Outputs, tuple[Expr, ...]]:
    """The outputs with such reductions split, and the anchors as they occur in them."""
    if not joints:
        return outputs, anchors
    known = dict.fromkeys(anchors)
    roots = [e for o in outputs for t in o.terms for e in (*t.index, t.value)]
    done = rewrite(roots, lambda node: _split(node, joints, known))
    fresh = iter(done)
    outputs = tuple(replace(o, terms=tuple(Term(tuple(next(fresh) for _ in t.index), next(fresh)) for t in o.terms))
                    for o in outputs)
    present = set(topological(done))
    return outputs, tuple(a for a in known if a in present)


def _split(node: Expr, joints: Joints, known: dict[Expr, None]) -> Expr | None:
    """The reduction in pieces; copies of the anchors in `known` are added to it."""
    axis = next((a for a in node["axes"] if a.name in joints), None) if node.op in COMBINE else None
    if axis is None or any(_binds(e, axis) for e in topological(node.args)):
        return None
    total: Expr | None = None
    start = Size.of(0)
    for k, end in enumerate((*joints[axis.name], axis.extent)):
        piece = [Axis(f"{axis.name}.{k}", end - start)] if end - start != 1 else []
        memo = {iota(axis): Linear.build(((a, ONE) for a in piece), start).expr()}
        body, = rewrite(node.args, _fold, memo)
        known.update(dict.fromkeys(memo[a] for a in list(known) if a in memo))
        axes = [a for a in node["axes"] if a != axis] + piece
        part = sum_(body, *axes) if node.op == "sum" else over(node.op, body, axes)
        total = part if total is None else make(COMBINE[node.op], total, part)
        start = end
    return total


def _binds(e: Expr, axis: Axis) -> bool:
    own = [value for key, value in e.attrs if key in ("axis", "axes")] if e.op != "iota" else []
    return any(axis in (value if isinstance(value, tuple) else (value,)) for value in own)


def _fold(node: Expr) -> Expr | None:
    """Index arithmetic in one form, comparisons decided by the ranges of positions, and the branches they choose."""
    if node.op in ("add", "sub", "mul") and node.dtype == "int64":
        return linear(node).expr()
    if node.op in ("lt", "le") and node.args[0].dtype == "int64":
        holds = decided(linear(node.args[0]) - linear(node.args[1]), strict=node.op == "lt")
        return None if holds is None else const(holds, "bool")
    if node.op == "where" and node.args[0].op == "const":
        return node.args[1] if node.args[0]["value"] else node.args[2]
    return None
