"""Dense evaluation: every op against torch, every VJP row against autograd, windows, reads, softmax statistics."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fuse.ir.access import evaluate_output
from fuse.ir.align import align
from fuse.ir.evaluate import affine, bounds, evaluate, lse_pair
from fuse.ir.expr import (
    COMPLEXES,
    FLOATS,
    Axis,
    Buffer,
    Expr,
    cast,
    const,
    iota,
    lse,
    make,
    read,
    size,
    sum_,
    topological,
    where,
)
from fuse.ir.ops import LEAVES, OPS
from fuse.ir.program import Output, Term
from fuse.ir.size import Size

SIZES = {"T": 5, "U": 4, "D": 3}
t, u, d = (Axis(n, Size.of(n.upper())) for n in "tud")


def leaf(name: str, *axes: Axis, dtype: str = "float64") -> Expr:
    return read(Buffer(name, dtype, tuple(a.extent for a in axes)), *axes)


X, Y, Z = leaf("X", t, d), leaf("Y", u, d), leaf("Z", t, d)
P, Q = leaf("P", t, d), leaf("Q", u, d)  # positive
CX, CY = leaf("CX", t, d, dtype="complex128"), leaf("CY", u, d, dtype="complex128")
B, C = leaf("B", t, d, dtype="bool"), leaf("C", u, dtype="bool")
I, J = leaf("I", t, d, dtype="int64"), leaf("J", u, dtype="int64")


def feeds(seed: int = 0) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    f = lambda *s: torch.randn(*s, generator=g, dtype=torch.float64)  # noqa: E731
    return {
        "X": f(5, 3),
        "Y": f(4, 3),
        "Z": f(5, 3),
        "P": f(5, 3).abs() + 0.1,
        "Q": f(4, 3).abs() + 0.1,
        "CX": torch.complex(f(5, 3), f(5, 3)),
        "CY": torch.complex(f(4, 3), f(4, 3)),
        "B": f(5, 3) > 0,
        "C": f(4) > 0,
        "I": torch.randint(-4, 9, (5, 3), generator=g),
        "J": torch.randint(1, 3, (4,), generator=g),
    }


def broadcast(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[t, d] and [u, d] (or [u]) over (t, d, u)."""
    return x[:, :, None], y.T if y.ndim == 2 else y


