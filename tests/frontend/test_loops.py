"""Unrolled loops: those that are linear recurrences become one scan with the right numbers and gradients; others stay."""
from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fuse.ir.expr import topological
from tests.frontend.scanning import scans

B, L, D, N = 2, 9, 3, 4
FORMS, REFUSED = {}, {}


def leaf(*shape, low=None, dtype=torch.float32):
    t = torch.randn(*shape, dtype=dtype) if low is None else low + (1 - low) * torch.rand(*shape)
    return t.requires_grad_()


def form(maker, table=FORMS):
    def register(function):
        table[function.__name__] = (function, maker)
        return function
    return register


def refused(maker):
    return form(maker, REFUSED)


def gated():
    return [leaf(B, L, D), leaf(B, L, D, low=0.0)]


def selective():
    return [leaf(B, L, D), F.softplus(torch.randn(B, L, D)).requires_grad_(), (-torch.rand(D, N)).requires_grad_(),
            leaf(B, L, N), leaf(B, L, N), leaf(D)]


class Root(torch.autograd.Function):
    """A square root whose derivative is cut off."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sqrt()

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * (0.25 / x).clamp(max=1.0).sqrt()


@form(gated)
def custom_function_before(x, a):
    x, h, y = Root.apply(1 - a * a) * x, torch.zeros(B, D), torch.zeros_like(x)
    for t in range(L):
        h = a[:, t] * h + x[:, t]
        y[:, t] = h
    return y


@form(selective)
def selective_scan(u, delta, A, Bm, C, skip):
    dA = torch.exp(torch.einsum("bld,dn->bldn", delta, A))
    dBu = torch.einsum("bld,bln,bld->bldn", delta, Bm, u)
    x, ys = torch.zeros((B, D, N)), []
    for i in range(L):
        x = dA[:, i] * x + dBu[:, i]
        ys.append(torch.einsum("bdn,bn->bd", x, C[:, i, :]))
    return torch.stack(ys, dim=1) + u * skip


@form(lambda: [*selective()[:5], leaf(B, D, N)])
def final_state_and_initial_state(u, delta, A, Bm, C, state):
    dA = torch.exp(A[None, None] * delta[..., None])
    dBu = delta[..., None] * Bm[:, :, None, :].float() * u[..., None].float()
    out = []
    for i in range(L):
        state = dA[:, i] * state + dBu[:, i]
        out.append(torch.matmul(state.to(u.dtype), C[:, i, :].unsqueeze(-1))[:, :, 0])
    return torch.stack(out, dim=-1), state


@form(selective)
def states_are_contracted_after_the_loop(u, delta, A, Bm, C, skip):
    dA = torch.exp(delta[..., None] * A)
    dBu = (delta * u)[..., None] * Bm[:, :, None]
    x, states = 0, []
    for a, b in zip(dA.unbind(1), dBu.unbind(1), strict=True):
        x = a * x + b
        states.append(x)
    return torch.einsum("bldn,bln->bld", torch.stack(states, 1), C)


@form(selective)
def a_part_of_the_states_is_contracted(u, delta, A, Bm, C, skip):
    dA, dBu = torch.exp(delta[..., None] * A), (delta * u)[..., None] * Bm[:, :, None]
    x, states = torch.zeros(B, D, N), []
    for t in range(L):
        x = dA[:, t] * x + dBu[:, t]
        states.append(x)
    return torch.einsum("bldn,bln->bld", torch.stack(states, 1)[:, 1:], C[:, 1:])


@form(gated)
def setitem(x, gate):
    state, out = torch.zeros(B, D), torch.zeros_like(x)
    for t in range(L):
        state = gate[:, t].type(torch.float32) * state
        state = state + x[:, t].type(torch.float32)
        out[:, t] = state.type(x.dtype)
    return out, state


@form(lambda: [leaf(B, L, D), (-torch.rand(B, L, D)).requires_grad_()])
def log_gate(x, g):
    h, out = torch.zeros(B, D), torch.zeros_like(x)
    for i in range(L):
        h = g[:, i].exp() * h + x[:, i]
        out[:, i] = h
    return out * 2


@form(gated)
def lerp(x, gate):
    h, out = torch.zeros(B, D), []
    for t in range(L):
        h = torch.lerp(h, x[:, t], gate[:, t])
        out.append(h)
    return torch.stack(out, dim=1)


@form(gated)
def addcmul_joined(x, gate):
    h, out = x[:, 0] * 0.5, []
    for t in range(L):
        h = torch.addcmul(x[:, t], gate[:, t], h)
        out.append(h.unsqueeze(1))
    return torch.cat(out, dim=1)


@form(gated)
def first_is_given(x, gate):
    out = [x[:, 0]]
    for t in range(1, L):
        out.append(gate[:, t] * out[-1] + (1 - gate[:, t]) * x[:, t])
    return torch.stack(out, 1)


@form(gated)
def before_the_update(x, gate):
    h, out = torch.ones(B, D), []
    for t in range(L):
        out.append(h * x[:, t])
        h = gate[:, t] * h + x[:, t]
    return torch.stack(out, 1), h


@form(lambda: [leaf(B, L), leaf(B, L + 1), (torch.rand(B, L) < 0.3).float()])
def advantages(reward, value, done):
    advantage, last = torch.zeros_like(reward), 0
    for t in reversed(range(L)):
        delta = reward[:, t] + 0.99 * value[:, t + 1] * (1 - done[:, t]) - value[:, t]
        last = delta + 0.99 * 0.95 * (1 - done[:, t]) * last
        advantage[:, t] = last
    return advantage


@form(lambda: [leaf(B, L), leaf(B, L)])
def appended_backwards(reward, value):
    last, out = 0.0, []
    for t in reversed(range(L)):
        following = value[:, t + 1] if t < L - 1 else 0.0
        last = reward[:, t] + 0.99 * following - value[:, t] + 0.9 * last
        out.append(last)
    return torch.stack(out[::-1], dim=1)


@form(lambda: [torch.randn(B, L), torch.rand(1)])
def one_pole(x, a):
    y = torch.zeros_like(x)
    for n in range(L):
        y[:, n] = x[:, n] - a * (y[:, n - 1] if n > 0 else 0)
    return y


@form(lambda: [torch.randn(B, L), torch.rand(1)])
def one_pole_from_the_second(x, a):
    y = torch.zeros_like(x)
    for n in range(1, L):
        y[:, n] = x[:, n] - a * y[:, n - 1]
    return y


@form(lambda: [leaf(B, D, L), *(leaf(D, N, dtype=torch.cfloat) for _ in range(3))])
def complex_state(u, dA, dB, C):
    x, ys = torch.zeros(B, D, N, dtype=torch.cfloat), []
    for t in range(L):
        x = torch.einsum("hn,bhn->bhn", dA * 0.3, x) + torch.einsum("hn,bh->bhn", dB, u[:, :, t].to(dA.dtype))
        ys.append(2 * torch.einsum("hn,bhn->bh", C, x).real)
    return torch.stack(ys, dim=-1)


@form(lambda: [*gated(), leaf(B, L, D, low=0.0)])
def two_states(x, gate, other):
    h, m, out = torch.zeros(B, D), torch.zeros(B, D), []
    for t in range(L):
        h = gate[:, t] * h + x[:, t]
        m = other[:, t] * m + h
        out.append(m + h)
    return torch.stack(out, 1)


@form(lambda: [*gated(), (torch.rand(B, L) < 0.3)])
def resets(x, gate, done):
    h, out = torch.zeros(B, D), []
    for t in range(L):
        h = torch.where(done[:, t, None], x[:, t], gate[:, t] * h + x[:, t])
        out.append(h)
    return torch.stack(out, 1)


@form(lambda: [leaf(B, L, D), leaf(B, L, 5), leaf(5, D)])
def projected_gate(x, z, W):
    h, out = torch.zeros(B, D), []
    for t in range(L):
        h = torch.sigmoid(z[:, t] @ W) * h + x[:, t]
        out.append(h)
    return torch.stack(out, 1)


@form(lambda: [torch.randn(B, L, D), torch.rand(B, L, D)])
def a_step_read_back_afterwards(x, a):
    y = torch.zeros_like(x)
    for t in range(L):
        y[:, t] = a[:, t] * (y[:, t - 1] if t else 1) + x[:, t]
        if t == 5:
            fifth = y[:, 5]
    return y, fifth


@form(lambda: [leaf(B, L, 2 * D)])
def gate_and_input_in_one(xa):
    h, out = torch.zeros(B, D), []
    for part in xa.split(1, 1):
        x, a = part[:, 0].chunk(2, -1)
        h = torch.sigmoid(a) * h + x
        out.append(h)
    return torch.stack(out, 1)


@form(gated)
def slices_are_written(x, gate):
    h, out = torch.zeros(B, 1, D), torch.zeros_like(x)
    for t in range(L):
        h = gate[:, t:t + 1] * h + x[:, t:t + 1]
        out[:, t:t + 1] = h
    return out


@form(lambda: [torch.randn(B, L, D), torch.rand(B, L, D)])
def slices_are_read_back(x, gate):
    out = torch.zeros_like(x)
    out[:, 0:1] = x[:, 0:1]
    for t in range(1, L):
        out[:, t:t + 1] = gate[:, t:t + 1] * out[:, t - 1:t] + x[:, t:t + 1]
    return out


@form(gated)
def last_state(x, gate):
    h = torch.zeros(B, D)
    for t in range(L):
        h = gate[:, t] * h + (1 - gate[:, t]) * x[:, t]
    return torch.tanh(h)


@form(gated)
def last_state_from_the_first_input(x, gate):
    h = x[:, 0]
    for t in range(1, L):
        h = torch.exp(-gate[:, t]) * h + x[:, t]
    return h


@form(lambda: [leaf(B, L, D), leaf(B, L, D, low=0.0), leaf(B, L, D)])
def last_sum_of_states(x, gate, y):
    h, total = torch.zeros(B, D), torch.zeros(B)
    for t in range(L):
        h = gate[:, t] * h + x[:, t]
        total = total + (h * y[:, t]).sum(-1)
    return total


@form(lambda: [leaf(B, L, D), leaf(B, L, D, low=0.0), leaf(B, L, D)])
def last_filtered_sum_of_states(x, gate, y):
    h, total = torch.zeros(B, D), torch.zeros(B)
    for t in range(L):
        h = gate[:, t] * h + x[:, t]
        total = 0.5 * total + (h * y[:, t]).sum(-1)
    return total


@form(gated)
def every_second(x, gate):
    h, out = torch.zeros(B, D), []
    for t in range(0, L, 2):
        h = gate[:, t] * h + x[:, t]
        out.append(h)
    return torch.stack(out, 1)


@form(gated)
def without_gradients_inside(x, gate):
    with torch.no_grad():
        h, out = torch.zeros(B, D), []
        for t in range(L):
            h = gate[:, t] * h + x[:, t]
            out.append(h)
        states = torch.stack(out, 1)
    return states * x


@form(lambda: [torch.randn(B, L, D), torch.rand(B, L, D)])     # eager itself refuses to differentiate what it overwrites
def first_step_wraps_around(x, a):
    y = torch.zeros_like(x)
    for t in range(L):
        y[:, t] = a[:, t] * y[:, t - 1] + x[:, t - 1]
    return y


@refused(lambda: [leaf(B, L, D), leaf(D, D)])
def dense_transition(x, A):
    h, out = torch.zeros(B, D), []
    for t in range(L):
        h = h @ A + x[:, t]
        out.append(h)
    return torch.stack(out, dim=1)


@refused(gated)
def nonlinear(x, a):
    h, out = torch.zeros(B, D), []
    for t in range(L):
        h = torch.tanh(a[:, t] * h + x[:, t])
        out.append(h)
    return torch.stack(out, dim=1)


@refused(gated)
def gate_reads_the_state(x, a):
    h, out = torch.zeros(B, D), []
    for t in range(L):
        h = torch.sigmoid(a[:, t] + h) * h + x[:, t]
        out.append(h)
    return torch.stack(out, dim=1)


@refused(gated)
def last_step_differs(x, a):
    h, out = torch.zeros(B, D), []
    for t in range(L):
        h = a[:, t] * h + (x[:, t] if t < L - 1 else 2 * x[:, t])
        out.append(h)
    return torch.stack(out, dim=1)


@refused(lambda: [leaf(B, L, N), leaf(B, L, N), leaf(B, L, 1, low=0.0)])
def delta_rule(k, v, beta):
    S, out = torch.zeros(B, N, N), []
    for t in range(L):
        error = v[:, t] - torch.einsum("bij,bj->bi", S, k[:, t])
        S = S + beta[:, t, :, None] * error[:, :, None] * k[:, t, None, :]
        out.append(S)
    return torch.stack(out, 1)


@refused(gated)
def neighbours(x, a):
    h, out = torch.zeros(B, D), []
    for t in range(L):
        h = a[:, t] * h.roll(1, -1) + x[:, t]
        out.append(h)
    return torch.stack(out, dim=1)


@refused(lambda: [leaf(B, L, D), leaf(B, D, D)])
def transposed(x, h):
    out = []
    for t in range(L):
        h = 0.5 * h.transpose(1, 2) + x[:, t, None]
        out.append(h)
    return torch.stack(out, dim=1)


@refused(gated)
def permuted_in_time(x, a):
    h, out = torch.zeros(B, D), []
    for t in [*range(0, L, 2), *range(1, L, 2)]:
        h = a[:, t] * h + x[:, t]
        out.append(h)
    return torch.stack(out, dim=1)


@refused(gated)
def two_steps_back(x, a):
    out = [x[:, 0], x[:, 1]]
    for t in range(2, L):
        out.append(a[:, t] * out[-2] + x[:, t])
    return torch.stack(out, dim=1)


@refused(gated)
def number_of_the_step(x, a):
    h, out = torch.zeros(B, D), []
    for t in range(L):
        h = a[:, t] * h + x[:, t] * t
        out.append(h)
    return torch.stack(out, dim=1)


@refused(gated)
def truncated_gradient(x, a):
    h, out = torch.zeros(B, D), []
    for t in range(L):
        h = a[:, t] * h.detach() + x[:, t]
        out.append(h)
    return torch.stack(out, dim=1)


@refused(lambda: [leaf(B, L, D, dtype=torch.cfloat), leaf(B, L, D, dtype=torch.cfloat)])
def truncated_complex_gradient(x, a):
    h, out = torch.zeros(B, D, dtype=torch.cfloat), []
    for t in range(L):
        h = a[:, t] * h.detach() + x[:, t]
        out.append(h)
    return torch.stack(out, dim=1).real


@refused(gated)
def changed_in_between(x, a):
    h, out, x = torch.zeros(B, D), [], x * 1
    for t in range(L):
        h = a[:, t] * h + x[:, t]
        out.append(h)
        if t == 4:
            x.mul_(2)
    return torch.stack(out, dim=1)


@refused(gated)
def reads_what_is_half_full(x, a):
    h, y = torch.zeros(B, D), torch.zeros_like(x)
    for t in range(L):
        h = a[:, t] * h + x[:, t] + y.sum(1)
        y[:, t] = h
    return y


@refused(lambda: [torch.randn(B, L, D), torch.rand(B, L, D)])
def a_view_sees_what_is_written_later(x, a):
    h, y = torch.zeros(B, D), torch.zeros_like(x)
    early = y[:, 3]
    for t in range(L):
        h = a[:, t] * h + x[:, t]
        y[:, t] = h
    return y, early * 2


@refused(lambda: [torch.ones(B, L, D, dtype=torch.int64), torch.ones(B, L, D, dtype=torch.int64)])
def counts(x, a):
    h, out = torch.zeros(B, D, dtype=torch.int64), []
    for t in range(L):
        h = a[:, t] * h + x[:, t]
        out.append(h)
    return torch.stack(out, 1)


@refused(gated)
def slices_are_cut_off(x, a):
    h, out = torch.zeros(B, 1, D), []
    for t in range(4):
        h = a[:, t:t + 1] * h + x[:, -L - 2 - t:1]
        out.append(h)
    return torch.cat(out, 1)


@refused(gated)
def one_position_is_read_from_a_slice(x, a):
    out = torch.zeros_like(x)
    out[:, 0:1] = x[:, 0:1]
    for t in range(1, L):
        out[:, t:t + 1] = (a[:, t] * out[:, t - 1] + x[:, t]).unsqueeze(1).flip(-1)
    return out


@refused(gated)
def two_positions_are_written(x, a):
    h, out = torch.zeros(B, 2, D), torch.zeros_like(x)
    for t in range(0, L - 1, 2):
        h = a[:, t:t + 2] * h + x[:, t:t + 2]
        out[:, t:t + 2] = h
    return out


@refused(gated)
def last_nonlinear_state(x, a):
    h = torch.zeros(B, D)
    for t in range(L):
        h = torch.tanh(a[:, t] * h + x[:, t])
    return h


@refused(lambda: [torch.randn(D, D), leaf(B, D)])
def repeated_product(w, x):
    for _ in range(L):
        x = x @ w + x
    return x


@refused(gated)
def random_numbers(x, a):
    h, out = torch.zeros(B, D), []
    for t in range(L):
        h = a[:, t] * h + torch.rand(B, D)
        out.append(h)
    return torch.stack(out, 1)


@refused(gated)
def rounds(x, a):
    h, out = torch.zeros(B, D), []
    for t in range(L):
        h = (a[:, t] * h).to(torch.int32).float() + x[:, t]
        out.append(h)
    return torch.stack(out, dim=1)


UNSEEN = ("two_steps_back", "reads_what_is_half_full", "a_view_sees_what_is_written_later", "one_position_is_read_from_a_slice")


@pytest.mark.parametrize("name", FORMS)
def test_a_recurrence_is_one_scan(name: str) -> None:
    function, maker = FORMS[name]
    torch.manual_seed(0)
    (region,), misses, worst = scans(function, maker())
    assert not misses and worst <= 1e-12
    found = [e for e in topological(region.program.roots()) if e.op == "scan"]
    assert len(found) == (2 if name in ("two_states", "last_sum_of_states", "last_filtered_sum_of_states") else 1)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_diagonal_recurrence_stays(name: str) -> None:
    function, maker = REFUSED[name]
    torch.manual_seed(0)
    regions, misses, _ = scans(function, maker())
    assert not regions and {m.code for m in misses} <= {"NOT_A_SCAN", "MUTATION", "UNSUPPORTED_OP", "RANDOM"}
    assert misses or name in UNSEEN


def test_one_loop_may_read_another() -> None:
    def function(x, gate):
        h, states, out = torch.zeros(B, D, N), [], []
        for t in range(L):
            h = gate[:, t, :, None] * h + x[:, t, :, None] * torch.arange(1, N + 1)
            states.append(h)
        states, m = torch.stack(states, 1), torch.zeros(B, D, N)
        for t in reversed(range(L)):
            m = 0.5 * m + states[:, t]
            out.append(m.sum(-1))
        return torch.stack(out[::-1], 1)
    torch.manual_seed(0)
    regions, misses, worst = scans(function, gated())
    found = [e for r in regions for e in topological(r.program.roots()) if e.op == "scan"]
    assert not misses and worst <= 1e-12 and {e["reverse"] for e in found} == {False, True}


def test_a_sum_over_the_layers_is_no_scan() -> None:
    """Residual layers and a loss that is added up have no state that is multiplied, or other weights in every step."""
    def function(x, w1, w2, w3, w4):
        h, all_ = x, []
        for w in (w1, w2, w3, w4):
            h = h + torch.relu(h @ w)
            all_.append(h)
        return torch.stack(all_)
    torch.manual_seed(0)
    regions, _, _ = scans(function, [leaf(B, D), *(leaf(D, D) for _ in range(4))])
    assert not regions
