"""Kernel-ready regions written by hand, with the buffers they read: what every target has to hold."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fuse.ir.expr import Axis, Buffer, Expr, cast, const, dot, iota, make, read, reduce_, size, sum_, where
from fuse.ir.program import Carry, Emit, Kind, Region, carry_part
from fuse.ir.size import Size

INF = float("inf")


def ax(name: str, extent: str | Size | int | None = None) -> Axis:
    return Axis(name, Size.of(name.upper() if extent is None else extent))


b, t, d, v, e, h, i, j, l, u = (ax(n) for n in "btdvehijlu")


@dataclass(frozen=True)
class Case:
    """`make_region(dtype)` builds the region for inputs of that type; `fill` changes inputs after they were drawn."""

    name: str
    make_region: Callable[[str], Region]
    sizes: dict[str, int]
    fill: Callable[[dict[str, Tensor]], None] | None = None
    limits: dict[str, str] = field(default_factory=dict)     # integer input -> the symbol below which it stays
    strided: bool = True                                     # whether inputs are also tried with odd strides

    def region(self, dtype: str = "float32") -> Region:
        return self.make_region(dtype)

    def inputs(self, dtype: str = "float32", sizes: dict[str, int] | None = None, seed: int = 0) -> dict[str, Tensor]:
        from fuse.ir.expr import reads_of
        sizes, g, out = sizes or self.sizes, torch.Generator().manual_seed(seed), dict[str, Tensor]()
        for node in reads_of(self.region(dtype).bodies):
            buffer = node["buffer"]
            if buffer.name in out:
                continue
            shape = [s.evaluate(sizes) for s in buffer.shape]
            if buffer.dtype in ("int64", "int32"):
                limit = sizes[self.limits.get(buffer.name, "V")]
                out[buffer.name] = torch.randint(0, max(limit, 1), shape, generator=g).to(getattr(torch, buffer.dtype))
            elif buffer.dtype == "bool":
                out[buffer.name] = torch.rand(shape, generator=g) < 0.7
            else:
                out[buffer.name] = torch.randn(shape, generator=g).to(getattr(torch, buffer.dtype))
        if self.fill is not None:
            self.fill(out)
        return out


def wide(dtype: str) -> str:
    return "float64" if dtype == "float64" else "float32"


def buf(name: str, dtype: str, *axes: Axis | Size | str) -> Buffer:
    return Buffer(name, dtype, tuple(a.extent if isinstance(a, Axis) else Size.of(a) for a in axes))


def value(name: str, dtype: str, *axes: Axis) -> Expr:
    """A read of a buffer at its own axes, in the compute type."""
    x = read(buf(name, dtype, *axes), *axes)
    return cast(x, wide(dtype)) if dtype.startswith(("float", "bfloat")) else x


def logits(dtype: str) -> Expr:
    return dot(value("h", dtype, b, t, d), value("W", dtype, v, d), d)


def labels() -> Expr:
    return value("y", "int64", b, t)


def hit(index: Expr, x: Expr, axis: Axis = v) -> Expr:
    return where(make("eq", iota(axis), index), x, 0.0)


def final(carry: Carry, suffix: str = "") -> Expr:
    return carry_part(carry, "final", suffix)


def softmax(s: Expr, carry: Carry) -> Expr:
    return make("exp", s - final(carry, ".m")) / final(carry, ".l")


VOCAB = dict(B=3, T=7, D=5, V=37)
VOCAB_GRID, VOCAB_OVER = (b, t), (v,)


def statistics(dtype: str) -> Region:
    """LSE, a picked value, the largest value and its place, a plain sum, entropy's first moment."""
    s = logits(dtype)
    carries = (
        Carry("L", Kind.LSE, s, (v,), (b, t)),
        Carry("picked", Kind.SUM, hit(labels(), s), (v,), (b, t)),
        Carry("top", Kind.MAX, s, (v,), (b, t)),
        Carry("best", Kind.ARGMAX, s, (v,), (b, t)),
        Carry("total", Kind.SUM, s, (v,), (b, t)),
        Carry("n1", Kind.SUM, const(1.0, wide(dtype)), (v,), (b, t), relative_to="L", moment=1),
    )
    return Region("statistics", (v,), (b, t), carries)