UNARY = {
    "neg": torch.neg,
    "exp": torch.exp,
    "log": torch.log,
    "log1p": torch.log1p,
    "expm1": torch.expm1,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "sqrt": torch.sqrt,
    "rsqrt": torch.rsqrt,
    "abs": torch.abs,
    "sign": torch.sign,
    "sin": torch.sin,
    "cos": torch.cos,
    "erf": torch.erf,
    "floor": torch.floor,
    "isnan": torch.isnan,
    "stop": lambda x: x,
}
BINARY = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "pow": torch.pow,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "eq": torch.eq,
    "ne": torch.ne,
    "lt": torch.lt,
    "le": torch.le,
    "logaddexp": torch.logaddexp,
    "exp_sub": lambda a, b: torch.exp(a - b),
    "sub_lse": torch.sub,
    "complex": torch.complex,
}
OTHER = {
    "not": (make("not", B), lambda e: ~e["B"]),
    "and": (make("and", B, C), lambda e: e["B"][..., None] & e["C"]),
    "or": (make("or", B, C), lambda e: e["B"][..., None] | e["C"]),
    "cast": (cast(I, "float32"), lambda e: e["I"].float()),
    "conj": (make("conj", CX), lambda e: e["CX"].conj()),
    "real": (make("real", CX), lambda e: e["CX"].real),
    "imag": (make("imag", CX), lambda e: e["CX"].imag),
    "given": (make("given", X, 2 * X), lambda e: 2 * e["X"]),
    "bounded": (make("bounded", I, axis=t), lambda e: e["I"]),
    "floordiv": (make("floordiv", I, J), lambda e: e["I"][..., None] // e["J"]),
    "mod": (make("mod", I, J), lambda e: e["I"][..., None] % e["J"]),
    "where": (where(C, X, Y), lambda e: torch.where(e["C"], *broadcast(e["X"], e["Y"])).permute(2, 0, 1)),
    "sum": (sum_(X * Y, d), lambda e: e["X"] @ e["Y"].T),
    "max": (make("max", X * Y, axes=(d, u)), lambda e: (e["X"][:, :, None] * e["Y"].T).amax((1, 2))),
    "argmax": (make("argmax", X, axes=(t,)), lambda e: e["X"].argmax(0)),
    "lse": (make("lse", X * Y, axes=(d, u)), lambda e: (e["X"][:, :, None] * e["Y"].T).logsumexp((1, 2))),
    "scan": (make("scan", const(1, "float64"), X, axis=t, reverse=False), lambda e: e["X"].cumsum(0)),
    "shift": (make("shift", X, axis=t, by=2), lambda e: torch.cat([torch.zeros(2, 3), e["X"][:-2]])),
    "pick": (make("pick", X, J, axis=t), lambda e: e["X"][e["J"]].T),
    "const": (const(2.5, "float64"), lambda e: torch.tensor(2.5, dtype=torch.float64)),
    "iota": (iota(t), lambda e: torch.arange(5)),
    "size": (size(t.extent * d.extent + 1), lambda e: torch.tensor(16)),
    "read": (X, lambda e: e["X"]),
    "carry": (make("carry", name="c", part="final", dtype="float64", axes=(t,)), lambda e: e["X"][:, 0]),
}


def close(got: torch.Tensor, want: torch.Tensor, tolerance: float = 1e-12) -> None:
    assert got.shape == want.shape, (got.shape, want.shape)
    torch.testing.assert_close(got, want.to(got.dtype), rtol=tolerance, atol=tolerance, equal_nan=True)


def test_every_op_is_tested():
    assert set(OPS) == set(UNARY) | set(BINARY) | set(OTHER)


@pytest.mark.parametrize("op", UNARY)
def test_unary(op: str):
    close(evaluate(make(op, P), feeds(), SIZES), UNARY[op](feeds()["P"]))


@pytest.mark.parametrize("op", BINARY)
def test_binary(op: str):
    e = feeds()
    close(evaluate(make(op, P, Q), e, SIZES), BINARY[op](*broadcast(e["P"], e["Q"])))


@pytest.mark.parametrize("op", OTHER)
def test_other_ops(op: str):
    e, (node, want) = feeds(), OTHER[op]
    close(evaluate(node, e, SIZES, carries=lambda n, _: e["X"][:, 0] if n.op == "carry" else None), want(e))


# ---- derivatives ------------------------------------------------------------------------------------------------

DERIVATIVES: dict[str, list[Expr]] = {
    **{op: [make(op, P)] for op in UNARY},
    **{op: [make(op, P, Q), make(op, Q, P)] for op in BINARY},
    **{
        op: [make(op, CX)]
        for op in (
            "neg",
            "exp",
            "log",
            "log1p",
            "expm1",
            "tanh",
            "sigmoid",
            "sqrt",
            "rsqrt",
            "sin",
            "cos",
            "conj",
            "real",
            "imag",
        )
    },
    **{op: [make(op, CX, CY), make(op, X, Y)] for op in ("add", "sub", "mul", "div")},
    "pow": [make("pow", P, Q), make("pow", CX, CY)],
    "complex": [make("complex", X, Y)],
    "cast": [cast(X, "complex128"), cast(make("real", CX), "complex128")],
    "where": [where(B, X, Y), where(C, Y, X), where(B, CX, CY)],
    "sum": [sum_(X * Y, d), sum_(X, d, u), sum_(CX * CY, d)],
    "max": [make("max", X * Y, axes=(d,)), make("max", X, axes=(t, d))],
    "lse": [lse(X * Y, d), make("lse", X, axes=(t, d))],
    "logaddexp": [make("logaddexp", lse(X, d), lse(Z * 2.0, d))],
    "exp_sub": [
        make("exp_sub", X, lse(X, d)),
        make("exp_sub", Z, lse(X, d)),
        make("exp_sub", X, make("logaddexp", lse(X, d), lse(Z, d))),
    ],
    "sub_lse": [make("sub_lse", X, lse(X, d)), make("sub_lse", Y, leaf("R", u))],
    "scan": [
        make("scan", a, b, axis=t, reverse=r) for r in (False, True) for a, b in ((X, Z), (X, Z * Y), (CX, CX * CY))
    ],
    "shift": [make("shift", x, axis=t, by=by) for x in (X, CX) for by in (1, -1, 2, -7)],
    "pick": [make("pick", X, J, axis=t), make("pick", X, J - 2, axis=d), make("pick", CX, J, axis=d)],
    "abs": [make("abs", X), make("abs", CX)],
    "stop": [make("stop", X) * X],
    "given": [make("given", X * Y, X * Y)],
}


def unbroadcast(g: Expr, like: Expr) -> Expr:
    return sum_(g, *(a for a in g.axes if a not in like.axes))


def derived(root: Expr, seed: Expr, wrt: list[Expr]) -> list[Expr | None]:
    """Reverse mode by the rows of the table alone."""
    cotangents = {root: seed}
    for node in reversed(topological([root])):
        if node not in cotangents:
            continue
        for arg, vjp in zip(node.args, OPS[node.op].vjp, strict=False):
            if vjp is not None and arg.dtype in FLOATS + COMPLEXES:
                g = unbroadcast(vjp(node, cotangents[node]), arg)
                cotangents[arg] = cotangents[arg] + g if arg in cotangents else g
    return [cotangents.get(w) for w in wrt]


def test_every_row_with_a_vjp_is_differentiated():
    assert {op for op, row in OPS.items() if any(row.vjp)} <= set(DERIVATIVES)


@pytest.mark.parametrize(
    "node",
    [
        pytest.param(n, id=f"{op}{i}")
        for op, ns in DERIVATIVES.items()
        for i, n in enumerate(ns)
        if n.dtype in FLOATS + COMPLEXES
    ],
)
def test_vjp_against_autograd(node: Expr):
    leaves = [e for e in topological([node]) if e.op == "read" and e.dtype in FLOATS + COMPLEXES]
    env = {**feeds(), "R": torch.randn(4, dtype=torch.float64)}
    inputs = {e["buffer"].name: env[e["buffer"].name].clone().requires_grad_() for e in leaves}
    out = evaluate(node, {**env, **inputs}, SIZES)
    g = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(1))
    want = (
        torch.autograd.grad(out, list(inputs.values()), g, allow_unused=True)
        if out.requires_grad
        else [None] * len(leaves)
    )
    got = derived(node, leaf("g", *node.axes, dtype=node.dtype), leaves)
    for e, expr, grad in zip(leaves, got, want, strict=True):
        shape = inputs[e["buffer"].name]
        value = torch.zeros_like(shape) if expr is None else evaluate(expr, {**env, "g": g}, SIZES)
        if expr is not None:
            value = align(value, expr.axes, e.axes).expand(shape.shape)
        close(value, torch.zeros_like(shape) if grad is None else grad, 1e-9)


