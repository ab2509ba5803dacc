"""A product under several axes is summed over one at a time where that takes a factor out; a dot over both stays."""
from __future__ import annotations

from fuse.ir.expr import Axis, Buffer, Expr, read, sum_
from fuse.ir.program import Carry, Emit, Kind, Program, Region
from fuse.ir.size import Size
from fuse.passes.nest import nest

J, D, E, I = (Axis(n, Size.of(k)) for n, k in (("j", 9), ("d", 3), ("e", 4), ("i", 5)))


def tensor(name: str, *axes: Axis) -> Expr:
    return read(Buffer(name, "float32", tuple(a.extent for a in axes)), *axes)


A, B, C, W = tensor("a", J, D), tensor("b", J, E), tensor("c", D, E), tensor("w", J)


def nested(body: Expr, *emits: Expr) -> Expr:
    region = Region("r", (J,), (), (Carry("s", Kind.SUM, body, (J,), ()),),
                    tuple(Emit(f"e{k}", e, e.axes) for k, e in enumerate(emits)))
    (step,) = nest(Program((), (), steps=(region,))).steps
    assert isinstance(step, Region)
    return step.carries[0].body


def test_one_axis_at_a_time():
    assert nested(sum_(A * B * C, D, E) * W) is sum_(B * sum_(A * C, D), E) * W


def test_the_inner_dot_is_one_that_the_region_has():
    weighted = sum_(B * W * C, E)
    assert nested(sum_(A * B * C, D, E), weighted) is sum_(A * sum_(B * C, E), D)


def test_a_dot_over_two_axes_stays():
    other = tensor("f", I, D, E)
    body = sum_(tensor("g", J, D, E) * other, D, E)
    assert nested(sum_(body, I)) is sum_(body, I)


def test_a_divisor_under_the_sum_stays():
    body = sum_(A * B / C, D, E)
    assert nested(body) is body
