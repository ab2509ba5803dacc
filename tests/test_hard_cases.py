"""Corners of a loss over a vocabulary, as a user meets them: real kernels, the gradients that autograd hands out.

The judge is eager in the same type; where numbers differ by rounding, float64: fuse errs at most twice as much as eager,
plus a few roundings.
"""
from __future__ import annotations

import contextlib
import itertools
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.utils import counters
from torch.utils.checkpoint import checkpoint

import fuse
from tests.plain import quick_builds, without_inductor  # noqa: F401 (fixtures)

N, V, D = 37, 101, 16
SCHEDULES = ("slab", "recompute")
OPTIONS = {"min_virtual_bytes": 0, "strict": True}
pytestmark = pytest.mark.usefixtures("quick_builds", "without_inductor", "no_counts")


@pytest.fixture
def no_counts():
    counters.clear()


def step(h, W, y):
    return F.cross_entropy(F.linear(h, W), y)


def data(n=N, v=V, d=D, dtype=torch.float32, scale=1.0, ignored=5):
    g = torch.Generator().manual_seed(0)
    h, W = torch.randn(n, d, generator=g) * scale, torch.randn(v, d, generator=g)
    y = torch.randint(0, v, (n,), generator=g)
    y[::ignored] = -100
    return [h.to(dtype).requires_grad_(), W.to(dtype).requires_grad_(), y]


def again(args):
    """The same arguments as leaves of their own, strides included."""
    return [a.detach().clone().requires_grad_(a.requires_grad) if isinstance(a, torch.Tensor) else a for a in args]


def compiled(fn, dynamic=None, **options):
    return torch.compile(fn, backend="fuse", dynamic=dynamic, options={**OPTIONS, **options})


def values(fn, args):
    """The loss and the gradients of what wants one."""
    loss = fn(*args)
    if loss.requires_grad:
        loss.backward()
    return [loss.detach(), *(a.grad for a in args if isinstance(a, torch.Tensor) and a.requires_grad)]


def error(x, want):
    """The largest error relative to the largest entry; nan and infinities have to be where they should."""
    x, want = x.detach().double(), want.detach().double()
    assert x.shape == want.shape
    kept = want.isfinite()
    assert torch.equal(kept, x.isfinite()) and torch.equal(want.isnan(), x.isnan())
    return float((x - want)[kept].abs().max() / (want[kept].abs().max() + 1e-12)) if kept.any() else 0.0


ROUNDINGS = {torch.float64: 1e-13, torch.float32: 1e-6, torch.bfloat16: 2.0 ** -8, torch.float16: 2.0 ** -11}


def judge(fn, args, got=None, fused=1, context=contextlib.nullcontext, low=None, **options):
    """Compiled against eager against float64, elementwise."""
    counters.clear()
    with context():
        got = values(got or compiled(fn, **options), mine := again(args))
        eager = values(fn, again(args))
    wide = [a.detach().double().requires_grad_(a.requires_grad) if isinstance(a, torch.Tensor) and a.is_floating_point() else a
            for a in args]
    slack = ROUNDINGS[low or args[0].dtype]
    for i, (g, e, w) in enumerate(zip(got, eager, values(fn, wide), strict=True)):
        assert g.dtype == e.dtype and error(g, w) <= 2 * error(e, w) + slack, (i, error(g, w), error(e, w))
    assert counters["fuse"]["fused"] == fused
    return mine


# ---- sizes --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("n, v, d", [(2, 5, 1), (33, 127, 7), (64, 4097, 3), (130, 2049, 5)])
def test_odd_sizes(n, v, d, schedule):
    judge(step, data(n, v, d, ignored=n + 1), schedule=schedule, tile={"row": 32, "col": 64})


@pytest.mark.parametrize("n", [0, 1])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_no_row_or_one(reduction, n):
    """Nothing is larger than what leaves, so that it is left to Inductor, unless all of it is empty."""
    def loss(h, W, y):
        return F.cross_entropy(F.linear(h, W), y, reduction=reduction).sum()
    judge(loss, data(n, ignored=2), fused=1 if n == 0 and reduction == "none" else 0)
    assert {m.code for m in fuse.explain(loss, *data(n), fuse_options=OPTIONS).misses} <= {"EXITS_TOO_BIG"}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_as_many_rows_as_the_data_says(reduction, schedule):
    """One kernel sees many rows, one and none."""
    def chosen(h, W, y, keep):
        return F.cross_entropy(F.linear(h[keep], W), y[keep], reduction=reduction)
    f, fused = compiled(chosen, schedule=schedule), 1
    row = torch.arange(N)
    for keep in (row % 3 > 0, row == 7, row < 0, row >= 0):
        judge(chosen, [*data(ignored=N), keep], f, fused=fused)
        fused = 0