def test_a_maximum_hands_its_cotangent_to_the_first_position():
    x = torch.tensor([[1.0, 3, 3], [2, 2, 2], [0, 1, 2], [5, 5, 4], [0, 0, 1]], dtype=torch.float64).requires_grad_()
    (expr,) = derived(make("max", X, axes=(d,)), const(1, "float64"), [X])
    (want,) = torch.autograd.grad(x.max(1).values.sum(), x)  # amax would divide it among the ties
    close(align(evaluate(expr, {"X": x.detach()}, SIZES), expr.axes, (t, d)), want)


def test_a_maximum_over_two_axes_has_one_position_too():
    x = torch.tensor([[1.0, 3, 3], [2, 2, 2], [3, 1, 2], [0, 3, 1], [0, 0, 1]], dtype=torch.float64)
    (expr,) = derived(make("max", X, axes=(d, t)), const(1, "float64"), [X])
    found = align(evaluate(expr, {"X": x}, SIZES), expr.axes, (t, d))
    assert found.sum() == 1 and x[found == 1].item() == 3


# ---- softmax statistics -------------------------------------------------------------------------------------------


def test_weights_come_from_the_pair():
    x = torch.randn(5, 3) + 1e4
    got = evaluate(make("exp_sub", cast(X, "float32"), lse(cast(X, "float32"), d)), {"X": x.double()}, SIZES)
    close(got, x.double().softmax(1), 1e-6)
    offset = evaluate(make("sub_lse", cast(X, "float32"), lse(cast(X, "float32"), d)), {"X": x.double()}, SIZES)
    close(offset, x.double().log_softmax(1), 1e-6)
    close(evaluate(lse(cast(X, "float32"), d), {"X": x.double()}, SIZES), x.double().logsumexp(1), 1e-6)


