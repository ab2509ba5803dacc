"""Diagonal linear recurrences: [time, channels, state] states that are only reduced."""
from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch._higher_order_ops.associative_scan import associative_scan

from benchmarks.arms import COMPILED, FUSE, peer
from benchmarks.cases import Case, Function, Sizes, Suite

Tensor = torch.Tensor


def discretised(u: Tensor, dt: Tensor, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """Coefficients and inputs of the recurrence, [batch, channels, time, state]."""
    return torch.exp(A[None, :, None, :] * dt[..., None]), dt[..., None] * B[:, None] * u[..., None]


def selective(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    _, states = associative_scan(lambda l, r: (l[0] * r[0], r[0] * l[1] + r[1]), discretised(u, dt, A, B), dim=2,
                                 combine_mode="generic")
    return torch.matmul(states.transpose(1, 2), C.unsqueeze(-1)).squeeze(-1).transpose(1, 2)


def loop(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    dA, dBu = discretised(u, dt, A, B)
    state, out = torch.zeros_like(dA[:, :, 0]), []
    for i in range(u.shape[2]):
        state = dA[:, :, i] * state + dBu[:, :, i]
        out.append(torch.matmul(state, C[:, i, :].unsqueeze(-1))[:, :, 0])
    return torch.stack(out, dim=-1)


def s4d(u: Tensor, log_dt: Tensor, C_real: Tensor, log_A_real: Tensor, A_imag: Tensor, skip: Tensor) -> Tensor:
    length = u.shape[-1]
    dt, C = torch.exp(log_dt), torch.view_as_complex(C_real)
    A = -torch.exp(log_A_real) + 1j * A_imag
    dtA = A * dt.unsqueeze(-1)
    power = dtA.unsqueeze(-1) * torch.arange(length, device=u.device)
    C = C * (torch.exp(dtA) - 1.0) / A
    k = 2 * torch.einsum("hn,hnl->hl", C, torch.exp(power)).real
    y: Tensor = torch.fft.irfft(torch.fft.rfft(u, n=2 * length) * torch.fft.rfft(k, n=2 * length), n=2 * length)[..., :length]
    return y + u * skip.unsqueeze(-1)


# ---- peers ----------------------------------------------------------------------------------------------------------

def mamba_ssm(case: Case) -> Function:
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    return lambda u, dt, A, B, C: selective_scan_fn(u, dt, A, B.mT.contiguous(), C.mT.contiguous())


def mambapy(case: Case) -> Function:
    """Its scan wants [batch, time, channels, state]."""
    from mambapy.pscan import pscan

    def function(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
        a, b = (x.transpose(1, 2) for x in discretised(u, dt, A, B))
        states: Tensor = pscan(a, b)
        return (states @ C.unsqueeze(-1)).squeeze(-1).mT
    return function


def accelerated_scan(case: Case) -> Function:
    """Its scan wants [batch, channels, time], with as many channels as there are states."""
    from accelerated_scan.warp import scan

    def function(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
        a, b = (x.transpose(2, 3).flatten(1, 2).contiguous() for x in discretised(u, dt, A, B))
        states = scan(a, b).unflatten(1, A.shape)
        return torch.einsum("bcnt,btn->bct", states, C)
    return function


# ---- inputs ---------------------------------------------------------------------------------------------------------

def selective_inputs(sizes: Sizes) -> list[Tensor]:
    b, d, l, n = (sizes[s] for s in ("B", "D", "L", "N_state"))
    return [torch.randn(b, d, l), F.softplus(torch.randn(b, d, l) - 3), -torch.arange(1.0, n + 1).repeat(d, 1),
            torch.randn(b, l, n), torch.randn(b, l, n)]


def s4d_inputs(sizes: Sizes) -> list[Tensor]:
    b, d, l, n = (sizes[s] for s in ("B", "D", "L", "N_state"))
    return [torch.randn(b, d, l), torch.empty(d).uniform_(math.log(1e-3), math.log(1e-1)), torch.randn(d, n, 2),
            torch.full((d, n), math.log(0.5)), math.pi * torch.arange(n).float().repeat(d, 1), torch.randn(d)]


SIZES = {"cpu": {"B": 1, "D": 256, "L": 512, "N_state": 16}, "cuda": {"B": 2, "D": 2048, "L": 4096, "N_state": 16},
         "quick": {"B": 1, "D": 128, "L": 256, "N_state": 16}, "tiny": {"B": 1, "D": 8, "L": 32, "N_state": 4}}
S4D = {"cpu": {"B": 4, "D": 256, "L": 1024, "N_state": 32}, "cuda": {"B": 16, "D": 512, "L": 16384, "N_state": 32},
       "quick": {"B": 1, "D": 64, "L": 1024, "N_state": 16}, "tiny": {"B": 1, "D": 4, "L": 32, "N_state": 4}}
LOOP = {**SIZES, "cuda": {"B": 2, "D": 2048, "L": 512, "N_state": 16}, "quick": {"B": 1, "D": 256, "L": 128, "N_state": 16}}
FLOAT32 = {"cpu": ("float32",), "cuda": ("float32",)}
SUITE = Suite(
    cases={
        "selective": Case("selective", "selective scan (arXiv 2312.00752) by associative_scan, as transformers does", selective,
                          selective_inputs, SIZES, {"L": (256, 1024, 2048, 4096), "N_state": (4, 8, 32, 64)}, FLOAT32,
                          arms=("eager", "inductor", "mamba_ssm", "mambapy", "accelerated_scan", "fuse")),
        "s4d": Case("s4d", "S4D (arXiv 2206.11893): Vandermonde kernel and FFT convolution", s4d, s4d_inputs, S4D,
                    {"L": (2048, 4096, 16384), "N_state": (8, 16, 64)}, FLOAT32, arms=("eager", "inductor", "fuse")),
        # Inductor takes minutes to compile the unrolled loop.
        "loop": Case("loop", "the selective scan as a Python loop", loop, selective_inputs, LOOP, {}, FLOAT32,
                     arms=("eager", "mamba_ssm", "mambapy", "accelerated_scan", "fuse")),
    },
    arms={**COMPILED, "mamba_ssm": peer("mamba_ssm", mamba_ssm), "mambapy": peer("mambapy", mambapy, ""),
          "accelerated_scan": peer("accelerated_scan", accelerated_scan), **FUSE})
