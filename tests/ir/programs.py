"""Programs written by hand in expressions alone, beside the plain torch function that each one means.

They are what the IR must be able to hold: softmax statistics of one and of two axes, scores that meet an outer
logaddexp, cascades of sums, prefix sums of several levels, scans with real and with complex states.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fuse.ir.expr import Axis, Buffer, Expr, cast, const, dot, iota, lse, make, read, size, sum_, where
from fuse.ir.program import Output, Program, Term
from fuse.ir.size import Size

EPS = 1e-6
Function = Callable[..., tuple[Tensor, ...]]


@dataclass(frozen=True)
class Case:
    """A program, sizes to run it at, and the function of its inputs (by name) that it means."""

    program: Program
    sizes: dict[str, int]
    function: Function
    wrt: tuple[str, ...]
    virtual: int  # elements of the largest value that must never be stored
    forward: list[int]  # sweeps of each region of the forward
    backward: list[int]
    options: tuple[tuple[str, bool], ...] = ()

    def inputs(self, seed: int = 0) -> dict[str, Tensor]:
        """Float64 tensors for the program's inputs; those in `wrt` require gradients."""
        g, out = torch.Generator().manual_seed(seed), dict[str, Tensor]()
        for b in self.program.inputs:
            shape = [s.evaluate(self.sizes) for s in b.shape]
            if b.dtype == "int64":
                out[b.name] = torch.randint(0, self.sizes["V"], shape, generator=g)
                continue
            x = torch.randn(shape, generator=g, dtype=torch.float64)
            if b.dtype == "complex64":
                x = torch.complex(x, torch.randn(shape, generator=g, dtype=torch.float64)) * 0.4
            if b.name in ("delta", "decay"):
                x = F.softplus(x)
            out[b.name] = x.requires_grad_(b.name in self.wrt)
        return out

    def expected(self, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        out = self.function(**inputs)
        return out if isinstance(out, tuple) else (out,)


def ax(name: str, extent: int | str | None = None) -> Axis:
    return Axis(name, Size.of(name.upper() if extent is None else extent))


def buf(name: str, *axes: Axis, dtype: str = "float32") -> Buffer:
    return Buffer(name, dtype, tuple(a.extent for a in axes))


def program(
    inputs: list[Buffer], outputs: dict[str, tuple[Expr, tuple[Axis, ...]]], anchors: tuple[Expr, ...] = ()
) -> Program:
    return Program(
        tuple(inputs),
        tuple(
            Output(buf(n, *axes, dtype=x.dtype), (Term(tuple(map(iota, axes)), x),)) for n, (x, axes) in outputs.items()
        ),
        anchors=anchors,
    )


def op(name: str) -> Callable[..., Expr]:
    return lambda *args, **attrs: make(name, *args, **attrs)


exp, sigmoid, tanh, real = op("exp"), op("sigmoid"), op("tanh"), op("real")


def fsize(axis: Axis) -> Expr:
    return cast(size(axis.extent), "float32")


def clamp(x: Expr, low: float, high: float) -> Expr:
    return make("minimum", make("maximum", x, const(low, x.dtype)), const(high, x.dtype))


def cumsum(x: Expr, axis: Axis) -> Expr:
    return make("scan", const(1, x.dtype), x, axis=axis, reverse=False)


# ---- softmax statistics ---------------------------------------------------------------------------------------------


def softcapped_cross_entropy(**options: bool) -> Case:
    n, v, d = ax("n"), ax("v"), ax("d", 5)
    h, w, y = buf("h", n, d), buf("w", v, d), buf("y", n, dtype="int64")
    dots = dot(read(h, n, d), read(w, v, d), d)
    s = tanh(dots * 0.05) * 20.0
    loss = sum_(lse(s, v) - make("pick", s, make("bounded", read(y, n), axis=v), axis=v), n) / fsize(n)

    def function(h, w, y):
        return F.cross_entropy(torch.tanh(h @ w.T / 20) * 20, y)

    slab = options.get("slab", True)
    return Case(
        program([h, w, y], {"loss": (loss, ())}, (dots,)),
        {"N": 11, "V": 37},
        function,
        ("h", "w"),
        11 * 37,
        [2] if slab else [1],
        [] if slab else [1],
        tuple(options.items()),
    )


def causal_attention() -> Case:
    b, i, j, d, e = ax("b", 2), ax("i", "T"), ax("j", "T"), ax("d", 4), ax("e", 3)
    q, k, v = buf("q", b, i, d), buf("k", b, j, d), buf("v", b, j, e)
    dots = dot(read(q, b, i, d), read(k, b, j, d), d)
    s = where(make("le", iota(j), iota(i)), dots * 0.5, float("-inf"))
    o = dot(make("exp_sub", s, lse(s, j)), read(v, b, j, e), j)

    def function(q, k, v):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    return Case(
        program([q, k, v], {"o": (o, (b, i, e))}, (dots,)), {"T": 19}, function, ("q", "k", "v"),
        2 * 19 * 19, [1], [1],
    )


def sinks() -> Case:
    """A learned logit per head joins the normaliser and carries no value."""
    b, i, j, d, e = ax("b", 2), ax("i", "T"), ax("j", "S"), ax("d", 4), ax("e", 3)
    q, k, v, sink = buf("q", b, i, d), buf("k", b, j, d), buf("v", b, j, e), buf("sink", b)
    dots = dot(read(q, b, i, d), read(k, b, j, d), d)
    s = dots * 0.5
    total = make("logaddexp", lse(s, j), read(sink, b))
    o = dot(make("exp_sub", s, total), read(v, b, j, e), j)

    def function(q, k, v, sink):
        s = q @ k.transpose(1, 2) * 0.5
        c = torch.cat([s, sink[:, None, None].expand(-1, s.shape[1], 1)], -1)
        return torch.softmax(c, -1)[..., :-1] @ v

    return Case(
        program([q, k, v, sink], {"o": (o, (b, i, e))}, (dots,)),
        {"T": 13, "S": 19},
        function,
        ("q", "k", "v", "sink"),
        2 * 13 * 19,
        [1],
        [1],
    )


def two_sided_clip() -> Case:
    """Softmax over the rows and over the columns of one product."""
    i, j, d = ax("i", "N"), ax("j", "N"), ax("d", 4)
    a, b, t = buf("a", i, d), buf("b", j, d), buf("t")
    dots = dot(read(a, i, d), read(b, j, d), d)
    s = dots * exp(read(t))
    rows = sum_(lse(s, j) - make("pick", s, make("bounded", iota(i), axis=j), axis=j), i)
    columns = sum_(lse(s, i) - make("pick", s, make("bounded", iota(j), axis=i), axis=i), j)
    loss = (rows + columns) / (fsize(i) * 2.0)

    def function(a, b, t):
        s, y = a @ b.T * t.exp(), torch.arange(len(a))
        return (F.cross_entropy(s, y) + F.cross_entropy(s.T, y)) / 2

    return Case(
        program([a, b, t], {"loss": (loss, ())}, (dots,)), {"N": 17}, function, ("a", "b", "t"), 17 * 17, [1, 2], []
    )


def criss_cross() -> Case:
    """One softmax over the union of a pixel's column, without itself, and its row."""
    b, h, w, g, x = ax("b", 2), ax("h"), ax("w"), ax("g", "H"), ax("x", "W")
    c, m = ax("c", 3), ax("m", 2)
    q, k, v = buf("q", b, c, h, w), buf("k", b, c, h, w), buf("v", b, m, h, w)
    columns = dot(read(q, b, c, h, w), read(k, b, c, g, w), c)
    rows = dot(read(q, b, c, h, w), read(k, b, c, h, x), c)
    e_h = where(make("eq", iota(h), iota(g)), float("-inf"), columns)
    total = make("logaddexp", lse(e_h, g), lse(rows, x))
    out = dot(make("exp_sub", e_h, total), read(v, b, m, g, w), g) + dot(
        make("exp_sub", rows, total), read(v, b, m, h, x), x
    )

    def function(q, k, v):
        n = q.shape[2]
        e_h = torch.einsum("bchw,bcgw->bhwg", q, k).masked_fill(torch.eye(n).bool()[None, :, None], -torch.inf)
        e_w = torch.einsum("bchw,bchx->bhwx", q, k)
        p = torch.softmax(torch.cat([e_h, e_w], -1), -1)
        return torch.einsum("bhwg,bmgw->bmhw", p[..., :n], v) + torch.einsum("bhwx,bmhx->bmhw", p[..., n:], v)

    return Case(
        program([q, k, v], {"out": (out, (b, m, h, w))}, (columns, rows)),
        {"H": 9, "W": 8},
        function,
        ("q", "k", "v"),
        2 * 9 * 8 * 8,
        [1, 1],
        [1, 1],
    )


# ---- cascades of sums -----------------------------------------------------------------------------------------------


def flow_attention() -> Case:
    """Flow-Attention (arXiv 2202.06258): the sinks' incoming and the sources' outgoing flow are conserved in turn."""
    b, i, j, d, m = ax("b", 2), ax("i", "T"), ax("j", "S"), ax("d", 4), ax("m", 3)
    q_, k_, v_ = buf("q", b, i, d), buf("k", b, j, d), buf("v", b, j, m)
    q, k, v = sigmoid(read(q_, b, i, d)), sigmoid(read(k_, b, j, d)), read(v_, b, j, m)
    incoming = const(1, "float32") / sum_((q + EPS) * (sum_(k, j) + EPS), d)
    outgoing = const(1, "float32") / sum_((k + EPS) * (sum_(q, i) + EPS), d)
    sink = sum_((q + EPS) * (sum_(k * outgoing, j) + EPS), d)
    source = clamp(sum_((k + EPS) * (sum_(q * incoming, i) + EPS), d), -1.0, 1.0)
    allocation = sigmoid(sink * (fsize(i) / fsize(j)))
    competition = make("exp_sub", source, lse(source, j)) * fsize(j)
    kv = sum_(k * (v * competition), j)
    out = sum_(q * incoming * kv, d) * allocation

    def function(q, k, v):
        q, k = q.sigmoid(), k.sigmoid()
        incoming = 1.0 / torch.einsum("nld,nd->nl", q + EPS, k.sum(1) + EPS)
        outgoing = 1.0 / torch.einsum("nld,nd->nl", k + EPS, q.sum(1) + EPS)
        sink = torch.einsum("nld,nd->nl", q + EPS, (k * outgoing[..., None]).sum(1) + EPS)
        source = torch.einsum("nld,nd->nl", k + EPS, (q * incoming[..., None]).sum(1) + EPS).clamp(-1.0, 1.0)
        allocation = torch.sigmoid(sink * (float(q.shape[1]) / float(k.shape[1])))
        competition = torch.softmax(source, -1) * float(k.shape[1])
        kv = torch.einsum("nld,nlm->ndm", k, v * competition[..., None])
        return torch.einsum("nld,ndm->nlm", q * incoming[..., None], kv) * allocation[..., None]

    return Case(
        program([q_, k_, v_], {"out": (out, (b, i, m))}), {"T": 19, "S": 13}, function, ("q", "k", "v"),
        0, [1] * 4, [1] * 4,
    )


def causal_flow_attention() -> Case:
    """The same with every sum a prefix sum: four levels of them along one axis."""
    b, t, d, m = ax("b", 2), ax("t"), ax("d", 4), ax("m", 3)
    q_, k_, v_ = buf("q", b, t, d), buf("k", b, t, d), buf("v", b, t, m)
    q, k, v = sigmoid(read(q_, b, t, d)), sigmoid(read(k_, b, t, d)), read(v_, b, t, m)
    n = cast(iota(t) + 1, "float32")
    incoming = n / sum_((q + EPS) * (cumsum(k, t) + EPS), d)
    outgoing = n / sum_((k + EPS) * (cumsum(q, t) + EPS), d)
    sink = sum_((q + EPS) * (cumsum(k * outgoing, t) + EPS), d) / n
    source = sum_((k + EPS) * (cumsum(q * incoming, t) + EPS), d) / n
    e = exp(clamp(source, -1.0, 1.0))
    competition = e / cumsum(e, t) * n
    kv = cumsum(k * (v * competition), t)
    out = sum_(q * (incoming / n) * kv, d) * sigmoid(sink)

    def function(q, k, v):
        q, k = q.sigmoid(), k.sigmoid()
        n = torch.arange(1, q.shape[1] + 1, dtype=q.dtype)
        incoming = n / torch.einsum("nld,nld->nl", q + EPS, k.cumsum(1) + EPS)
        outgoing = n / torch.einsum("nld,nld->nl", k + EPS, q.cumsum(1) + EPS)
        sink = torch.einsum("nld,nld->nl", q + EPS, (k * outgoing[..., None]).cumsum(1) + EPS) / n
        source = torch.einsum("nld,nld->nl", k + EPS, (q * incoming[..., None]).cumsum(1) + EPS) / n
        e = torch.exp(source.clamp(-1.0, 1.0))
        competition = e / e.cumsum(-1) * n
        kv = torch.einsum("nld,nlm->nldm", k, v * competition[..., None]).cumsum(1)
        return torch.einsum("nld,nldm->nlm", q * (incoming / n)[..., None], kv) * sink.sigmoid()[..., None]

    return Case(
        program([q_, k_, v_], {"out": (out, (b, t, m))}), {"T": 19}, function, ("q", "k", "v"), 2 * 19 * 4 * 3, [1], [1]
    )


# ---- scans ----------------------------------------------------------------------------------------------------------


def selective_scan(batch: int = 2, channels: int = 3, width: int = 4) -> Case:
    """h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t,  y_t = C_t . h_t + D u_t"""
    b, t, d, n = ax("b", batch), ax("t"), ax("d", channels), ax("n", width)
    u, delta, a, bt, c, skip = (
        buf("u", b, t, d),
        buf("delta", b, t, d),
        buf("decay", d, n),
        buf("B", b, t, n),
        buf("C", b, t, n),
        buf("D", d),
    )
    step, x = read(delta, b, t, d), read(u, b, t, d)
    h = make("scan", exp(-(step * read(a, d, n))), step * x * read(bt, b, t, n), axis=t, reverse=False)
    y = sum_(h * read(c, b, t, n), n) + x * read(skip, d)

    def function(u, delta, decay, B, C, D):
        h, ys = torch.zeros(u.shape[0], *decay.shape, dtype=u.dtype), []
        for s in range(u.shape[1]):
            h = torch.exp(-delta[:, s, :, None] * decay) * h + (delta[:, s] * u[:, s])[..., None] * B[:, s, None]
            ys.append((h * C[:, s, None]).sum(-1))
        return torch.stack(ys, 1) + u * D

    return Case(
        program([u, delta, a, bt, c, skip], {"y": (y, (b, t, d))}),
        {"T": 19},
        function,
        ("u", "delta", "decay", "B", "C", "D"),
        2 * 19 * 3 * 4,
        [1],
        [1],
    )


def complex_state_space(batch: int = 2, channels: int = 3, width: int = 4) -> Case:
    """x_t = A x_{t-1} + B u_t with complex diagonal A,  y_t = 2 Re(C . x_t)"""
    b, t, h, n = ax("b", batch), ax("t"), ax("h", channels), ax("n", width)
    u = buf("u", b, t, h)
    a, bn, c = (buf(x, h, n, dtype="complex64") for x in "ABC")
    x = make("scan", read(a, h, n), read(bn, h, n) * cast(read(u, b, t, h), "complex64"), axis=t, reverse=False)
    y = real(sum_(read(c, h, n) * x, n)) * 2.0

    def function(u, A, B, C):
        x, ys = torch.zeros(u.shape[0], *A.shape, dtype=A.dtype), []
        for s in range(u.shape[1]):
            x = A * x + B * u[:, s, :, None]
            ys.append(2 * torch.einsum("hn,bhn->bh", C, x).real)
        return torch.stack(ys, 1)

    return Case(
        program([u, a, bn, c], {"y": (y, (b, t, h))}),
        {"T": 19},
        function,
        ("u", "A", "B", "C"),
        2 * 19 * 3 * 4,
        [1],
        [1],
    )


CASES: dict[str, Case] = {
    "softcapped cross-entropy, slab": softcapped_cross_entropy(),
    "softcapped cross-entropy, recompute": softcapped_cross_entropy(slab=False),
    "causal attention": causal_attention(),
    "sinks": sinks(),
    "two-sided clip": two_sided_clip(),
    "criss-cross": criss_cross(),
    "flow attention": flow_attention(),
    "causal flow attention": causal_flow_attention(),
    "selective scan": selective_scan(),
    "complex state space": complex_state_space(),
}
