"""Linear attention: chains of sums along the sequence, and prefix sums of outer products."""
from __future__ import annotations

import torch
import torch.nn.functional as F

from benchmarks.arms import COMPILED, FUSE, peer
from benchmarks.cases import Case, Function, Sizes, Suite

EPS = 1e-6


def flow(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    q, k = q.sigmoid(), k.sigmoid()
    incoming = 1.0 / torch.einsum("nhld,nhd->nhl", q + EPS, k.sum(dim=2) + EPS)
    outgoing = 1.0 / torch.einsum("nhld,nhd->nhl", k + EPS, q.sum(dim=2) + EPS)
    sink = torch.einsum("nhld,nhd->nhl", q + EPS, (k * outgoing[..., None]).sum(dim=2) + EPS)
    source = torch.einsum("nhld,nhd->nhl", k + EPS, (q * incoming[..., None]).sum(dim=2) + EPS).clamp(-1.0, 1.0)
    allocation = torch.sigmoid(sink * (float(q.shape[2]) / float(k.shape[2])))
    competition = torch.softmax(source, dim=-1) * float(k.shape[2])
    kv = torch.einsum("nhld,nhlm->nhdm", k, v * competition[..., None])
    return torch.einsum("nhld,nhdm->nhlm", q * incoming[..., None], kv) * allocation[..., None]


def flow_causal(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    q, k = q.sigmoid(), k.sigmoid()
    n = torch.arange(1, q.shape[2] + 1, dtype=q.dtype, device=q.device)[None, None]
    incoming = n / torch.einsum("nhld,nhld->nhl", q + EPS, k.cumsum(dim=2) + EPS)
    outgoing = n / torch.einsum("nhld,nhld->nhl", k + EPS, q.cumsum(dim=2) + EPS)
    sink = torch.einsum("nhld,nhld->nhl", q + EPS, (k * outgoing[..., None]).cumsum(dim=2) + EPS) / n
    source = torch.einsum("nhld,nhld->nhl", k + EPS, (q * incoming[..., None]).cumsum(dim=2) + EPS) / n
    e = torch.exp(source.clamp(-1.0, 1.0))
    competition = e / e.cumsum(dim=-1) * n
    kv = torch.einsum("nhld,nhlm->nhldm", k, v * competition[..., None]).cumsum(dim=2)
    return torch.einsum("nhld,nhldm->nhlm", q * (incoming / n)[..., None], kv) * sink.sigmoid()[..., None]


def linear(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    q, k = F.elu(q) + 1, F.elu(k) + 1
    kv = torch.einsum("nshd,nshm->nhmd", k, v)
    z = 1 / (torch.einsum("nlhd,nhd->nlh", q, k.sum(dim=1)) + EPS)
    return torch.einsum("nlhd,nhmd,nlh->nlhm", q, kv, z)


def linear_causal(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    kv = torch.einsum("nlhd,nlhm->nlhdm", k, v).cumsum(dim=1)
    return torch.einsum("nlhd,nlhdm->nlhm", q, kv)


def fla(case: Case) -> Function:
    from fla.ops.linear_attn import chunk_linear_attn

    return lambda q, k, v: chunk_linear_attn(q, k, v, scale=1.0, normalize=False)[0]


def heads_first(sizes: Sizes) -> list[torch.Tensor]:
    return [torch.randn([sizes[s] for s in "BHLd"]) for _ in range(3)]


def heads_last(sizes: Sizes) -> list[torch.Tensor]:
    return [torch.randn([sizes[s] for s in "BLHd"]) for _ in range(3)]


def sizes(batch: int, length: int, tiny: int) -> dict[str, Sizes]:
    """A chain of sums pays where the sequence is long beside the width, in a dry run too."""
    return {"cpu": {"B": batch, "H": 8, "L": length, "d": 64}, "cuda": {"B": batch, "H": 16, "L": 4 * length, "d": 64},
            "quick": {"B": 1, "H": 4, "L": 1024, "d": 64}, "tiny": {"B": 1, "H": 2, "L": tiny, "d": 8}}


LONG, SHORT = {"L": (1024, 2048, 8192, 16384), "d": (32, 128)}, {"L": (512, 1024, 4096), "d": (32,)}
PLAIN = (*COMPILED, "fuse")
SUITE = Suite(
    cases={
        "flow": Case("flow", "bidirectional Flow-Attention (arXiv 2202.06258)", flow, heads_first, sizes(4, 4096, 128), LONG,
                     arms=PLAIN),
        "flow-causal": Case("flow-causal", "its causal form: every sum is a prefix sum", flow_causal, heads_first,
                            sizes(1, 2048, 32), SHORT, arms=PLAIN),
        "linear": Case("linear", "linear attention with elu + 1, heads last", linear, heads_last, sizes(4, 4096, 128), LONG,
                       arms=PLAIN),
        "linear-causal": Case("linear-causal", "prefix sums of outer products alone", linear_causal, heads_last,
                              sizes(1, 2048, 32), SHORT, arms=(*PLAIN, "fla")),
    },
    arms={**COMPILED, "fla": peer("fla", fla), **FUSE})