@pytest.mark.parametrize("fill", [float("-inf"), torch.finfo(torch.float32).min, float("nan"), float("inf")])
def test_masked_rows_are_those_of_torch(fill: float):
    x = torch.randn(5, 3)
    x[1], x[2, 0] = fill, fill
    f = cast(X, "float32")
    close(evaluate(make("exp_sub", f, lse(f, d)), {"X": x.double()}, SIZES), x.softmax(1), 1e-6)
    if fill != float("inf"):  # torch's logsumexp is inf there, its log_softmax nan
        close(evaluate(lse(f, d), {"X": x.double()}, SIZES), x.logsumexp(1), 1e-6)


def test_softmax_over_a_union():
    both = make("logaddexp", lse(X, d), lse(X * Y, d))
    e = feeds()
    e["X"][1], e["X"][2] = -math.inf, 1e4
    e["Y"] = e["Y"].abs()
    x, y = e["X"], torch.einsum("td,ud->tud", e["X"], e["Y"])
    union = torch.cat([x[:, None].expand(5, 4, 3), y], -1)
    close(evaluate(make("exp_sub", X * Y, both), e, SIZES), union.softmax(-1)[..., 3:].transpose(1, 2))
    m, total = lse_pair(both)
    close(evaluate(m + make("log", total), e, SIZES), union.logsumexp(-1))


def test_other_statistics_count_as_a_pair_with_one():
    node = leaf("R", t)
    assert lse_pair(node) == (node, const(1, "float64"))


# ---- reads ----------------------------------------------------------------------------------------------------------

N = Buffer("N", "float64", (Size.of(24), Size.of(7)))
a, b, c, e7 = Axis("a", Size.of(2)), Axis("b", Size.of(3)), Axis("c", Size.of(4)), Axis("e", Size.of(7))
NUMBERS = {"N": torch.randn(24, 7, dtype=torch.float64), "K": torch.tensor([6, 0, 3, 3])}
K = read(Buffer("K", "int64", (Size.of(4),)), c)


