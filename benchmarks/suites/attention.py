"""Softmax attention as people write it: [queries, keys] scores for each head."""
from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from benchmarks.arms import COMPILED, FUSE, Absent
from benchmarks.cases import Case, Function, Sizes, Suite


def additive(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    w = torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]) + mask, dim=-1)
    return w @ v


def causal(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    w = (q @ k.mT) * (1.0 / math.sqrt(q.shape[-1]))
    future = torch.tril(torch.ones(q.shape[2], k.shape[2], device=q.device)) == 0
    return torch.softmax(w.masked_fill(future, float("-inf")), dim=-1) @ v


def inputs(sizes: Sizes) -> list[torch.Tensor]:
    shape = [sizes[s] for s in "BHLd"]
    return [torch.randn(shape) for _ in range(3)]


def with_mask(sizes: Sizes) -> list[torch.Tensor]:
    return [*inputs(sizes), torch.randn(sizes["L"], sizes["L"])]


def sdpa(case: Case) -> Function:
    if case.function is causal:
        return lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return lambda q, k, v, mask: F.scaled_dot_product_attention(q, k, v, mask)


def flex_attention(case: Case) -> Function:
    try:
        from torch.nn.attention.flex_attention import BlockMask, create_block_mask
        from torch.nn.attention.flex_attention import flex_attention as flex
    except ImportError as error:
        raise Absent(str(error)) from error
    call = torch.compile(flex, dynamic=False)
    if case.function is causal:
        def masked(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            size = q.shape[2], k.shape[2]
            if size not in blocks:
                blocks[size] = create_block_mask(lambda b, h, i, j: i >= j, None, None, *size, device=q.device)
            return call(q, k, v, block_mask=blocks[size])
        blocks: dict[tuple[int, int], BlockMask] = {}
        return masked
    return lambda q, k, v, mask: call(q, k, v, score_mod=lambda s, b, h, i, j: s + mask[i, j])


SIZES = {"cpu": {"B": 1, "H": 8, "L": 2048, "d": 64}, "cuda": {"B": 4, "H": 16, "L": 4096, "d": 64},
         "quick": {"B": 1, "H": 4, "L": 1024, "d": 64}, "tiny": {"B": 1, "H": 2, "L": 32, "d": 16}}
SWEEPS = {"L": (512, 1024, 4096, 8192), "d": (32, 128)}
SUITE = Suite(
    cases={"additive": Case("additive", "softmax attention with an additive mask", additive, with_mask, SIZES, SWEEPS,
                            constants=(3,)),
           "causal": Case("causal", "the future filled by -inf", causal, inputs, SIZES, SWEEPS, visible=0.5)},
    arms={**COMPILED, "sdpa": sdpa, "flex_attention": flex_attention, **FUSE})
