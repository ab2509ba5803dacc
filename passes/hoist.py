"""hoist: what does not vary along every axis of the tile is computed once, before the sweep.

    body(... f(r1[n], r2[n]) ...)  ->  d[n] = f(r1[n], r2[n]);  body(... d[n] ...)

Kernels then differ only in what they stream: the many spellings of a loss tail become reads of the same few vectors.
Pure index arithmetic stays in the kernel (it becomes predicates and loop bounds) unless it is summed, and so does a lone read.
Where values are scanned that goes, with `costly`, for exponentials and the like with widths too, if a grid axis would have
them computed again: the coefficients of a state space are the same for a whole batch, and for their own gradients.
`regroup` writes the body of a dot as (everything on the tile) * (what carries the width), so that both gradients of a
contraction contract one and the same expression; with two widths as (everything else) * (what carries the last).
Where values are scanned, every product is (what does not vary along the stream) * (what does): the first is computed once.
`orient` puts the operands of commutative ops in an order that depends on their roles, not on names, and the carries in
an order of their own.
"""
from __future__ import annotations

import hashlib
from collections.abc import Callable, Container
from dataclasses import replace
from functools import partial

from fuse.ir.expr import COMPLEXES, FLOATS, Axis, Expr, make, rebuild, rewrite, topological
from fuse.ir.program import Carry, Define, Kind, Program, Region, Step, on_values, stored
from fuse.passes.products import Product, product_of

Key = tuple[tuple[int, ...], str, str]      # roles, op, hash of the structure
Worth = Callable[[Expr, Region], bool]
COSTLY = ("exp", "log", "sin", "cos", "pow", "tanh", "sigmoid", "expm1", "log1p")
COMMUTATIVE = ("add", "mul", "maximum", "minimum", "eq", "ne", "and", "or")


def hoist(program: Program, costly: bool = True) -> Program:
    """Puts a Define before the first region that needs it."""
    names: dict[Expr, Expr] = {}
    steps: list[Step] = []
    for step in program.steps:
        if isinstance(step, Region):
            step, new = _hoisted(step, names, _worth_storing)
            if costly:
                step, more = _hoisted(step, names, partial(_repeated, names=names))
                for defined in (new, more) if more else ():
                    program = on_values(program, partial(_read, defined=defined, names=names))
                new += more
            steps += new
        steps.append(step)
    return replace(program, steps=tuple(steps))


def _read(roots: list[Expr], defined: list[Define], names: dict[Expr, Expr]) -> list[Expr]:
    return rewrite(roots, lambda _: None, {d.value: names[d.value] for d in defined})


def _hoisted(region: Region, names: dict[Expr, Expr], worth: Worth) -> tuple[Region, list[Define]]:
    new: list[Define] = []
    return _map_bodies(region, lambda body: _hoist_body(body, region, names, new, worth)), new


def _map_bodies(region: Region, f: Callable[[Expr], Expr]) -> Region:
    return replace(region, carries=tuple(replace(c, body=f(c.body), scale=None if c.scale is None else f(c.scale))
                                         for c in region.carries),
                   emits=tuple(replace(e, value=f(e.value)) for e in region.emits))


def _hoist_body(body: Expr, region: Region, names: dict[Expr, Expr], new: list[Define], worth: Worth) -> Expr:
    memo: dict[Expr, Expr] = {}
    for node in _maximal(body, region, worth):
        if node not in names:
            name = f"d{len(names)}"
            names[node] = stored(name, node.dtype, node.axes)
            new.append(Define(name, node, node.axes))
        memo[node] = names[node]
    return rewrite([body], lambda _: None, memo)[0]


def _maximal(body: Expr, region: Region, worth: Worth) -> list[Expr]:
    """The largest subexpressions worth computing beforehand."""
    found: list[Expr] = []
    seen: set[Expr] = set()
    todo = [body]
    while todo:
        node = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        if worth(node, region):
            found.append(node)
        elif node.op != "read":
            todo.extend(reversed(node.args))
    return found


def _worth_storing(node: Expr, region: Region) -> bool:
    if not set(node.axes) < {*region.grid, *region.streams}:
        return False
    below = topological([node])
    if any(e.op == "carry" for e in below) or not any(e.op in ("read", "sum") for e in below):
        return False
    inner = node.args[0] if node.op == "cast" else node
    return inner.op != "read"


def _repeated(node: Expr, region: Region, names: Container[Expr]) -> bool:
    """A costly value of a walk that several of its points have in common; what has a name costs nothing."""
    widths = {a for c in region.carries if c.kind is Kind.AFFINE for a in c.axes}
    axes = set(node.axes)
    if not axes <= widths or axes >= set(region.grid) or not axes:
        return False
    if node in names:
        return True
    below = [e for e in topological([node], names) if e not in names]
    return any(e.op in COSTLY for e in below) and not any(e.op in ("carry", "scan") for e in below)


