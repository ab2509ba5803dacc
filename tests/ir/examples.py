"""Programs with steps, written by hand: the regions that the reference interpreter, text and verifier tests share."""

from __future__ import annotations

import re
from dataclasses import replace

from fuse.ir.expr import Axis, Buffer, Expr, const, dot, iota, make, read, sum_, where
from fuse.ir.program import Carry, Define, Emit, Kind, Output, Program, Region, Term, carry_part, stored
from fuse.ir.size import Size
from fuse.ir.text import parse_program, print_program


def axis(name: str, extent: int | str | None = None) -> Axis:
    return Axis(name, Size.of(name.upper() if extent is None else extent))


def buffer(name: str, *axes: Axis, dtype: str = "float32") -> Buffer:
    return Buffer(name, dtype, tuple(a.extent for a in axes))


def output(name: str, value: Expr, *axes: Axis, of: str | None = None) -> Output:
    return Output(buffer(name, *axes, dtype=value.dtype), (Term(tuple(map(iota, axes)), value),), of)


i, j, d, e = axis("i"), axis("j"), axis("d", 4), axis("e", 3)
Q, K, V = buffer("Q", i, d), buffer("K", j, d), buffer("V", j, e)
SCORES = dot(read(Q, i, d), read(K, j, d), d)
MASKED = where(make("le", iota(j), iota(i)), SCORES, float("-inf"))
ONE = const(1, "float32")


def softmax_region(scores: Expr = MASKED) -> Region:
    """Softmax attention with the moments that entropy and its like need, an argmax and a plain maximum."""
    relative = {"over": (j,), "relative_to": "c"}
    return Region(
        "softmax",
        (j,),
        (i,),
        (
            Carry("c", Kind.LSE, scores, (j,), (i,)),
            Carry("o", Kind.SUM, read(V, j, e), axes=(i, e), **relative),
            Carry("h1", Kind.SUM, ONE, axes=(i,), moment=1, **relative),
            Carry("h2", Kind.SUM, ONE, axes=(i,), moment=2, **relative),
            Carry("half", Kind.SUM, read(V, j, e), axes=(i, e), exponent=0.5, moment=2, **relative),
            Carry("top", Kind.MAX, scores, (j,), (i,)),
            Carry("arg", Kind.ARGMAX, scores, (j,), (i,)),
        ),
    )


def softmax_program() -> Program:
    m, total = stored("c.m", "float32", (i,)), stored("c.l", "float32", (i,))
    out = {
        "o": stored("o", "float32", (i, e)) / total,
        "half": stored("half", "float32", (i, e)),
        "h1": stored("h1", "float32", (i,)) / total,
        "h2": stored("h2", "float32", (i,)) / total,
        "L": m + make("log", total),
        "top": stored("top", "float32", (i,)),
        "arg": stored("arg", "int64", (i,)),
    }
    return Program((Q, K, V), tuple(output(n, x, *x.axes) for n, x in out.items()), (softmax_region(),))


def slab_program() -> Program:
    """Two sweeps: the second reads the row's own finished statistics; one gradient goes over the grid."""
    m, total = (carry_part(softmax_region(SCORES).carry("c"), "final", s) for s in (".m", ".l"))
    weight = make("exp", SCORES - m) / total
    region = Region(
        "slab",
        (j,),
        (i,),
        (
            Carry("c", Kind.LSE, SCORES, (j,), (i,)),
            Carry("dq", Kind.SUM, weight * read(K, j, d), (j,), (i, d), level=1),
            Carry("dk", Kind.SUM, weight * read(Q, i, d), (i,), (j, d), level=1),
            Carry("columns", Kind.LSE, SCORES, (i,), (j,)),
            Carry("mix", Kind.SUM, read(Q, i, d), (i,), (j, d), relative_to="columns", storage="bfloat16"),
        ),
        (Emit("p", weight, (j, i), level=1),),
    )
    reads = {
        n: stored(n, "bfloat16" if n == "mix" else "float32", a)
        for n, a in (("dq", (i, d)), ("dk", (j, d)), ("mix", (j, d)), ("p", (j, i)))
    }
    return Program((Q, K), tuple(output(n, x, *x.axes) for n, x in reads.items()), (region,))


def product_program() -> Program:
    """Streams that form a product, and a Define before and after the region."""
    a, b = axis("a"), axis("b", 5)
    X, Y = buffer("X", i, a), buffer("Y", b, i)
    scaled = Define("scaled", read(X, i, a) * 2.0, (a, i))
    body = read(Buffer("scaled", "float32", (a.extent, i.extent)), a, i) + read(Y, b, i)
    region = Region(
        "pair",
        (a, b),
        (i,),
        (
            Carry("c", Kind.LSE, body, (a, b), (i,)),
            Carry("s", Kind.SUM, ONE, (a, b), (i,), relative_to="c", exponent=2),
        ),
    )
    m, total = stored("c.m", "float32", (i,)), stored("c.l", "float32", (i,))
    squared = Define("squared", stored("s", "float32", (i,)) / (total * total), (i,))
    return Program(
        (X, Y),
        (output("L", m + make("log", total), i), output("sq", stored("squared", "float32", (i,)), i)),
        (scaled, region, squared),
    )


