"""Expressions: interning, types, broadcasting by name, rewriting."""

from __future__ import annotations

import gc
import math

import pytest

from fuse.ir.expr import (
    Axis,
    Buffer,
    IRError,
    cast,
    const,
    dot,
    iota,
    lse,
    make,
    read,
    rebuild,
    rename_axes,
    rewrite,
    size,
    substitute,
    sum_,
    topological,
    where,
)
from fuse.ir.size import Size

t, u, v, d = (Axis(n, Size.of(n.upper())) for n in "tuvd")
X = Buffer("X", "float32", (t.extent, d.extent))
Y = Buffer("Y", "int64", (t.extent,))
x, y = read(X, t, d), read(Y, t)


def test_equal_expressions_are_one_object():
    assert read(X, t, d) is x
    assert x + 1 is x + 1.0
    assert dot(x, read(X, u, d), d) is dot(read(X, t, d), read(X, u, d), d)


def test_constants_that_compare_equal_stay_apart():
    nodes = [const(1, "float32"), const(1, "float64"), const(1, "int64"), const(True, "bool"), const(1, "complex64")]
    assert len(set(nodes)) == len(nodes)
    assert const(0.0, "float32") is not const(-0.0, "float32")
    assert const(math.nan, "float32") is const(math.nan, "float32")


def test_interning_does_not_keep_expressions_alive():
    from fuse.ir.expr import _interned

    gc.collect()
    before = len(_interned)
    make("exp", x + 123.5)
    gc.collect()
    assert len(_interned) == before


def test_broadcasting_is_by_name():
    product = x * read(X, u, d)
    assert product.axes == (t, d, u)
    assert sum_(product, d).axes == (t, u)
    assert cast(y, "float32").axes == (t,)
    assert (iota(t) + iota(u)).axes == (t, u)
    assert make("pick", x, y, axis=d).axes == (t,)
    assert make("argmax", x, axes=(d,)).dtype == "int64"


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: make("nonsense", x), "unknown op"),
        (lambda: make("add", x), "takes 2 arguments"),
        (lambda: x + cast(x, "float64"), "one dtype"),
        (lambda: make("exp", y), "floating-point"),
        (lambda: x * read(Buffer("Z", "float32", (Size.of(3),)), Axis("d", Size.of(3))), "two extents"),
        (lambda: lse(x, v), "cannot reduce"),
        (lambda: make("complex", cast(x, "float16"), cast(x, "float16")), "no complex numbers"),
        (lambda: sum_(make("eq", x, x), d), "cannot sum booleans"),
        (lambda: make("not", x), "booleans"),
        (lambda: make("mod", x, x), "integers"),
        (lambda: where(x, x, x), "must be bool"),
        (lambda: read(X, t), "2 dimensions"),
        (lambda: read(X, t, x), "int64"),
        (lambda: make("pick", x, iota(d), axis=d), "constant along"),
        (lambda: make("pick", x, x, axis=d), "int64"),
        (lambda: make("scan", x, x, axis=v, reverse=False), "not an axis"),
        (lambda: make("complex", x, cast(x, "float64")), "one dtype"),
    ],
)
def test_bad_expressions_are_refused(build, message):
    with pytest.raises(IRError, match=message):
        build()


def test_sums_over_foreign_axes_multiply():
    assert sum_(x, v, d).axes == (t,)


def test_size_is_a_constant_where_it_is_one():
    assert size(3) is const(3, "int64")
    assert size(Size.of("T")).op == "size"


def test_topological_order():
    e = (x + 1) * (x + 1) + x
    order = topological([e, x])
    assert len(order) == len(set(order)) and order[-1] is e
    assert all(order.index(a) < order.index(n) for n in order for a in n.args)
    assert topological([e], {x + 1})[0] is x + 1


def test_rewriting():
    e = make("exp", x + 1) * (x + 1)
    doubled = rewrite([e], lambda n: make("neg", n) if n.op == "exp" else None)[0]
    assert doubled is -make("exp", x + 1) * (x + 1)
    assert substitute(e, {x: x * 2.0}) is make("exp", x * 2.0 + 1) * (x * 2.0 + 1)
    assert rewrite([e], lambda _: None)[0] is e
    assert rebuild(sum_(x, d), [x], axes=(t,)) is sum_(x, t)


def test_axes_are_renamed_simultaneously():
    e = sum_(read(X, t, d) * cast(iota(u), "float32"), d)
    swapped = rename_axes([e], {"t": Axis("u", t.extent), "u": Axis("t", u.extent)})[0]
    assert [a.name for a in swapped.axes] == ["u", "t"]
    assert swapped.axes[0].extent == t.extent


def test_attributes():
    assert sum_(x, d)["axes"] == (d,)
    with pytest.raises(KeyError, match="nothing"):
        x["nothing"]
