"""conditions: one form for predicates, so that equal masks are one object and a target reads a bound off a comparison.

    j - i <= 0                       ->  j <= i              positions: what is added to the left, what is taken away to the right
    j < V, i != -100                 ->  true                within an axis of V positions
    not (i < j)                      ->  j <= i              integers: among floats, nan makes both false
    where(c, 1, 0) == 0              ->  not c               a comparison of two constants, chosen by c; so for c as a number
    c and true, c or true, ...       ->  c, true, ...
"""
from __future__ import annotations

import operator
from collections.abc import Callable
from functools import reduce
from typing import Any

from fuse.ir.expr import Axis, Expr, const, iota, make, size
from fuse.ir.index import Affine, affine, bounds
from fuse.ir.size import Size

COMPARE: dict[str, Callable[[Any, Any], Any]] = {"eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "le": operator.le}


def comparison(node: Expr) -> Expr | None:
    """A simpler form of eq, ne, lt or le, or None."""
    chosen = _chosen(node)
    if chosen is not None:
        return chosen
    if node.args[0].dtype != "int64":
        return None
    form = affine(make("sub", *node.args))
    known = None if form is None else _known(node.op, form)
    if form is None or known is not None:
        return None if known is None else const(known, "bool")
    return _ordered(node, form) if node.op in ("lt", "le") else None


def _known(op: str, difference: Affine) -> bool | None:
    """Whether `difference op 0` holds, if that is the same at all positions."""
    reach = bounds(difference)
    if reach is None:
        return None
    low, high = reach
    positive, negative = (low - 1).nonnegative(), (-high - 1).nonnegative()
    if op in ("eq", "ne"):
        same = low == 0 and high == 0
        return op == ("eq" if same else "ne") if same or positive or negative else None
    holds, fails = (negative, low.nonnegative()) if op == "lt" else ((-high).nonnegative(), positive)
    return True if holds else False if fails else None


def _ordered(node: Expr, form: Affine) -> Expr | None:
    if not all(c.nonnegative() or (-c).nonnegative() for c in form.terms.values()):
        return None
    left = [_times(a, c) for a, c in form.terms.items() if c.nonnegative()]
    right = [_times(a, -c) for a, c in form.terms.items() if not c.nonnegative()]
    if form.offset != 0:
        side, offset = (right, -form.offset) if left else (left, form.offset)
        side.append(size(offset))
    found = make(node.op, _total(left), _total(right))
    return None if found is node else found


def _times(axis: Axis, c: Size) -> Expr:
    return iota(axis) if c == 1 else make("mul", iota(axis), size(c))


def _total(terms: list[Expr]) -> Expr:
    return reduce(lambda a, b: make("add", a, b), sorted(terms, key=lambda t: (-len(t.axes), t.digest))) if terms \
        else const(0, "int64")


def _chosen(node: Expr) -> Expr | None:
    """A comparison with a constant of a value that is one of two constants."""
    for k in (0, 1):
        parts, other = _two_constants(node.args[k]), node.args[1 - k]
        if parts is None or other.op != "const":
            continue
        condition, *values = parts
        pairs = [(v, other["value"]) if k == 0 else (other["value"], v) for v in values]
        yes, no = (bool(COMPARE[node.op](*p)) for p in pairs)
        return const(yes, "bool") if yes == no else condition if yes else negated(condition)
    return None


def _two_constants(x: Expr) -> tuple[Expr, Any, Any] | None:
    """(c, a, b) if x is where(c, a, b) of numbers, or c as a number."""
    if x.op == "where" and x.args[1].op == x.args[2].op == "const":
        return x.args[0], x.args[1]["value"], x.args[2]["value"]
    if x.op == "cast" and x.dtype != "bool" and x.args[0].dtype == "bool":
        return x.args[0], 1, 0
    return None


def negated(condition: Expr) -> Expr:
    """not c, as a comparison where there is one."""
    if condition.op == "not":
        return condition.args[0]
    if condition.op == "const":
        return const(not condition["value"], "bool")
    if condition.op in ("eq", "ne"):
        return make({"eq": "ne", "ne": "eq"}[condition.op], *condition.args)
    if condition.op in ("lt", "le") and condition.args[0].dtype == "int64":
        return make({"lt": "le", "le": "lt"}[condition.op], *reversed(condition.args))
    return make("not", condition)


def junction(node: Expr) -> Expr | None:
    """and, or: constants and repetitions are gone."""
    absorbing = node.op == "or"
    for x, other in (node.args, node.args[::-1]):
        if x.op == "const":
            return x if bool(x["value"]) is absorbing else other
    return node.args[0] if node.args[0] is node.args[1] else None