def weighted(dtype: str) -> Region:
    """Softcap, a bias and a class weight per column, powers of the weights, moments without their lower ones."""
    w = wide(dtype)
    s = make("tanh", (logits(dtype) + value("bias", dtype, v)) * (1 / 3)) * 3.0
    weight = value("weight", dtype, v)
    one = const(1.0, w)
    carries = (
        Carry("L", Kind.LSE, s, (v,), (b, t)),
        Carry("loss", Kind.SUM, hit(labels(), s * weight), (v,), (b, t)),
        Carry("p2", Kind.SUM, one, (v,), (b, t), relative_to="L", exponent=2),
        Carry("p07", Kind.SUM, weight, (v,), (b, t), relative_to="L", exponent=0.7),
        Carry("wp", Kind.SUM, weight, (v,), (b, t), relative_to="L"),
        Carry("m2", Kind.SUM, weight, (v,), (b, t), relative_to="L", moment=2),
        Carry("q3", Kind.SUM, one, (v,), (b, t), relative_to="L", exponent=2, moment=3),
        Carry("kept", Kind.SUM, cast(make("lt", const(0.0, w), s), "int64"), (v,), (b, t)),
    )
    return Region("weighted", (v,), (b, t), carries)


def two_statistics(dtype: str) -> Region:
    """Two distributions in one sweep: sum_v e^(S - m) (S - T) and both normalisers; S is not first."""
    s = logits(dtype)
    teacher = dot(value("g", dtype, b, t, e), value("U", dtype, v, e), e)
    return Region("two", (v,), (b, t), (
        Carry("x", Kind.SUM, s - teacher, (v,), (b, t), relative_to="L"),
        Carry("L", Kind.LSE, s, (v,), (b, t)),
        Carry("M", Kind.LSE, teacher * 0.5, (v,), (b, t)),
        Carry("y2", Kind.SUM, s, (v,), (b, t), relative_to="M"),
    ))


def cotangent(dtype: str, s: Expr) -> Expr:
    """dS of a weighted cross-entropy whose statistics are stored: (e^(S - m) r0 - [v = y]) r1."""
    w = wide(dtype)
    weights = make("exp", s - value("m", w, b, t)) * value("r0", w, b, t)
    return (weights - hit(labels(), const(1.0, w))) * value("r1", w, b, t)


def row_gradient(dtype: str) -> Region:
    ds = cotangent(dtype, logits(dtype))
    return Region("dX", (v,), (b, t), (
        Carry("dX", Kind.SUM, ds * value("W", dtype, v, d), (v,), (b, t, d), storage=dtype),
        Carry("dr", Kind.SUM, ds, (v,), (b, t)),
    ))


def column_gradient(dtype: str) -> Region:
    """dW as a region of its own: the grid is v and the stream is (b, t)."""
    ds = cotangent(dtype, logits(dtype))
    return Region("dW", (b, t), (v,), (
        Carry("dW", Kind.SUM, ds * value("h", dtype, b, t, d), (b, t), (v, d), storage=dtype),
        Carry("db", Kind.SUM, ds, (b, t), (v,)),
    ))


def both_gradients(dtype: str) -> Region:
    ds = cotangent(dtype, logits(dtype))
    return Region("dXdW", (v,), (b, t), (
        Carry("dX", Kind.SUM, ds * value("W", dtype, v, d), (v,), (b, t, d), storage=dtype),
        Carry("dW", Kind.SUM, ds * value("h", dtype, b, t, d), (b, t), (v, d), storage=dtype),
        Carry("db", Kind.SUM, ds, (b, t), (v,)),
        Carry("all", Kind.SUM, ds * ds, (b, t, v), ()),
    ))


def in_one_go(dtype: str) -> Region:
    """Statistics, then both gradients from the row's own statistics: two levels. dW is stored as (d, v)."""
    s = make("tanh", logits(dtype) * 0.5) * 2.0
    stat = Carry("L", Kind.LSE, s, (v,), (b, t))
    slope = const(1.0, wide(dtype)) - s * s * 0.25
    ds = (softmax(s, stat) - hit(labels(), const(1.0, wide(dtype)))) * slope
    return Region("slab", (v,), (b, t), (
        stat, Carry("picked", Kind.SUM, hit(labels(), s), (v,), (b, t)),
        Carry("dX", Kind.SUM, ds * value("W", dtype, v, d), (v,), (b, t, d), level=1, storage=dtype),
        Carry("dW", Kind.SUM, value("h", dtype, b, t, d) * ds, (b, t), (d, v), level=1, storage=dtype),
        Carry("plain", Kind.SUM, s, (v,), (b, t), relative_to="L", exponent=2, moment=1, level=1),
    ))


