"""Products with a vector become sums; products of matrices, and of tiles of rows and columns, stay."""
from __future__ import annotations

from types import SimpleNamespace

from fuse.codegen.cpu.thin import _Thin
from fuse.codegen.tile import Dot, Level, Point, Reduce, Statement, Update, Value
from fuse.ir.program import Kind


def value(number: int, *dims: str) -> Value:
    return Value(number, dims, "float32")


def thinned(body: list[Statement], updates: tuple[Update, ...] = ()) -> Level:
    program = SimpleNamespace(defines=dict.fromkeys(range(20)), levels=())
    return _Thin(program).level(Level((), tuple(body), updates, ()))  # type: ignore[arg-type]


MATRIX, VECTOR, OTHER, TILE = value(0, "col", "i3"), value(1, "i3"), value(2, "i3", "i4"), value(3, "row", "col", "i3")


def test_a_matrix_and_a_vector():
    product, total = thinned([Dot(value(9, "col"), MATRIX, VECTOR, ("i3",))]).body
    assert isinstance(product, Point) and (product.op, product.args, product.out.dims) == ("mul", (MATRIX, VECTOR), ("col", "i3"))
    assert total == Reduce(value(9, "col"), "sum", product.out, ("i3",))


def test_two_matrices_and_whole_tiles_stay_products():
    wide, crowded = Dot(value(9, "col", "i4"), MATRIX, OTHER, ("i3",)), Dot(value(10, "row", "col"), TILE, VECTOR, ("i3",))
    assert thinned([wide, crowded]).body == (wide, crowded)


def test_equal_products_are_one_but_not_those_over_other_axes():
    first, turned = Dot(value(9, "col", "i4"), MATRIX, OTHER, ("i3",)), Dot(value(10, "col", "i4"), OTHER, MATRIX, ("i3",))
    reader = Point(value(11, "col", "i4"), "neg", (turned.out,))
    assert thinned([first, turned, reader]).body == (first, Point(reader.out, "neg", (first.out,)))
    other = Dot(value(12, "col", "i3"), MATRIX, OTHER, ("i4",))
    assert other in thinned([first, other]).body


def test_a_vector_that_is_summed_against_a_matrix():
    weight = value(4, "col")
    level = thinned([], (Update("c0", Kind.SUM, weight, MATRIX, ("col",)),))
    (update,) = level.updates
    assert update.wide is None and update.value == level.body[-1].out and update.value.dims == ("col", "i3")


def test_a_relative_sum_and_a_filtered_one_stay():
    weight = value(4, "col")
    relative = Update("c1", Kind.SUM, weight, MATRIX, ("col",), relative="c0", operand=weight)
    filtered = Update("c2", Kind.SUM, weight, MATRIX, ("col",), limit=value(5))
    assert thinned([], (relative, filtered)).updates == (relative, filtered)
