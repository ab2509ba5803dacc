"""Reductions over joined tensors, in pieces, against the same reductions as a whole."""
from __future__ import annotations

import pytest
import torch

from fuse.frontend.pieces import split_pieces
from fuse.ir.evaluate import evaluate_output
from fuse.ir.expr import Axis, Buffer, Expr, const, iota, make, read, reduce_, topological, where
from fuse.ir.program import Output, Term
from fuse.ir.size import Size

G, V = Axis("g", Size.of(2)), Axis("v", Size.of(9))
x, y, one = (Buffer(n, "float64", (G.extent, Size.of(k))) for n, k in (("x", 5), ("y", 3), ("one", 1)))
ENDS = [Size.of(5), Size.of(8)]


def number(n: int) -> Expr:
    return const(n, "int64")


def joined() -> Expr:
    v = iota(V)
    rest = where(make("lt", v, number(8)), read(y, iota(G), v - number(5)), read(one, iota(G), number(0)))
    return where(make("lt", v, number(5)), read(x, G, V), rest)


def output(value: Expr) -> Output:
    return Output(Buffer("out", "float64", (G.extent,)), (Term((iota(G),), value),))


@pytest.mark.parametrize("op", ["sum", "max", "lse"])
def test_three_pieces(op: str) -> None:
    before = output(reduce_(op, joined() * 2.0, V))
    (after,), anchors = split_pieces((before,), (joined(), read(x, G, V)), {"v": ENDS})
    value = after.terms[0].value
    assert not any(e.op in ("where", "lt") or V in e.axes for e in topological([value]))
    assert anchors == (read(x, G, Axis("v.0", Size.of(5))), read(y, G, Axis("v.1", Size.of(3))),
                       read(one, iota(G), number(0)))
    env = {b.name: torch.randn(2, b.shape[1].constant, dtype=torch.float64) for b in (x, y, one)}
    whole = torch.cat([env["x"], env["y"], env["one"]], 1) * 2
    want = {"sum": whole.sum(1), "max": whole.amax(1), "lse": whole.logsumexp(1)}[op]
    torch.testing.assert_close(evaluate_output(after, env, {}, dtype="float64"), want)


def test_what_stays_whole() -> None:
    rebound = output(reduce_("sum", make("scan", const(1.0, "float64"), joined(), axis=V, reverse=False), V))
    for before, joints in ((rebound, {"v": ENDS}), (output(reduce_("sum", joined(), V)), {}),
                           (output(reduce_("argmax", joined(), V)), {"v": ENDS})):
        (after,), anchors = split_pieces((before,), (), joints)
        assert after == before and anchors == ()
