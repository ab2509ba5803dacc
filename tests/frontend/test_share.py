"""Reductions along one dimension of one buffer share their axis; the two positions of a Gram matrix do not."""
from __future__ import annotations

from fuse.frontend.index import linear
from fuse.frontend.share import share_axes
from fuse.ir.expr import Axis, Buffer, Expr, iota, read, sum_
from fuse.ir.program import Output, Term
from fuse.ir.size import Size

N = Size.of(6)
X, Y = Buffer("x", "float32", (N, N)), Buffer("y", "float32", (N, N))


def axes(*names: str) -> list[Axis]:
    return [Axis(n, N) for n in names]


def output(value: Expr, *index: Axis) -> tuple[Output, ...]:
    return (Output(Buffer("out", "float32", tuple(a.extent for a in index)), (Term(tuple(map(iota, index)), value),)),)


def test_sums_of_one_buffer_walk_one_axis() -> None:
    i, d, r, e = axes("i", "d", "r", "e")
    value = read(X, i, d) * sum_(read(X, r, e) * read(Y, e, d), r, e)
    (shared,) = share_axes(output(value, i, d))
    assert shared.terms[0].index == (iota(i), iota(d))
    assert shared.terms[0].value is read(X, i, d) * sum_(read(X, i, e) * read(Y, e, d), i, e)


def test_two_positions_of_one_value_stay_two() -> None:
    i, k, d, e = axes("i", "k", "d", "e")
    gram = sum_(sum_(read(X, i, d) * read(X, k, d), d) * read(Y, k, e), k)
    assert share_axes(output(gram, i, e))[0].terms[0].value is gram


def test_another_dimension_is_another_axis() -> None:
    i, r = axes("i", "r")
    value = read(X, i, i) * 2 + sum_(read(Y, r, i), r)
    assert share_axes(output(value, i))[0].terms[0].value is value


def test_another_place_is_another_axis() -> None:
    i, r = axes("i", "r")
    d = Axis("d", N)
    value = read(X, iota(i), iota(d)) * sum_(read(X, iota(r) + 1, iota(d)), r)
    assert share_axes(output(value, i, d))[0].terms[0].value is value


PACKED = Buffer("p", "float32", (N, Size.of(36)))


def test_digits_of_a_packed_dimension_are_shared() -> None:
    """Heads beside one another: p[i, 6 h + d] for a fixed h."""
    i, h, d, r, e = axes("i", "h", "d", "r", "e")
    value = read(PACKED, iota(i), iota(h) * 6 + iota(d)) * sum_(read(PACKED, iota(r), iota(e) + iota(h) * 6), r, e)
    (shared,) = share_axes(output(value, i, h, d))
    first = read(PACKED, iota(i), iota(d) + iota(h) * 6)
    assert shared.terms[0].value is first * sum_(first, i, d)


def test_another_step_or_offset_in_a_packed_dimension_is_another_axis() -> None:
    i, d, e = axes("i", "d", "e")
    for index in (iota(e) * 6, iota(e) + 6):
        value = read(PACKED, iota(i), iota(d)) * sum_(read(PACKED, iota(i), index), e)
        assert share_axes(output(value, i, d))[0].terms[0].value is value


def test_equal_digits_are_one_read_whatever_their_names() -> None:
    """Sums of indices are in the order of their axes' names, which renaming changes."""
    i, h = axes("i", "h")
    a, z = axes("a", "z")
    one, other = (sum_(read(PACKED, iota(i), linear(x).expr()), r)
                  for x, r in ((iota(a) + iota(h) * 6, a), (iota(h) * 6 + iota(z), z)))
    (shared,) = share_axes(output(one * other, i, h))
    assert shared.terms[0].value.args[0] is shared.terms[0].value.args[1]
