"""FFT convolutions whose kernel is a sum of exponentials are scans; any other kernel, or one that wraps around, stays."""
from __future__ import annotations

import math

import pytest
import torch
from torch.fft import irfft, rfft

from fuse.ir.expr import topological
from tests.frontend.scanning import scans

B, L, D, N = 2, 9, 3, 2


def given():
    torch.manual_seed(0)
    return [torch.randn(B, D, L, requires_grad=True), torch.empty(D).uniform_(-3, -1).requires_grad_(),
            torch.randn(D, N, 2, requires_grad=True), torch.randn(D, N, requires_grad=True)]


def convolved(u, k, n=2 * L):
    return irfft(rfft(u, n=n) * rfft(k, n=n), n=n)[..., :L]


def zero_order_hold(u, log_dt, C_real, A_imag):
    """S4D (arXiv 2206.11893)."""
    dt, C = torch.exp(log_dt), torch.view_as_complex(C_real)
    A = -math.log(2) + 1j * A_imag
    dtA = A * dt.unsqueeze(-1)
    C = C * (torch.exp(dtA) - 1.0) / A
    k = 2 * torch.einsum("hn,hnl->hl", C, torch.exp(dtA.unsqueeze(-1) * torch.arange(L))).real
    return convolved(u, k) + u


def bilinear(u, log_dt, C_real, A_imag):
    dtA = (-0.5 + 1j * A_imag) * torch.exp(log_dt)[:, None]
    C = torch.view_as_complex(C_real) * torch.exp(log_dt)[:, None] / (1 - dtA / 2)
    rate = ((1 + dtA / 2) / (1 - dtA / 2)).log()
    return convolved(u, (C[..., None] * torch.exp(rate[..., None] * torch.arange(L))).sum(1).real * 2, n=2 * L - 1)


def moving_average(u, log_dt, C_real, A_imag):
    """MEGA (arXiv 2209.10655)."""
    q, (beta, gamma) = 1 - torch.sigmoid(A_imag)[..., None], C_real.unbind(-1)
    vander = torch.arange(L).view(1, 1, L) * torch.log(q)
    return convolved(u, torch.einsum("dnl,dn->dl", beta[..., None] * torch.exp(vander), gamma))


def one_later(u, log_dt, C_real, A_imag):
    return convolved(u, torch.exp(log_dt[:, None] * torch.arange(1, L + 1)) - 0.5)


@pytest.mark.parametrize("function, count", [(zero_order_hold, 1), (bilinear, 1), (moving_average, 1), (one_later, 2)])
def test_exponentials_are_scans(function, count: int) -> None:
    (region,), misses, worst = scans(function, given())
    assert not misses and worst <= 1e-11
    assert sum(e.op == "scan" for e in topological(region.program.roots())) == count
    assert "fft" not in str(region.inputs)


def circular(u, log_dt, C_real, A_imag):
    return convolved(u, torch.exp(log_dt[:, None] * torch.arange(L)), n=L + 1)


def gaussian(u, log_dt, C_real, A_imag):
    return convolved(u, torch.exp(log_dt[:, None] * torch.arange(L) ** 2))


def given_kernel(u, log_dt, C_real, A_imag):
    return convolved(u, torch.cumsum(u[0], -1))


def power_law(u, log_dt, C_real, A_imag):
    return convolved(u, torch.exp(log_dt[:, None] * torch.arange(L)) * torch.arange(L))


def rate_depends_on_time(u, log_dt, C_real, A_imag):
    return convolved(u, torch.exp(u[0] * torch.arange(L)))


def other_norm(u, log_dt, C_real, A_imag):
    k = torch.exp(log_dt[:, None] * torch.arange(L))
    return irfft(rfft(u, n=2 * L, norm="ortho") * rfft(k, n=2 * L, norm="ortho"), n=2 * L, norm="ortho")[..., :L]


def shifted(u, log_dt, C_real, A_imag):
    k = torch.exp(log_dt[:, None] * torch.arange(L))
    return irfft(rfft(u, n=2 * L) * rfft(k, n=2 * L), n=2 * L)[..., 1:L + 1]


def square(u, log_dt, C_real, A_imag):
    return convolved(u, torch.exp(log_dt[:, None] * torch.arange(L)).square().tanh())


@pytest.mark.parametrize("function", [circular, gaussian, given_kernel, power_law, rate_depends_on_time, other_norm, shifted,
                                      square])
def test_other_kernels_stay(function) -> None:
    assert scans(function, given())[0] == []
