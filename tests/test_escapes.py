"""Large values that are outputs as well: stored once for whoever reads them, their loss still computed in tiles.

Every form gives a loss and logits; whatever gradients arrive (through the loss, through the logits, through both), and
whatever happens to the logits outside, the numbers are eager's, judged by float64.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

import fuse
from fuse.frontend import find
from fuse.frontend.candidates import find_candidates
from fuse.options import Options
from tests.frontend.tracing import Float64, capture
from tests.plain import quick_builds, without_inductor  # noqa: F401 (fixtures)
from tests.test_forms import SLACK, error

B, T, D, V = 2, 20, 8, 296
OPTIONS: dict[str, Any] = {"min_virtual_bytes": 0, "strict": True}
FORMS: dict[str, Callable[..., Any]] = {}


@dataclass
class Output:
    """As transformers returns it."""

    loss: torch.Tensor
    logits: torch.Tensor


def form(function: Callable[..., Any]) -> Callable[..., Any]:
    FORMS[function.__name__] = function
    return function


def nll(x, y):
    return F.cross_entropy(x.view(-1, x.shape[-1]).float(), y.view(-1))


@form
def loss_first(h, W, y):
    x = F.linear(h * 2, W)
    return nll(x, y), x


@form
def logits_first(h, W, y):
    x = h.tanh() @ W.T
    return x, nll(x, y)


@form
def in_a_dictionary(h, W, y):
    x = F.linear(h, W)
    return {"logits": x, "loss": nll(x, y)}


@form
def in_a_dataclass(h, W, y):
    x = F.linear(h, W, W[:, 0])
    return Output(nll(x, y), x)


@form
def two_views_and_the_value(h, W, y):
    x = F.linear(h, W)
    return nll(x, y), x.view(-1, V), x, x.transpose(0, 1)[3:]


@form
def widened(h, W, y):
    x = F.linear(h, W).float()
    return nll(x, y), x


@form
def capped(h, W, y):
    x = F.linear(h, W)
    x = (x / 3).tanh() * 3
    return nll(x, y), x


@form
def all_but_the_last(h, W, y):
    x = F.linear(h, W)
    return F.cross_entropy(x[:, :-1].reshape(-1, V), y[:, 1:].reshape(-1)), x[:, :-1]


@form
def the_last_alone(h, W, y):
    x = F.linear(h, W)
    return nll(x, y), x[:, -1]


@form
def two_losses(h, W, y):
    x = F.linear(h, W)
    return nll(x, y), x.logsumexp(-1).square().mean(), x


@form
def teacher_and_student(h, W, y):
    x, t = F.linear(h, W), F.linear(h.detach(), W.detach() * 2)
    return F.kl_div(x.log_softmax(-1), t.softmax(-1), reduction="batchmean") + nll(x, y), x


def arguments(dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    h, W = torch.randn(B, T, D, generator=g), torch.randn(V, D, generator=g)
    return [h.to(dtype).requires_grad_(), W.to(dtype).requires_grad_(), torch.randint(0, V, (B, T), generator=g)]


def tensors(found: Any) -> list[torch.Tensor]:
    found = vars(found) if isinstance(found, Output) else found
    return list(found.values() if isinstance(found, dict) else found)


def from_losses(outs: list[torch.Tensor]) -> torch.Tensor:
    return sum(o for o in outs if o.dim() == 0)


def from_logits(outs: list[torch.Tensor]) -> torch.Tensor:
    return sum((o * torch.arange(o.numel()).view(o.shape).sin()).sum() for o in outs if o.dim())


def from_both(outs: list[torch.Tensor]) -> torch.Tensor:
    return from_losses(outs) * 3 + from_logits(outs) / 50


def run(function, args, objective):
    for a in args[:2]:
        a.grad = None
    outs = tensors(function(*args))
    values = [o.detach().clone() for o in outs]
    objective(outs).backward()
    return values + [a.grad for a in args[:2]]


def judge(function, compiled, args, objective):
    eager, got = run(function, args, objective), run(compiled, args, objective)
    wide = [a.detach().double().requires_grad_() if a.is_floating_point() else a for a in args]
    with Float64():
        want = run(function, wide, objective)
    for i, (e, f, w) in enumerate(zip(eager, got, want, strict=True)):
        assert f.dtype == e.dtype and f.shape == e.shape and f.stride() == e.stride()
        assert error(f, w) <= 2 * error(e, w) + SLACK[args[0].dtype], f"value {i}: {error(f, w):.1e}, eager {error(e, w):.1e}"


def compiled_of(function, **options):
    return torch.compile(function, backend="fuse", options={**OPTIONS, **options})


@pytest.mark.parametrize("name", FORMS)
def test_every_gradient_is_right(name, quick_builds, without_inductor):  # noqa: F811
    compiled = compiled_of(FORMS[name], require=["softmax-over-vocabulary"])
    for objective in (from_losses, from_both, from_logits):
        judge(FORMS[name], compiled, arguments(), objective)


@pytest.mark.parametrize("name", ["loss_first", "capped"])
def test_in_bfloat16(name, quick_builds, without_inductor):  # noqa: F811
    compiled = compiled_of(FORMS[name], require=["softmax-over-vocabulary"])
    for objective in (from_losses, from_both):
        judge(FORMS[name], compiled, arguments(torch.bfloat16), objective)


def test_under_autocast(quick_builds, without_inductor):  # noqa: F811
    compiled, (h, W, y) = compiled_of(loss_first), arguments()
    with torch.autocast("cpu", torch.bfloat16):
        outs, want = compiled(h, W, y), loss_first(h, W, y)
    assert outs[1].dtype is torch.bfloat16
    for found, expected in zip(*(torch.autograd.grad(from_both(o), (h, W)) for o in (outs, want)), strict=True):
        assert error(found, expected) < 2.0 ** -6


def test_under_autocast_inside_the_function(quick_builds, without_inductor):  # noqa: F811
    """What accelerate makes of a model: its logits are widened outside, and the gradient that arrives there is float32."""
    def model(h, W, y):
        with torch.autocast("cpu", torch.bfloat16):
            loss, x = loss_first(h, W, y)
        return loss, x.float()
    compiled, args = compiled_of(model, require=["softmax-over-vocabulary"]), arguments()
    for objective in (from_losses, from_both):
        for found, expected in zip(run(compiled, args, objective), run(model, args, objective), strict=True):
            assert found.dtype is expected.dtype and error(found, expected) < 2.0 ** -6


def test_one_compile_for_every_size(quick_builds, without_inductor):  # noqa: F811
    """Sizes that a piece of the graph needs outside are among its results."""
    h, W, y = arguments()
    compiled = torch.compile(two_views_and_the_value, backend="fuse", dynamic=True, options=OPTIONS)
    torch._dynamo.utils.counters.clear()
    for length in (T, 13, 17):
        args = [h.detach()[:, :length].clone().requires_grad_(), W, y[:, :length].clone()]
        judge(two_views_and_the_value, compiled, args, from_both)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.slow
def test_under_inductor(quick_builds):  # noqa: F811
    judge(two_views_and_the_value, compiled_of(two_views_and_the_value), arguments(), from_both)


def test_logits_that_change_after_the_loss(quick_builds, without_inductor):  # noqa: F811
    """What is written to them, in the output or in a view of it, is not seen by the loss, and differentiated as in eager mode."""
    def changed(call):
        def f(h, W, y):
            loss, x = call(h, W, y)
            x.mul_(2)
            x[:, 1] = 0.5
            return loss, x
        return f
    judge(changed(loss_first), changed(compiled_of(loss_first)), arguments(), from_both)


def test_logits_that_change_before_a_backward_reads_them(quick_builds, without_inductor):  # noqa: F811
    """Where gradients are not made in the forward the backward reads the logits again: torch's own error, as under Inductor."""
    loss, x = compiled_of(loss_first, schedule="recompute")(*arguments())
    x.detach().zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_views_share_their_memory(quick_builds, without_inductor):  # noqa: F811
    _, flat, x, _ = compiled_of(two_views_and_the_value)(*arguments())
    assert flat.data_ptr() == x.data_ptr() and flat._base is x and x._base is None
    flat.data.zero_()
    assert not x.any()


