"""Each idiom is recognised in its spellings, and its near misses are not."""
from __future__ import annotations

import math

import pytest

from fuse.ir.expr import Buffer, const, iota, lse, make, reduce_, sum_, where
from fuse.passes.recognise import recognise
from tests.passes.builders import LABEL, SCORES, N, V

OTHER = SCORES * 2.0
TOP = reduce_("max", SCORES, V)


def one(x):
    return recognise([x])[0]


def exp(x):
    return make("exp", x)


def log(x):
    return make("log", x)


def test_log_of_sum_of_exp_is_lse():
    assert one(log(sum_(exp(SCORES), V))) is lse(SCORES, V)


def test_a_constant_offset_leaves_the_sum():
    assert one(log(sum_(exp(SCORES - TOP), V))) is lse(SCORES, V) - TOP


def test_softmax_with_and_without_the_maximum():
    want = make("exp_sub", SCORES, lse(SCORES, V))
    e, shifted = exp(SCORES), exp(SCORES - TOP)
    assert one(e / sum_(e, V)) is want
    assert one(shifted / sum_(shifted, V)) is want
    assert one(exp(make("sub_lse", SCORES, lse(SCORES, V)))) is want


def test_log_softmax_spellings():
    want = make("sub_lse", SCORES, lse(SCORES, V))
    shifted = SCORES - TOP
    assert one(SCORES - log(sum_(exp(SCORES), V))) is want
    assert one(shifted - log(sum_(exp(shifted), V))) is want
    e = exp(SCORES)
    assert one(log(e / sum_(e, V))) is want


@pytest.mark.parametrize("x", [
    exp(SCORES) / sum_(exp(OTHER), V),                         # another operand
    exp(SCORES - TOP) / sum_(exp(SCORES), V),                  # the offset on one side only
    SCORES - lse(OTHER, V),
    log(sum_(exp(SCORES) * 2.0, V)),                           # a weight inside
    log(sum_(exp(SCORES), N, V)),                              # two axes at once
], ids=["operand", "offset", "lse-operand", "weight", "two-axes"])
def test_near_misses_of_softmax(x):
    found = one(x)
    over_v = [e for e in [found, *found.args] if e.op in ("exp_sub", "sub_lse") and e.args[1]["axes"] == (V,)]
    assert not over_v
    assert found.op not in ("lse",)


def test_softmax_over_the_other_axis_keeps_its_axis():
    e = exp(SCORES)
    assert one(e / sum_(e, N)).args[1]["axes"] == (N,)


def test_one_hot_sums_are_picks():
    hot = make("eq", iota(V), LABEL)
    want = make("pick", SCORES, LABEL, axis=V)
    assert one(sum_(where(hot, SCORES, 0), V)) is want
    assert one(sum_(make("cast", hot, dtype="float32") * SCORES, V)) is want
    assert one(sum_(SCORES * make("cast", make("cast", hot, dtype="int64"), dtype="float32"), V)) is want


def test_a_product_with_a_written_infinity_is_not_a_pick():
    hot = make("cast", make("eq", iota(V), LABEL), dtype="float32")
    masked = where(make("lt", iota(V), const(30, "int64")), SCORES, const(-math.inf, "float32"))
    assert one(sum_(hot * masked, V)).op == "sum"


@pytest.mark.parametrize("condition", [make("le", iota(V), LABEL), make("eq", iota(N), LABEL)], ids=["le", "other-axis"])
def test_near_misses_of_a_one_hot(condition):
    assert one(sum_(where(condition, SCORES, 0), V)).op == "sum"


def test_an_index_that_varies_along_the_axis_is_not_a_pick():
    labels = make("read", iota(V), buffer=Buffer("t", "int64", (V.extent,)))
    assert one(sum_(where(make("eq", iota(V), labels), SCORES, 0), V)).op == "sum"
