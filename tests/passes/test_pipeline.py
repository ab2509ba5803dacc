"""How many regions and sweeps a loss takes, and what the backward is left with."""
from __future__ import annotations

from dataclasses import replace

import pytest

from fuse.ir.expr import Axis, Buffer, const, dot, iota, lse, make, read, reduce_, sum_, topological, where
from fuse.ir.ops import LEAVES, OPS, boolean, integer_
from fuse.ir.program import Kind, Output, Program, Slab, Term
from fuse.ir.size import Size
from fuse.passes import Context, Plan, compile_program
from fuse.passes.differentiate import LOCALLY_CONSTANT
from tests.passes.builders import LABEL, SCORES, SIZES, N, V, cross_entropy, log_softmax, pick, plan, program, softmax, sweeps

P, LOGP, L = softmax(), log_softmax(), lse(SCORES, V)
ENTROPY = -sum_(P * LOGP, V)


def softmax_of_columns():
    return make("exp_sub", SCORES, lse(SCORES, N))


def power(x, q):
    return make("pow", x, const(q, "float32"))


def test_a_scalar_loss_is_one_region_of_two_sweeps_and_an_empty_backward():
    p = plan(cross_entropy())
    assert sweeps(p.forward) == [2] and sweeps(p.backward) == []
    assert len(p.handed_over) == 2


@pytest.mark.parametrize("elements, rows, staged", [(0, 0, True), (-1, 0, False), (0, 1, False)])
def test_gradients_join_the_forward_where_they_are_small_and_rows_are_many(elements, rows, staged):
    n, v, k = SIZES["N"], SIZES["V"], SIZES["D"]
    p = plan(cross_entropy(), beside=Slab(v * k + elements, n + rows))
    assert (p.backward is None or not p.backward.regions) is staged and sweeps(p.forward) == [2 if staged else 1]


def test_recompute_keeps_the_forward_to_one_sweep():
    p = plan(cross_entropy(), slab=False)
    assert sweeps(p.forward) == [1] and sweeps(p.backward) == [1]
    assert not p.handed_over and len(p.saved) == 2


def test_per_row_cotangents_forbid_the_slab():
    p = plan(L - pick(SCORES))
    assert sweeps(p.forward) == [1] and sweeps(p.backward) == [1] and not p.handed_over


def test_a_weight_that_depends_on_other_rows_forbids_the_slab():
    nll = L - pick(SCORES)
    p = plan(sum_(nll * (nll / sum_(nll, N)), N))
    assert not p.handed_over and sweeps(p.backward) == [1]


def test_two_scalar_outputs_forbid_the_slab():
    p = plan(cross_entropy(), sum_(L * L, N))
    assert not p.handed_over and sweeps(p.forward) == [1] and sweeps(p.backward) == [1]


def test_a_row_factor_of_the_rows_own_statistics_allows_it():
    nll = L - pick(SCORES)
    p = plan(sum_(make("exp", -nll) * nll, N))
    assert len(p.handed_over) == 2 and sweeps(p.forward) == [2]


@pytest.mark.parametrize("value", [
    L - pick(SCORES), -pick(LOGP), ENTROPY, L - sum_(P * SCORES, V), sum_(LOGP, V), sum_(P * P, V),
    sum_(power(P, 0.7), V), pick(P), power(pick(P), 0.7), L * L, make("log", pick(P)),
], ids=["ce", "logp", "entropy", "entropy-lse", "smoothing", "p^2", "p^q", "p_y", "gce", "z", "log p_y"])
def test_one_sweep_forward_one_sweep_backward(value):
    p = plan(value)
    assert sweeps(p.forward) == [1] and sweeps(p.backward) == [1]


def test_statistics_of_one_distribution_share_one_sweep():
    p = plan(cross_entropy(), L * L, ENTROPY, reduce_("argmax", SCORES, V), sum_(SCORES, V))
    assert sweeps(p.forward) == [1] and sweeps(p.backward) == [1]
    assert sum(c.kind is Kind.LSE for c in p.forward.regions[0].carries) == 1


