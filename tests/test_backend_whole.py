"""Front end, passes, kernels and backend together; only Inductor is left out. What surrounds a loss must keep its meaning."""
from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.utils import counters
from torch.utils.checkpoint import checkpoint

from fuse import backend
from tests import stand_in

B, N, V, D = 2, 37, 101, 16
OPTIONS = {"min_virtual_bytes": 0, "strict": True}


@pytest.fixture(autouse=True)
def only_fuse(monkeypatch):
    monkeypatch.setattr(backend, "finish", stand_in.quick)
    counters["fuse"].clear()


def loss(h, W, y):
    return F.cross_entropy(F.linear(h, W), y)


def data():
    g = torch.Generator().manual_seed(0)
    h, W = torch.randn(N, D, generator=g), torch.randn(V, D, generator=g)
    return h.requires_grad_(), W.requires_grad_(), torch.randint(0, V, (N,), generator=g)


def results(fn):
    tensors = data()
    value = fn(*tensors)
    value.backward()
    return value.detach(), tensors[0].grad, tensors[1].grad


def same_as_eager(fn, **options):
    got = results(torch.compile(fn, backend="fuse", options={**OPTIONS, **options}))
    torch.testing.assert_close(got, results(fn), rtol=1e-5, atol=1e-5)
    return counters["fuse"]["fused"], counters["fuse"]["declined"]


class Scaled(torch.autograd.Function):
    """A backward of its own, which a compiler must not replace by the true derivative."""

    @staticmethod
    def forward(ctx, h, W, y):
        ctx.save_for_backward(h, W)
        return loss(h, W, y)

    @staticmethod
    def backward(ctx, g):
        h, W = ctx.saved_tensors
        return h * g * 3, W * g * 5, None


def test_a_custom_backward_stays():
    assert same_as_eager(Scaled.apply) == (0, 0)
    assert same_as_eager(lambda *x: Scaled.apply(*x) + loss(*x))[0] == 1


def test_branches_of_cond_are_left_alone():
    def fn(h, W, y):
        return torch.cond(h.sum() > 0, loss, lambda h, W, y: loss(h * 2, W, y), (h, W, y))
    same_as_eager(fn)


@pytest.mark.parametrize("transform", ["vmap", "grad"])
def test_function_transforms_are_declined(transform):
    h, W, y = data()
    def fn(h, W, y):
        if transform == "grad":
            return torch.func.grad(loss)(h, W, y)
        return torch.vmap(loss, in_dims=(0, None, 0))(h.view(1, N, D), W, y.view(1, N))
    with torch.no_grad():
        got = torch.compile(fn, backend="fuse", options=OPTIONS)(h, W, y)
        torch.testing.assert_close(got, fn(h, W, y))
    assert counters["fuse"]["fused"] == 0 and counters["fuse"]["declined"] == 1


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing(reentrant):
    fused, declined = same_as_eager(lambda *x: checkpoint(loss, *x, use_reentrant=reentrant))
    assert (fused, declined) == (1, 0)


def test_dropout_before_the_head_draws_the_same_numbers():
    def fn(h, W, y):
        torch.manual_seed(3)
        return loss(F.dropout(h, 0.5), W, y)
    same_as_eager(fn)


def test_a_result_that_is_written_to():
    def fn(h, W, y):
        rows = F.cross_entropy(F.linear(h, W), y, reduction="none")
        rows.masked_fill_(y < 50, 0.0)
        return rows.sum() / 7
    assert same_as_eager(fn)[0] == 1


def test_metrics_without_gradients():
    def fn(h, W, y):
        logits = F.linear(h, W)
        with torch.no_grad():
            right = (logits.argmax(-1) == y).float().mean()
        return F.cross_entropy(logits, y) + logits.detach().logsumexp(-1).mean() + right
    assert same_as_eager(fn)[0] == 1


def test_a_model_in_autocast_stays_as_close_to_float64_as_eager():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(D, D), torch.nn.GELU(), torch.nn.Linear(D, V, bias=False))
    h, _, y = data()
    h = h.detach()

    def run(model, dtype=torch.float32, compiled=False):
        def fn(x):
            return F.cross_entropy(model(x), y)
        value = (torch.compile(fn, backend="fuse", options=OPTIONS) if compiled else fn)(h.to(dtype))
        value.backward()
        return torch.cat([value.detach().reshape(1)] + [p.grad.flatten() for p in model.parameters()]).double()
    exact = run(copy.deepcopy(model).double(), torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        eager, fused = run(copy.deepcopy(model)), run(copy.deepcopy(model), compiled=True)
    assert counters["fuse"]["fused"] == 1
    assert (fused - exact).norm() <= 1.1 * (eager - exact).norm()     # which way each one rounds is chance


def test_two_heads_of_one_size_share_an_executable():
    from fuse.runtime import ops

    before = set(ops._executables)
    assert same_as_eager(lambda h, W, y: loss(h, W, y) + 2 * loss(h.sin(), W, y))[0] == 2
    assert len(set(ops._executables) - before) <= 1


def test_bisection_by_fuel_and_schedules():
    assert same_as_eager(loss, fuel=0) == (0, 1)
    for schedule in ("recompute", "slab", "least-memory", "fastest"):
        torch._dynamo.reset()
        counters["fuse"].clear()
        assert same_as_eager(loss, schedule=schedule) == (1, 0)