# ---- rows ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("schedule", SCHEDULES)
def test_all_rows_ignored(schedule):
    h, W, y = data(ignored=1)
    (loss, dh, dw), want = values(compiled(step, schedule=schedule), again([h, W, y])), values(step, [h, W, y])
    assert loss.isnan() and want[0].isnan()
    assert torch.equal(dh.isnan(), want[1].isnan()) and torch.equal(dw.isnan(), want[2].isnan())


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_confident_targets(schedule, dtype):
    """The label's logit is far above the others: the loss is a small difference of large numbers."""
    h, W, y = data(scale=1.0, ignored=N + 1, dtype=dtype)
    h = (W.detach()[y] * 4).requires_grad_()
    f = compiled(step, schedule=schedule)
    judge(step, [h, W, y], f)
    judge(step, [(h.detach() * -1).requires_grad_(), W, y], f, fused=0)     # confident and wrong


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_logits_of_minus_infinity(schedule):
    """Classes that are forbidden, one of them a label, and a row in which every class is."""
    def masked(h, W, y, allowed):
        return F.cross_entropy(F.linear(h, W).masked_fill(~allowed, float("-inf")), y, reduction="sum")
    allowed = torch.rand(N, V, generator=torch.Generator().manual_seed(1)) > 0.3
    args = [*data(ignored=N + 1), allowed]
    allowed[torch.arange(N), args[2]] = True
    f = compiled(masked, schedule=schedule)
    judge(masked, args, f)
    allowed[3, args[2][3]] = False
    judge(masked, args, f, fused=0)
    allowed[4] = False
    judge(masked, args, f, fused=0)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("value", [float("-inf"), float("inf"), float("nan")])
def test_weights_that_are_not_finite(value, schedule):
    """The bias of padded classes is minus infinity; a nan or an overflow anywhere must show."""
    h, W, y = data()
    b = torch.zeros(V)
    b[V - 3:] = value
    y[y >= V - 3] = 0
    judge(biased, [h, W, b.requires_grad_(), y], schedule=schedule)
    torch._dynamo.reset()
    with torch.no_grad():
        h[3, 2] = value
    judge(step, [h, W, y], schedule=schedule)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("label", [V, -1, -V])
def test_labels_out_of_range(schedule, label):
    args = data()
    args[2][7] = label
    with pytest.raises(IndexError) as eager:
        step(*args)
    with pytest.raises(IndexError, match="out of bounds"):
        compiled(step, schedule=schedule)(*args)
    assert "out of bounds" in str(eager.value)


# ---- strides and sharing ------------------------------------------------------------------------------------------

LAYOUTS = {
    "transposed": lambda t: t.t().contiguous().t(),
    "every other column": lambda t: torch.stack([t, -t], -1)[..., 0],
    "offset": lambda t: torch.cat([t[:1], t])[1:],
    "rows of a wider matrix": lambda t: torch.cat([t, t], 1)[:, :t.shape[1]],
    "one row repeated": lambda t: t[:1].expand_as(t),
}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, schedule):
    h, W, y = data()
    for args in ([LAYOUTS[layout](h), W, y], [h, LAYOUTS[layout](W), y]):
        leaves = [a.detach().requires_grad_() for a in args[:2]]
        strides = [a.stride() for a in leaves]
        got = torch.autograd.grad(compiled(step, schedule=schedule)(*leaves, y), leaves)
        assert [a.stride() for a in leaves] == strides and counters["fuse"]["fused"] == 1
        wide = [a.detach().double().requires_grad_() for a in leaves]
        eager, exact = torch.autograd.grad(step(*leaves, y), leaves), torch.autograd.grad(step(*wide, y), wide)
        for g, e, w in zip(got, eager, exact, strict=True):
            assert error(g, w) <= 2 * error(e, w) + 2e-6
        torch._dynamo.reset()
        counters.clear()


def test_a_weight_stored_the_other_way_round():
    judge(lambda h, W, y: F.cross_entropy(h @ W, y), [data()[0], data()[1].detach().t().contiguous().requires_grad_(), data()[2]])


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_tied_weights(schedule):
    def tied(W, y):
        h = F.embedding(y.clamp(min=0), W).tanh()
        return F.cross_entropy(F.linear(h, W), y)
    judge(tied, data()[1:], schedule=schedule)


