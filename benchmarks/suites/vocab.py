"""A linear head with its loss: [tokens, words] logits that nobody asked for."""
from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F

from benchmarks.arms import COMPILED, FUSE, Absent, auto_chunker, fuse, peer
from benchmarks.cases import Case, Function, Sizes, Suite
from benchmarks.suites import losses, trained


def head(h: torch.Tensor, weight: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(F.linear(h, weight).float(), y)


def exact(h: torch.Tensor, weight: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(F.linear(h, weight), y)


def inputs(sizes: Sizes, peaked: float = 0.0) -> list[torch.Tensor]:
    """`peaked` is the logit of one likely word for each row, as training makes it: 11 gives it p = 0.4 of 50304 words."""
    n, d, v = (sizes[s] for s in "NdV")
    h, weight = torch.randn(n, d), torch.randn(v, d) * d ** -0.5
    y = torch.randint(0, v, (n,))
    if peaked:
        h += peaked * weight[torch.randint(0, v, (n,))]
    return [h, weight, y]


def linear_cross_entropy(case: Case) -> Function:
    if not hasattr(torch.nn, "LinearCrossEntropyOptions"):
        raise Absent(f"torch {torch.__version__} has no F.linear_cross_entropy with options")
    options = torch.nn.LinearCrossEntropyOptions()
    return lambda h, weight, y: F.linear_cross_entropy(h, weight, y, options=options)


def liger(case: Case) -> Function:
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    loss = LigerFusedLinearCrossEntropyLoss()
    return lambda h, weight, y: loss(weight, h, y)


def cut_cross_entropy(case: Case) -> Function:
    """As its authors ship it: small gradients are left out."""
    from cut_cross_entropy import linear_cross_entropy

    found: Function = linear_cross_entropy
    return found


SIZES = {"cpu": {"N": 2048, "d": 768, "V": 50304}, "cuda": {"N": 8192, "d": 2304, "V": 256000},
         "quick": {"N": 512, "d": 256, "V": 16384}, "tiny": {"N": 32, "d": 16, "V": 256}}
DTYPES = {"cpu": ("float32", "bfloat16"), "cuda": ("bfloat16",)}
PLAIN = (*COMPILED, "auto_chunker", "linear_cross_entropy", "liger", "cut_cross_entropy", "fuse", "fuse-least-memory")
SUITE = Suite(
    cases={
        "head": Case("head", "linear head with cross-entropy", head, inputs, SIZES, exact=exact, dtypes=DTYPES, arms=PLAIN,
                     sweeps={"V": (8192, 16384, 32768, 65536, 131072), "N": (256, 512, 1024, 4096, 8192),
                             "d": (128, 256, 512, 1024, 2048)}),
        "peaked": Case("peaked", "the same with one likely word in each row, as late in training", head,
                       partial(inputs, peaked=11.0), SIZES, exact=exact, dtypes=DTYPES,
                       arms=("eager", "inductor", "cut_cross_entropy", "fuse", "fuse-filter")),
        "trained": Case("trained", "the same of a small Llama after some steps of training on text", head, trained.inputs,
                        trained.SIZES, exact=exact, dtypes=DTYPES,
                        arms=("eager", "inductor", "cut_cross_entropy", "fuse", "fuse-filter")),
        **losses.CASES,
    },
    arms={**COMPILED, "auto_chunker": auto_chunker, "linear_cross_entropy": linear_cross_entropy,
          "liger": peer("liger_kernel", liger), "cut_cross_entropy": peer("cut_cross_entropy", cut_cross_entropy), **FUSE,
          "fuse-least-memory": fuse(schedule="least-memory"), "fuse-filter": fuse(gradient_filter="auto")})
