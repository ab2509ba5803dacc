"""The lowest number hides like -inf where a row is proved to keep something, and stays where that shows or is not proved."""
from __future__ import annotations

import math

import pytest
import torch

from fuse.ir.expr import Axis, Buffer, cast, const, dot, iota, lse, make, read, size, where
from fuse.ir.size import Size
from fuse.passes.masks import masks
from fuse.passes.simplify import simplify

L, S, D = Axis("i", Size.of("L")), Axis("j", Size.of("L")), Axis("d", Size.of(4))
LONGER = Axis("j", Size.of("L") + Size.of("P"))
LOWEST = torch.finfo(torch.float32).min
DATA = Buffer("kept", "bool", (L.extent,))


def scores(i=L, j=S, dtype="float32"):
    return dot(read(Buffer("q", dtype, (i.extent, 4)), i, D), read(Buffer("k", dtype, (j.extent, 4)), j, D), D)


def softmax(x, j=S):
    return make("exp_sub", x, lse(x, j))


def lowest(x, value=LOWEST):
    return const(value, x.dtype)


def infinite(x):
    return const(-math.inf, x.dtype)


def causal(i=L, j=S):
    return make("le", iota(j), iota(i))


def shifted():
    return make("le", iota(LONGER), iota(L) + size(Size.of("P")))


def within(width=8):
    return make("and", causal(), make("lt", iota(L) - const(width, "int64"), iota(S)))


@pytest.mark.parametrize("condition, j", [
    (causal(), S), (within(), S), (shifted(), LONGER), (make("lt", iota(S), const(5, "int64")), S),
    (make("or", causal(), make("lt", iota(S), const(3, "int64"))), S),
], ids=["causal", "window", "after a cache", "first five", "prefix"])
def test_what_is_hidden(condition, j) -> None:
    x = scores(j=j)
    hidden = where(condition, x, infinite(x))
    (condition,) = simplify([condition])
    assert masks(simplify([softmax(where(condition, x, lowest(x)), j)])) == simplify([softmax(hidden, j)])
    added = where(condition, x + where(condition, 0, lowest(x)).args[1], infinite(x))
    assert masks([softmax(x + where(condition, 0, lowest(x)), j)]) == [softmax(added, j)]


def test_what_is_filled_where_the_condition_fails() -> None:
    x, future = scores(), make("lt", iota(L), iota(S))
    assert masks([softmax(where(future, lowest(x), x))]) == [softmax(where(causal(), x, infinite(x)))]


STRICT = make("lt", iota(S), iota(L))
AHEAD = make("le", iota(L) + const(1, "int64"), iota(S))


@pytest.mark.parametrize("values", [
    [softmax(where(STRICT, scores(), lowest(scores())))],                                       # the first row keeps nothing
    [softmax(where(AHEAD, scores(), lowest(scores())))],                                        # nor the last
    [softmax(where(make("lt", iota(S), const(0, "int64")), scores(), lowest(scores())))],
    [softmax(where(make("and", causal(), read(DATA, S)), scores(), lowest(scores())))],         # data decides
    [softmax(where(causal(), scores(), lowest(scores(), -1e9)))],
    [softmax(where(causal(), scores(dtype="float16"), const(-65504.0, "float16")))],
    [make("sub_lse", x := where(causal(), scores(), lowest(scores())), lse(x, S))],             # the number shows
    [softmax(cast(causal(), "float32") * scores())],
], ids=["strict", "ahead", "nothing", "data", "minus 1e9", "half", "logarithm", "product"])
def test_what_stays(values) -> None:
    assert masks(values) == values
