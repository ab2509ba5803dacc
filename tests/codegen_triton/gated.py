"""A program whose states are matrices with a gate for each row, divided by a state that is a vector: what its walks need of
each other has to be stored before a state can be shared out over programs."""
from __future__ import annotations

from functools import cache

from fuse.ir.expr import make, read, sum_
from fuse.ir.program import Carry, Emit, Kind, Region
from fuse.passes import Context, compile_program
from tests.ir.programs import ax, buf, program


@cache
def gated(rows: int = 4, columns: int = 3, heads: int = 2) -> tuple[Region, ...]:
    """h_t = e^-g_t h_{t-1} + k_t v_t^T, z_t = e^-g_t z_{t-1} + k_t, y_t = q_t h_t / (q_t z_t + 1): forward, then backward."""
    b, t, d, m = ax("b", heads), ax("t"), ax("d", rows), ax("m", columns)
    buffers = {n: buf(n, b, t, m if n == "v" else d) for n in "qkvg"}
    q, k, v, g = (read(x, b, t, m if n == "v" else d) for n, x in buffers.items())
    h, z = (make("scan", make("exp", -g), x, axis=t, reverse=False) for x in (k * v, k))
    y = sum_(q * h, d) / (sum_(q * z, d) + 1.0)
    made = program([*buffers.values()], {"y": (y, (b, t, m))})
    plan = compile_program(made, Context(hints={"T": 1024}, wrt=tuple("qkvg")))
    return (*plan.forward.regions, *plan.backward.regions)


T, D, M = ax("t"), ax("d"), ax("m")
MATRIX = make("scan", read(buf("a", T, D), T, D), read(buf("x", T, M), T, M), axis=T, reverse=False)
STATE = Carry("h", Kind.AFFINE, MATRIX, (T,), (D, M))
SUMS = Region("r", (T,), (), (STATE,), (Emit("e", sum_(MATRIX, D) * sum_(MATRIX, M), (T, D, M)),))
MIXED = Region("r", (T,), (), (STATE,), (Emit("e", sum_(MATRIX * sum_(MATRIX, M), D), (T, M)),))
