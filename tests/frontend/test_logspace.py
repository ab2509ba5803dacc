"""Prefix sums in logarithms, or with a product divided out, are the recurrence they stand for."""
from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fuse.frontend import find
from fuse.ir.expr import topological
from fuse.ir.reference import run
from fuse.passes import Context, compile_program
from tests.frontend.scanning import scans
from tests.frontend.tracing import capture

B, L, D = 2, 9, 3


def given(length=L):
    torch.manual_seed(0)
    return [(-torch.rand(B, length, D)).requires_grad_(), torch.randn(B, length, D, requires_grad=True)]


def min_gru(log_a, log_v):
    a_star = log_a.cumsum(dim=1)
    return (a_star + (log_v - a_star).logcumsumexp(dim=1)).exp()


def min_gru_from_a_state(k, v):
    log_a, log_v = -F.softplus(k), -F.softplus(-k) + torch.where(v >= 0, (F.relu(v) + 0.5).log(), -F.softplus(-v))
    log_v = torch.cat((log_v[:, :1] * 0.3, log_v), 1)
    log_a = F.pad(log_a, (0, 0, 1, 0))
    a_star = log_a.cumsum(1)
    return torch.exp(torch.logcumsumexp(log_v - a_star, 1) + a_star)[:, 1:] * 2


def divided(log_a, b):
    p = log_a.exp().cumprod(dim=1)
    return p * (b / p).cumsum(dim=1)


def two_sums(log_a, b):
    decay = torch.exp(torch.cumsum(log_a, 1))
    return torch.cumsum(b / decay, 1) * decay


def multiplied_by_the_inverse(log_a, b):
    s = torch.cumsum(log_a, -2)
    return torch.cumsum(b * torch.exp(-s) * 0.5, dim=1) * torch.exp(s)


def one_decay_for_all(log_a, b):
    p = log_a[..., :1].cumsum(1).exp()
    return p * (b / p).cumsum(1)


@pytest.mark.parametrize("function", [min_gru, min_gru_from_a_state, divided, two_sums, multiplied_by_the_inverse,
                                      one_decay_for_all])
def test_they_are_scans(function) -> None:
    (region,), misses, worst = scans(function, given())
    assert not misses and worst <= 1e-11
    (scan,) = [e for e in topological(region.program.roots()) if e.op == "scan"]
    assert scan.args[0].op != "const"


def other_dimension(log_a, b):
    p = log_a.cumsum(2).exp()
    return p * (b / p).cumsum(1)


def other_sum(log_a, b):
    p, q = log_a.cumsum(1).exp(), (2 * log_a).cumsum(1).exp()
    return p * (b / q).cumsum(1)


def constant(log_a, b):
    p = log_a.cumsum(1).exp()
    return (b * p).cumsum(1) / (p + 1e-12)


def inverted(log_a, b):
    p = log_a.cumsum(1).exp()
    return (b * p).cumsum(1) * p


def no_gradient(log_a, b):
    p = log_a.cumsum(1).exp()
    return p * (b / p.detach()).cumsum(1)


def halved(log_a, b):
    a_star = log_a.cumsum(1)
    return torch.exp(a_star + torch.logcumsumexp(b - a_star, 1) * 0.5)


@pytest.mark.parametrize("function", [other_dimension, other_sum, constant, inverted, no_gradient, halved])
def test_what_is_no_recurrence_stays(function) -> None:
    assert scans(function, given())[0] == []


def test_the_recurrence_loses_no_digits() -> None:
    """Over 1500 steps the running product is 0 in float32: eager divides by it."""
    def look(gm, inputs):
        return find(gm)[0]
    args = given(1500)
    (((region,),),) = [capture(divided, args, look=look)]
    plan = compile_program(region.program, Context(hints={}))
    env = {b.name: x.detach() for b, x in zip(region.program.inputs, args, strict=True)}
    (found,) = run(plan.forward, env, {}, tile=64, dtype=None).values()
    (exact,) = run(plan.forward, env, {}, tile=64).values()
    assert not divided(*args).isfinite().all()
    torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-5)