def shifted(dtype: str) -> Region:
    """Rows (b, t < T - 1) with the label of the next position, and rows gathered by an index."""
    short = ax("s", Size.of("T") - 1)
    x = cast(read(buf("h", dtype, b, t, d), b, short, d), wide(dtype))
    g = cast(read(buf("g", dtype, u, d), read(buf("at", "int64", b, t), b, short), d), wide(dtype))
    y = read(buf("y", "int64", b, t), iota(b), iota(short) + 1)
    s = dot(x + g, value("W", dtype, v, d), d)
    own = dot(g, value("W", dtype, v, d), d)
    beyond = cast(read(buf("W", dtype, v, d), iota(v) + 1, const(0, "int64")), wide(dtype))
    safe = where(make("lt", iota(v) + 1, size(v.extent)), beyond, 0.0)
    return Region("shifted", (v,), (b, short), (
        Carry("L", Kind.LSE, s + own, (v,), (b, short)),
        Carry("p", Kind.SUM, hit(y, s), (v,), (b, short)),
        Carry("near", Kind.SUM, safe * own, (v,), (b, short)),
    ))


def attention(dtype: str, causal: bool = True) -> Region:
    """softmax(q k' + bias) v with a GQA group, a mask, and statistics."""
    group = 2
    w = wide(dtype)
    head = make("floordiv", iota(h), const(group, "int64"))
    k = cast(read(buf("k", dtype, b, ax("g", "G"), j, d), iota(b), head, iota(j), iota(d)), w)
    s = dot(value("q", dtype, b, h, i, d), k, d) * 0.3 + value("bias", dtype, h, i, j)
    s = where(make("and", make("le", iota(j), iota(i)), value("keep", "bool", b, j)), s, -INF)
    return Region("attention", (j,), (b, h, i), (
        Carry("L", Kind.LSE, s, (j,), (b, h, i)),
        Carry("o", Kind.SUM, value("v", dtype, b, h, j, e), (j,), (b, h, i, e), relative_to="L"),
        Carry("o1", Kind.SUM, value("v", dtype, b, h, j, e) * value("c", dtype, j), (j,), (b, h, i, e), relative_to="L",
              moment=1),
    ))


def window(dtype: str) -> Region:
    """A causal window over (group, query) rows, with statistics, products and a second level from the same scores."""
    g = ax("g", "G")
    s = dot(value("q", dtype, b, g, i, d), value("k", dtype, b, j, d), d) * 0.3
    near = make("and", make("le", iota(j), iota(i)), make("lt", iota(i), iota(j) + size(u.extent)))
    raw, s = s, where(near, s, -INF)
    stat = Carry("L", Kind.LSE, s, (j,), (b, g, i))
    m = final(stat, ".m")
    p = make("exp", s - m) / final(stat, ".l")
    return Region("window", (j,), (b, g, i), (
        stat, Carry("o", Kind.SUM, value("v", dtype, b, j, e), (j,), (b, g, i, e), relative_to="L"),
        Carry("dk", Kind.SUM, p * value("q", dtype, b, g, i, d), (g, i), (b, j, d), level=1),
        Carry("dp", Kind.SUM, p * p * value("k", dtype, b, j, d), (j,), (b, g, i, d), level=1),
        Carry("kept", Kind.SUM, where(make("le", iota(j), iota(i)), raw * raw, 0.0), (j,), (b, g, i), level=1),
    ))


