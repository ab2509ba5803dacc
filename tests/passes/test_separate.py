"""What may join the sweep of its own statistics, and what may not."""
from __future__ import annotations

import pytest

from fuse.ir.expr import Axis, Buffer, const, dot, iota, lse, make, read, topological, where
from fuse.ir.size import Size
from fuse.passes.separate import separate
from fuse.reasons import Miss
from tests.passes.builders import LABEL, SCORES, N, V, log_softmax, softmax

L = lse(SCORES, V)


def split(body):
    return separate(body, (V,), [L], lambda x: L in topological([x]))


def kinds(body):
    found = split(body)
    assert not isinstance(found, Miss), found
    return {(m.exponent, m.moment) for m in found.moments if m is not None}


def power(x, q):
    return make("pow", x, const(q, "float32"))


P, LOGP = softmax(), log_softmax()


@pytest.mark.parametrize("body, want", [
    (P * SCORES, {(1, 0)}),
    (P * LOGP, {(1, 1)}),                                   # entropy: powers of the distance stay whole
    (P * LOGP * LOGP, {(1, 1), (1, 2)}),
    (P * P, {(2, 0)}),
    (power(P, 0.7), {(0.7, 0)}),
    (make("sqrt", P), {(0.5, 0)}),
    (LOGP, {(0, 1)}),                                       # label smoothing
    (P * 3.0 + SCORES, {(0, 0)}),                           # sum p is 1: nothing to accumulate for it
    ((P - 0.5) * (P - 0.5), {(2, 0)}),
], ids=["p*s", "p*logp", "p*logp^2", "p^2", "p^.7", "sqrt", "logp", "mixed", "brier"])
def test_separable(body, want):
    assert kinds(body) == want


@pytest.mark.parametrize("body", [
    make("log", P + 1e-8),                                  # a user's constant is never dropped
    make("maximum", P, const(1e-3, "float32")),
    make("log", 1.0 - P),
    1.0 / P,                                                # grows
    power(P, -0.5),
    make("exp_sub", SCORES * 2.0, L),                       # another operand: exp(m) would overflow
    make("exp", LOGP * 2.0),                                # not an algebraic function of p as it stands
    make("tanh", P),
], ids=["log-eps", "clamp", "log1-p", "1/p", "p^-.5", "operand", "exp", "tanh"])
def test_not_separable(body):
    found = split(body)
    assert isinstance(found, Miss) and found.code == "NOT_SEPARABLE"


K2 = Axis("k2", Size.of(3))
ROWS, COLUMNS = (read(Buffer(name, "float32", (a.extent, K2.extent)), a, K2) for name, a in (("T", N), ("U", V)))
OTHER = dot(ROWS, COLUMNS, K2)
M = lse(OTHER, V)
Q, LOGQ = make("exp_sub", OTHER, M), make("sub_lse", OTHER, M)
SHOWN = make("lt", iota(V), const(5, "int64"))


def split_two(body):
    return separate(body, (V,), [L, M], lambda x: bool({L, M} & set(topological([x]))))


@pytest.mark.parametrize("body, count", [
    (P * (LOGP - LOGQ), 1),                                 # a divergence: one sum of differences
    (Q * (LOGQ - LOGP) + P * (LOGP - LOGQ), 2),             # both ways
    (P * LOGQ, 1),                                          # soft targets made by a model
    (P * (LOGP - LOGQ) * 3.0 + P * SCORES, 2),
], ids=["kl", "jeffreys", "cross", "and another"])
def test_the_weight_of_one_distribution_meets_the_distance_of_another(body, count):
    found = split_two(body)
    assert not isinstance(found, Miss), found
    weighed = [m for m in found.moments if m is not None]
    assert len(weighed) == count and all((m.exponent, m.moment) == (1, 0) for m in weighed)


@pytest.mark.parametrize("body", [
    P * LOGQ * LOGQ,                                        # a square would cancel
    P * Q,                                                  # two maxima
    where(SHOWN, P * (LOGP - LOGQ), 0),                     # what is hidden may be -inf
    P * LOGP * LOGQ,
], ids=["square", "two weights", "masked", "two distances"])
def test_what_two_distributions_may_not_share_a_sweep_for(body):
    found = split_two(body)
    assert isinstance(found, Miss) and found.code == "NOT_SEPARABLE"


def test_row_values_stand_in_the_coefficient():
    row = make("cast", LABEL, dtype="float32")
    found = split(P * SCORES * row)
    assert [m.body for m in found.moments] == [SCORES]
