"""Which output terms are boxes, and that boxes are placed where a scatter would place them."""
from __future__ import annotations

import pytest
import torch

from fuse.ir.access import box, evaluate_output, side_by_side
from fuse.ir.expr import Axis, Buffer, const, iota, make, read
from fuse.ir.program import Output, Term
from fuse.ir.size import Size

T, D = Axis("t", Size.of("T") - 1), Axis("d", Size.of(4))
H = Axis("h", Size.of(3))
PACKED = make("add", make("mul", iota(H), const(4, "int64")), iota(D))
FULL = (Size.of("T"), Size.of(4))
ONE = const(1, "int64")
I = read(Buffer("i", "int64", (Size.of("T") - 1,)), T)


@pytest.mark.parametrize("index, shape", [
    ((iota(T), iota(D)), FULL), ((iota(T) + 1, iota(D)), FULL), ((iota(D), iota(T)), (Size.of(5), Size.of("T"))),
    ((iota(T), ONE), FULL), ((), ()), ((iota(T), PACKED), (Size.of("T"), Size.of(12))),
    ((iota(T), PACKED + 12), (Size.of("T"), Size.of(36))), ((make("add", make("mul", iota(T), const(4, "int64")), iota(D)),),
                                                            (Size.of("T") * 4,)),
])
def test_boxes(index, shape):
    assert box(index, shape) is not None


@pytest.mark.parametrize("index, shape", [
    ((iota(T) + 2, iota(D)), FULL),                      # one row beyond the end
    ((iota(T) - 1, iota(D)), FULL),                      # starts before the beginning
    ((iota(T) * 2, iota(D)), FULL),                      # leaves gaps
    ((iota(D), iota(D)), (Size.of(4), Size.of(4))),      # a diagonal
    ((I, iota(D)), FULL),                                # goes by data
    ((iota(T), const(4, "int64")), FULL),                # a column that is not there
    ((iota(T), iota(D)), (Size.of("U"), Size.of(4))),    # nobody says that T - 1 <= U
    ((PACKED + 1,), (Size.of(12),)),                     # one beyond the end
    ((PACKED, iota(D)), (Size.of(12), Size.of(4))),      # a diagonal through the packed dimension
    ((iota(H) * 3 + iota(D),), (Size.of(12),)),          # digits that overlap
    ((iota(H) * 5 + iota(D),), (Size.of(14),)),          # digits with gaps
])
def test_what_is_not_a_box(index, shape):
    assert box(index, shape) is None


@pytest.mark.parametrize("index", [(iota(T) + 1, iota(D)), (iota(T), iota(D)), (iota(T), ONE), (iota(T) + 2, iota(D))])
def test_a_box_is_placed_where_a_scatter_would_place_it(index):
    x = torch.randn(6, 4)
    value = read(Buffer("x", "float32", (T.extent, D.extent)), T, index[1] if index[1] is ONE else D)
    scatter = make("mul", value, make("cast", I * 0 + 1, dtype="float32"))
    sizes, env = {"T": 7}, {"x": x, "i": torch.arange(6)}
    out = Buffer("out", "float32", FULL)
    boxed = evaluate_output(Output(out, (Term(index, value),)), env, sizes)
    through_data = (index[0] + I * 0, index[1])
    assert box(through_data, FULL) is None
    torch.testing.assert_close(boxed, evaluate_output(Output(out, (Term(through_data, scatter),)), env, sizes))
    twice = evaluate_output(Output(out, (Term(index, value), Term(through_data, scatter))), env, sizes)
    torch.testing.assert_close(twice, boxed * 2)


def test_a_packed_dimension_is_filled_digit_by_digit():
    """Keys between queries and values, as the gradient of one projection for all three."""
    x = torch.randn(3, 6, 4)
    value = read(Buffer("x", "float32", (H.extent, T.extent, D.extent)), H, T, D)
    output = Output(Buffer("out", "float32", (Size.of("T"), Size.of(36))), (Term((iota(T), PACKED + 12), value),))
    want = torch.zeros(7, 36)
    want[:6, 12:24] = x.permute(1, 0, 2).flatten(1)
    torch.testing.assert_close(evaluate_output(output, {"x": x}, {"T": 7}), want)


def packed(*offsets: int) -> Output:
    """Rows of [H, D] at each offset of a packed dimension of 36."""
    value = read(Buffer("x", "float32", (H.extent, T.extent, D.extent)), H, T, D)
    terms = tuple(Term((iota(T), PACKED + n), value) for n in offsets)
    return Output(Buffer("out", "float32", (T.extent, Size.of(36))), terms)


@pytest.mark.parametrize("offsets, order", [
    ((24, 0, 12), (1, 2, 0)),      # any order
    ((0, 12), None),               # a gap at the end
    ((0, 24), None),               # one in between
    ((0, 12, 12), None),           # two at one place
    ((0, 12, 24, 6), None),        # overlapping
    ((0,), None),
])
def test_terms_side_by_side_are_joined(offsets, order):
    output = packed(*offsets)
    found = side_by_side(tuple(t.index for t in output.terms), output.buffer.shape)
    assert found == (None if order is None else (1, order))
    x, want = torch.randn(3, 6, 4), torch.zeros(6, 36)
    for n in offsets:
        want[:, n:n + 12] += x.permute(1, 0, 2).flatten(1)
    torch.testing.assert_close(evaluate_output(output, {"x": x}, {"T": 7}), want)


def test_terms_of_unequal_heights_are_not_joined():
    """Both dimensions are cut: no single cat makes the shape."""
    value = read(Buffer("x", "float32", (T.extent, D.extent)), T, D)
    indices = ((iota(T), iota(D)), (iota(T) + 2, iota(D) + 4))
    assert side_by_side(indices, (T.extent + 2, Size.of(8))) is None
    output = Output(Buffer("out", "float32", (T.extent + 2, Size.of(8))), tuple(Term(i, value) for i in indices))
    x, want = torch.randn(6, 4), torch.zeros(8, 8)
    want[:6, :4] += x
    want[2:, 4:] += x
    torch.testing.assert_close(evaluate_output(output, {"x": x}, {"T": 7}), want)
