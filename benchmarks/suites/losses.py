"""Losses over more than one softmax, or over rows and columns of the same scores: cases of the vocabulary's suite."""
from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F

from benchmarks.cases import Case, Function, Sizes

TEMPERATURE, BONUS, RATIO = 2.0, 0.01, 0.2
ARMS = ("eager", "inductor", "fuse")
Tensor = torch.Tensor


def distillation(h: Tensor, weight: Tensor, teacher: Tensor, other: Tensor, wide: Function = Tensor.float) -> Tensor:
    student, target = (wide(F.linear(*x)) / TEMPERATURE for x in ((h, weight), (teacher, other)))
    return F.kl_div(student.log_softmax(-1), target.log_softmax(-1), reduction="batchmean", log_target=True) * TEMPERATURE ** 2


def grpo(h: Tensor, weight: Tensor, y: Tensor, old: Tensor, advantage: Tensor, wide: Function = Tensor.float) -> Tensor:
    lp = wide(F.linear(h, weight)).log_softmax(-1)
    entropy = -(lp.exp() * lp).sum(-1)
    ratio = (lp.gather(-1, y[:, None])[:, 0] - old).exp()
    return -(torch.minimum(ratio * advantage, ratio.clamp(1 - RATIO, 1 + RATIO) * advantage) + BONUS * entropy).mean()


def clip(a: Tensor, b: Tensor, wide: Function = Tensor.float) -> Tensor:
    a, b, own = F.normalize(a, dim=-1) / 0.07, F.normalize(b, dim=-1), torch.arange(len(a), device=a.device)
    return (F.cross_entropy(wide(a @ b.T), own) + F.cross_entropy(wide(b @ a.T), own)) / 2


def head(sizes: Sizes, width: str = "d") -> list[Tensor]:
    return [torch.randn(sizes["N"], sizes[width]), torch.randn(sizes["V"], sizes[width]) * sizes[width] ** -0.5]


def two_heads(sizes: Sizes) -> list[Tensor]:
    return [*head(sizes), *head(sizes, "D")]


def with_advantages(sizes: Sizes) -> list[Tensor]:
    n = sizes["N"]
    return [*head(sizes), torch.randint(0, sizes["V"], (n,)), torch.randn(n) - 11, torch.randn(n)]


def pairs(sizes: Sizes) -> list[Tensor]:
    return [torch.randn(sizes["N"], sizes["d"]) for _ in range(2)]


HEAD = {"cpu": {"N": 2048, "d": 768, "V": 50304}, "cuda": {"N": 8192, "d": 2304, "V": 128256},
        "quick": {"N": 512, "d": 256, "V": 16384}, "tiny": {"N": 32, "d": 16, "V": 256}}
TEACHER = {scale: {**sizes, "D": sizes["d"] * 4 // 3} for scale, sizes in HEAD.items()}
PAIRS = {"cpu": {"N": 8192, "d": 512}, "cuda": {"N": 32768, "d": 512}, "quick": {"N": 2048, "d": 256}, "tiny": {"N": 64, "d": 16}}
DTYPES = {"cpu": ("float32", "bfloat16"), "cuda": ("bfloat16",)}
EXACT = {f: partial(f, wide=torch.clone) for f in (distillation, grpo, clip)}
CASES = {
    "distillation": Case("distillation", "KL divergence to a frozen teacher with a width of its own", distillation, two_heads,
                         TEACHER, dtypes=DTYPES, exact=EXACT[distillation], constants=(2, 3), arms=ARMS),
    "grpo": Case("grpo", "a clipped policy ratio with an entropy bonus (arXiv 2402.03300)", grpo, with_advantages, HEAD,
                 dtypes=DTYPES, exact=EXACT[grpo], constants=(3, 4), arms=ARMS),
    "clip": Case("clip", "each row's partner among all columns, each column's among all rows (arXiv 2103.00020)", clip, pairs,
                 PAIRS, dtypes=DTYPES, exact=EXACT[clip], arms=ARMS),
}
