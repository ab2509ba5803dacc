"""Attention, scans and blocks are imported, and right, whether they are taken or not."""
from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from fuse.frontend import find
from fuse.frontend.candidates import find_candidates
from fuse.frontend.importer import Imported, import_candidate
from fuse.options import Options
from tests.frontend.tracing import capture, error, graph_values, outputs_of

B, H, L, D = 2, 3, 40, 4


def qkv(*, heads=(H, H, H), last=False):
    return [torch.randn(B, L, n, D) if last else torch.randn(B, n, L, D) for n in heads]


def causal():
    return torch.zeros(1, 1, L, L).masked_fill(~torch.ones(L, L).tril().bool(), torch.finfo(torch.float32).min)


def grouped(q, k, v):
    k, v = (t[:, :, None].expand(B, 2, 2, L, D).reshape(B, 4, L, D) for t in (k, v))
    w = F.softmax(q @ k.transpose(2, 3) * D ** -0.5 + causal(), dim=-1, dtype=torch.float32).to(q.dtype)
    return (w @ v).transpose(1, 2).contiguous()


def padded(q, k, v, lengths):
    keep = torch.arange(L)[None, None, None] < lengths[:, None, None, None]
    s = (q.transpose(1, 2) @ k.transpose(1, 2).transpose(2, 3)).masked_fill(~keep, float("-inf"))
    return torch.softmax(s, -1) @ v.transpose(1, 2)


def alibi(q, k, v):
    q, k, v = (t.reshape(B * H, L, D) for t in (q, k, v))
    slopes = (2.0 ** -torch.arange(1, H + 1)).repeat(B)[:, None, None]
    s = (slopes * torch.arange(L).view(1, 1, L)).baddbmm(q, k.transpose(1, 2), beta=1.0, alpha=D ** -0.5)
    return torch.bmm(F.softmax(s.view(B, H, L, L) + causal(), -1).view(B * H, L, L), v)


def windows(q, k, v, table):
    index = (torch.arange(L)[:, None] - torch.arange(L)[None]).clamp(-7, 7) + 7
    s = (q * 0.5) @ k.transpose(-2, -1) + table[index].permute(2, 0, 1).unsqueeze(0)
    mask = torch.zeros(2, L, L)
    mask[1, :, L // 2:] = -100.0
    s = s.view(B // 2, 2, H, L, L) + mask.unsqueeze(1).unsqueeze(0)
    return s.view(-1, H, L, L).softmax(-1) @ v


def packed(x):
    q, k, v = x.view(B, L, 3, H, D).permute(2, 0, 3, 1, 4).unbind(0)
    return torch.softmax(q @ k.transpose(-1, -2), -1) @ v


def entropy(q, k, v):
    p = torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(D), dim=-1)
    return p @ v, -(p * torch.log(p + 1e-9)).sum(-1).mean(dim=(0, 2))


def sinks(q, k, v, extra):
    w = q @ k.transpose(2, 3) + causal()
    c = torch.cat([w, extra.reshape(1, -1, 1, 1).expand(B, -1, L, -1)], dim=-1)
    c = c - c.max(dim=-1, keepdim=True).values
    return F.softmax(c, dim=-1)[..., :-1] @ v


def differential(q, k, v):
    (a, b), (c, d) = q.chunk(2, -1), k.chunk(2, -1)
    p, r = (torch.softmax(x @ y.transpose(-2, -1), -1) for x, y in ((a, c), (b, d)))
    return (p - 0.3 * r) @ v


def over_queries(q, k, v):
    return torch.softmax(q @ k.transpose(-2, -1), dim=-2) @ v


def einsum_heads_last(q, k, v):
    s = torch.einsum("blhd,bmhd->bhlm", q, k).masked_fill(~torch.ones(L, L).tril().bool(), -1e30)
    return torch.einsum("bhlm,bmhd->blhd", s.softmax(-1), v)


def linear_causal(q, k, v):
    kv = torch.einsum("bhld,bhlm->bhldm", k.sigmoid(), v).cumsum(2)
    return torch.einsum("bhld,bhldm->bhlm", q.sigmoid(), kv)


def retention(q, k, v):
    i = torch.arange(L)
    decay = torch.where(i[:, None] >= i[None], 0.97 ** (i[:, None] - i[None]).clamp(min=0).float(), 0.0)
    s = (q @ k.transpose(-1, -2)) * decay
    return (s / s.detach().abs().sum(-1, keepdim=True).clamp(min=1)) @ v


def same_source(x):
    return torch.softmax(x @ x.transpose(-1, -2), -1) @ x


def rolled_windows(q, k, v):
    q, k, v = (t.roll(3, 2).view(B, H, 5, 8, D) for t in (q, k, v))
    return (torch.softmax(q @ k.transpose(-1, -2), -1) @ v).view(B, H, L, D).roll(-3, 2)


def chunked(q, k, v):
    return torch.cat([torch.softmax(c @ k.transpose(-1, -2), -1) @ v for c in q.chunk(2, 2)], 2)


FAMILIES = {
    "grouped": (grouped, lambda: qkv(heads=(4, 2, 2))), "alibi": (alibi, qkv),
    "packed": (packed, lambda: [torch.randn(B, L, 3 * H * D)]),
    "padded": (padded, lambda: [*qkv(last=True), torch.tensor([17, L])]), "sinks": (sinks, lambda: [*qkv(), torch.randn(H)]),
    "windows": (windows, lambda: [*qkv(), torch.randn(15, H)]), "entropy": (entropy, qkv), "differential": (differential, qkv),
    "over_queries": (over_queries, qkv), "einsum_heads_last": (einsum_heads_last, lambda: qkv(last=True)),
    "linear_causal": (linear_causal, qkv), "retention": (retention, qkv), "same_source": (same_source, lambda: qkv()[:1]),
    "rolled_windows": (rolled_windows, qkv), "chunked": (chunked, qkv),
}
REFUSED = {"over_queries": "NOT_A_REDUCTION"}
SYMBOLIC = ("padded", "entropy", "over_queries", "same_source", "differential")


@pytest.mark.parametrize("name, dynamic", [(n, False) for n in FAMILIES] + [(n, True) for n in SYMBOLIC])
def test_family(name: str, dynamic: bool) -> None:
    def look(gm, inputs):
        worst, values = {}, graph_values(gm, inputs)
        for candidate in find_candidates(gm.graph, 0)[0]:
            imported = import_candidate(candidate)
            assert isinstance(imported, Imported), str(imported)
            found = outputs_of(imported.program, [values[n.name] for n in imported.inputs])
            worst.update({e.name: error(o, values[e.name]) for e, o in zip(imported.exits, found, strict=True)})
        regions, misses = find(gm, Options(min_virtual_bytes=0))
        return worst, regions, misses
    torch.manual_seed(0)
    function, make = FAMILIES[name]
    ((worst, regions, misses),) = capture(function, make(), dynamic=dynamic, look=look)
    assert worst and max(worst.values()) <= 1e-12
    assert {m.code for m in misses} == ({REFUSED[name]} if name in REFUSED else set()) and bool(regions) is not bool(misses)
