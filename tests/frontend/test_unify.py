"""Exits share one anchor exactly when renaming axes makes them equal."""
from __future__ import annotations

from fuse.frontend.unify import fingerprint, unify
from fuse.ir.expr import Axis, Buffer, Expr, dot, iota, lse, read, reduce_, topological
from fuse.ir.program import Output, Term
from fuse.ir.size import Size

N, D = Size.of(5), Size.of(3)
x, y = Buffer("x", "float32", (N, D)), Buffer("y", "float32", (N, D))
d = Axis("d", D)


def scores(a: Axis, b: Axis, left: Buffer = x, right: Buffer = y) -> Expr:
    return dot(read(left, a, d), read(right, b, d), d)


def output(k: int, row: Axis, value: Expr) -> Output:
    return Output(Buffer(f"out{k}", "float32", (N,)), (Term((iota(row),), value),))


def axes(*names: str) -> list[Axis]:
    return [Axis(n, N) for n in names]


def test_two_exits_become_one_sweep() -> None:
    a, b, c, e = axes("a", "b", "c", "e")
    first, second = scores(a, b), scores(c, e)
    outputs, anchors = unify((output(0, a, lse(first, b)), output(1, c, reduce_("max", second, e))), (first, second))
    assert anchors == (first,)
    assert outputs[1].terms[0].value is reduce_("max", first, b) and outputs[1].terms[0].index == (iota(a),)


def test_a_statistic_inside_one_exit_uses_the_exit_s_own_axis() -> None:
    a, b, c = axes("a", "b", "c")
    inner = lse(scores(a, c), c)
    outputs, anchors = unify((output(0, a, reduce_("sum", scores(a, b) - inner, b)),), (scores(a, b), scores(a, c)))
    assert len(anchors) == 1
    assert outputs[0].terms[0].value is reduce_("sum", scores(a, b) - lse(scores(a, b), b), b)


def test_two_axes_of_one_value_are_never_merged() -> None:
    a, b, c = axes("a", "b", "c")
    both = reduce_("sum", reduce_("sum", scores(a, b) * scores(a, c), b), c)
    outputs, anchors = unify((output(0, a, both),), (scores(a, b), scores(a, c)))
    assert len(anchors) == 2 and outputs[0].terms[0].value is both


def test_the_transposed_matrix_is_another_one() -> None:
    a, b = axes("a", "b")
    assert fingerprint(scores(a, b))[0] != fingerprint(scores(a, b, y, x))[0].replace("y", "x")
    s, t = scores(a, b, x, x), scores(b, a, x, x)
    _, anchors = unify((output(0, a, reduce_("sum", s * t, b)),), (s, t))
    assert len(anchors) == 2      # S_ij and S_ji of one matrix


def test_equal_texts_need_equal_extents() -> None:
    a, b, short = Axis("a", N), Axis("b", N), Axis("short", Size.of(4))
    assert fingerprint(scores(a, b))[0] != fingerprint(scores(a, short))[0]


def test_an_anchor_follows_the_axes_of_another() -> None:
    a, b, c, e = axes("a", "b", "c", "e")
    z = Buffer("z", "float32", (N, D))
    beside = scores(c, e, x, z)
    value = reduce_("sum", scores(c, b), b) + reduce_("sum", beside, e)
    outputs, anchors = unify((output(0, a, lse(scores(a, b), b)), output(1, c, value)), (beside, scores(a, b), scores(c, b)))
    assert anchors == (scores(a, e, x, z), scores(a, b))
    assert all(a in topological([o.terms[0].value for o in outputs]) for a in anchors)
