"""Extents are polynomials: arithmetic agrees with integers, and `nonnegative` never claims what fails."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuse.ir.size import Size, product

SYMBOLS = ("T", "B", "H")
monomials = st.lists(st.sampled_from(SYMBOLS), max_size=3).map(lambda m: tuple(sorted(m)))
sizes = st.dictionaries(monomials, st.integers(-5, 5), max_size=4).map(Size)
values = st.fixed_dictionaries({s: st.integers(1, 9) for s in SYMBOLS})


@given(sizes, sizes, values)
def test_arithmetic_is_that_of_the_values(a: Size, b: Size, at: dict[str, int]):
    assert (a + b).evaluate(at) == a.evaluate(at) + b.evaluate(at)
    assert (a - b).evaluate(at) == a.evaluate(at) - b.evaluate(at)
    assert (a * b).evaluate(at) == a.evaluate(at) * b.evaluate(at)
    assert (3 - a).evaluate(at) == 3 - a.evaluate(at)


@given(sizes, sizes)
def test_equal_polynomials_are_equal_objects(a: Size, b: Size):
    assert a + b == b + a and hash(a + b) == hash(b + a)
    assert a - a == 0 and (a - a).constant == 0


@given(sizes, values)
def test_nonnegative_is_sound(a: Size, at: dict[str, int]):
    assert not a.nonnegative() or a.evaluate(at) >= 0


def test_nonnegative_proves_the_usual_bounds():
    t, b = Size.of("T"), Size.of("B")
    assert (t - 1).nonnegative() and (t * b - t).nonnegative()
    assert not (t - 2).nonnegative() and not (t - b).nonnegative()


@given(sizes, monomials, st.integers(-4, 4).filter(bool))
def test_exact_division(a: Size, monomial: tuple[str, ...], coefficient: int):
    divisor = Size({monomial: coefficient})
    assert (a * divisor).divided_by(divisor) == a


def test_inexact_division_is_refused():
    t = Size.of("T")
    assert (t + 1).divided_by(t) is None
    assert Size.of(7).divided_by(2) is None
    assert (t * 3).divided_by(Size.of("B")) is None
    assert (t + 1).divided_by(t + 1) == 1
    assert (t + 2).divided_by(t + 1) is None


def test_constants_symbols_and_text():
    t = Size.of("T")
    assert Size.of(4).constant == 4 and t.constant is None and product([]) == 1
    assert (t * 2 + 1).symbols == {"T"}
    assert str(t * t * 2 - t - 1) == "2*T*T-1*T-1"
    assert str(Size({})) == "0"


def test_a_missing_symbol_is_named():
    with pytest.raises(KeyError, match="T"):
        Size.of("T").evaluate({})
