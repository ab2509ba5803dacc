"""simplify: one normal form, so that equal values are the same object and a sweep's statistics are shared.

    sum_a(x), x free of a              ->  x * extent(a)
    sum_a(sum_b(x))                    ->  sum_ab(x)           unless the inner sum is a dot
    sum_a(c * x), c free of all axes   ->  c * sum_a(x)        the common factor of a gradient stays out of its dots
    sum_v(r * x), r free of v          ->  r * sum_v(x)        only for statistics: a dot keeps its row factors, so that
                                                              both gradients contract one and the same dS
    sum_v(exp_sub(x, lse_v(x)))        ->  1
    pick_v(f(x), y)                    ->  f(pick_v(x, y)) where 0 <= y < V, else 0      if x holds a statistic over v
    x * 1, x + 0, x / 1, -(-x), ...    ->  x

A product is kept as (numeric coefficient, sorted factors), which makes a * b and b * a one object.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from fuse.ir.expr import (COMPLEXES, FLOATS, Axis, Expr, cast, const, make, rebuild, rewrite, size, sum_, topological,
                          where)
from fuse.ir.ops import OPS

Invariant = Callable[[Expr], bool]


def simplify(roots: Iterable[Expr]) -> list[Expr]:
    return rewrite(roots, _rule)


def drop_marks(roots: Iterable[Expr]) -> list[Expr]:
    """`stop` and `bounded` have done their work once the gradients are written down and simplified."""
    return rewrite(roots, lambda n: n.args[0] if n.op in ("stop", "bounded") else None)


def _rule(node: Expr) -> Expr | None:
    rule = _RULES.get(node.op)
    return rule(node) if rule else None


def is_const(x: Expr, value: float) -> bool:
    return x.op == "const" and x["value"] == value and x.dtype != "bool"


# ---- products ---------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Product:
    """coefficient * prod(factors) / prod(divisors)."""

    coefficient: complex | float | int
    factors: tuple[Expr, ...]
    divisors: tuple[Expr, ...] = ()

    def build(self, dtype: str) -> Expr:
        """Wide factors first, then one multiplication by everything that is a scalar."""
        wide = _quotient([f for f in self.factors if f.axes], [d for d in self.divisors if d.axes], dtype)
        scalar = _quotient([f for f in self.factors if not f.axes], [d for d in self.divisors if not d.axes], dtype)
        if scalar is not None and self.coefficient != 1:
            scalar = _scaled(scalar, self.coefficient, dtype)
        if wide is None or scalar is None:
            only = wide if scalar is None else scalar
            if only is None:
                return const(self.coefficient, dtype)
            return only if scalar is not None else _scaled(only, self.coefficient, dtype)
        return make("mul", wide, scalar)


def _quotient(factors: list[Expr], divisors: list[Expr], dtype: str) -> Expr | None:
    out: Expr | None = None
    for factor in sorted(_powers(factors, dtype), key=order_key):
        out = factor if out is None else make("mul", out, factor)
    for divisor in sorted(divisors, key=order_key):
        out = make("div", const(1, dtype) if out is None else out, divisor)
    return out


def _scaled(x: Expr, coefficient: complex | float, dtype: str) -> Expr:
    if coefficient == 1:
        return x
    return make("neg", x) if coefficient == -1 else make("mul", x, const(coefficient, dtype))


def _powers(factors: list[Expr], dtype: str) -> list[Expr]:
    """x**a * x -> x**(a + 1), where a power of x is among the factors: it stays finite where x is 0."""
    bases = {f.args[0] for f in factors if f.op == "pow" and f.args[1].op == "const"}
    if not any(factors.count(b) or sum(f.op == "pow" and f.args[0] is b for f in factors) > 1 for b in bases):
        return factors
    kept = [f for f in factors if f not in bases and not (f.op == "pow" and f.args[0] in bases)]
    for base in sorted(bases, key=order_key):
        mine = [f for f in factors if f.op == "pow" and f.args[0] is base]
        exponent = sum(f.args[1]["value"] for f in mine) + factors.count(base)
        kept.append(make("pow", base, const(exponent, dtype)))
    return kept


def order_key(x: Expr) -> tuple:
    """A total order that does not depend on how the expression was built: widest first, then by hash."""
    return (-len(x.axes), x.op, x.digest)


def product_of(x: Expr) -> Product:
    """x as a product. Only what is multiplied at the top is taken apart."""
    if x.dtype not in FLOATS + COMPLEXES:
        return Product(1, (x,))
    if x.op == "const":
        return Product(x["value"], ())
    if x.op == "neg":
        p = product_of(x.args[0])
        return Product(-p.coefficient, p.factors, p.divisors)
    if x.op == "mul":
        p, q = map(product_of, x.args)
        return Product(p.coefficient * q.coefficient, p.factors + q.factors, p.divisors + q.divisors)
    if x.op == "div":
        p, q = map(product_of, x.args)
        if q.coefficient == 0 or q.divisors:
            return Product(p.coefficient, p.factors, (*p.divisors, x.args[1]))
        return Product(p.coefficient / q.coefficient, p.factors, p.divisors + q.factors)
    return Product(1, (x,))


def extract(x: Expr, invariant: Invariant) -> tuple[Product, Expr]:
    """(c, y) with x = c * y, c the product of all factors that `invariant` holds for, y without them.

    Looks through sums whose terms share the factor, and through where(c, x, 0).
    """
    dtype = x.dtype
    if dtype not in FLOATS + COMPLEXES:
        return Product(1, ()), x
    if x.op in ("mul", "neg", "div"):
        return _extract_product(product_of(x), dtype, invariant)
    if invariant(x):
        p = product_of(x)
        return p, const(1, dtype)
    if x.op == "where" and is_const(x.args[2], 0):
        common, rest = extract(x.args[1], invariant)
        return (common, where(x.args[0], rest, 0)) if common != Product(1, ()) else (common, x)
    if x.op in ("add", "sub"):
        return _extract_common(x, invariant)
    return Product(1, ()), x


def _extract_product(p: Product, dtype: str, invariant: Invariant) -> tuple[Product, Expr]:
    out, inner = [f for f in p.factors if invariant(f)], [f for f in p.factors if not invariant(f)]
    below, kept = [d for d in p.divisors if invariant(d)], [d for d in p.divisors if not invariant(d)]
    coefficient, rest = p.coefficient, []
    for factor in inner:
        c, y = extract(factor, invariant)
        coefficient, out, below = coefficient * c.coefficient, out + list(c.factors), below + list(c.divisors)
        rest.append(y)
    return Product(coefficient, tuple(out), tuple(below)), Product(1, tuple(rest), tuple(kept)).build(dtype)


def _extract_common(x: Expr, invariant: Invariant) -> tuple[Product, Expr]:
    (p, a), (q, b) = (extract(arg, invariant) for arg in x.args)
    common, left, right = [], list(p.factors), list(q.factors)
    for factor in p.factors:
        if factor in right:
            common.append(factor), left.remove(factor), right.remove(factor)
    divisors = p.divisors if p.divisors == q.divisors else ()
    coefficient = p.coefficient if p.coefficient == q.coefficient else 1
    if not common and not divisors and coefficient == 1:
        return Product(1, ()), x
    ours = Product(p.coefficient / coefficient, tuple(left), () if divisors else p.divisors).build(x.dtype)
    theirs = Product(q.coefficient / coefficient, tuple(right), () if divisors else q.divisors).build(x.dtype)
    return Product(coefficient, tuple(common), divisors), make(x.op, _mul(ours * a), _mul(theirs * b))


# ---- rules ------------------------------------------------------------------------------------------------------

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
        return make("where", _not(condition), b, a)
    if not is_const(b, 0) or a.op == "const":
        return None
    # where(c, s, 0) with a scalar s: the scalar is a common factor, and belongs outside.
    common, rest = extract(a, _scalar)
    return None if common == Product(1, ()) else _times(common, where(condition, rest, 0))


def _not(condition: Expr) -> Expr:
    if condition.op == "not":
        return condition.args[0]
    flipped = {"eq": "ne", "ne": "eq"}.get(condition.op)
    return make(flipped, *condition.args) if flipped else make("not", condition)


def _scalar(x: Expr) -> bool:
    return not x.axes


def _times(p: Product, x: Expr) -> Expr:
    q = product_of(x)
    return Product(p.coefficient * q.coefficient, p.factors + q.factors, p.divisors + q.divisors).build(x.dtype)


def _sum(node: Expr) -> Expr | None:
    x, axes = node.args[0], node["axes"]
    absent = [a for a in axes if not x.has(a)]
    if absent:
        factor = cast(size(_extent(absent)), x.dtype)
        return _times(product_of(_fold(factor)), sum_or_self(x, [a for a in axes if x.has(a)]))
    if x.op == "sum" and not is_dot(x):
        return sum_(x.args[0], *axes, *x["axes"])
    if x.op == "exp_sub" and len(axes) == 1 and x.args[1].op == "lse" and x.args[1].args[0] is x.args[0] \
            and x.args[1]["axes"] == axes:
        return const(1, x.dtype)
    if x.dtype not in FLOATS + COMPLEXES:
        return None
    invariant = _scalar if is_dot(node) else (lambda e: not any(e.has(a) for a in axes))
    common, rest = extract(x, invariant)
    if common == Product(1, ()):
        return None
    return _times(common, simplify([sum_(rest, *axes)])[0])


def sum_or_self(x: Expr, axes: list[Axis]) -> Expr:
    return simplify([sum_(x, *axes)])[0] if axes else x


def _extent(axes: Iterable[Axis]):
    from fuse.ir.size import product
    return product(a.extent for a in axes)


def is_dot(node: Expr) -> bool:
    """A sum of products in which no single factor varies along all axes of the result."""
    if node.op != "sum" or node.args[0].op not in ("mul", "neg"):
        return False
    return not any(set(node.axes) <= set(f.axes) for f in product_of(node.args[0]).factors if set(f.axes) & set(node["axes"]))


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
    if not holds_statistic(x, axis):
        return None if x.has(axis) else _guarded(index, axis, x)
    value = _pushed(x, index, axis)
    return None if value is None else _guarded(index, axis, value)


def _guarded(index: Expr, axis: Axis, x: Expr) -> Expr:
    return x if index.op == "bounded" else where(in_range(index, axis), x, 0)


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
    args = [_pushed(a, index, axis) for a in x.args]
    return None if None in args else rebuild(x, args)


def _double_neg(node: Expr) -> Expr | None:
    x = node.args[0]
    if x.op == "neg":
        return x.args[0]
    if x.dtype in FLOATS and x.op in ("mul", "const"):
        return product_of(node).build(node.dtype)
    return make("sub", x.args[1], x.args[0]) if x.op == "sub" else None


def _commute(node: Expr) -> Expr | None:
    args = sorted(node.args, key=order_key)
    return None if args[0] is node.args[0] else rebuild(node, args)


_RULES: dict[str, Callable[[Expr], Expr | None]] = {
    "mul": _mul, "div": _div, "add": _add, "sub": _sub, "neg": _double_neg, "where": _where, "sum": _sum, "cast": _cast,
    "pick": _pick, "eq": _commute, "and": _commute,
}