def kinds(p):
    return [[c.kind for c in r.carries] for r in p.regions]


def test_the_position_of_a_maximum_rides_in_the_forward_although_only_its_gradient_asks():
    p = plan(reduce_("max", SCORES, V))
    assert kinds(p.forward) == [[Kind.MAX, Kind.ARGMAX]] and kinds(p.backward) == [[Kind.SUM, Kind.SUM]]
    assert kinds(plan(reduce_("max", SCORES, V), wrt=()).forward) == [[Kind.MAX]], "nobody asks without a gradient"


def test_a_position_that_waits_for_a_statistic_rides_in_the_sweep_after_it():
    far = (P - 0.5) * (P - 0.5)
    assert kinds(plan(reduce_("max", far, V)).forward) == [[Kind.LSE], [Kind.MAX, Kind.ARGMAX]]


def test_two_passes_where_a_constant_stands_in_the_way():
    p = plan(sum_(make("log", P + 1e-3), V))
    assert sweeps(p.forward) == [2]                   # of rows that are still at hand
    assert sweeps(plan(sum_(make("log", P + 1e-3), V), slab=False).forward) == [1, 1]
    assert {m.code for m in p.notes} == {"NOT_SEPARABLE"}


@pytest.mark.parametrize("body", [
    make("log", P * sum_(L, N) + 1e-3),                  # of all rows
    make("log", P + softmax_of_columns()),               # of the columns
], ids=["all rows", "columns"])
def test_a_sum_that_waits_for_other_rows_takes_a_sweep_of_its_own(body):
    assert 2 not in sweeps(plan(sum_(body, V), wrt=()).forward)


def test_a_maximum_that_waits_for_its_rows_takes_a_sweep_of_its_own():
    assert sweeps(plan(reduce_("max", make("log", P + 1e-3), V), wrt=()).forward) == [1, 1]


def test_gradients_of_one_scalar_whatever_the_tail_makes_of_the_rows():
    """Conditions and products of row values: the loss's cotangent is no part of them."""
    ratio = make("exp", pick(LOGP))
    tail = make("minimum", ratio * 0.3, where(make("lt", ratio, const(0.8, "float32")), 0.8, ratio)) + ENTROPY * ratio
    p = plan(sum_(tail, N))
    assert sweeps(p.forward) == [2] and sweeps(p.backward) == []
    for output in p.backward.outputs:
        assert any(e.op == "read" and e["buffer"].name == "ct.out0" for t in output.terms for e in topological([t.value]))


def test_frozen_head_and_frozen_input():
    assert [o.gradient_of for o in plan(cross_entropy(), wrt=("x0",)).backward.outputs] == ["x0"]
    assert [o.gradient_of for o in plan(cross_entropy(), wrt=("x1",)).backward.outputs] == ["x1"]
    assert plan(cross_entropy(), wrt=()).backward is None


def test_without_a_shared_sweep_each_gradient_has_its_region():
    p = plan(L - pick(SCORES), shared_sweep=False)
    assert sweeps(p.backward) == [1, 1]
    assert [r.streams for r in p.backward.regions] == [(V,), (N,)]


def canonical(value):
    """The carries of the forward without their names."""
    (region,) = plan(sum_(value, N)).forward.regions
    lse = next(c.name for c in region.carries if c.kind is Kind.LSE)
    return [(c.kind, c.level, c.over, str(c.body).replace(f'"{lse}.', '"L.')) for c in region.carries]


def test_spellings_of_the_same_meaning_have_the_same_bodies():
    hot = make("cast", make("eq", make("iota", axis=V), make("bounded", LABEL, axis=V)), dtype="float32")
    first, *others = map(canonical, [
        L - pick(SCORES), -pick(LOGP), -sum_(hot * LOGP, V), -make("log", pick(P)),
        make("log", sum_(make("exp", SCORES), V)) - pick(SCORES)])
    for other in others:
        assert other == first


