"""Where the common factor of a gradient goes: into its own backward sweep, and nowhere else."""
from __future__ import annotations

import torch

from fuse.ir.expr import Buffer, Expr, cast, const, dot, lse, make, read, sum_, topological, where
from fuse.ir.program import Output, Program, Term
from fuse.ir.reference import run, run_steps
from fuse.passes import Context, Plan, compile_program
from fuse.passes.scale import scaled
from tests.passes.builders import LABEL, SCORES, SIZES, D, N, V, cross_entropy, plan


def reads(x: Expr) -> set[str]:
    return {e["buffer"].name for e in topological([x]) if e.op == "read"}


def plain_gradients(p: Plan) -> bool:
    """Is every gradient what a carry stores, as it is?"""
    stored = {s for r in p.backward.regions for s in r.stores}
    return all(t.value.op == "read" and reads(t.value) <= stored for o in p.backward.outputs for t in o.terms)


def low(dtype: str) -> Plan:
    """The mean loss of a head whose operands are stored as `dtype`."""
    h, w = Buffer("x0", dtype, (N.extent, D.extent)), Buffer("x1", dtype, (V.extent, D.extent))
    s = dot(cast(read(h, N, D), "float32"), cast(read(w, V, D), "float32"), D)
    loss = sum_(lse(s, V) - make("pick", s, LABEL, axis=V), N) / 13.0
    y = Buffer("x2", "int64", (N.extent,))
    program = Program((h, w, y), (Output(Buffer("out0", "float32", ()), (Term((), loss),)),), anchors=(s,))
    return compile_program(program, Context(hints=SIZES, wrt=("x0", "x1"), slab=False))


def test_a_gradient_is_complete_when_it_is_stored() -> None:
    p = plan(cross_entropy(), slab=False)
    assert plain_gradients(p)
    assert all("ct.out0" not in reads(t.value) for o in p.backward.outputs for t in o.terms)


def test_a_bfloat16_gradient_is_rounded_once() -> None:
    p = low("bfloat16")
    assert plain_gradients(p) and all(c.storage == "bfloat16" for r in p.backward.regions for c in r.carries)


def test_the_factor_of_a_float16_gradient_stays_outside() -> None:
    p = low("float16")
    assert not plain_gradients(p) and all(c.storage is None for r in p.backward.regions for c in r.carries)


def test_the_factor_of_a_slab_stays_outside() -> None:
    p = plan(cross_entropy())
    assert not p.backward.regions
    assert all("ct.out0" in reads(t.value) for o in p.backward.outputs for t in o.terms)


def test_gradients_of_one_sweep_take_what_they_share() -> None:
    """h is scaled before the head: its gradient has one factor more than that of the weight."""
    h, w = Buffer("x0", "float32", (N.extent, D.extent)), Buffer("x1", "float32", (V.extent, D.extent))
    t = Buffer("t", "float32", ())
    s = dot(read(h, N, D) * read(t), read(w, V, D), D)
    loss = sum_(lse(s, V) - make("pick", s, LABEL, axis=V), N) / 13.0
    program = Program((h, w, Buffer("x2", "int64", (N.extent,)), t),
                      (Output(Buffer("out0", "float32", ()), (Term((), loss),)),), anchors=(s,))
    p = compile_program(program, Context(hints=SIZES, wrt=("x0", "x1"), slab=False))
    (region,) = p.backward.regions
    tiles = {c.body.args[0] for c in region.carries}
    assert len(tiles) == 1, "both gradients contract one tile"


def test_rows_that_are_not_counted_have_no_gradient_where_none_is() -> None:
    p = plan(cross_entropy(), slab=False)
    env = {"x0": torch.randn(13, 5).double(), "x1": torch.randn(37, 5).double(), "x2": torch.full((13,), -100)}
    stored = run_steps(p.forward, env, SIZES, tile=7)
    back = run(p.backward, {**env, "ct.out0": torch.tensor(1.0).double(), **{n: stored[n] for n in p.saved}}, SIZES, tile=7)
    assert all(not g.any() for g in back.values())


def test_a_factor_goes_inside_selections_and_once_into_a_square() -> None:
    s, mask = read(Buffer("s", "float32", ())), make("ne", LABEL, const(-100, "int64"))
    assert scaled(where(mask, SCORES, 0), s).args[2] is where(mask, SCORES, 0).args[2]
    square = make("mul", SCORES, SCORES)
    assert sum(e.op == "read" and e["buffer"].name == "s" for e in _paths(scaled(square, s))) == 1
    assert scaled(const(0.0, "float32"), s) == const(0.0, "float32")


def _paths(x: Expr) -> list[Expr]:
    """Every occurrence below x, shared ones as often as they are used."""
    return [x, *(e for a in x.args for e in _paths(a))]
