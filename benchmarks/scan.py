"""Diagonal linear recurrences as people write them, forward and with backward: eager, torch.compile and fuse.

    python benchmarks/scan.py --json benchmarks/results/scan-float32.json
    python benchmarks/scan.py --rows selective-512,s4d-1024 --repeat 21

    selective-L   selective scan (arXiv 2312.00752) by associative_scan, as transformers does    1 x 256 channels x 16 states
    s4d-L         S4D (arXiv 2206.11893): Vandermonde kernel and FFT convolution                 4 x 256 channels x 32 pairs
    loop-L        the selective scan as a Python loop                                            1 x 256 channels x 16 states

Times are taken in one process with the arms interleaved: read the ratios. `first` is the first call with its backward,
compilation included, with empty caches; `errors` are the largest difference of the output and of the gradients to float64,
relative to the largest element. `fused` counts the regions that fuse took. --json adds its rows to those of the file.
"""
from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from measure import interleaved, quantiles, seconds, write
from torch._higher_order_ops.associative_scan import associative_scan

ARMS = ("eager", "inductor", "fuse")
Function = Callable[..., torch.Tensor]


def selective(u, dt, A, B, C):
    dA = torch.exp(A[None, :, None, :] * dt[..., None])
    dBu = dt[..., None] * B[:, None] * u[..., None]
    _, states = associative_scan(lambda l, r: (l[0] * r[0], r[0] * l[1] + r[1]), (dA, dBu), dim=2, combine_mode="generic")
    return torch.matmul(states.transpose(1, 2), C.unsqueeze(-1)).squeeze(-1).transpose(1, 2)


def loop(u, dt, A, B, C):
    dA = torch.exp(A[None, :, None, :] * dt[..., None])
    dBu = dt[..., None] * B[:, None] * u[..., None]
    state, out = torch.zeros_like(dA[:, :, 0]), []
    for i in range(u.shape[2]):
        state = dA[:, :, i] * state + dBu[:, :, i]
        out.append(torch.matmul(state, C[:, i, :].unsqueeze(-1))[:, :, 0])
    return torch.stack(out, dim=-1)


def s4d(u, log_dt, C_real, log_A_real, A_imag, skip):
    length = u.shape[-1]
    dt, C = torch.exp(log_dt), torch.view_as_complex(C_real)
    A = -torch.exp(log_A_real) + 1j * A_imag
    dtA = A * dt.unsqueeze(-1)
    power = dtA.unsqueeze(-1) * torch.arange(length, device=u.device)
    C = C * (torch.exp(dtA) - 1.0) / A
    k = 2 * torch.einsum("hn,hnl->hl", C, torch.exp(power)).real
    y = torch.fft.irfft(torch.fft.rfft(u, n=2 * length) * torch.fft.rfft(k, n=2 * length), n=2 * length)[..., :length]
    return y + u * skip.unsqueeze(-1)


def selective_inputs(length: int) -> list[torch.Tensor]:
    batch, channels, states = 1, 256, 16
    return [torch.randn(batch, channels, length), F.softplus(torch.randn(batch, channels, length) - 3),
            -torch.arange(1.0, states + 1).repeat(channels, 1), torch.randn(batch, length, states),
            torch.randn(batch, length, states)]


def s4d_inputs(length: int) -> list[torch.Tensor]:
    batch, channels, pairs = 4, 256, 32
    return [torch.randn(batch, channels, length), torch.empty(channels).uniform_(math.log(1e-3), math.log(1e-1)),
            torch.randn(channels, pairs, 2), torch.full((channels, pairs), math.log(0.5)),
            math.pi * torch.arange(pairs).float().repeat(channels, 1), torch.randn(channels)]


class Row(NamedTuple):
    function: Function
    inputs: Callable[[int], list[torch.Tensor]]
    length: int
    arms: tuple[str, ...] = ARMS


ROWS = {
    "selective-512": Row(selective, selective_inputs, 512),
    "selective-4096": Row(selective, selective_inputs, 4096),
    "s4d-1024": Row(s4d, s4d_inputs, 1024),
    "s4d-16384": Row(s4d, s4d_inputs, 16384),
    "loop-512": Row(loop, selective_inputs, 512, ("eager", "fuse")),     # Inductor takes minutes to compile it
}


