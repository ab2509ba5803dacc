"""scale: the common factor of gradients moves into their backward sweep, where it is known before the sweep begins.

    s * sum_v(x)  ->  sum_v(s x)         s a scalar: an upstream gradient, 1 / N

A gradient is then complete when it is stored: it is rounded once, and nothing passes over it again. A slab's factor is not
known in the forward and stays outside; so does float16's, whose range a tile times a loss scale or 1 / N may leave. All
gradients of a sweep contract one tile, so they take the factor they share or none.
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from fuse.ir.expr import Expr, rebuild, topological
from fuse.ir.program import Kind, Program
from fuse.passes.merge import Group, Member
from fuse.passes.products import ONE, Product, is_const, product_of, times

Home = Mapping[Expr, tuple[Group, Member]]


@dataclass(frozen=True)
class Scale:
    """A gradient is `inside` * `outside` * (the leaf); stored as `dtype` if nothing is left outside."""

    inside: Product
    outside: Product
    dtype: str

    @property
    def complete(self) -> bool:
        return self.outside == ONE


def scales(program: Program, groups: list[Group], home: Home) -> dict[Expr, Scale]:
    """By leaf."""
    alone = _read_once(program, home)
    found: dict[Expr, tuple[Product, str]] = {}
    for output in program.outputs:
        split = _split(output.terms[0].value, home) if output.gradient_of and len(output.terms) == 1 else None
        if split is not None and split[0] in alone and output.buffer.dtype != "float16":
            found[split[0]] = split[1], output.buffer.dtype
    out: dict[Expr, Scale] = {}
    for group in groups:
        values = [m.leaf.value for m in group.members]
        if not group.backward or not all(v in found and _suits(m) for v, m in zip(values, group.members, strict=True)):
            continue
        shared = _shared([found[v][0] for v in values])
        known = {v for v in values}.isdisjoint(topological([*shared.factors, *shared.divisors], home))
        if known and shared != ONE:
            out |= {v: Scale(shared, _without(found[v][0], shared), found[v][1]) for v in values}
    return out


def _suits(member: Member) -> bool:
    return member.leaf.kind is Kind.SUM and member.level == 0 and member.separated is None


def _read_once(program: Program, home: Home) -> set[Expr]:
    """Leaves that one output term reads, and no other leaf."""
    count: dict[Expr, int] = {}
    for value in [t.value for o in program.outputs for t in o.terms]:
        for node in topological([value], home):
            if node in home:
                count[node] = count.get(node, 0) + 1
    needed = {n.value for _, m in home.values() for n in m.leaf.needs}
    return {leaf for leaf, n in count.items() if n == 1} - needed


def _split(value: Expr, home: Home) -> tuple[Expr, Product] | None:
    """(leaf, factor) if value is their product and the factor a scalar."""
    p = product_of(value)
    wide = [f for f in p.factors if f.axes]
    if len(wide) != 1 or wide[0] not in home or any(d.axes for d in p.divisors):
        return None
    return wide[0], replace(p, factors=tuple(f for f in p.factors if f is not wide[0]))


def _shared(products: list[Product]) -> Product:
    first, *rest = products
    common = Product(first.coefficient if all(p.coefficient == first.coefficient for p in rest) else 1,
                     tuple(f for f in first.factors if all(f in p.factors for p in rest)),
                     tuple(d for d in first.divisors if all(d in p.divisors for p in rest)))
    return common if len(set(common.factors)) == len(common.factors) else ONE


def _without(p: Product, shared: Product) -> Product:
    return Product(p.coefficient / shared.coefficient, tuple(f for f in p.factors if f not in shared.factors),
                   tuple(d for d in p.divisors if d not in shared.divisors))


def scaled(x: Expr, s: Expr) -> Expr:
    """s * x, with s inside the selections of x: zeros of masked rows stay zeros where s = g / 0, a mean over no row."""
    if is_const(x, 0):
        return x
    match x.op:
        case "add" | "sub" | "neg":
            return rebuild(x, [scaled(a, s) for a in x.args])
        case "where":
            return rebuild(x, [x.args[0], *(scaled(a, s) for a in x.args[1:])])
        case "mul":
            first = min((0, 1), key=lambda k: (_REACH.get(x.args[k].op, len(_REACH)), len(x.args[k].axes)))
            return rebuild(x, [scaled(a, s) if k == first else a for k, a in enumerate(x.args)])
    return times(product_of(s), x)


_REACH = {"where": 0, "add": 1, "sub": 1, "neg": 1, "mul": 2}
