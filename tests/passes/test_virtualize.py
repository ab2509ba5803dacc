"""Which axes a chain of sums is walked along."""
from __future__ import annotations

from dataclasses import replace

from fuse.ir.expr import Axis, Buffer, Expr, dot, make, read, reads_of, sum_
from fuse.ir.program import Kind, Program
from fuse.ir.size import Size
from fuse.passes import Context, compile_program
from fuse.passes.virtualize import virtual_of
from tests.passes import builders

SIZES = {"I": 640, "J": 512, "D": 8, "E": 4, "O": 16}
I, J, D, E, O = (Axis(x.lower(), Size.of(x)) for x in SIZES)


def value(name: str, *axes: Axis) -> Expr:
    return read(Buffer(name, "float32", tuple(a.extent for a in axes)), *axes)


Q, K, V = value("q", I, D), value("k", J, D), value("v", J, E)


def program(*values: Expr) -> Program:
    return replace(builders.program(*values), inputs=tuple({r["buffer"]: None for r in reads_of(values)}), anchors=())


def streams(*values: Expr) -> set[Axis | None]:
    return {a.stream for a in virtual_of(program(*values), SIZES).anchors}


def test_what_is_summed_along_one_axis_meets_another():
    assert streams(dot(Q, dot(K, V, J), D)) == {I, J}


def test_a_normalisation_meets_its_own_axis():
    assert streams(K / sum_(K, J)) == {J}


def test_layers_are_no_chain():
    """sum_d q w is about as long as q: nothing is pooled."""
    assert streams(dot(dot(Q, value("w", D, E), D), value("u", E, O), E)) == set()


def test_axes_beside_each_other_are_not_crossed():
    """sum_i w meets j, but stands beside it in w: only one of the two is walked."""
    w = value("w", I, J)
    assert streams(sum_(w, I) * value("x", J)) == set() and streams(sum_(w, J) * w) == {J}


def test_a_quotient_of_two_widths_is_a_product():
    """k v / (1 + sum_d |k|): the divisor goes with k, so that targets see two operands."""
    kv = sum_(K * V / (1.0 + sum_(make("abs", K), D)), J)
    plan = compile_program(program(dot(Q, kv, D)), Context(hints=SIZES))
    (carry,) = [c for r in plan.forward.regions for c in r.carries if c.kind is Kind.SUM and len(c.axes) == 2]
    assert carry.body.op == "mul"
    assert sorted(len({*side.axes} & {*carry.axes}) for side in carry.body.args) == [1, 1]