@pytest.mark.parametrize(
    ("node", "want"),
    [
        (read(N, iota(c) + 3, iota(e7)), lambda n: n[3:7]),
        (read(N, iota(c) * 2 + 1, const(5, "int64")), lambda n: n[1:9:2, 5]),
        (read(N, iota(e7), iota(b)), lambda n: n[:7, :3]),
        (read(N, iota(a) * 12 + iota(b) * 4 + iota(c), iota(e7)), lambda n: n.view(2, 3, 4, 7)),
        (read(N, iota(c) + iota(a) * 12 + 8, iota(e7)), lambda n: n.view(2, 12, 7)[:, 8:].transpose(0, 1)),
        (
            read(N, iota(a) * 8 + iota(b) * 2 + 9, iota(e7)),
            lambda n: n[9:].view(-1, 7)[[0, 2, 4, 8, 10, 12]].view(2, 3, 7),
        ),
        (read(N, iota(c), iota(c)), lambda n: n.diagonal()[:4]),
        (read(N, iota(c) + iota(b), iota(e7)), lambda n: torch.stack([n[i : i + 3] for i in range(4)])),
        (read(N, K, iota(e7)), lambda n: n[[6, 0, 3, 3]]),
        (read(N, iota(b), K), lambda n: n[:3, [6, 0, 3, 3]]),
        (read(N, iota(c), K), lambda n: n[[0, 1, 2, 3], [6, 0, 3, 3]]),
        (read(N, K + iota(b), iota(e7)), lambda n: n[torch.tensor([6, 0, 3, 3])[:, None] + torch.arange(3)]),
        (read(N, 3 - iota(c), iota(e7)), lambda n: n[:4].flip(0)),
    ],
)
def test_reads(node: Expr, want):
    close(evaluate(node, NUMBERS, {}), want(NUMBERS["N"]))


def test_the_diagonal_of_a_square():
    square = Buffer("N", "float64", (c.extent, c.extent))
    close(evaluate(read(square, c, c), {"N": NUMBERS["N"][:4, :4]}, {}), NUMBERS["N"].diagonal()[:4])


@pytest.mark.parametrize("index", [iota(c) - 2, iota(c) + 22, K - 100, K + 100, K * 10])
def test_reads_out_of_range_stay_inside(index: Expr):
    inside = make("and", make("le", const(0, "int64"), index), make("lt", index, const(24, "int64")))
    got = evaluate(where(inside, read(N, index, iota(e7)), 0), NUMBERS, {})
    at = evaluate(index, NUMBERS, {})
    want = torch.where(((at >= 0) & (at < 24))[:, None], NUMBERS["N"][at.clamp(0, 23)], 0.0)
    close(got, want)


def test_a_read_of_an_empty_buffer_is_zero():
    empty = Buffer("N", "float64", (Size.of("Z"), Size.of(7)))
    close(evaluate(read(empty, K, iota(e7)), {"N": torch.zeros(0, 7), "K": NUMBERS["K"]}, {"Z": 0}), torch.zeros(4, 7))
    z = Axis("z", Size.of("Z"))
    assert evaluate(lse(read(empty, z, e7), z), {"N": torch.zeros(0, 7)}, {"Z": 0}).tolist() == [-math.inf] * 7


def test_affine_forms():
    form = affine(iota(t) * size(t.extent) + (iota(u) - iota(t)) + 3)
    assert form is not None and form.offset == 3
    assert form.terms == {t: t.extent - 1, u: Size.of(1)}
    assert affine(iota(t) - iota(t)).terms == {}
    assert affine(iota(t) * iota(u)) is None and affine(K) is None and affine(X) is None
    assert affine(make("floordiv", iota(t), const(2, "int64"))) is None
    assert affine(iota(t) + 1).single == t and affine(iota(t) * 2).single is None


def test_bounds_of_affine_forms():
    assert bounds(affine(iota(t) * 2 - iota(u) + 5)) == (6 - u.extent, t.extent * 2 + 3)
    assert bounds(affine(iota(t) * size(Size.of("A") - Size.of("B")))) is None


# ---- windows, types, outputs ----------------------------------------------------------------------------------------