def attention_backward(dtype: str) -> Region:
    """dQ, and dK, dV and the gradient of a bias shared by the batch from the same tile; P from stored statistics."""
    w = wide(dtype)
    q, k, vv, g = (value(n, dtype, b, h, x, y) for n, x, y in (("q", i, d), ("k", j, d), ("v", j, e), ("g", i, e)))
    s = dot(q, k, d) * 0.3 + value("bias", dtype, h, i, j)
    p = make("exp", s - value("m", w, b, h, i)) * value("r", w, b, h, i)
    ds = p * (dot(g, vv, e) - value("delta", w, b, h, i))
    return Region("attention_backward", (j,), (b, h, i), (
        Carry("dq", Kind.SUM, ds * k * 0.3, (j,), (b, h, i, d)),
        Carry("dk", Kind.SUM, ds * q, (i,), (b, h, j, d), storage=dtype),
        Carry("dv", Kind.SUM, p * g, (i,), (b, h, j, e)),
    ))


def shared_bias(dtype: str) -> Region:
    """Sums over batch axes alone, over batch and rows, and over everything."""
    s = dot(value("q", dtype, b, h, i, d), value("k", dtype, b, h, j, d), d)
    return Region("bias", (j,), (b, h, i), (
        Carry("dbias", Kind.SUM, s * s, (b,), (h, i, j)),
        Carry("rows", Kind.SUM, s, (b, i), (h, j)),
        Carry("most", Kind.MAX, s, (b, h, j), (i,)),
        Carry("all", Kind.SUM, s * s, (b, h, i, j), ()),
    ))


def bias_of_heads(dtype: str) -> Region:
    """A sum over one of two batch axes, beside sums over rows and columns."""
    s = dot(value("q", dtype, b, h, i, d), value("k", dtype, b, h, j, d), d)
    return Region("bias", (j,), (b, h, i), (
        Carry("dbias", Kind.SUM, s, (b,), (h, i, j)),
        Carry("dq", Kind.SUM, s * value("k", dtype, b, h, j, d), (j,), (b, h, i, d)),
        Carry("dk", Kind.SUM, s * value("q", dtype, b, h, i, d), (i,), (b, h, j, d)),
    ))


def bias_of_rows(dtype: str) -> Region:
    """Nothing accumulates over rows: they may be shared out."""
    region = bias_of_heads(dtype)
    return Region("bias", region.streams, region.grid, region.carries[:2])


def contrast(dtype: str) -> Region:
    """Statistics of rows and of columns of the same scores."""
    s = dot(value("x", dtype, i, d), value("z", dtype, j, d), d) * 2.0
    return Region("contrast", (j,), (i,), (
        Carry("R", Kind.LSE, s, (j,), (i,)),
        Carry("C", Kind.LSE, s, (i,), (j,)),
        Carry("cm", Kind.SUM, s, (i,), (j,), relative_to="C"),
        Carry("c2", Kind.SUM, const(1.0, wide(dtype)), (i,), (j,), relative_to="C", moment=2),
        Carry("cd", Kind.SUM, value("x", dtype, i, d), (i,), (j, d), relative_to="C"),
        Carry("cbest", Kind.ARGMAX, s, (i,), (j,)),
        Carry("ctop", Kind.MAX, s, (i,), (j,)),
    ))


def cascade(dtype: str) -> Region:
    """No scores at all: sums over the stream, then reductions and an emit that use them."""
    phi = lambda name, axis: make("sigmoid", value(name, dtype, b, h, axis, d))  # noqa: E731
    ks = Carry("ks", Kind.SUM, phi("k", j), (j,), (b, h, d))
    flow = sum_(phi("q", j) * (final(ks) + 1e-6), d)
    inner = reduce_("max", value("k", dtype, b, h, j, d), d)
    qn = Carry("qn", Kind.SUM, phi("q", j) / flow, (j,), (b, h, d), level=1)
    kv = Carry("kv", Kind.SUM, phi("k", j) * value("v", dtype, b, h, j, e) * inner, (j,), (b, h, d, e), level=1)
    out = dot(phi("q", j) * final(qn), final(kv), d)
    return Region("cascade", (j,), (b, h), (ks, qn, kv), (
        Emit("o", out * make("sigmoid", flow), (b, h, j, e), level=2), Emit("f", flow, (b, j, h), level=1)))