def test_nothing_of_their_size_is_made_besides(quick_builds, without_inductor):  # noqa: F811
    """Neither a softmax, nor zeros where no gradient arrives, nor a gradient."""
    n, d, v = 256, 16, 4096
    args = [torch.randn(n, d, requires_grad=True), torch.randn(v, d, requires_grad=True), torch.randint(0, v, (n,))]

    def large(f):
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as p:
            f(*args)[0].backward()
        return sum(e.self_cpu_memory_usage >= n * v * 4 for e in p.events() if e.name != "[memory]")
    compiled = compiled_of(loss_first)
    compiled(*args)[0].backward()
    assert large(loss_first) > 2 and large(compiled) == 1


def test_without_gradients_nothing_is_stored(quick_builds, without_inductor):  # noqa: F811
    def scores(h, W, y):
        lp = F.linear(h, W).float().log_softmax(-1)
        return F.nll_loss(lp, y), lp.gather(-1, y[:, None])[:, 0], -(lp.exp() * lp).sum(-1)
    n, d, v = 1024, 16, 4096
    h, W, y = torch.randn(n, d), torch.randn(v, d), torch.randint(0, v, (n,))
    compiled = compiled_of(scores, require=["softmax-over-vocabulary"])
    with torch.no_grad():
        for found, expected in zip(compiled(h, W, y), scores(h, W, y), strict=True):
            torch.testing.assert_close(found, expected)
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as p:
        compiled(h, W, y)
    assert all(e.self_cpu_memory_usage < n * v * 2 for e in p.events() if e.name != "[memory]")


