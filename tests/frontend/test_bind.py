"""Sizes that no input shows are renamed to sizes that one does, or refused."""
from __future__ import annotations

import pytest

from fuse.frontend.bind import bind_sizes
from fuse.ir.expr import Axis, Buffer, cast, read, size, sum_, topological
from fuse.ir.program import Output, Program, Term
from fuse.ir.size import Size
from fuse.ir.verify import verify
from fuse.reasons import Refused

s, t = Size.symbol("s"), Size.symbol("t")


def mean(extent: Size, shape: Size, hints=(("s", 4), ("t", 3))) -> Program:
    n = Axis("n", extent)
    x = Buffer("x0", "float32", (shape,))
    value = sum_(read(x, n), n) / cast(size(extent), "float32")
    return Program((x,), (Output(Buffer("out0", "float32", ()), (Term((), value),)),), hints=hints)


def test_a_size_that_stands_alone_is_kept() -> None:
    program = mean(s, s)
    assert bind_sizes(program) is program


def test_a_shifted_size_is_solved() -> None:
    bound = bind_sizes(mean(s + 1, s + 1))
    verify(bound)
    assert str(bound.inputs[0].shape) == "(n0,)" and dict(bound.hints)["n0"] == 5
    assert all("s" not in e.symbols for node in topological(bound.roots()) for a in node.axes for e in (a.extent,))


def test_a_product_is_renamed() -> None:
    bound = bind_sizes(mean(s * t, s * t))
    assert str(bound.inputs[0].shape) == "(n0,)" and dict(bound.hints)["n0"] == 12


def test_a_name_that_is_no_identifier_is_renamed() -> None:
    half = Size.symbol("(s//2)")
    assert str(bind_sizes(mean(half, half)).inputs[0].shape) == "(n0,)"


@pytest.mark.parametrize("extent, shape", [(s, s * t), (t, s), (s * s, s + s)], ids=str)
def test_a_size_that_no_input_shows_is_refused(extent: Size, shape: Size) -> None:
    with pytest.raises(Refused) as refused:
        bind_sizes(mean(extent, shape))
    assert refused.value.miss.code == "UNBOUND_SIZE"