def leaves(row: Row, a: argparse.Namespace) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [x.to(a.device).requires_grad_() for x in row.inputs(row.length)]


def make(row: Row, arm: str) -> Function:
    if arm == "eager":
        return row.function
    torch._dynamo.reset()
    return torch.compile(row.function, backend=arm)  # type: ignore[no-any-return]


def forward(f: Function, args: list[torch.Tensor], cotangent: torch.Tensor) -> object:
    with torch.no_grad():
        return f(*args)


def both(f: Function, args: list[torch.Tensor], cotangent: torch.Tensor) -> tuple[torch.Tensor, ...]:
    out = f(*args)
    return (out.detach(), *torch.autograd.grad(out, args, cotangent.to(out.dtype)))


STEPS = {"forward": forward, "forward+backward": both}


def measured(name: str, a: argparse.Namespace) -> dict[str, Any]:
    row = ROWS[name]
    arms = [arm for arm in row.arms if arm in a.arms]
    args, record = leaves(row, a), {"shape": [list(x.shape) for x in row.inputs(row.length)]}
    cotangent = torch.randn_like(args[0])
    made = {arm: make(row, arm) for arm in arms}
    first = {arm: seconds(partial(both, f, args, cotangent), a.device) for arm, f in made.items()}
    record["fused"] = torch._dynamo.utils.counters["fuse"]["fused"]
    steps: dict[str, dict[str, dict[str, Any]]] = {}
    for what, step in STEPS.items():
        calls = {arm: partial(step, f, args, cotangent) for arm, f in made.items()}
        interleaved(calls, 1, a.device)
        steps[what] = {arm: quantiles(s) for arm, s in interleaved(calls, a.repeat, a.device).items()}
    if a.exact:
        wide = [x.detach().double().requires_grad_() for x in args]
        want = both(row.function, wide, cotangent)
    for arm, f in made.items():
        steps["forward+backward"][arm]["first_s"] = round(first[arm], 2)
        if a.exact:
            steps["forward+backward"][arm]["errors"] = [float(f"{(g.double() - w).abs().max() / w.abs().max():.1e}")
                                                        for g, w in zip(both(f, args, cotangent), want, strict=True)]
    return {**record, "repeat": a.repeat, "steps": steps}


def show(name: str, record: dict[str, Any]) -> None:
    print(f"{name}, fused: {record['fused']}")
    for what, arms in record["steps"].items():
        mine = arms["fuse"]["median_ms"] if "fuse" in arms else math.nan
        for arm, row in arms.items():
            spread = f"({row['p20_ms']:.2f} .. {row['p80_ms']:.2f})"
            first = f"first {row['first_s']:.1f} s" if "first_s" in row else ""
            print(f"  {what:18}{arm:10}{row['median_ms']:10.2f} ms {spread:>22}   fuse takes {mine / row['median_ms']:.3f} of it"
                  f"   {first} {row.get('errors', '')}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=lambda s: s.split(","), default=list(ROWS))
    parser.add_argument("--arms", type=lambda s: s.split(","), default=list(ARMS))
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--exact", action=argparse.BooleanOptionalAction, default=True, help="compare with float64")
    parser.add_argument("--json", type=Path, help="write the record here")
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    old = json.loads(a.json.read_text())["rows"] if a.json and a.json.exists() else {}
    record: dict[str, Any] = {"benchmark": "scan", "dtype": "float32", "device": a.device, "threads": a.threads, "rows": old}
    with tempfile.TemporaryDirectory() as caches:
        os.environ.update(FUSE_CACHE_DIR=f"{caches}/fuse", TORCHINDUCTOR_CACHE_DIR=f"{caches}/inductor")
        for name in a.rows:
            record["rows"][name] = measured(name, a)
            show(name, record["rows"][name])
            if a.json:
                write(a.json, record)


if __name__ == "__main__":
    main()