def regroup(program: Program) -> Program:
    def one(region: Region) -> Region:
        tile = set(region.grid) | set(region.streams)

        def carry(c: Carry) -> Carry:
            wide = [a for a in c.axes if a not in tile]
            body = _grouped(c.body, lambda f: any(f.has(a) for a in wide))
            if body is c.body and len(wide) > 1:      # every factor is wide: those of the last width are one operand
                body = _grouped(body, lambda f: f.has(wide[-1]))
            return replace(c, body=body)

        def streamed(factor: Expr) -> bool:
            return bool(set(factor.axes) & set(region.streams))

        def inner(node: Expr) -> Expr | None:
            return rebuild(node, [_grouped(node.args[0], streamed)]) if node.op == "sum" else None
        if any(c.kind is Kind.AFFINE for c in region.carries):
            return _map_bodies(region, lambda body: _invariant_first(body, streamed))
        region = replace(region, carries=tuple(carry(c) for c in region.carries))
        return _map_bodies(region, lambda body: rewrite([body], inner)[0])
    return replace(program, steps=tuple(one(s) if isinstance(s, Region) else s for s in program.steps))


def _invariant_first(body: Expr, streamed: Callable[[Expr], bool]) -> Expr:
    """Every product of the body as mul(what does not vary along the stream, what does)."""
    def at(node: Expr) -> Expr:
        if node not in done:
            if node.op in ("mul", "div", "neg") and node.dtype in FLOATS + COMPLEXES and streamed(node):
                p = product_of(node)
                again = Product(p.coefficient, tuple(map(at, p.factors)), tuple(map(at, p.divisors))).build(node.dtype)
                done[node] = _grouped(again, streamed)
            else:
                done[node] = rebuild(node, [at(a) for a in node.args]) if node.args else node
        return done[node]
    done: dict[Expr, Expr] = {}
    return at(body)


def _grouped(body: Expr, second: Callable[[Expr], bool]) -> Expr:
    """body as mul(product of the first kind, product of the second), if it has both."""
    p = product_of(body)
    right = [f for f in p.factors if second(f)]
    if not right or len(right) == len(p.factors) or any(second(d) for d in p.divisors):
        return body
    left = Product(p.coefficient, tuple(f for f in p.factors if not second(f)), p.divisors).build(body.dtype)
    return make("mul", left, Product(1, tuple(right)).build(body.dtype))


def orient(program: Program) -> Program:
    def one(region: Region) -> Region:
        key = _Structure(region)

        def rule(node: Expr) -> Expr | None:
            if node.op not in COMMUTATIVE:
                return None
            a, b = node.args
            return rebuild(node, (b, a)) if key(b) < key(a) else None
        region = _map_bodies(region, lambda body: rewrite([body], rule)[0])
        return replace(region, carries=tuple(sorted(region.carries, key=lambda c: _carry_key(c, region, key))))
    return replace(program, steps=tuple(one(s) if isinstance(s, Region) else s for s in program.steps))


def _carry_key(c: Carry, region: Region, key: _Structure) -> tuple[int, bool, bool, int, Key, float, int]:
    """Statistics before gradients, an LSE before what is relative to it, sums along the stream before those over the grid."""
    return c.level, c.kind is not Kind.LSE, set(c.over) != set(region.streams), len(c.axes), key(c.body), c.exponent, c.moment


class _Structure:
    """A sort key that ignores the names of axes and buffers."""

    def __init__(self, region: Region):
        self.region, self.memo = region, dict[Expr, Key]()

    def role(self, axis: Axis) -> int:
        return 0 if axis in self.region.grid else 1 if axis in self.region.streams else 2

    def __call__(self, root: Expr) -> Key:
        for node in topological([root], self.memo):
            if node not in self.memo:
                roles = tuple(sorted({self.role(a) for a in node.axes}))
                # Where in a buffer a row lies (x[n] or x[n, 0]) is a matter of strides, not of structure.
                args = [a for a in node.args if a.axes] if node.op == "read" else node.args
                text = f"{node.op} {roles} {node.dtype} {self._attrs(node)}" + "".join(self.memo[a][-1] for a in args)
                self.memo[node] = (roles, node.op, hashlib.blake2b(text.encode(), digest_size=8).hexdigest())
        return self.memo[root]

    def _attrs(self, node: Expr) -> str:
        hidden = ("axis", "axes", "buffer", "name")
        return repr([(k, v) for k, v in node.attrs if k not in hidden])