def test_a_second_derivative_of_the_logits(quick_builds, without_inductor):  # noqa: F811
    def twice(call):
        h, W, y = arguments()
        (g,) = torch.autograd.grad(call(h, W, y)[1].square().sum(), h, create_graph=True)
        return torch.autograd.grad(g.square().sum(), (h, W))
    torch.testing.assert_close(twice(compiled_of(lambda h, W, y: (nll(x := F.linear(h, W), y), x))),
                               twice(lambda h, W, y: (nll(x := F.linear(h, W), y), x)))


def test_a_frozen_head(quick_builds, without_inductor):  # noqa: F811
    h, W, y = arguments()
    W.requires_grad_(False)
    for call in (loss_first, compiled := compiled_of(loss_first)):
        h.grad = None
        from_both(call(h, W, y)).backward() if call is compiled else None
    want = torch.autograd.grad(from_both(loss_first(h, W, y)), h)[0]
    assert error(h.grad, want) < 1e-5 and W.grad is None


# ---- what stays as it was -------------------------------------------------------------------------------------------

def codes(function, args=None) -> list[str]:
    def look(gm, inputs):
        return [m.code for m in find(gm, Options(min_virtual_bytes=0))[1]]
    (found,) = capture(function, args or arguments(), look=look)
    return found


def test_what_is_declined() -> None:
    assert codes(loss_first) == []
    assert codes(lambda h, W, y: (x := F.linear(h, W), x.logsumexp(-1))) == ["ESCAPES"]
    assert codes(lambda h, W, y: (p := F.linear(h, W).softmax(-1), -p.log().mean())) == ["ESCAPES"]    # p: no copy of its own

    def changed(h, W, y):
        x = F.linear(h, W)
        loss = nll(x, y)
        x[:, 0] = 0
        return loss, x
    assert "ESCAPES" in codes(changed)
    with torch.no_grad():
        assert codes(loss_first) == ["ESCAPES"]


def test_inside_a_checkpoint_it_is_declined() -> None:
    """Its outputs are the graph's around it, not the caller's."""
    def look(gm, inputs):
        return [m.code for m in find_candidates(gm.graph, 0, outermost=False)[1]]
    assert capture(loss_first, arguments(), look=look) == [["ESCAPES"]]


def test_the_report_says_what_is_stored_and_how_not_to() -> None:
    (region,) = fuse.explain(loss_first, *arguments(), fuse_options={"min_virtual_bytes": 0}).regions
    (note,) = [n for n in region.notes if n.code == "STORED"]
    assert "test_escapes.py:" in note.where and f"float32 of {B * T * V * 4 / 1024:.1f} KiB" in note.detail
    assert ".loss" in note.reason.hint and region.bytes_saved == 0
