"""Splits an expression that is linear in one of its leaves: f(h) = a h + b, with neither a nor b reading h.

Decided by the structure alone. What is not pointwise in h or reads it twice in a product, a gate or a function has no
such form; nor has what hides it from derivatives.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping

from fuse.ir.expr import COMPLEXES, FLOATS, Expr, cast, const, sum_, topological, where

Form = tuple[Expr | None, Expr | None]     # (a, b); None is zero


def affine_in(root: Expr, leaf: Expr | Mapping[Expr, Expr]) -> Form | None:
    """(a, b) with root = a * leaf + b, or None if root is not of that form.

    Several leaves may be one number: each is that number, in its own type, plus what `leaf` maps it to.
    """
    leaves = {leaf: None} if isinstance(leaf, Expr) else leaf
    forms: dict[Expr, Form] = {x: (const(1, x.dtype), _nonzero(offset)) for x, offset in leaves.items()}
    for node in topological([root], leaves):
        if node in forms or not any(a in forms for a in node.args):
            continue
        rule = RULES.get(node.op)
        found = rule(node, [forms.get(a, (None, a)) for a in node.args]) if rule else None
        if found is None:
            return None
        forms[node] = found
    return forms.get(root, (None, root))


def _nonzero(x: Expr | None) -> Expr | None:
    return None if x is None or (x.op == "const" and x["value"] == 0) else x


def _add(x: Expr | None, y: Expr | None) -> Expr | None:
    return y if x is None else x if y is None else x + y


def _sub(x: Expr | None, y: Expr | None) -> Expr | None:
    return x if y is None else -y if x is None else x - y


def _times(x: Expr | None, y: Expr) -> Expr | None:
    return None if x is None else y if x.op == "const" and x["value"] == 1 else x * y


def _mul(node: Expr, args: list[Form]) -> Form | None:
    (a, b), (c, d) = args
    if a is not None and c is not None:
        return None
    if a is None:
        a, b, d = c, d, b
    assert d is not None
    return _times(a, d), None if b is None else b * d


def _div(node: Expr, args: list[Form]) -> Form | None:
    (a, b), (c, d) = args
    if c is not None or d is None:
        return None
    return None if a is None else (a / d, None if b is None else b / d)


def _where(node: Expr, args: list[Form]) -> Form | None:
    (a, condition), (b, c), (d, e) = args
    if a is not None or condition is None:
        return None
    zero = const(0, node.dtype)

    def chosen(x: Expr | None, y: Expr | None) -> Expr | None:
        return None if x is None and y is None else where(condition, zero if x is None else x, zero if y is None else y)
    return chosen(b, d), chosen(c, e)


def _cast(node: Expr, args: list[Form]) -> Form | None:
    """Between floats, or between complex numbers: elsewhere a cast is a function of its own."""
    source, target = node.args[0].dtype, node.dtype
    if not any({source, target} <= set(kind) for kind in (FLOATS, COMPLEXES)):
        return None
    a, b = (None if x is None else cast(x, target) for x in args[0])
    return a, b


def _sum(node: Expr, args: list[Form]) -> Form | None:
    a, b = (None if x is None else sum_(x, *node["axes"]) for x in args[0])
    return a, b


RULES: dict[str, Callable[[Expr, list[Form]], Form | None]] = {
    "add": lambda node, args: (_add(args[0][0], args[1][0]), _add(args[0][1], args[1][1])),
    "sub": lambda node, args: (_sub(args[0][0], args[1][0]), _sub(args[0][1], args[1][1])),
    "neg": lambda node, args: (_sub(None, args[0][0]), _sub(None, args[0][1])),
    "mul": _mul, "div": _div, "where": _where, "cast": _cast, "sum": _sum,
}
