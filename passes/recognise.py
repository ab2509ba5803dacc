"""recognise: idioms become primitives; a primitive is never a pattern's template, only a better-conditioned name.

    log(sum_v exp(x - c))                  ->  lse_v(x) - c          c constant along v (a detached maximum, say)
    exp(x - c) / sum_v exp(x - c)          ->  exp_sub(x, lse_v(x))
    x - lse_v(x), (x - c) - (lse_v(x) - c) ->  sub_lse(x, lse_v(x))
    exp(sub_lse(x, L)), log(exp_sub(x, L)) ->  exp_sub(x, L), sub_lse(x, L)
    sum_v where(v == y, x, 0)              ->  pick_v(x, y)          also 1[v == y] * x if no constant of x is infinite

Equality is proved on interned expressions: the axis, the operand and the constant must be the very same objects.
"""
from __future__ import annotations

import math
from collections.abc import Iterable

from fuse.ir.expr import Axis, Expr, cast, make, rewrite, sum_, topological


def recognise(roots: Iterable[Expr]) -> list[Expr]:
    return rewrite(roots, _rule)


def _rule(node: Expr) -> Expr | None:
    rule = _RULES.get(node.op)
    return rule(node) if rule else None


def _shifted_exp(node: Expr) -> Expr | None:
    """x if node is exp(x), with any constant offset still inside x."""
    return node.args[0] if node.op == "exp" else None


def _without_offset(x: Expr, axis: Axis) -> tuple[Expr, Expr | None]:
    """Splits x into (y, c) with x = y - c and c free of `axis`."""
    if x.op == "sub" and not x.args[1].has(axis) and x.args[0].has(axis):
        return x.args[0], x.args[1]
    return x, None


def _log_sum_exp(node: Expr) -> tuple[Expr, Expr | None] | None:
    """(lse(y), c) if node is sum_v exp(y - c) over one axis."""
    if node.op != "sum" or len(node["axes"]) != 1:
        return None
    axis, x = node["axes"][0], _shifted_exp(node.args[0])
    if x is None or not x.has(axis):
        return None
    y, offset = _without_offset(x, axis)
    return make("lse", y, axes=(axis,), origin=node.origin), offset


def _log(node: Expr) -> Expr | None:
    inner = node.args[0]
    if inner.op == "exp_sub":
        return make("sub_lse", *inner.args, origin=node.origin)
    found = _log_sum_exp(inner)
    if not found:
        return None
    total, offset = found
    return total if offset is None else total - offset


def _div(node: Expr) -> Expr | None:
    top, bottom = node.args
    found = _log_sum_exp(bottom)
    if not found or bottom.args[0] is not top:
        return None
    total, _ = found
    return make("exp_sub", total.args[0], total, origin=node.origin)


def _sub(node: Expr) -> Expr | None:
    x, ell = node.args
    if ell.op == "sub" and x.op == "sub" and ell.args[1] is x.args[1]:
        x, ell = x.args[0], ell.args[0]
    if ell.op == "lse" and ell.args[0] is x:
        return make("sub_lse", x, ell, origin=node.origin)
    return None


def _exp(node: Expr) -> Expr | None:
    inner = node.args[0]
    return make("exp_sub", *inner.args, origin=node.origin) if inner.op == "sub_lse" else None


def is_one_hot(condition: Expr, axis: Axis) -> Expr | None:
    """y if condition is `axis == y` with y constant along axis."""
    if condition.op != "eq":
        return None
    for position, index in (condition.args, condition.args[::-1]):
        if position.op == "iota" and position["axis"] == axis and index.dtype == "int64" and not index.has(axis):
            return index
    return None


def _sum(node: Expr) -> Expr | None:
    body = node.args[0]
    for axis in node["axes"]:
        found = _selected(body, axis)
        if found is not None:
            picked = make("pick", *found, axis=axis, origin=node.origin)
            return sum_(picked, *(a for a in node["axes"] if a != axis))
    return None


def _selected(body: Expr, axis: Axis) -> tuple[Expr, Expr] | None:
    """(x, y) if summing body over `axis` selects x at y."""
    if body.op == "where" and _is_zero(body.args[2]):
        index = is_one_hot(body.args[0], axis)
        return (body.args[1], index) if index is not None else None
    if body.op == "mul":
        for hot, x in (body.args, body.args[::-1]):
            index = is_one_hot(hot.args[0], axis) if hot.op == "cast" and hot.args[0].dtype == "bool" else None
            if index is not None and not _may_be_infinite(x):
                return x, index
    return None


def _is_zero(x: Expr) -> bool:
    return x.op == "const" and x["value"] == 0


def _may_be_infinite(x: Expr) -> bool:
    """0 * inf is nan, so a product with a one-hot is a selection only where no infinity is written into x."""
    return any(e.op == "const" and not isinstance(e["value"], complex) and math.isinf(e["value"]) for e in topological([x]))


def _cast(node: Expr) -> Expr | None:
    """bool -> int -> float is bool -> float."""
    inner = node.args[0]
    if inner.op == "cast" and inner.args[0].dtype == "bool" and inner.dtype != "bool":
        return cast(inner.args[0], node.dtype)
    return None


_RULES = {"log": _log, "div": _div, "sub": _sub, "exp": _exp, "sum": _sum, "cast": _cast}
