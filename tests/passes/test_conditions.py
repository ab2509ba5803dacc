"""Predicates in one form, and what must keep its own."""
from __future__ import annotations

import pytest

from fuse.ir.expr import Axis, Buffer, cast, const, iota, make, read, size, where
from fuse.ir.size import Size
from fuse.passes.simplify import simplify

I, J = Axis("i", Size.of("T")), Axis("j", Size.of("T"))
i, j = iota(I), iota(J)
X, Y = read(Buffer("x", "float32", (I.extent,)), I), read(Buffer("y", "float32", (I.extent,)), I)
CAUSAL = make("le", j, i)


def whole(n):
    return const(n, "int64")


@pytest.mark.parametrize("before, after", [
    (make("le", j - i, whole(0)), CAUSAL),
    (make("le", whole(0), i - j), CAUSAL),
    (make("not", make("lt", i, j)), CAUSAL),
    (make("lt", i - j, whole(4)), make("lt", i, j + whole(4))),
    (make("le", j - size(Size.of("T")), i), make("le", j, i + size(Size.of("T")))),
    (make("lt", whole(3), whole(2)), const(False, "bool")),
    (make("eq", where(CAUSAL, const(1.0, "float32"), const(0.0, "float32")), const(0.0, "float32")), make("lt", i, j)),
    (make("ne", cast(CAUSAL, "float32"), const(0.0, "float32")), CAUSAL),
    (make("ne", where(CAUSAL, const(2.0, "float32"), const(3.0, "float32")), const(0.0, "float32")), const(True, "bool")),
    (make("and", const(True, "bool"), CAUSAL), CAUSAL),
    (make("or", const(True, "bool"), CAUSAL), const(True, "bool")),
    (make("or", CAUSAL, CAUSAL), CAUSAL),
    (where(make("not", make("lt", X, Y)), X, Y), where(make("lt", X, Y), Y, X)),
])
def test_one_form(before, after):
    assert simplify([before]) == simplify([after])
    assert simplify([after])[0] is after or before is not after


@pytest.mark.parametrize("one, other", [
    (make("le", j, i), make("lt", j, i)),
    (make("le", j, i), make("le", i, j)),
    (make("lt", i - j, whole(4)), make("lt", j - i, whole(4))),
    (make("not", make("lt", X, Y)), make("le", Y, X)),           # nan makes both comparisons false
    (make("ne", X, const(0.0, "float32")), const(True, "bool")),
    (make("and", const(True, "bool"), CAUSAL), const(True, "bool")),
])
def test_what_differs_stays_different(one, other):
    assert simplify([one]) != simplify([other])