def test_tied_modules():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = torch.nn.Embedding(V, D), torch.nn.Linear(D, V, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, x, y):
            return F.cross_entropy(self.head(self.embed(x)), y)
    model, (_, _, y) = Model(), data()
    x = y.clamp(min=0).flip(0)
    model(x, y).backward()
    want, model.embed.weight.grad = model.embed.weight.grad, None
    compiled(model)(x, y).backward()
    torch.testing.assert_close(model.head.weight.grad, want)
    assert counters["fuse"]["fused"] == 1


# ---- what autograd may ask for ------------------------------------------------------------------------------------

def biased(h, W, b, y):
    return F.cross_entropy(F.linear(h, W, b), y)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("wanted", list(itertools.product([True, False], repeat=3)))
def test_each_subset_of_gradients(wanted, schedule):
    h, W, y = data()
    args = [t.detach().requires_grad_(w) for t, w in zip((h, W, torch.randn(V)), wanted, strict=True)]
    judge(biased, [*args, y], schedule=schedule)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_gradients_of_some_inputs_only(schedule):
    h, W, y = data()
    loss = compiled(step, schedule=schedule)(h, W, y)
    want = torch.autograd.grad(step(h, W, y), [h, W])
    for leaf, w in zip((h, W), want, strict=True):
        got, = torch.autograd.grad(loss, leaf, retain_graph=True)
        assert error(got, w) <= 2e-6


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("factor", [0.0, -3.5, 1e-6, 1024.0])
def test_upstream_gradients(factor, dtype, schedule):
    args = data(dtype=dtype)
    f = compiled(step, schedule=schedule)
    judge(lambda *a: step(*a) * factor, args, lambda *a: f(*a) * factor)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_upstream_gradients_per_row(schedule):
    def rows(h, W, y):
        return F.cross_entropy(F.linear(h, W), y, reduction="none")
    weights = torch.randn(N)
    f = compiled(rows, schedule=schedule)
    judge(lambda *a: (rows(*a) * weights.to(a[0].dtype)).sum(), data(), lambda *a: (f(*a) * weights).sum())


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_retained_graphs(schedule):
    h, W, y = data()
    loss = compiled(step, schedule=schedule)(h, W, y)
    loss.backward(retain_graph=True)
    first = h.grad.clone(), W.grad.clone()
    loss.backward(retain_graph=True)
    torch.testing.assert_close((h.grad, W.grad), (first[0] * 2, first[1] * 2))
    loss.backward(torch.tensor(-2.0))
    torch.testing.assert_close((h.grad, W.grad), (first[0] * 0, first[1] * 0), rtol=0, atol=1e-7)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_double_backward_is_an_error_that_says_so(schedule):
    h, W, y = data()
    loss = compiled(step, schedule=schedule)(h, W, y)
    with pytest.raises(RuntimeError, match="double backward"):
        grad, = torch.autograd.grad(loss, h, create_graph=True)
        grad.sum().backward()


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_without_gradients(context):
    args = data()
    f = compiled(step)
    with context():
        loss = f(*args)
    assert not loss.requires_grad and error(loss, step(*[a.double() if a.is_floating_point() else a for a in args])) <= 2e-6
    judge(step, args, f)


def test_inference_tensors():
    with torch.inference_mode():
        args = [a.detach().clone() for a in data()]
        assert error(compiled(step)(*args), step(*args)) <= 2e-6


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype, inside, schedule):
    def loss(h, W, y):
        with torch.autocast("cpu", dtype) if inside else contextlib.nullcontext():
            return step(h, W, y)
    def context():
        return contextlib.nullcontext() if inside else torch.autocast("cpu", dtype)
    def exact(h, W, y):
        return step(h, W, y)
    f, args = compiled(loss, schedule=schedule), data()
    with context():
        got, eager = values(f, again(args)), values(loss, again(args))
    wide = [a.detach().double().requires_grad_() for a in args[:2]]
    for g, e, w in zip(got, eager, values(exact, [*wide, args[2]]), strict=True):
        assert g.dtype == e.dtype and error(g, w) <= 2 * error(e, w) + ROUNDINGS[dtype]
    assert counters["fuse"]["fused"] == 1


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("outside", [False, True])
def test_activation_checkpointing(schedule, reentrant, outside):
    """Around the loss in the compiled function, or around the compiled function."""
    def body(h, W, y):
        return step(h.tanh(), W, y)
    saved = lambda *a: checkpoint(body, *a, use_reentrant=reentrant)  # noqa: E731
    f = compiled(body, schedule=schedule)
    wrapped = (lambda *a: checkpoint(f, *a, use_reentrant=reentrant)) if outside else compiled(saved, schedule=schedule)
    twice = outside and reentrant      # once without gradients, once with
    judge(saved, data(), wrapped, fused=2 if twice else 1)


