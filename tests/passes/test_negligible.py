"""Which gradients carry an eps and a scale, and what the scale is."""
from __future__ import annotations

import pytest
import torch

from fuse.ir.evaluate import evaluate
from fuse.ir.expr import Buffer, Expr, cast, const, dot, lse, make, read, reads_of, sum_, where
from fuse.ir.program import Carry, Output, Program, Term
from fuse.ir.reference import run, run_steps
from fuse.ir.text import parse_program, print_program
from fuse.passes import Context, Plan, compile_program
from fuse.passes.negligible import AUTO, scale_of
from tests.passes.builders import LABEL, SCORES, SIZES, D, N, V, W, cross_entropy, log_softmax, plan, softmax

EPS = 2.0 ** -10
G = read(Buffer("g", "float32", (N.extent,)), N)
CT = read(Buffer("ct", "float32", (N.extent,)), N)
ONEHOT = make("eq", make("iota", axis=V), LABEL)
P = softmax()


def filtered(p: Plan) -> list[Carry]:
    parts = [part for part in (p.forward, p.backward) if part is not None]
    return [c for part in parts for r in part.regions for c in r.carries if c.eps is not None]


def scale(ds: Expr, cotangents: tuple[str, ...] = ("ct",)) -> Expr | None:
    return scale_of(ds * read(W, V, D), [D], [N], cotangents)


# ---- the scale ------------------------------------------------------------------------------------------------------

def absolute(x: Expr) -> Expr:
    return make("abs", x)


@pytest.mark.parametrize("ds, wanted", [
    (G * P - where(ONEHOT, G, 0), absolute(G)),
    (P - cast(ONEHOT, "float32"), const(1, "float32")),
    ((G * P - where(ONEHOT, G, 0)) * (const(1, "float32") - make("tanh", SCORES) * make("tanh", SCORES)), absolute(G)),
    (G * P - where(ONEHOT, G, 0) * 0.5, make("maximum", absolute(G), absolute(G) * 0.5)),
    (-(G * P) / 13.0, None),
    (where(make("ne", LABEL, const(-100, "int64")), G * P, 0),
     where(make("ne", LABEL, const(-100, "int64")), absolute(G), 0)),
    (CT * P, absolute(CT)),
], ids=["softmax", "bare", "softcap", "smoothing", "mean", "masked", "cotangent"])
def test_the_scale_is_the_largest_row_factor(ds, wanted):
    found = scale(ds)
    assert found is not None and set(found.axes) <= {N}
    if wanted is not None:
        assert found is wanted
        return
    g = torch.tensor([3.0, -5.0])
    value = evaluate(found, {"g": g}, {"N": 2})
    torch.testing.assert_close(value, g.abs() / 13)


def test_a_cotangent_below_a_function_has_no_scale():
    """sum_d ct[n, d] v[v, d] is not a row factor times something else: nothing may be left out beside it."""
    ct = Buffer("ct", "float32", (N.extent, D.extent))
    mixed = dot(read(ct, N, D), read(W, V, D), D)
    assert scale(P * mixed) is None and scale(P * make("tanh", CT * SCORES)) is None
    assert scale(P * mixed, cotangents=()) is not None


# ---- where it is attached -------------------------------------------------------------------------------------------

@pytest.mark.parametrize("slab", [True, False])
def test_both_gradients_share_one_scale_and_nothing_else_has_one(slab):
    p = plan(cross_entropy(), slab=slab, eps=EPS)
    carries = filtered(p)
    assert len(carries) == 2 and {c.eps for c in carries} == {EPS} and len({c.scale for c in carries}) == 1
    assert all(D in c.axes for c in carries)
    off = plan(cross_entropy(), slab=slab)
    assert not filtered(off)
    for part in (p.forward, p.backward):
        again = parse_program(print_program(part))
        assert again == part and all(a is b for a, b in zip(again.roots(), part.roots(), strict=True))


def test_the_rows_are_those_of_the_loss_even_where_they_are_streamed():
    p = plan(cross_entropy(), slab=False, wrt=("x1",), eps=EPS)
    (carry,) = filtered(p)
    assert p.backward.regions[0].streams == (N,) == carry.scale.axes


@pytest.mark.parametrize("dtype", AUTO)
def test_auto_goes_by_the_type_of_the_operands(dtype):
    h, w = Buffer("x0", dtype, (N.extent, D.extent)), Buffer("x1", dtype, (V.extent, D.extent))
    wide = "float64" if dtype == "float64" else "float32"
    s = dot(cast(read(h, N, D), wide), cast(read(w, V, D), wide), D)
    loss = sum_(lse(s, V) - make("pick", s, LABEL, axis=V), N)
    y = Buffer("x2", "int64", (N.extent,))
    p = compile_program(Program((h, w, y), (Output(Buffer("out0", wide, ()), (Term((), loss),)),), anchors=(s,)),
                        Context(hints=SIZES, wrt=("x0", "x1"), slab=False, eps="auto"))
    assert {c.eps for c in filtered(p)} == {torch.finfo(getattr(torch, dtype)).eps / 32}


def products(p: Plan) -> list[Carry]:
    """Sums with a width, forward and backward."""
    return [c for part in (p.forward, p.backward) for r in part.regions for c in r.carries if D in c.axes]


def test_forward_sums_and_what_opaque_cotangents_reach_stay_exact():
    """sum_v p[n, v] W[v, d] as an output: its cotangent has a width. It enters dS through a dot, which has no scale; where
    p itself is multiplied by it, p is what is judged."""
    p = plan(sum_(softmax() * read(W, V, D), V), eps=EPS)
    (carry,) = filtered(p)
    assert len(products(p)) >= 3 and carry not in [c for r in p.forward.regions for c in r.carries]
    assert carry.scale is const(1, "float32") and "ct.out0" in {e["buffer"].name for e in reads_of([carry.body.args[1]])}


def test_two_softmaxes_across_have_no_rows():
    columns = make("sub_lse", SCORES, lse(SCORES, N))
    both = sum_(make("pick", log_softmax(), LABEL, axis=V), N) + sum_(where(ONEHOT, columns, 0), N, V)
    p = plan(both, eps=EPS)
    assert len(products(p)) >= 2 and not filtered(p)


def test_the_reference_leaves_nothing_out():
    env = {"x0": torch.randn(13, 5).double(), "x1": torch.randn(37, 5).double(), "x2": torch.randint(0, 37, (13,))}

    def gradients(**options):
        p = plan(cross_entropy(), slab=False, **options)
        stored = run_steps(p.forward, env, SIZES, tile=7)
        given = {**env, "ct.out0": torch.tensor(1.0).double(), **{n: stored[n] for n in p.saved}}
        return run(p.backward, given, SIZES, tile=7)
    exact, found = gradients(), gradients(eps=0.5)
    assert all(torch.equal(exact[n], found[n]) for n in exact)
