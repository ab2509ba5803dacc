"""Linear forms against numbers: whatever a view does to an index, numpy-style unravelling says where the element is."""
from __future__ import annotations

import itertools
import math
import random

import pytest

from fuse.frontend.index import Linear, Split, divide, flatten, linear, reshape, unflatten
from fuse.ir.expr import Axis, Buffer, const, iota, make, read, size
from fuse.ir.size import Size

T, B = Size.symbol("T"), Size.symbol("B")
i, j = Axis("i", Size.of(3)), Axis("j", Size.of(4))


def at(form: Linear, where: dict[str, int], sizes: dict[str, int] | None = None) -> int:
    return form.offset.evaluate(sizes or {}) + sum(c.evaluate(sizes or {}) * where[a.name] for a, c in form.terms)


def test_equal_forms_are_equal_and_print_one_expression() -> None:
    a, b = Linear.of(i) * 2 + 1 + Linear.of(j), Linear.of(j) + Linear.of(i) * 2 + 1
    assert a == b and a.expr() is b.expr()
    assert linear(a.expr()) == a
    assert (a - a).constant == 0


def test_bounds_are_proved_for_all_sizes() -> None:
    t = Linear.of(Axis("t", T))
    assert t.within(T) and (t + 1).within(T + 1)
    assert not (t + 1).within(T) and not (t - 1).within(T)
    assert not Linear.of(read(Buffer("y", "int64", (T,)), iota(Axis("t", T)))).within(T)


def test_divide_takes_apart_what_it_can() -> None:
    b, t = Axis("b", B), Axis("t", T)
    assert divide(Linear.of(b) * T + t, T) == (Linear.of(b), Linear.of(t))
    assert divide(Linear.of(b) * T * 2 + Linear.of(t) * 2 + 1, Size.of(2)) == (Linear.of(b) * T + t, Linear.of(1))
    assert divide(Linear.of(7), Size.of(4)) == (Linear.of(1), Linear.of(3))


def test_divide_asks_for_a_split() -> None:
    n = Axis("n", B * T)
    with pytest.raises(Split) as split:
        divide(Linear.of(n), T)
    assert split.value.axis == n and split.value.inner == T


def test_divide_falls_back_to_integer_arithmetic() -> None:
    n = Axis("n", Size.of(10))
    q, r = divide(Linear.of(n), Size.of(4))       # 10 is no multiple of 4
    assert q.expr().op == "floordiv" and r.expr().op == "mod" and r.within(Size.of(4))
    label = read(Buffer("y", "int64", (Size.of(10),)), n)
    assert divide(Linear.of(label), Size.of(4))[1].expr() is make("mod", label, const(4, "int64"))


def shapes_of(numel: int, rng: random.Random) -> list[int]:
    out = []
    while numel > 1:
        d = rng.choice([k for k in range(1, numel + 1) if numel % k == 0])
        out.append(d)
        numel //= d
        if rng.random() < 0.2:
            out.append(1)
    return out


@pytest.mark.parametrize("seed", range(40))
def test_reshape_finds_the_element(seed: int) -> None:
    rng = random.Random(seed)
    numel = rng.choice([12, 24, 36, 60])
    source, target = shapes_of(numel, rng), shapes_of(numel, rng)
    splits: dict[str, Size] = {}

    def fresh(name: str, extent: Size) -> Linear:
        if extent == 1:
            return Linear()
        if name not in splits:
            return Linear.of(Axis(name, extent))
        inner = splits[name]
        outer = extent.divided_by(inner)
        assert outer is not None
        return fresh(name + "o", outer) * inner + fresh(name + "i", inner)
    for _ in range(12):
        idx = [fresh(f"d{k}", Size.of(e)) for k, e in enumerate(target)]
        try:
            found = reshape(idx, [Size.of(e) for e in source], [Size.of(e) for e in target])
            break
        except Split as split:
            splits[split.axis.name] = split.inner
    axes = sorted({a for x in idx for a in x.axes}, key=lambda a: a.name)
    for point in itertools.product(*(range(a.extent.constant or 0) for a in axes)):
        where = {a.name: p for a, p in zip(axes, point, strict=True)}
        flat = at(flatten(idx, [Size.of(e) for e in target]), where)
        expected = [flat // math.prod(source[k + 1:]) % e for k, e in enumerate(source)]
        if all(x.affine for x in found):
            assert [at(x, where) for x in found] == expected


def test_reshape_leaves_untouched_dimensions_alone() -> None:
    v = Axis("v", Size.symbol("V"))
    idx = [Linear.of(Axis("b", B)), Linear.of(Axis("t", T)), Linear.of(v)]
    flat = reshape(idx, [B * T, v.extent], [B, T, v.extent])
    assert flat == [Linear.of(Axis("b", B)) * T + Axis("t", T), Linear.of(v)]
    assert reshape(flat, [B, T, v.extent], [B * T, v.extent]) == idx


def test_unflatten_of_nothing() -> None:
    assert unflatten(Linear(), []) == [] and flatten([], []) == Linear()


def test_products_of_data_stay_atoms() -> None:
    y = read(Buffer("y", "int64", (T,)), Axis("t", T))
    form = linear(make("add", make("mul", y, y), size(T)))
    assert not form.affine and form.offset == T and form.axes == {Axis("t", T)}
