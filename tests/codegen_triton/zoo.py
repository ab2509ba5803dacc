"""Regions as the passes hand them over, with the tensors that they read: what the tests of this target run and compile."""
from __future__ import annotations

from dataclasses import dataclass, field

import torch

from fuse.ir.expr import Axis, Buffer, Expr, cast, const, dot, iota, make, read, where
from fuse.ir.program import Carry, Emit, Kind, Region, carry_part
from fuse.ir.size import Size


def axis(name: str, extent: str | int | Size) -> Axis:
    return Axis(name, Size.of(extent))


@dataclass
class Case:
    """`inputs`: name -> (dtype, shape as Sizes)."""

    region: Region
    inputs: dict[str, Buffer] = field(default_factory=dict)

    def tensors(self, sizes: dict[str, int], seed: int = 0) -> dict[str, torch.Tensor]:
        g = torch.Generator().manual_seed(seed)
        out = {}
        for name, b in self.inputs.items():
            shape = [s.evaluate(sizes) for s in b.shape]
            dtype = getattr(torch, b.dtype)
            if dtype.is_floating_point:
                out[name] = torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)
            elif dtype is torch.bool:
                out[name] = torch.rand(shape, generator=g) < 0.6
            else:
                out[name] = torch.randint(0, max(2, sizes.get("V", 7)), shape, generator=g).to(dtype)
        return out


class Head:
    """logits S[b, t, v] = sum_d h[b, t, d] W[v, d], rows (b, t < T - 1), labels y[b, t + 1]."""

    def __init__(self, dtype: str = "float32", dim: int | str = "D", softcap: float = 0.0, bias: bool = False):
        self.b, self.t, self.v = axis("b", "B"), axis("t", Size.symbol("T") - 1), axis("v", "V")
        self.d = axis("d", dim)
        n_t, n_d = Size.symbol("T"), Size.of(dim)
        self.h = Buffer("h", dtype, (Size.of("B"), n_t, n_d))
        self.w = Buffer("W", dtype, (Size.of("V"), n_d))
        self.y = Buffer("y", "int64", (Size.of("B"), n_t))
        rows = (self.b.extent, self.t.extent)
        self.m, self.l = Buffer("c.m", "float32", rows), Buffer("c.l", "float32", rows)
        self.g = Buffer("g", "float32", rows)
        self.inputs = {x.name: x for x in (self.h, self.w, self.y)}
        self.s = dot(self.read_h, self.read_w, self.d)
        if bias:
            self.bias = self.buffer("bias", dtype, self.v.extent)
            self.s = self.s + cast(read(self.bias, self.v), "float32")
        self.raw = self.s
        if softcap:
            self.s = make("tanh", self.s * (1 / softcap)) * softcap

    def buffer(self, name: str, dtype: str, *shape: Size) -> Buffer:
        self.inputs[name] = Buffer(name, dtype, shape)
        return self.inputs[name]

    @property
    def read_h(self) -> Expr:
        return cast(read(self.h, self.b, self.t, self.d), "float32")

    @property
    def read_w(self) -> Expr:
        return cast(read(self.w, self.v, self.d), "float32")

    @property
    def label(self) -> Expr:
        return read(self.y, iota(self.b), iota(self.t) + const(1, "int64"))

    @property
    def grid(self) -> tuple[Axis, ...]:
        return self.b, self.t

    def onehot(self, x: Expr | float) -> Expr:
        return where(make("eq", iota(self.v), self.label), x if isinstance(x, Expr) else const(x, "float32"), 0.0)

    def carry(self, name: str, kind: Kind, body: Expr, **more) -> Carry:
        return Carry(name, kind, body, (self.v,), self.grid, **more)

    def case(self, name: str, *carries: Carry, emits: tuple[Emit, ...] = (), streams=None, grid=None) -> Case:
        return Case(Region(name, streams or (self.v,), grid or self.grid, carries, emits), self.inputs)

    # ---- gradients --------------------------------------------------------------------------------------------------

    def ds(self) -> Expr:
        """g (softmax - onehot), through the softcap if there is one."""
        for x in (self.m, self.l, self.g):
            self.inputs[x.name] = x
        m, l, g = (read(x, self.b, self.t) for x in (self.m, self.l, self.g))
        return (make("exp", self.s - m) / l - self.onehot(1.0)) * g

    def dx(self, storage: str | None = None) -> Carry:
        return Carry("dx", Kind.SUM, self.ds() * self.read_w, (self.v,), (*self.grid, self.d), storage=storage)

    def dw(self, storage: str | None = None) -> Carry:
        return Carry("dw", Kind.SUM, self.ds() * self.read_h, self.grid, (self.v, self.d), storage=storage)