t, n = axis("t"), axis("n", 3)
A, U, C, G = buffer("A", t, n), buffer("U", t, n), buffer("C", t, n), buffer("G", t)


def scan_program() -> Program:
    """y_t = sum_n c_tn h_tn with h = a h + u, its last state, and its gradients in a sweep that runs backwards."""
    a, u, c, g = (read(b, *x) for b, x in ((A, (t, n)), (U, (t, n)), (C, (t, n)), (G, (t,))))
    h = make("scan", a, u, axis=t, reverse=False)
    forward = Region(
        "forward",
        (t,),
        (),
        (Carry("h", Kind.AFFINE, h, (t,), (n,)),),
        (Emit("y", sum_(h * c, n), (t,)),),
    )
    back = make("scan", make("shift", a, axis=t, by=-1), g * c, axis=t, reverse=True)
    again, adjoint = Carry("h2", Kind.AFFINE, h, (t,), (n,)), Carry("back", Kind.AFFINE, back, (t,), (n,))
    state, cotangent = carry_part(again, "prefix"), carry_part(adjoint, "prefix")
    backward = Region(
        "backward",
        (t,),
        (),
        (again, adjoint, Carry("total", Kind.SUM, cotangent, (t,), (n,))),
        (
            Emit("da", cotangent * make("shift", state, axis=t, by=1), (t, n)),
            Emit("du", cotangent, (t, n)),
            Emit("dc", g * state, (t, n)),
        ),
        reverse=True,
    )
    reads = {"y": (t,), "h": (n,), "da": (t, n), "du": (t, n), "dc": (t, n), "total": (n,)}
    return Program(
        (A, U, C, G), tuple(output(k, stored(k, "float32", x), *x) for k, x in reads.items()), (forward, backward)
    )


def fixed(program: Program, **sizes: int) -> Program:
    """The program with numbers for size symbols."""
    text = print_program(program)
    for symbol, n in sizes.items():
        text = re.sub(rf"\b{symbol}\b", str(n), text)
    return parse_program(text)


def boundary_program(length: int = 9, tile: int = 4) -> Program:
    """The scan program, whose first region stores states for the second."""
    program = fixed(scan_program(), T=length)
    counter = axis("t.tile", -(-length // tile))
    forward, backward = program.regions
    (h,), (again, *others) = forward.carries, backward.carries
    entry = stored("at.h", "float32", (counter, *h.axes))
    steps = (
        replace(forward, carries=(replace(h, boundary=(counter, *h.axes)),), tile=tile),
        replace(backward, carries=(replace(again, entry=entry), *others), tile=tile),
    )
    states = output("at.h", stored("at.h", "float32", (counter, *h.axes)), counter, *h.axes)
    return replace(program, steps=steps, outputs=(*program.outputs, replace(states, buffer=buffer("at", counter, *h.axes))))


def prefix_program(reverse: bool = False) -> Program:
    """Causal linear attention: o_i = (q_i . sum_{j<=i} k_j v_j) / (q_i . sum_{j<=i} k_j), then a level above."""
    q, k, v = read(buffer("q", t, d), t, d), read(buffer("k", t, d), t, d), read(buffer("v", t, e), t, e)
    keys, values = Carry("keys", Kind.SUM, k, (t,), (d,)), Carry("values", Kind.SUM, k * v, (t,), (d, e))
    norm = sum_(q * carry_part(keys, "prefix"), d)
    o = sum_(q * carry_part(values, "prefix"), d) / norm
    weighted = Carry("weighted", Kind.SUM, v / norm, (t,), (e,))
    region = Region(
        "causal",
        (t,),
        (),
        (keys, values, weighted),
        (
            Emit("o", o, (t, e)),
            Emit("w", carry_part(weighted, "prefix"), (t, e)),
            Emit("late", carry_part(values, "prefix") * carry_part(weighted, "final"), (t, d, e), level=1),
        ),
        reverse=reverse,
    )
    reads = {"o": (t, e), "w": (t, e), "late": (t, d, e), "weighted": (e,)}
    return Program(
        (buffer("q", t, d), buffer("k", t, d), buffer("v", t, e)),
        tuple(output(x, stored(x, "float32", ax), *ax) for x, ax in reads.items()),
        (region,),
    )


EXAMPLES = {
    "softmax": softmax_program(),
    "slab": slab_program(),
    "product": product_program(),
    "scan": scan_program(),
    "boundaries": boundary_program(),
    "prefix": prefix_program(),
    "suffix": prefix_program(reverse=True),
}
