"""A dot of a statistic the program holds replaces a sweep; one it does not hold is not introduced."""
from __future__ import annotations

from fuse.ir.expr import Axis, Buffer, dot, lse, make, read, sum_
from fuse.ir.size import Size
from fuse.passes.reassociate import reassociate
from fuse.passes.simplify import simplify

I, J, D, E = (Axis(n, Size.of(k)) for n, k in (("i", 7), ("j", 9), ("d", 3), ("e", 4)))


def tensor(name, *axes):
    return read(Buffer(name, "float32", tuple(a.extent for a in axes)), *axes)


Q, K, V, G = tensor("q", I, D), tensor("k", J, D), tensor("v", J, E), tensor("g", I, E)
P = make("exp_sub", dot(Q, K, D), lse(dot(Q, K, D), J))
OUT = dot(P, V, J)
STATISTIC = sum_(P * dot(G, V, E), J)


def test_the_softmax_backward_reads_its_own_output():
    out, statistic = simplify([OUT, STATISTIC])
    _, done = reassociate([out, statistic])
    assert done is simplify([sum_(G * out, E)])[0]


def test_nothing_new_is_introduced():
    (statistic,) = simplify([STATISTIC])
    assert reassociate([statistic]) == [statistic]


def test_another_weight_is_another_sum():
    out, statistic = simplify([OUT, sum_(P * P * dot(G, V, E), J)])
    assert reassociate([out, statistic])[1] is statistic


def test_a_factor_along_the_inner_axis_forbids_it():
    out, inner = simplify([OUT, sum_(P * dot(G, V, E), I)])
    assert reassociate([out, inner])[1] is inner