def cross_entropy(**kw) -> Case:
    h = Head(**kw)
    return h.case("ce", h.carry("c", Kind.LSE, h.s), h.carry("p", Kind.SUM, h.onehot(h.s)))


def smoothing(**kw) -> Case:
    h = Head(**kw)
    return h.case("smooth", h.carry("c", Kind.LSE, h.s), h.carry("p", Kind.SUM, h.onehot(h.s)), h.carry("t", Kind.SUM, h.s))


def entropy(**kw) -> Case:
    h = Head(**kw)
    one = const(1.0, "float32")
    return h.case("entropy", h.carry("c", Kind.LSE, h.s), h.carry("e", Kind.SUM, one, relative_to="c", moment=1),
                  h.carry("e2", Kind.SUM, one, relative_to="c", moment=2),
                  h.carry("q", Kind.SUM, one, relative_to="c", exponent=0.7))


def accuracy(**kw) -> Case:
    h = Head(**kw)
    return h.case("accuracy", h.carry("c", Kind.LSE, h.s), h.carry("a", Kind.ARGMAX, h.s), h.carry("x", Kind.MAX, h.s))


def weighted(**kw) -> Case:
    """Class weights: sum_v w_v S_v, and the weight of the label, gathered by a data-dependent index."""
    h = Head(**kw)
    w = h.buffer("cw", "float32", h.v.extent)
    return h.case("weighted", h.carry("c", Kind.LSE, h.s), h.carry("ws", Kind.SUM, read(w, h.v) * h.s),
                  h.carry("wy", Kind.SUM, h.onehot(h.s) * read(w, h.label)),
                  h.carry("r", Kind.SUM, read(w, h.v), relative_to="c"))


def gradient_x(**kw) -> Case:
    h = Head(**kw)
    return h.case("dx", h.dx(h.h.dtype))


def gradient_w(**kw) -> Case:
    h = Head(**kw)
    return h.case("dw", h.dw(h.w.dtype), streams=h.grid, grid=(h.v,))


def gradients(**kw) -> Case:
    """Both gradients, and that of a bias, from one sweep: dW and db accumulate over the grid."""
    h = Head(**kw)
    db = Carry("db", Kind.SUM, h.ds(), h.grid, (h.v,))
    return h.case("both", h.dx(h.h.dtype), h.dw(h.w.dtype), db)


def computed_factor(**kw) -> Case:
    """dX through a weight that is computed: dS tanh(W)."""
    h = Head(**kw)
    carry = Carry("dx", Kind.SUM, h.ds() * make("tanh", h.read_w), (h.v,), (*h.grid, h.d), storage=h.h.dtype)
    return h.case("computed", carry)


def gathered_rows(**kw) -> Case:
    """dW of rows that an index picks: sum_n dS[n, v] h[r[n], d]."""
    h = Head(**kw)
    n, rows = axis("n", "N"), h.buffer("rows", "int64", Size.of("N"))
    at = read(rows, n)
    x = cast(read(h.h, const(0, "int64"), at, iota(h.d)), "float32")
    g = h.buffer("weight", "float32", Size.of("N"))
    ds = make("tanh", dot(x, h.read_w, h.d)) * read(g, n)
    dw = Carry("dw", Kind.SUM, ds * x, (n,), (h.v, h.d), storage=h.w.dtype)
    return h.case("gathered", dw, streams=(h.v,), grid=(n,))


def two_levels(**kw) -> Case:
    """Statistics at level 0, the gradient from the row's own statistics at level 1."""
    h = Head(**kw)
    lse = h.carry("c", Kind.LSE, h.s)
    m, l = carry_part(lse, "final", ".m"), carry_part(lse, "final", ".l")
    ds = make("exp", h.s - m) / l - h.onehot(1.0)
    dx = Carry("dx", Kind.SUM, ds * h.read_w, (h.v,), (*h.grid, h.d), level=1)
    dw = Carry("dw", Kind.SUM, ds * h.read_h, h.grid, (h.v, h.d), level=1)
    return h.case("levels", lse, dx, dw)


