"""simplify: one normal form, so that equal values are the same object and a sweep's statistics are shared.

    sum_a(x), x free of a              ->  x * extent(a)
    sum_a(sum_b(x))                    ->  sum_ab(x)           unless the inner sum is a dot
    sum_a(c * x), c free of all axes   ->  c * sum_a(x)        the common factor of a gradient stays out of its dots
    sum_v(r * x), r free of v          ->  r * sum_v(x)        only for statistics: a dot keeps its row factors, so that
                                                              both gradients contract one and the same dS
    sum_v(exp_sub(x, lse_v(x)))        ->  1
    pick_v(f(x), y)                    ->  f(pick_v(x, y)) where 0 <= y < V, else 0      if x holds a statistic over v
    pick_t(scan_t(1, b), last t)       ->  sum_t(b)
    real(sum(x))                       ->  sum(real(x))
    conj(x * y)                        ->  conj(x) * conj(y)   likewise of quotients: a product's factors come apart
    exp(0 * x)                         ->  1 + 0 * x           a nan stays one
    x * 1, x + 0, x / 1, -(-x), ...    ->  x

Products are kept in the normal form of products.py, predicates in that of conditions.py.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable

from fuse.ir.expr import (
    COMPLEXES,
    FLOATS,
    Axis,
    Expr,
    cast,
    const,
    make,
    rebuild,
    rewrite,
    size,
    sum_,
    topological,
    where,
)
from fuse.ir.ops import OPS
from fuse.ir.size import product
from fuse.passes.conditions import comparison, junction, negated
from fuse.passes.products import ONE, extract, is_const, order_key, product_of, times


def simplify(roots: Iterable[Expr]) -> list[Expr]:
    return rewrite(roots, _rule)


def drop_marks(roots: Iterable[Expr]) -> list[Expr]:
    """`stop`, `bounded` and `given` have done their work once the gradients are written down and simplified.

    What is given is read where it is stored, in the forward and in the backward alike.
    """
    return rewrite(roots, lambda n: n.args[0] if n.op in ("stop", "bounded") else n.args[1] if n.op == "given" else None)


def _rule(node: Expr) -> Expr | None:
    rule = _RULES.get(node.op)
    return rule(node) if rule else None


def _mul(node: Expr) -> Expr:
    if node.op != "mul" or node.dtype not in FLOATS + COMPLEXES:
        return node
    return product_of(node).build(node.dtype)


def _div(node: Expr) -> Expr:
    return product_of(node).build(node.dtype)


def _both_const(node: Expr) -> Expr | None:
    a, b = node.args
    if a.op != "const" or b.op != "const":
        return None
    x, y = a["value"], b["value"]
    return const(x + y if node.op == "add" else x - y, node.dtype)


def _add(node: Expr) -> Expr | None:
    a, b = node.args
    folded = _both_const(node)
    if folded is not None:
        return folded
    if is_const(a, 0):
        return b
    return a if is_const(b, 0) else None


def _sub(node: Expr) -> Expr | None:
    a, b = node.args
    folded = _both_const(node)
    if folded is not None:
        return folded
    if is_const(b, 0):
        return a
    return make("neg", b) if is_const(a, 0) else None


def _where(node: Expr) -> Expr | None:
    condition, a, b = node.args
    if condition.op == "const":
        return a if condition["value"] else b
    if a is b:
        return a
    if is_const(a, 0) and not is_const(b, 0):
        return make("where", negated(condition), b, a)
    if condition.op == "not" and not is_const(b, 0):
        return make("where", condition.args[0], b, a)
    if not is_const(b, 0) or a.op == "const":
        return None
    # where(c, s, 0) with a scalar s: the scalar is a common factor, and belongs outside.
    common, rest = extract(a, _scalar)
    return None if common == ONE else times(common, where(condition, rest, 0))


def _scalar(x: Expr) -> bool:
    return not x.axes


def _sum(node: Expr) -> Expr | None:
    x, axes = node.args[0], node["axes"]
    absent = [a for a in axes if not x.has(a)]
    if absent:
        factor = cast(size(product(a.extent for a in absent)), x.dtype)
        return times(product_of(_fold(factor)), sum_or_self(x, [a for a in axes if x.has(a)]))
    if x.op == "sum" and not is_dot(x):
        return sum_(x.args[0], *axes, *x["axes"])
    if x.op == "exp_sub" and len(axes) == 1 and x.args[1].op == "lse" and x.args[1].args[0] is x.args[0] \
            and x.args[1]["axes"] == axes:
        return const(1, x.dtype)
    if x.dtype not in FLOATS + COMPLEXES:
        return None
    invariant = _scalar if is_dot(node) else (lambda e: not any(e.has(a) for a in axes))
    common, rest = extract(x, invariant)
    if common == ONE:
        return None
    return times(common, simplify([sum_(rest, *axes)])[0])


def sum_or_self(x: Expr, axes: list[Axis]) -> Expr:
    return simplify([sum_(x, *axes)])[0] if axes else x


def is_dot(node: Expr) -> bool:
    """A sum of products of which two vary along the summed axes, and none along all axes of the result."""
    if node.op != "sum" or node.args[0].op not in ("mul", "neg"):
        return False
    summed = [f for f in product_of(node.args[0]).factors if set(f.axes) & set(node["axes"])]
    return len(summed) > 1 and not any(set(node.axes) <= set(f.axes) for f in summed)


def _fold(node: Expr) -> Expr:
    if node.op == "cast" and node.args[0].op == "const":
        return const(node.args[0]["value"], node.dtype)
    return node


def _cast(node: Expr) -> Expr | None:
    inner = node.args[0]
    if inner.dtype == node.dtype:
        return inner
    return _fold(node) if inner.op == "const" else None


def holds_statistic(x: Expr, axis: Axis) -> bool:
    return any(e.op in ("sum", "max", "lse", "argmax") and axis in e["axes"] for e in topological([x]))


def in_range(index: Expr, axis: Axis) -> Expr:
    return make("and", make("le", const(0, "int64"), index), make("lt", index, size(axis.extent)))


def _pick(node: Expr) -> Expr | None:
    x, index = node.args
    axis = node["axis"]
    if x.op == "scan" and x["axis"] == axis and is_const(x.args[0], 1) and _is_last(index, x):
        return sum_or_self(x.args[1], [axis])
    if not holds_statistic(x, axis):
        return None if x.has(axis) else _guarded(index, axis, x)
    value = _pushed(x, index, axis)
    return None if value is None else _guarded(index, axis, value)


def _is_last(index: Expr, scan: Expr) -> bool:
    """Is this the position that the scan comes to last?"""
    return is_const(index, 0) if scan["reverse"] else index is size(scan["axis"].extent - 1)


def _guarded(index: Expr, axis: Axis, x: Expr) -> Expr:
    return x if index.op == "bounded" and index["axis"] == axis else where(in_range(index, axis), x, 0)


def _pushed(x: Expr, index: Expr, axis: Axis) -> Expr | None:
    """x at axis = index, with the pick moved below every pointwise op down to values free of statistics."""
    if not x.has(axis):
        return x
    if not holds_statistic(x, axis):
        if x.op == "iota":
            return index
        return make("pick", x, index, axis=axis, origin=x.origin)
    if not OPS[x.op].pointwise or not x.args:
        return None
    args = [p for a in x.args if (p := _pushed(a, index, axis)) is not None]
    return rebuild(x, args) if len(args) == len(x.args) else None


def _double_neg(node: Expr) -> Expr | None:
    x = node.args[0]
    if x.op == "neg":
        return x.args[0]
    if x.dtype in FLOATS and x.op in ("mul", "const"):
        return product_of(node).build(node.dtype)
    return make("sub", x.args[1], x.args[0]) if x.op == "sub" else None


def _part_of_sum(node: Expr) -> Expr | None:
    """real(sum(x)) -> sum(real(x)): half the memory where the sum is stored."""
    x = node.args[0]
    return sum_(make(node.op, x.args[0]), *x["axes"]) if x.op == "sum" else None


def _conj(node: Expr) -> Expr | None:
    x = node.args[0]
    match x.op:
        case "conj":
            return x.args[0]
        case "const":
            return const(x["value"].conjugate(), x.dtype)
        case "cast" if x.args[0].dtype not in COMPLEXES:
            return x
        case "mul" | "div" | "neg":
            return simplify([rebuild(x, [make("conj", a) for a in x.args])])[0]
    return None


def _exp(node: Expr) -> Expr | None:
    x = node.args[0]
    return const(1, node.dtype) + x if x.op == "mul" and product_of(x).coefficient == 0 else None


def _not(node: Expr) -> Expr | None:
    found = negated(node.args[0])
    return None if found is node else found


def _commute(node: Expr) -> Expr | None:
    found = junction(node) if node.op in ("and", "or") else comparison(node)
    if found is not None:
        return found
    args = sorted(node.args, key=order_key)
    return None if args[0] is node.args[0] else rebuild(node, args)


_RULES: dict[str, Callable[[Expr], Expr | None]] = {
    "mul": _mul, "div": _div, "add": _add, "sub": _sub, "neg": _double_neg, "where": _where, "sum": _sum, "cast": _cast,
    "pick": _pick, "real": _part_of_sum, "imag": _part_of_sum, "conj": _conj, "exp": _exp, "not": _not,
    "lt": comparison, "le": comparison, "eq": _commute, "ne": _commute, "and": _commute, "or": _commute,
}