def test_what_a_float_may_depend_on_has_a_derivative():
    """The ops without one take integers or booleans alone, are leaves, or are constant wherever they are smooth."""
    for name, op in OPS.items():
        typed = op.type_rule in (boolean, integer_)
        assert op.vjp or typed or name in LEAVES or name in LOCALLY_CONSTANT, name


def attention(*batched: str, bias: bool = False, wrt: tuple[str, ...] = ("q", "k", "v"), **options: bool) -> Plan:
    """softmax(q k [+ bias]) v of which the operands named have a batch axis."""
    b, i, j, d, e = (Axis(n, Size.of(k)) for n, k in (("b", 2), ("i", 7), ("j", 9), ("d", 4), ("e", 3)))
    named = {n: [b, *own] if n in batched else own for n, own in (("q", [i, d]), ("k", [j, d]), ("v", [j, e]))}
    q, k, v = (Buffer(n, "float32", tuple(a.extent for a in axes)) for n, axes in named.items())
    s = dot(read(q, *named["q"]), read(k, *named["k"]), d)
    anchor, r = s, Buffer("r", "float32", (i.extent, j.extent))
    s = s + read(r, i, j) if bias else s
    out = dot(make("exp_sub", s, lse(s, j)), read(v, *named["v"]), j)
    output = Output(Buffer("out", "float32", tuple(a.extent for a in (b, i, e))), (Term((iota(b), iota(i), iota(e)), out),))
    inputs = (q, k, v, r) if bias else (q, k, v)
    return compile_program(Program(inputs, (output,), anchors=(anchor,)), Context(wrt=wrt, **options))


def test_gradients_of_a_batched_contraction_share_a_sweep():
    (region,) = attention("q", "k", "v").backward.regions
    assert len(region.carries) == 3 and len({c.over for c in region.carries}) == 2


def test_an_axis_of_one_operand_alone_is_no_batch():
    for region in attention("q", "v").backward.regions:
        assert not {"i", "j"} <= {a.name for c in region.carries for a in c.over if len(c.over) == 1}


def over(region):
    return sorted("".join(a.name for a in c.over) for c in region.carries)


def test_the_gradient_of_a_bias_that_a_batch_shares_joins_the_others():
    p = attention("q", "k", "v", bias=True, wrt=("q", "k", "v", "r"))
    (region,) = p.backward.regions
    assert over(region) == ["b", "i", "i", "j"]
    (bias,) = [c for c in region.carries if [a.name for a in c.over] == ["b"]]
    assert [a.name for a in bias.axes] == ["i", "j"]           # as it is returned


def test_such_a_gradient_alone_walks_the_columns():
    (region,) = attention("q", "k", "v", bias=True, wrt=("r",)).backward.regions
    assert over(region) == ["b"] and [a.name for a in region.streams] == ["j"]


def test_it_stays_apart_where_nothing_may_accumulate_over_the_grid():
    for region in attention("q", "k", "v", bias=True, wrt=("q", "r"), shared_sweep=False).backward.regions:
        assert {a for c in region.carries for a in c.over} == set(region.streams)


def test_what_only_the_queries_have_is_no_batch_for_a_bias():
    (region,) = [r for r in attention("q", bias=True, wrt=("q", "r")).backward.regions if over(r) == ["b"]]
    assert [a.name for a in region.streams] == ["b"]


def biased(slab: bool = True) -> Plan:
    """A head with a bias."""
    bias = Buffer("x3", "float32", (V.extent,))
    s = SCORES + read(bias, V)
    given = program(cross_entropy(s))
    return compile_program(replace(given, inputs=(*given.inputs, bias)), Context(hints=SIZES, wrt=("x0", "x1", "x3"), slab=slab))


def test_the_gradient_of_a_heads_bias_takes_no_sweep_of_its_own():
    assert sweeps(biased().forward) == [2] and len(biased().handed_over) == 3
    assert sweeps(biased(slab=False).backward) == [1]


def test_a_statistic_of_columns_is_no_plain_sum():
    """Of rows and of columns, each relative to its own maximum: two regions."""
    p = plan(lse(SCORES, V), lse(SCORES, N), wrt=())
    assert sweeps(p.forward) == [1, 1]