# ---- what else reads or writes the logits -------------------------------------------------------------------------

def test_logits_divided_in_place():
    def cooled(h, W, y):
        logits = F.linear(h, W)
        logits.div_(0.7)
        return F.cross_entropy(logits, y)
    judge(cooled, data())


def test_logits_divided_in_place_where_somebody_looks():
    def cooled(h, W, y):
        logits = F.linear(h, W)
        before = logits.logsumexp(-1).mean()
        logits.div_(0.7)
        return F.cross_entropy(logits, y) + before
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        values(cooled, data())
    def detached(h, W, y):
        logits = F.linear(h, W)
        before = logits.detach().logsumexp(-1).mean()
        logits.div_(0.7)
        return F.cross_entropy(logits, y) + before
    judge(detached, data())


def test_a_reader_that_is_no_reduction():
    def best(h, W, y):
        logits = F.linear(h, W)
        return F.cross_entropy(logits, y) + logits.topk(3).values.mean()
    judge(best, data(), fused=0)
    assert [m.code for m in fuse.explain(best, *data(), fuse_options=OPTIONS).misses] == ["OTHER_USER"]


def test_dropout_on_the_logits():
    def dropped(h, W, y):
        torch.manual_seed(3)
        return F.cross_entropy(F.dropout(F.linear(h, W), 0.2), y)
    args = data()
    torch.testing.assert_close(values(compiled(dropped), again(args)), values(dropped, again(args)))
    assert counters["fuse"]["fused"] == 0
    assert [m.code for m in fuse.explain(dropped, *data(), fuse_options=OPTIONS).misses] == ["RANDOM"]


# ---- many at once -------------------------------------------------------------------------------------------------

def test_threads_that_compile_at_once():
    """The same loss and others, one compiled function each; every thread gets its own gradients right."""
    functions = [lambda h, W, y, i=i: step(h * (1 + i % 3), W, y) for i in range(6)]
    failures = []

    def work(i):
        try:
            args = data(n=N + i)
            for g, w in zip(values(compiled(functions[i]), again(args)), values(functions[i], again(args)), strict=True):
                assert error(g, w) <= 2e-6
        except BaseException as failure:
            failures.append(failure)
    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failures and counters["fuse"]["fused"] == 6


def test_threads_that_run_one_compiled_function():
    f, args = compiled(step, dynamic=True), data()
    values(f, again(args))
    inputs = [data(n=20 + 9 * i) for i in range(6)]
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda a: values(f, again(a)), inputs * 3))
    for got, a in zip(found, inputs * 3, strict=True):
        for g, w in zip(got, values(step, again(a)), strict=True):
            assert error(g, w) <= 2e-6


def divergence(h, W, t, U):
    student, teacher = F.linear(h, W).log_softmax(-1), F.linear(t, U).log_softmax(-1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_divergence_of_equal_heads_is_nothing(schedule):
    h, W, _ = data(n=64, v=300)
    found = values(compiled(divergence, schedule=schedule), [h, W, h.detach().clone(), W.detach().clone()])
    assert found[0] == 0 and all(g.abs().max() < 1e-6 for g in found[1:])


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("offset, apart", [(0.0, 1.0), (0.0, 1e-3), (3000.0, 1e-2)], ids=["far", "near", "large scores"])
def test_a_divergence_errs_no_more_than_eager(schedule, offset, apart):
    """Each row's scores are moved by a number that the softmax takes out again: what is accumulated must not feel it."""
    h, W, _ = data(n=64, v=300)
    W = torch.cat([W.detach(), torch.full((300, 1), offset)], 1).requires_grad_()
    h = torch.cat([h.detach(), torch.ones(64, 1)], 1).requires_grad_()
    g = torch.Generator().manual_seed(1)
    args = [h, W, (h + apart * torch.randn(h.shape, generator=g)).detach(), W.detach().clone()]
    exact = values(divergence, [x.detach().double().requires_grad_(x.requires_grad) for x in args])
    eager, found = values(divergence, again(args)), values(compiled(divergence, schedule=schedule), again(args))
    for right, theirs, ours in zip(exact, eager, found, strict=True):
        errors = [float((x.double() - right).abs().max()) for x in (theirs, ours)]
        assert errors[1] <= 2 * errors[0] + 1e-6 * float(right.abs().max()), errors
