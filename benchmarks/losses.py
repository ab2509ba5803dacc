"""Losses over two distributions, with an entropy bonus, in both directions: eager, torch.compile and fuse, time and peak memory.

    python benchmarks/losses.py --dtype bfloat16 --json results/losses-bfloat16.json

    distillation   KL divergence to a frozen teacher with a width of its own, both heads at a temperature of 2
    grpo           a clipped policy ratio with an entropy bonus, over the labels' log-probabilities (arXiv 2402.03300)
    clip           every row's partner among all columns and every column's among all rows (arXiv 2103.00020)

Forward and backward. Times are taken in one process with the arms in turns: read the ratios, each the median over steps of
the arm's time over Inductor's just before it. Peak memory is taken in a fresh process per arm.
"""
from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from measure import child, interleaved, peak_above, write

ARMS = ("eager", "inductor", "fuse")
TEMPERATURE, BONUS, CLIP = 2.0, 0.01, 0.2


def distillation(h: torch.Tensor, weight: torch.Tensor, teacher: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    student = F.linear(h, weight).float() / TEMPERATURE
    target = F.linear(teacher, other).float() / TEMPERATURE
    return F.kl_div(student.log_softmax(-1), target.log_softmax(-1), reduction="batchmean", log_target=True) * TEMPERATURE ** 2


def grpo(h: torch.Tensor, weight: torch.Tensor, y: torch.Tensor, old: torch.Tensor, advantage: torch.Tensor) -> torch.Tensor:
    lp = F.linear(h, weight).float().log_softmax(-1)
    entropy = -(lp.exp() * lp).sum(-1)
    ratio = (lp.gather(-1, y[:, None])[:, 0] - old).exp()
    return -(torch.minimum(ratio * advantage, ratio.clamp(1 - CLIP, 1 + CLIP) * advantage) + BONUS * entropy).mean()


def clip(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    a, b, own = F.normalize(a, dim=-1) / 0.07, F.normalize(b, dim=-1), torch.arange(len(a), device=a.device)
    return (F.cross_entropy((a @ b.T).float(), own) + F.cross_entropy((b @ a.T).float(), own)) / 2


def inputs(name: str, a: argparse.Namespace) -> list[torch.Tensor]:
    torch.manual_seed(0)
    dtype = getattr(torch, a.dtype)

    def leaf(*shape: int, scale: float = 1.0, learned: bool = True) -> torch.Tensor:
        return (torch.randn(*shape, device=a.device) * scale).to(dtype).requires_grad_(learned)
    if name == "clip":
        return [leaf(a.pairs, a.embedding), leaf(a.pairs, a.embedding)]
    head = [leaf(a.rows, a.width), leaf(a.vocabulary, a.width, scale=a.width ** -0.5)]
    if name == "distillation":
        return [*head, leaf(a.rows, a.teacher, learned=False),
                leaf(a.vocabulary, a.teacher, scale=a.teacher ** -0.5, learned=False)]
    y = torch.randint(0, a.vocabulary, (a.rows,), device=a.device)
    return [*head, y, torch.randn(a.rows, device=a.device) - 11, torch.randn(a.rows, device=a.device)]


LOSSES: dict[str, Callable[..., torch.Tensor]] = {"distillation": distillation, "grpo": grpo, "clip": clip}


def made(name: str, arm: str) -> Callable[..., torch.Tensor]:
    return LOSSES[name] if arm == "eager" else torch.compile(LOSSES[name], backend=arm)


def reset(args: list[torch.Tensor]) -> None:
    for t in args:
        t.grad = None


def step(f: Callable[..., torch.Tensor], args: list[torch.Tensor]) -> None:
    reset(args)
    f(*args).backward()


def times(name: str, a: argparse.Namespace) -> dict[str, dict[str, float]]:
    args = inputs(name, a)
    steps = {arm: partial(step, made(name, arm), args) for arm in a.arms}
    interleaved(steps, 2, a.device)
    samples = interleaved(steps, a.repeat, a.device)
    return {arm: {"median_ms": round(statistics.median(s), 1), "min_ms": round(min(s), 1),
                  "ratio": round(statistics.median(x / i for x, i in zip(s, samples["inductor"], strict=True)), 3)}
            for arm, s in samples.items()}


def peak(name: str, arm: str, a: argparse.Namespace) -> float:
    """MB above the inputs during one warm step, in this (fresh) process."""
    args = inputs(name, a)
    return peak_above(partial(step, made(name, arm), args), partial(reset, args), a.device)


SIZES = ("rows", "width", "teacher", "vocabulary", "pairs", "embedding", "dtype", "device", "threads")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for size, default in {"rows": 2048, "width": 768, "teacher": 1024, "vocabulary": 50304, "pairs": 8192, "embedding": 512,
                          "threads": 2, "repeat": 5}.items():
        parser.add_argument(f"--{size}", type=int, default=default)
    parser.add_argument("--losses", type=lambda s: s.split(","), default=list(LOSSES))
    parser.add_argument("--arms", type=lambda s: s.split(","), default=list(ARMS), help="inductor among them")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--json", type=Path, help="write the record here, beside what it holds of other losses")
    parser.add_argument("--only", nargs=2, metavar=("LOSS", "ARM"), help=argparse.SUPPRESS)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    if a.only:
        print(json.dumps(peak(*a.only, a)))
        return
    sizes: dict[str, Any] = {name: getattr(a, name) for name in SIZES}
    found = json.loads(a.json.read_text())["losses"] if a.json and a.json.exists() else {}
    for name in a.losses:
        table: dict[str, dict[str, Any]] = {arm: dict(row) for arm, row in times(name, a).items()}
        for arm, row in table.items():
            row["peak_mb"] = round(child(__file__, ["--only", name, arm, *(f"--{n}={v}" for n, v in sizes.items())]), 1)
            print("".join(f"{c!s:>14}" for c in (name, arm, *row.values())), flush=True)
        found[name] = {"sizes": sizes, "arms": table}
        if a.json:
            write(a.json, {"benchmark": "losses", "losses": found})


if __name__ == "__main__":
    main()
