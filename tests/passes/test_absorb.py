"""What a walk emits in place of an output, and what it must not."""
from __future__ import annotations

from dataclasses import replace

import pytest

from fuse.ir.expr import Axis, Buffer, Expr, const, iota, make, read, sum_
from fuse.ir.program import Output, Program, Region, Term
from fuse.ir.size import Size
from fuse.passes import Context, compile_program
from fuse.passes.simplify import simplify

T, D, N = Axis("t", Size.of("T")), Axis("d", Size.of(64)), Axis("n", Size.of(4))
X, G = (Buffer(name, "float32", (D.extent, T.extent)) for name in "xg")
C = Buffer("c", "float32", (T.extent, N.extent))
HINTS = {"T": 256}


def emitted(d: Axis = D) -> Expr:
    """sum_n c[t, n] h[d, t, n] of h = h / 2 + x."""
    x = Buffer("x", "float32", (d.extent, T.extent))
    h = make("scan", const(0.5, "float32"), read(x, iota(d), iota(T)) * read(C, iota(T), iota(N)), axis=T, reverse=False)
    return sum_(h * read(C, iota(T), iota(N)), N)


def region(value: Expr, d: Axis = D, wrt: tuple[str, ...] = ()) -> tuple[Region, Program]:
    axes = (d, T)
    inputs = tuple(replace(b, shape=(d.extent, T.extent)) if b is not C else b for b in (X, G, C))
    out = Output(Buffer("out", "float32", tuple(a.extent for a in axes)), (Term(tuple(map(iota, axes)), value),))
    plan = compile_program(Program(inputs, (out,)), Context(hints=HINTS, wrt=wrt))
    return plan.forward.regions[0], plan.forward


def gate(d: Axis = D) -> Expr:
    return read(Buffer("g", "float32", (d.extent, T.extent)), iota(d), iota(T))


def test_a_product_with_what_is_stored_is_emitted() -> None:
    walk, program = region(emitted() * gate())
    (emit,) = walk.emits
    assert "g" in {n["buffer"].name for n in _nodes(emit.value) if n.op == "read"}
    assert program.outputs[0].terms[0].value.op == "read"


def test_nothing_is_absorbed_without_lanes_to_spare() -> None:
    few = Axis("d", Size.of(2))
    walk, program = region(emitted(few) * gate(few), few)
    assert all("g" not in {n["buffer"].name for n in _nodes(e.value) if n.op == "read"} for e in walk.emits)
    assert program.outputs[0].terms[0].value.op == "mul"


def test_a_gradient_is_not_absorbed_by_the_forward() -> None:
    walk, program = region(emitted() * gate(), wrt=("g",))
    assert "ct.out" not in {b.name for b in program.inputs}
    assert all(n["buffer"].name != "ct.out" for e in walk.emits for n in _nodes(e.value) if n.op == "read")


def _nodes(root: Expr) -> set[Expr]:
    return {root}.union(*(_nodes(a) for a in root.args)) if root.args else {root}


@pytest.mark.parametrize("op", ["mul", "div"])
def test_conj_of_a_product_is_a_product(op: str) -> None:
    x, y = (read(Buffer(name, "complex64", (D.extent,)), iota(D)) for name in "xy")
    (found,) = simplify([make("conj", make(op, x, y))])
    assert found.op == op and {a.op for a in found.args} == {"conj"}


def test_conj_of_a_sum_stays() -> None:
    x, y = (read(Buffer(name, "complex64", (D.extent,)), iota(D)) for name in "xy")
    (found,) = simplify([make("conj", x + y)])
    assert found.op == "conj"