class Attention:
    """S[b, n, i, j] = scale sum_d q k, causal, with a key mask; heads are stored [B, L, H, D]."""

    def __init__(self, dtype: str = "float32", dim: int | str = "D", causal: bool = True):
        self.b, self.n, self.i, self.j = axis("b", "B"), axis("n", "H"), axis("i", "Q"), axis("j", "L")
        self.d, self.e = axis("d", dim), axis("e", dim)
        sizes = lambda s: (Size.of("B"), Size.of(s), Size.of("H"), Size.of(dim))  # noqa: E731
        self.buffers = {x: Buffer(x, dtype, sizes(s)) for x, s in (("q", "Q"), ("k", "L"), ("v", "L"), ("do", "Q"))}
        self.mask = Buffer("mask", "bool", (Size.of("B"), Size.of("L")))
        self.inputs = {x: self.buffers[x] for x in ("q", "k", "v")} | {"mask": self.mask}
        s = dot(self.at("q", self.i, self.d), self.at("k", self.j, self.d), self.d) * 0.3
        keep = read(self.mask, self.b, self.j)
        if causal:
            keep = make("and", keep, make("le", iota(self.j), iota(self.i)))
        self.s = where(keep, s, float("-inf"))

    def at(self, name: str, position: Axis, feature: Axis) -> Expr:
        return cast(read(self.buffers[name], self.b, position, self.n, feature), "float32")

    @property
    def grid(self) -> tuple[Axis, ...]:
        return self.b, self.n, self.i


def attention(**kw) -> Case:
    a = Attention(**kw)
    lse = Carry("c", Kind.LSE, a.s, (a.j,), a.grid)
    out = Carry("o", Kind.SUM, a.at("v", a.j, a.e), (a.j,), (a.b, a.i, a.n, a.e), relative_to="c")
    return Case(Region("attention", (a.j,), a.grid, (lse, out)), a.inputs)


def attention_gradients(**kw) -> Case:
    """dQ along the stream; dK and dV over the grid axis i."""
    a = Attention(**kw)
    a.inputs["do"] = a.buffers["do"]
    row = (a.b.extent, a.n.extent, a.i.extent)
    m, l, delta = (Buffer(x, "float32", row) for x in ("c.m", "c.l", "delta"))
    for x in (m, l, delta):
        a.inputs[x.name] = x
    at = lambda x: read(x, a.b, a.n, a.i)  # noqa: E731
    p = make("exp", a.s - at(m)) / at(l)
    dp = dot(a.at("do", a.i, a.e), a.at("v", a.j, a.e), a.e)
    ds = p * (dp - at(delta)) * 0.3
    dq = Carry("dq", Kind.SUM, ds * a.at("k", a.j, a.d), (a.j,), (a.b, a.i, a.n, a.d))
    dk = Carry("dk", Kind.SUM, ds * a.at("q", a.i, a.d), (a.i,), (a.b, a.j, a.n, a.d))
    dv = Carry("dv", Kind.SUM, p * a.at("do", a.i, a.e), (a.i,), (a.b, a.j, a.n, a.e))
    return Case(Region("attention_back", (a.j,), a.grid, (dq, dk, dv)), a.inputs)


def divergence(**kw) -> Case:
    """Two distributions in one sweep: a statistic of the first, weighted by the second."""
    h = Head(**kw)
    t = h.buffer("T", h.w.dtype, h.v.extent, h.d.extent)
    other = dot(h.read_h, cast(read(t, h.v, h.d), "float32"), h.d)
    return h.case("divergence", h.carry("c", Kind.LSE, h.s), h.carry("t", Kind.LSE, other),
                  h.carry("x", Kind.SUM, h.s, relative_to="t"), h.carry("z", Kind.SUM, other, relative_to="t"))


def flow(dtype: str = "float32", dim: int | str = "D") -> Case:
    """No dot with the stream: k[b, l, d] -> sum_l sigmoid(k), and an emit of row sums."""
    b, l, d = axis("b", "B"), axis("l", "L"), axis("d", dim)
    k = Buffer("k", dtype, (Size.of("B"), Size.of("L"), Size.of(dim)))
    x = make("sigmoid", cast(read(k, b, l, d), "float32"))
    total = Carry("s", Kind.SUM, x, (l,), (b, d))
    rows = make("sum", x, axes=(d,))
    return Case(Region("flow", (l,), (b,), (total,), (Emit("r", rows, (b, l)),)), {"k": k})


CASES = {f.__name__: f for f in (cross_entropy, smoothing, entropy, accuracy, weighted, gradient_x, gradient_w, gradients,
                                 computed_factor,
                                 two_levels, attention, attention_gradients, divergence, flow)}