def widths(dtype: str) -> Region:
    """Statistics with a width: an LSE and its moments for each d, and what is constant along the stream."""
    x, y = value("x", dtype, b, j, d), value("y2", dtype, b, j)
    return Region("widths", (j,), (b,), (
        Carry("L", Kind.LSE, x, (j,), (b, d)),
        Carry("p2", Kind.SUM, y, (j,), (b, d), relative_to="L", exponent=2),
        Carry("m1", Kind.SUM, y, (j,), (b, d), relative_to="L", moment=1),
        Carry("M", Kind.LSE, y, (j,), (b,)),
        Carry("xm", Kind.SUM, x * x, (j,), (b, d), relative_to="M", moment=1),
        Carry("best", Kind.ARGMAX, x, (j,), (b, d)),
        Carry("n", Kind.SUM, sum_(value("z", dtype, b, d), d, e), (j,), (b,)),
    ))


def state_of_products(dtype: str) -> Region:
    """A softmax over the stream weighs a product of two widths: the weight belongs to either."""
    s = dot(value("k", dtype, b, h, j, d), value("q1", dtype, b, h, d), d)
    k, v = value("k", dtype, b, h, j, d), value("v", dtype, b, h, j, e)
    return Region("state", (j,), (b, h), (
        Carry("L", Kind.LSE, s, (j,), (b, h)),
        Carry("kv", Kind.SUM, make("sigmoid", k) * v, (j,), (b, h, d, e), relative_to="L"),
        Carry("kv2", Kind.SUM, k * v, (j,), (b, h, d, e), relative_to="L", exponent=2, moment=1),
    ))


def triple(dtype: str) -> Region:
    """Scores of triples; the stream is a product of two axes."""
    pair = value("k1", dtype, j, d) * value("k2", dtype, l, d)
    s = dot(value("q", dtype, i, d), pair, d)
    return Region("triple", (j, l), (i,), (
        Carry("L", Kind.LSE, s, (j, l), (i,)),
        Carry("o", Kind.SUM, value("v1", dtype, j, e) * value("v2", dtype, l, e), (j, l), (i, e), relative_to="L"),
        Carry("z", Kind.SUM, s * value("w", dtype, l, j), (j, l), (i,)),
    ))


def single_query(dtype: str) -> Region:
    """One query per batch point: no row axis is left."""
    s = dot(value("q", dtype, b, h, d), value("k", dtype, b, h, j, d), d)
    return Region("single", (j,), (b, h), (
        Carry("L", Kind.LSE, s, (j,), (b, h)),
        Carry("o", Kind.SUM, value("v", dtype, b, h, j, e), (j,), (b, h, e), relative_to="L"),
        Carry("best", Kind.ARGMAX, s, (j,), (b, h)),
    ))


def masked(inputs: dict[str, Tensor]) -> None:
    """A row of bias that is -inf throughout, single -inf entries, and a key that nobody may see."""
    inputs["bias"][0, 3, :] = -INF
    inputs["bias"][:, :, 5] = -INF
    inputs["keep"][0, 0] = False


def settled(inputs: dict[str, Tensor]) -> None:
    """Stored maxima above every score, so that weights stay below 1 and gradients within float16."""
    inputs["m"].add_(12.0)


HEADS = dict(B=2, H=4, G=2, I=9, J=19, D=5, E=6)
CASES = [
    Case("statistics", statistics, VOCAB),
    Case("weighted", weighted, VOCAB),
    Case("two_statistics", two_statistics, VOCAB | dict(E=4)),
    Case("row_gradient", row_gradient, VOCAB, fill=settled),
    Case("column_gradient", column_gradient, VOCAB, fill=settled),
    Case("both_gradients", both_gradients, VOCAB, fill=settled),
    Case("in_one_go", in_one_go, VOCAB),
    Case("shifted", shifted, VOCAB | dict(U=11), limits=dict(at="U")),
    Case("attention", attention, HEADS, fill=masked),
    Case("window", window, HEADS | dict(U=3)),
    Case("attention_backward", attention_backward, HEADS, fill=settled),
    Case("shared_bias", shared_bias, HEADS),
    Case("bias_of_heads", bias_of_heads, HEADS),
    Case("bias_of_rows", bias_of_rows, HEADS),
    Case("contrast", contrast, dict(I=11, J=13, D=4)),
    Case("cascade", cascade, HEADS),
    Case("state_of_products", state_of_products, HEADS),
    Case("widths", widths, dict(B=3, J=21, D=18, E=3)),
    Case("triple", triple, dict(I=7, J=4, L=5, D=3, E=4)),
    Case("single_query", single_query, HEADS),
]
BY_NAME = {case.name: case for case in CASES}
