"""A linear head and its pieces, for tests of the passes."""
from __future__ import annotations

from typing import Any

from fuse.ir.expr import Axis, Buffer, Expr, cast, const, dot, iota, lse, make, read, sum_, where
from fuse.ir.program import Define, Output, Program, Region, Term
from fuse.ir.size import Size
from fuse.passes import Context, Plan, compile_program

N, V, D = Axis("n", Size.of("N")), Axis("v", Size.of("V")), Axis("d", Size.of("D"))
SIZES = {"N": 13, "V": 37, "D": 5}
H, W, Y = (Buffer("x0", "float32", (N.extent, D.extent)), Buffer("x1", "float32", (V.extent, D.extent)),
           Buffer("x2", "int64", (N.extent,)))
SCORES = dot(read(H, N, D), read(W, V, D), D)
LABEL = read(Y, N)


def log_softmax(s: Expr = SCORES) -> Expr:
    return make("sub_lse", s, lse(s, V))


def softmax(s: Expr = SCORES) -> Expr:
    return make("exp_sub", s, lse(s, V))


def pick(x: Expr, index: Expr = LABEL) -> Expr:
    return make("pick", x, make("bounded", index, axis=V), axis=V)


def cross_entropy(s: Expr = SCORES) -> Expr:
    kept = make("ne", LABEL, const(-100, "int64"))
    return sum_(where(kept, lse(s, V) - make("pick", s, LABEL, axis=V), 0), N) / sum_(cast(kept, "float32"), N)


def program(*values: Expr) -> Program:
    outputs = tuple(Output(Buffer(f"out{i}", x.dtype, tuple(a.extent for a in x.axes)),
                           (Term(tuple(iota(a) for a in x.axes), x),)) for i, x in enumerate(values))
    return Program((H, W, Y), outputs, anchors=(SCORES,))


def plan(*values: Expr, wrt: tuple[str, ...] = ("x0", "x1"), **options: Any) -> Plan:
    return compile_program(program(*values), Context(hints=SIZES, wrt=wrt, **options))


def sweeps(p: Program | None) -> list[int]:
    return [] if p is None else [r.sweeps for r in p.regions]


def bodies(p: Program) -> list[Expr]:
    return [c.body for r in p.regions for c in r.carries]


__all__ = [
    "LABEL",
    "SCORES",
    "SIZES",
    "D",
    "Define",
    "H",
    "N",
    "Region",
    "V",
    "W",
    "Y",
    "bodies",
    "cross_entropy",
    "log_softmax",
    "pick",
    "plan",
    "program",
    "softmax",
    "sweeps",
]
