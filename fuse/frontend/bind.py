"""Makes every size of a program readable off its inputs: a symbol must stand alone in some input's dimension.

    x[s+1, d], no dimension is s          ->  x[n, d],   s := n - 1
    x[s*t, d], only s*t occurs elsewhere  ->  x[n, d], s*t := n
"""
from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from fuse.ir.expr import Axis, Buffer, Expr, make, topological
from fuse.ir.program import Check, Output, Program, Term
from fuse.ir.size import Monomial, Size
from fuse.reasons import Miss, Refused

Change = Callable[[Size], Size]


def bind_sizes(program: Program, where: str | None = None) -> Program:
    """The program with sizes renamed where needed. Refused (UNBOUND_SIZE) if a size cannot be read off the inputs."""
    for k in range(16):
        missing = _unbound(program)
        if not missing:
            return program
        dims = sorted({e for b in program.inputs for e in b.shape if e.symbols & missing}, key=str)
        change = next((c for d in dims if (c := _solve(d, missing, Size.symbol(f"n{k}"))) is not None), None)
        if change is None:
            break
        hints = dict(program.hints)
        old = {e for b in program.inputs for e in b.shape}
        for extent in old:
            if change(extent) == Size.symbol(f"n{k}") and extent.symbols <= hints.keys():
                hints[f"n{k}"] = int(extent.evaluate(hints))
        program = replace(_resized(program, change), hints=tuple(sorted(hints.items())))
    raise Refused(Miss("UNBOUND_SIZE", where, ", ".join(sorted(_unbound(program)))))


def _unbound(program: Program) -> frozenset[str]:
    bound = {s for b in program.inputs for e in b.shape for s in e.symbols if e == Size.symbol(s) and s.isidentifier()}
    needed = {s for e in _sizes(program) for s in e.symbols}
    return frozenset(needed - bound)


def _sizes(program: Program) -> Iterable[Size]:
    for buffer in (*program.inputs, *(o.buffer for o in program.outputs)):
        yield from buffer.shape
    for node in topological((*program.roots(), *program.anchors)):
        yield from (a.extent for a in node.axes)
        if node.op == "size":
            yield node["extent"]
    yield from (check.extent for check in program.checks)


def _solve(dim: Size, missing: frozenset[str], name: Size) -> Change | None:
    """How to write sizes in terms of `name`, the size of this dimension."""
    for symbol in sorted(dim.symbols & missing):
        terms = [(m, c) for m, c in dim.terms if symbol in m]
        if terms == [((symbol,), 1)]:
            return _substitute({symbol: name - (dim - Size.symbol(symbol))})
    if len(dim.terms) == 1 and dim.terms[0][1] == 1:
        return _factor_out(dim.terms[0][0], name)
    return None


def _substitute(values: dict[str, Size]) -> Change:
    def change(size: Size) -> Size:
        total = Size.of(0)
        for monomial, c in size.terms:
            term = Size.of(c)
            for s in monomial:
                term = term * values.get(s, Size.symbol(s))
            total = total + term
        return total
    return change


def _factor_out(product: Monomial, name: Size) -> Change:
    def change(size: Size) -> Size:
        total = Size.of(0)
        for monomial, c in size.terms:
            rest, term = list(monomial), Size.of(c)
            while all(rest.count(s) >= product.count(s) for s in product):
                for s in product:
                    rest.remove(s)
                term = term * name
            for s in rest:
                term = term * Size.symbol(s)
            total = total + term
        return total
    return change


def _resized(program: Program, change: Change) -> Program:
    def buffer(b: Buffer) -> Buffer:
        return Buffer(b.name, b.dtype, tuple(map(change, b.shape)))

    def axis(a: Axis) -> Axis:
        return Axis(a.name, change(a.extent))

    def attribute(key: str, value: Any) -> Any:
        if key in ("axis", "axes"):
            return axis(value) if isinstance(value, Axis) else tuple(map(axis, value))
        return change(value) if isinstance(value, Size) else buffer(value) if isinstance(value, Buffer) else value
    done: dict[Expr, Expr] = {}
    for node in topological((*program.roots(), *program.anchors)):
        attrs = {k: attribute(k, v) for k, v in node.attrs}
        done[node] = make(node.op, *(done[a] for a in node.args), origin=node.origin, **attrs)
    outputs = tuple(Output(buffer(o.buffer), tuple(Term(tuple(done[i] for i in t.index), done[t.value]) for t in o.terms),
                           o.gradient_of) for o in program.outputs)
    return replace(program, inputs=tuple(map(buffer, program.inputs)), outputs=outputs,
                   anchors=tuple(done[a] for a in program.anchors),
                   checks=tuple(Check(c.op, done[c.index], change(c.extent)) for c in program.checks))
