"""nest: a product summed over several axes is summed over one at a time, where that takes factors out of the inner sum.

    sum_de a_jd b_je C_de  ->  sum_d a_jd (sum_e b_je C_de)

The left side is a dot over both axes with an operand a_jd b_je as large as both together; on the right the inner sum is
a matrix product. Of two orders the one whose inner factors meet under a sum of the region's own is taken.
"""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from fuse.ir.expr import Axis, Expr, rewrite, sum_, topological
from fuse.ir.program import Program, Region
from fuse.passes.products import Product, product_of


def nest(program: Program) -> Program:
    return replace(program, steps=tuple(_nested(s) if isinstance(s, Region) else s for s in program.steps))


def _nested(region: Region) -> Region:
    dots = [(set(e["axes"]), set(product_of(e.args[0]).factors)) for e in topological(region.bodies) if e.op == "sum"]

    def rule(node: Expr) -> Expr | None:
        return _one_at_a_time(node, dots) if node.op == "sum" and len(node["axes"]) > 1 else None

    return replace(region, carries=tuple(replace(c, body=rewrite([c.body], rule)[0]) for c in region.carries),
                   emits=tuple(replace(e, value=rewrite([e.value], rule)[0]) for e in region.emits))


def _one_at_a_time(node: Expr, dots: Iterable[tuple[set[Axis], set[Expr]]]) -> Expr | None:
    axes, whole = node["axes"], product_of(node.args[0])

    def inside(axis: Axis) -> tuple[Expr, ...]:
        return tuple(f for f in whole.factors if f.has(axis))

    def shared(axis: Axis) -> bool:
        return any(over == {axis} and factors.issuperset(inside(axis)) for over, factors in dots)

    for axis in sorted(axes, key=lambda a: (not shared(a), a.name)):
        rest = tuple(f for f in whole.factors if not f.has(axis))
        outer = [a for a in axes if a != axis]
        if len(inside(axis)) > 1 and any(f.has(a) for f in rest for a in outer) \
                and not any(d.has(a) for d in whole.divisors for a in axes):
            inner = sum_(Product(1, inside(axis)).build(node.dtype), axis)
            found = sum_(Product(whole.coefficient, (*rest, inner), whole.divisors).build(node.dtype), *outer)
            return _one_at_a_time(found, dots) or found if len(outer) > 1 else found
    return None
