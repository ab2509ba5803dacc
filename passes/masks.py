"""masks: what the lowest finite number hides from a softmax, -inf hides as well, if a row keeps something.

    lse_j(where(c, x, lowest))        ->   lse_j(where(c, x, -inf))        c holds for some j in every row
    lse_j(x + where(c, a, lowest))    ->   lse_j(where(c, x + a, -inf))

exp(lowest - m) is 0 for any m that a computation gives, and a target reads from -inf which tiles it may leave out. That every
row keeps something is proved for masks of positions alone: the row's own position, the last one or the first is kept. A row
that is masked as a whole is uniform under `lowest` and nan under -inf: its mask stays as it is, as do logarithms of a softmax,
which show the number that was added, and float16, whose lowest number is no further than other values.
"""
from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from fuse.ir.expr import FLOATS, Axis, Expr, const, iota, make, rewrite, size, substitute, topological, where
from fuse.ir.index import affine, bounds
from fuse.passes.conditions import negated
from fuse.passes.simplify import simplify

LOWEST = -1e37


def masks(roots: Iterable[Expr]) -> list[Expr]:
    roots = list(roots)
    if any(n.op == "sub_lse" for n in topological(roots)):
        return roots

    def rule(node: Expr) -> Expr | None:
        if node.op == "lse" and len(node["axes"]) == 1:
            found = _hidden(node.args[0], *node["axes"])
            return None if found is None else make("lse", found, axes=node["axes"], origin=node.origin)
        if node.op == "exp_sub" and node.args[1].op == "lse" and len(node.args[1]["axes"]) == 1:
            found = _hidden(node.args[0], *node.args[1]["axes"])
            return make("exp_sub", found, node.args[1]) if found is not None and found is node.args[1].args[0] else None
        return None
    return rewrite(roots, rule)


def _hidden(x: Expr, axis: Axis) -> Expr | None:
    """x with -inf for the lowest number, if every position of the other axes keeps one along `axis`."""
    added = None
    if x.op == "add":
        mask = next((i for i in (0, 1) if _choice(x.args[i]) is not None), None)
        if mask is None:
            return None
        x, added = x.args[mask], x.args[1 - mask]
    choice = _choice(x)
    if choice is None or not _kept(choice[0], axis):
        return None
    condition, kept = choice
    return where(condition, kept if added is None else added + kept, const(-math.inf, x.dtype))


def _choice(x: Expr) -> tuple[Expr, Expr] | None:
    """(c, y) if x is where(c, y, lowest), or where(not c, lowest, y)."""
    if x.op != "where" or x.dtype not in FLOATS or x.dtype == "float16":
        return None
    condition, yes, no = x.args
    if _is_lowest(no):
        return condition, yes
    return (simplify([negated(condition)])[0], no) if _is_lowest(yes) else None


def _is_lowest(x: Expr) -> bool:
    return x.op == "const" and -math.inf < x["value"] <= LOWEST


def _kept(condition: Expr, axis: Axis) -> bool:
    """Does the condition hold for some position of `axis`, whatever the others are?"""
    return any(_always(simplify([substitute(condition, {iota(axis): p})])[0]) for p in _positions(condition, axis))


def _positions(condition: Expr, axis: Axis) -> Iterator[Expr]:
    """The first position; that of each other axis, and as far from the end."""
    yield const(0, "int64")
    for other in condition.axes:
        if other != axis and (axis.extent - other.extent).nonnegative():
            yield iota(other)
            yield iota(other) + size(axis.extent - other.extent)


def _always(condition: Expr) -> bool:
    match condition.op:
        case "const":
            return bool(condition["value"])
        case "and":
            return all(map(_always, condition.args))
        case "or":
            return any(map(_always, condition.args))
        case "le" | "lt" if condition.args[0].dtype == "int64":
            form = affine(make("sub", *condition.args))
            reach = None if form is None else bounds(form)
            return reach is not None and (-reach[1] - (condition.op == "lt")).nonnegative()
    return False