WINDOWED = [
    X * Y + 1.0,
    sum_(X * Y, d),
    lse(X * Y, t),
    make("exp_sub", X, lse(X, t)),
    make("scan", X, Z, axis=t, reverse=True),
    make("shift", X * Y, axis=t, by=2),
    make("shift", X, axis=t, by=-1),
    make("pick", X, J, axis=t),
    iota(t) + iota(u),
    make("shift", make("scan", X, Z, axis=t, reverse=False), axis=t, by=1),
    make("max", X, axes=(t,)) + X,
    B,
    make("argmax", X * Y, axes=(t,)),
    read(Buffer("X", "float64", (t.extent, d.extent)), iota(t) - 1, iota(d)),
]


@given(st.sampled_from(WINDOWED), st.integers(0, 5), st.integers(0, 5), st.integers(0, 4), st.integers(0, 4))
def test_a_window_is_a_slice(node: Expr, t0: int, t1: int, u0: int, u1: int):
    window = {t: (min(t0, t1), max(t0, t1)), u: (min(u0, u1), max(u0, u1))}
    whole = evaluate(node, feeds(), SIZES)
    part = whole[tuple(slice(*window.get(a, (None, None))) for a in node.axes)]
    close(evaluate(node, feeds(), SIZES, window=window), part)


def test_the_type_can_be_overridden():
    x = cast(cast(X, "bfloat16"), "float32") * 1.5
    exact = feeds()["X"] * 1.5
    assert evaluate(x, feeds(), SIZES).dtype == torch.float32
    close(evaluate(x, feeds(), SIZES, dtype="float64"), exact)
    half = cast(CX, "complex64")
    assert evaluate(half, feeds(), SIZES).dtype == torch.complex64
    assert evaluate(half, feeds(), SIZES, dtype="float64").dtype == torch.complex128
    assert evaluate(cast(X, "int64"), feeds(), SIZES, dtype="float64").dtype == torch.int64


def test_several_expressions_share_their_parts():
    assert [v.shape for v in evaluate([X, X * Y], feeds(), SIZES)] == [(5, 3), (5, 3, 4)]


def test_dots_do_not_build_their_product():
    from fuse.ir.evaluate import Evaluator

    sizes = {"T": 50, "U": 40, "D": 30}
    env = {"X": torch.randn(50, 30, dtype=torch.float64), "Y": torch.randn(40, 30, dtype=torch.float64)}
    for body in (X * Y, X * Y * 2.0, (X + 1.0) * (X * Y), cast(iota(t), "float64") * Y * X):
        ev = Evaluator(env, sizes)
        want = evaluate(body, env, sizes).sum(body.axes.index(d))
        close(ev.value(sum_(body, d)), want, 1e-9)
        assert ev.peak <= 2000


def test_a_carry_without_a_value_is_an_error():
    with pytest.raises(KeyError, match="carry c"):
        evaluate(OTHER["carry"][0], feeds(), SIZES)


def test_outputs_add_their_terms():
    table = Buffer("out", "float64", (t.extent, d.extent))
    rows = read(Buffer("rows", "int64", (u.extent,)), u)
    env = {**feeds(), "rows": torch.tensor([1, 4, 1, 7])}
    out = evaluate_output(Output(table, (Term((iota(t), iota(d)), X), Term((rows, iota(d)), Y))), env, SIZES)
    want = env["X"].clone().index_add_(0, torch.tensor([1, 4, 1]), env["Y"][:3])  # 7 is out of range
    close(out, want)
    close(env["X"], feeds()["X"])
    half = evaluate_output(Output(table, (Term((iota(t), iota(d)), const(2, "float64")),)), env, SIZES)
    close(half, torch.full((5, 3), 2.0))
    total = evaluate_output(Output(Buffer("s", "float32", ()), (Term((), X),)), env, SIZES)
    close(total, env["X"].sum(), 1e-6)
    assert evaluate_output(Output(table, ()), env, SIZES).abs().sum() == 0


def test_leaves_have_no_derivative():
    assert not any(any(OPS[op].vjp) for op in LEAVES)
