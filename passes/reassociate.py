"""reassociate: a statistic of a dot is a dot of a statistic the program has anyway, and then needs no sweep.

    sum_j p_ij * (sum_e g_ie * v_je)  ->  sum_e g_ie * (sum_j p_ij * v_je)     if the inner sum on the right is in the program

This is how a softmax's backward reads `sum_j p dp` off its own output. Nothing new is ever introduced: where the program
does not hold the other order, the sum stays as it is.
"""
from __future__ import annotations

from collections.abc import Container, Iterable

from fuse.ir.expr import Expr, rewrite, sum_, topological
from fuse.passes.products import Product, product_of
from fuse.passes.simplify import simplify


def reassociate(roots: Iterable[Expr]) -> list[Expr]:
    roots = list(roots)
    present = set(topological(roots))
    return rewrite(roots, lambda node: _exchanged(node, present) if node.op == "sum" else None)


def _exchanged(node: Expr, present: Container[Expr]) -> Expr | None:
    outer, whole = node["axes"], product_of(node.args[0])
    for i, factor in enumerate(whole.factors):
        if factor.op != "sum" or set(factor["axes"]) & set(outer) or whole.divisors:
            continue
        rest = whole.factors[:i] + whole.factors[i + 1:]
        if any(f.has(e) for f in rest for e in factor["axes"]):
            continue
        dot = product_of(factor.args[0])
        moved = tuple(f for f in dot.factors if any(f.has(a) for a in outer))
        kept = tuple(f for f in dot.factors if f not in moved)
        if not moved or not kept or dot.divisors:
            continue
        inner, = simplify([sum_(Product(1, rest + moved).build(node.dtype), *outer)])
        if inner in present:
            scale = whole.coefficient * dot.coefficient
            body = Product(scale, (*kept, inner)).build(node.dtype)
            return simplify([sum_(body, *factor["axes"])])[0]
    return None
