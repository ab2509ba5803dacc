"""Products in normal form: a numeric coefficient, sorted factors, divisors. a * b and b * a are then one object.

    x**a * x                     ->  x**(a + 1)        if a power of x is among the factors: finite where x is 0
    exp_sub(x, L) * exp_sub(L, T)  ->  exp_sub(x, T)     one family of weights instead of two

`extract` pulls common factors out of sums of products, which is what keeps 1/N and the upstream gradient out of a dot.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fuse.ir.expr import COMPLEXES, FLOATS, Expr, const, make, where

Invariant = Callable[[Expr], bool]


def is_const(x: Expr, value: float) -> bool:
    return x.op == "const" and x["value"] == value and x.dtype != "bool"


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


ONE = Product(1, ())


def _quotient(factors: list[Expr], divisors: list[Expr], dtype: str) -> Expr | None:
    out: Expr | None = None
    for factor in sorted(_chained(_powers(factors, dtype)), key=order_key):
        out = factor if out is None else make("mul", out, factor)
    for divisor in sorted(divisors, key=order_key):
        out = make("div", const(1, dtype) if out is None else out, divisor)
    return out


def _scaled(x: Expr, coefficient: complex | float, dtype: str) -> Expr:
    if coefficient == 1:
        return x
    return make("neg", x) if coefficient == -1 else make("mul", x, const(coefficient, dtype))


def _chained(factors: list[Expr]) -> list[Expr]:
    """exp(x - L) * exp(L - T) -> exp(x - T): one family of weights instead of two."""
    for first in factors:
        for second in factors:
            if first is not second and first.op == second.op == "exp_sub" and first.args[1] is second.args[0]:
                rest = list(factors)
                rest.remove(first)
                rest.remove(second)
                return _chained([*rest, make("exp_sub", first.args[0], second.args[1])])
    return factors


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


def order_key(x: Expr) -> tuple[int, str, bytes]:
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
        return ONE, x
    if x.op in ("mul", "neg", "div"):
        return _extract_product(product_of(x), dtype, invariant)
    if invariant(x):
        p = product_of(x)
        return p, const(1, dtype)
    if x.op == "where" and is_const(x.args[2], 0):
        common, rest = extract(x.args[1], invariant)
        return (common, where(x.args[0], rest, 0)) if common != ONE else (common, x)
    if x.op in ("add", "sub"):
        return _extract_common(x, invariant)
    return ONE, x


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
            common.append(factor)
            left.remove(factor)
            right.remove(factor)
    divisors = p.divisors if p.divisors == q.divisors else ()
    coefficient = p.coefficient if p.coefficient == q.coefficient else 1
    if not common and not divisors and coefficient == 1:
        return ONE, x
    ours = Product(p.coefficient / coefficient, tuple(left), () if divisors else p.divisors)
    theirs = Product(q.coefficient / coefficient, tuple(right), () if divisors else q.divisors)
    return Product(coefficient, tuple(common), divisors), make(x.op, times(ours, a), times(theirs, b))


def times(p: Product, x: Expr) -> Expr:
    """p * x, in normal form."""
    q = product_of(x)
    return Product(p.coefficient * q.coefficient, p.factors + q.factors, p.divisors + q.divisors).build(x.dtype)
