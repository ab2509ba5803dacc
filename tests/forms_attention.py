"""Attention as people write it in plain PyTorch, and near misses.

`FORMS[name]` is a `Form`: a function of queries, keys and values [B, H, L, D] and extras, how to make its arguments for
given lengths, and how many regions it becomes.
"""
from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

B, H, D = 2, 2, 5
LOWEST = torch.finfo(torch.float32).min


@dataclass(frozen=True)
class Form:
    name: str
    function: Callable[..., Any]
    make: Callable[[int, int], list[torch.Tensor]]     # lengths of queries and of keys
    regions: int = 1
    misses: tuple[str, ...] = ()
    square: bool = False


FORMS: dict[str, Form] = {}


def leaf(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, requires_grad=True)


def heads_first(n: int, m: int) -> list[torch.Tensor]:
    return [leaf(B, H, n, D), leaf(B, H, m, D), leaf(B, H, m, D)]


def heads_last(n: int, m: int) -> list[torch.Tensor]:
    return [leaf(B, n, H, D), leaf(B, m, H, D), leaf(B, m, H, D)]


def form(make: Callable[[int, int], list[torch.Tensor]] = heads_first, *, into: dict[str, Form] = FORMS,
         **settings: Any) -> Callable[..., Any]:
    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        into[function.__name__] = Form(function.__name__, function, make, **settings)
        return function
    return register


def beside(*shapes: Callable[[int, int], torch.Tensor], make: Any = heads_first) -> Callable[[int, int], list[torch.Tensor]]:
    """Queries, keys, values and extras."""
    return lambda n, m: [*make(n, m), *(s(n, m) for s in shapes)]


def allowed(n: int, m: int) -> torch.Tensor:
    """Each query sees the keys up to its own position, counted from the end."""
    return torch.ones(n, m).tril(m - n).bool()


def scores(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    return q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5


# ---- softmax and masks -----------------------------------------------------------------------------------------------

@form()
def plain(q, k, v):
    return torch.softmax(scores(q, k), dim=-1) @ v


@form(heads_last)
def divided_heads_last(q, k, v):
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    w = F.softmax(torch.matmul(q, k.transpose(2, 3)) / math.sqrt(D), dim=-1, dtype=torch.float32).to(q.dtype)
    return torch.matmul(w, v).transpose(1, 2).contiguous()


@form(lambda n, m: [leaf(B, n, 4, D), leaf(B, m, 2, D), leaf(B, m, 2, D)])
def grouped_queries(q, k, v):
    n, m = q.shape[1], k.shape[1]
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    k, v = (t[:, :, None].expand(B, 2, 2, m, D).reshape(B, 4, m, D) for t in (k, v))
    mask = torch.zeros(1, 1, n, m).masked_fill(~allowed(n, m), LOWEST)
    w = F.softmax(torch.matmul(q, k.transpose(2, 3)) * D ** -0.5 + mask, dim=-1, dtype=torch.float32).to(q.dtype)
    return torch.matmul(w, v).transpose(1, 2).contiguous()


@form(square=True)
def lower_triangle(q, k, v):
    n = q.shape[2]
    s = scores(q, k).masked_fill(torch.tril(torch.ones(n, n)).view(1, 1, n, n) == 0, float("-inf"))
    return F.softmax(s, dim=-1) @ v


@form()
def einsum_minus_largest(q, k, v):
    s = torch.einsum("bhid,bhjd->bhij", q, k) * D ** -0.5
    s = s.masked_fill(~allowed(q.shape[2], k.shape[2]), -torch.finfo(s.dtype).max)
    return torch.einsum("bhij,bhjd->bhid", s.softmax(-1), v)


@form(beside(lambda n, m: torch.tensor([m, max(m // 3, 1)])))
def padded(q, k, v, lengths):
    keep = torch.arange(k.shape[2])[None, None, None] < lengths[:, None, None, None]
    return torch.softmax(scores(q, k).masked_fill(~keep, float("-inf")), -1) @ v


@form(beside(lambda n, m: torch.rand(B, 1, n, m) > 0.4))
def boolean_mask_added(q, k, v, keep):
    return torch.softmax(scores(q, k) + torch.where(keep, 0.0, LOWEST), -1) @ v


@form(square=True)
def sliding_window(q, k, v):
    i = torch.arange(q.shape[2])
    far = (i[None] > i[:, None]) | (i[:, None] - i[None] >= 6)
    return torch.softmax(scores(q, k).masked_fill(far, float("-inf")), -1) @ v


@form()
def some_rows_see_nothing(q, k, v):
    hidden = (torch.arange(q.shape[2]) % 4 == 3)[:, None]
    return torch.softmax(scores(q, k).masked_fill(hidden, torch.finfo(q.dtype).min), -1) @ v


@form()
def some_rows_are_nan(q, k, v):
    hidden = (torch.arange(q.shape[2]) % 4 == 3)[:, None]
    return torch.nan_to_num(torch.softmax(scores(q, k).masked_fill(hidden, float("-inf")), -1) @ v)


@form(beside(lambda n, m: leaf(1, H, n, m)))
def learned_bias(q, k, v, bias):
    return torch.softmax((q @ k.transpose(3, 2) + bias).float(), dim=-1).type_as(q) @ v


@form(beside(lambda n, m: leaf(B, 1, 1, m)))
def bias_by_key(q, k, v, bias):
    return torch.softmax(scores(q, k) + bias, dim=-1) @ v


@form(beside(lambda n, m: torch.randn(B, H, n, m)))
def fixed_bias(q, k, v, bias):
    return torch.softmax(scores(q, k) + bias, dim=-1) @ v


@form(lambda n, m: [leaf(B * H, n, D), leaf(B * H, n, D), leaf(B * H, n, D)], square=True)
def alibi(q, k, v):
    n = q.shape[1]
    slopes = 2.0 ** -torch.arange(1, H + 1).repeat(B)[:, None, None]
    s = (slopes * torch.arange(n).view(1, 1, n)).baddbmm(q, k.transpose(-1, -2), beta=1.0, alpha=D ** -0.5)
    s = s.view(B, H, n, n) + torch.zeros(n, n).masked_fill(~allowed(n, n), LOWEST)
    return torch.bmm(F.softmax(s, dim=-1, dtype=torch.float32).to(q.dtype).view(B * H, n, n), v)


@form(beside(lambda n, m: leaf(15, H)), square=True)
def windows_with_a_table(q, k, v, table):
    n = q.shape[2]
    index = (torch.arange(n)[:, None] - torch.arange(n)[None]).clamp(-7, 7) + 7
    s = (q * 0.5) @ k.transpose(-2, -1) + table[index].permute(2, 0, 1).unsqueeze(0)
    mask = torch.zeros(2, n, n)
    mask[1, :, n // 2:] = -100.0
    s = s.view(B // 2, 2, H, n, n) + mask.unsqueeze(1).unsqueeze(0)
    return s.view(-1, H, n, n).softmax(-1) @ v


@form(lambda n, m: [leaf(B, n, 3 * H * D)])
def packed(x):
    q, k, v = x.view(B, -1, 3, H, D).permute(2, 0, 3, 1, 4).unbind(0)
    return (scores(q, k).softmax(-1) @ v).transpose(1, 2).reshape(B, -1, H * D)


@form(lambda n, m: [leaf(B, n, D)])
def of_itself(x):
    return torch.softmax(x @ x.transpose(-1, -2), -1) @ x


# ---- what people do to scores ----------------------------------------------------------------------------------------

@form()
def softcapped(q, k, v):
    s = torch.tanh(scores(q, k) / 5.0) * 5.0
    return F.softmax(s.masked_fill(~allowed(q.shape[2], k.shape[2]), float("-inf")), dim=-1) @ v


@form(beside(lambda n, m: leaf(H)))
def sinks(q, k, v, extra):
    s = scores(q, k).masked_fill(~allowed(q.shape[2], k.shape[2]), float("-inf"))
    c = torch.cat([s, extra.reshape(1, -1, 1, 1).expand(B, -1, q.shape[2], -1)], dim=-1)
    c = c - c.max(dim=-1, keepdim=True).values
    return F.softmax(c, dim=-1)[..., :-1] @ v


@form(beside(lambda n, m: leaf(H, 1), lambda n, m: leaf(B, H, 3, D)))
def two_sets_of_keys(q, k, v, sink, memory):
    """A sink, then keys that every query sees, then the keys themselves: one softmax over all."""
    s = torch.cat([sink[None, :, None].expand(B, H, q.shape[2], 1), scores(q, memory), scores(q, k)], dim=-1)
    p = torch.softmax(s, dim=-1)
    return p[..., 1:4] @ memory + p[..., 4:] @ v


@form(lambda n, m: [leaf(B, 2, n, 13) for _ in range(3)])
def criss_cross(q, k, v):
    """One softmax over the union of a pixel's column (without itself) and its row."""
    b, c, h, w = q.shape
    def columns(t): return t.permute(0, 3, 1, 2).reshape(b * w, c, h)
    def rows(t): return t.permute(0, 2, 1, 3).reshape(b * h, c, w)
    e_h = torch.bmm(columns(q).permute(0, 2, 1), columns(k)) + torch.where(torch.eye(h).bool(), float("-inf"), 0.0)
    e_h = e_h.view(b, w, h, h).permute(0, 2, 1, 3)
    e_w = torch.bmm(rows(q).permute(0, 2, 1), rows(k)).view(b, h, w, w)
    a = torch.softmax(torch.cat([e_h, e_w], 3), 3)
    a_h, a_w = a[..., :h].permute(0, 2, 1, 3).reshape(b * w, h, h), a[..., h:].reshape(b * h, w, w)
    out_h = torch.bmm(columns(v), a_h.permute(0, 2, 1)).view(b, w, -1, h).permute(0, 2, 3, 1)
    return out_h + torch.bmm(rows(v), a_w.permute(0, 2, 1)).view(b, h, -1, w).permute(0, 2, 1, 3)


@form(beside(lambda n, m: leaf(D), lambda n, m: leaf(D)))
def normalised_queries(q, k, v, a, b):
    q, k = (t * torch.rsqrt(t.pow(2).mean(-1, keepdim=True) + 1e-6) * w for t, w in ((q, a), (k, b)))
    return torch.softmax(scores(q, k), -1) @ v


@form()
def sigmoid_scores(q, k, v):
    return torch.sigmoid(scores(q, k) - math.log(k.shape[2])) @ v


@form()
def squared_relu(q, k, v):
    return F.relu(scores(q, k)).square() @ v / k.shape[2]


@form(lambda n, m: [leaf(B, H, n, 2 * D), leaf(B, H, m, 2 * D), leaf(B, H, m, D), leaf(1)])
def differential(q, k, v, part):
    (a, b), (c, d) = q.chunk(2, -1), k.chunk(2, -1)
    p, r = (torch.softmax(scores(x, y), -1) for x, y in ((a, c), (b, d)))
    return (p - part * r) @ v


@form(square=True)
def retention(q, k, v):
    i = torch.arange(q.shape[2])
    decay = torch.where(i[:, None] >= i[None], 0.97 ** (i[:, None] - i[None]).clamp(min=0).float(), 0.0)
    s = (q @ k.transpose(-1, -2)) * decay
    return (s / s.detach().abs().sum(-1, keepdim=True).clamp(min=1)) @ v


@form(square=True)
def causal_linear(q, k, v):
    q, k = F.elu(q) + 1, F.elu(k) + 1
    z = 1 / (torch.einsum("nhld,nhld->nhl", q, k.cumsum(2)) + 1e-6)
    kv = torch.einsum("nhld,nhlm->nhldm", k, v).cumsum(dim=2)
    return torch.einsum("nhld,nhldm->nhlm", q, kv) * z[..., None]


@form(heads_last, square=True)
def causal_linear_by_products(q, k, v):
    """Heads last, no einsum, features that are zero for half of the keys, one sum for numerator and denominator."""
    q, k = F.relu(q) + 1e-3, F.relu(k) + 1e-3
    v = torch.cat([v, torch.ones_like(v[..., :1])], -1)
    kv = torch.cumsum(k.unsqueeze(-1) @ v.unsqueeze(-2), 1)
    out = (q.unsqueeze(-2) @ kv).squeeze(-2)
    return out[..., :-1] / out[..., -1:]


@form(square=True)
def causal_flow(q, k, v):
    """Flow-Attention (arXiv 2202.06258) with every sum a prefix sum."""
    q, k = q.sigmoid(), k.sigmoid()
    n = torch.arange(1, q.shape[2] + 1, dtype=q.dtype)
    incoming = n / torch.einsum("nhld,nhld->nhl", q + 1e-6, k.cumsum(dim=2) + 1e-6)
    outgoing = n / ((k + 1e-6) * (q.cumsum(dim=2) + 1e-6)).sum(-1)
    sink = torch.einsum("nhld,nhld->nhl", q + 1e-6, (k * outgoing[..., None]).cumsum(dim=2) + 1e-6) / n
    source = torch.einsum("nhld,nhld->nhl", k + 1e-6, (q * incoming[..., None]).cumsum(dim=2) + 1e-6) / n
    e = torch.exp(source.clamp(-1.0, 1.0))
    competition = e / e.cumsum(dim=-1) * n
    kv = torch.einsum("nhld,nhlm->nhldm", k, v * competition[..., None]).cumsum(dim=2)
    return torch.einsum("nhld,nhldm->nhlm", q * (incoming / n)[..., None], kv) * sink.sigmoid()[..., None]


@form()
def with_entropy(q, k, v):
    p = torch.softmax(scores(q, k), dim=-1)
    return p @ v, -(p * torch.log(p + 1e-9)).sum(-1).mean(dim=(0, 2))


@form()
def with_logsumexp(q, k, v):
    s = scores(q, k)
    return torch.softmax(s, dim=-1) @ v, torch.logsumexp(s, dim=-1)


@form()
def scores_used_twice(q, k, v):
    s = scores(q, k)
    return torch.softmax(s, dim=-1) @ v + torch.softmax(-s, dim=-1) @ v.cos()


# ---- near misses: fused with their own meaning, or not at all ---------------------------------------------------------

@form(square=True)
def normalised_over_the_sequence(q, k, v):
    """Nearly causal_linear: the features of the keys look ahead, so that only the outer products are summed in one walk."""
    q, k = F.elu(q) + 1, torch.softmax(k, dim=2)
    kv = torch.einsum("nhld,nhlm->nhldm", k, v).cumsum(dim=2)
    return torch.einsum("nhld,nhldm->nhlm", q, kv)


@form(square=True)
def summed_over_heads(q, k, v):
    """Nearly causal_linear: the prefix sum runs over the heads."""
    kv = torch.einsum("nhld,nhlm->nhldm", F.elu(k) + 1, v).cumsum(dim=1)
    return torch.einsum("nhld,nhldm->nhlm", F.elu(q) + 1, kv)


@form(regions=0, misses=("NOT_A_REDUCTION",), square=True)
def softmax_over_queries(q, k, v):
    return torch.softmax(scores(q, k), dim=-2) @ v


@form()
def fill_of_minus_three(q, k, v):
    return torch.softmax(scores(q, k).masked_fill(~allowed(q.shape[2], k.shape[2]), -3.0), dim=-1) @ v


@form(square=True)
def mask_on_the_other_side(q, k, v):
    return torch.softmax(scores(q, k).masked_fill(allowed(q.shape[2], k.shape[2]).T, LOWEST), dim=-1) @ v


@form(regions=0, misses=("NOT_A_REDUCTION",))
def less_the_maximum_of_others(q, k, v):
    """Shifting scores by another row's maximum is no shift of its own softmax."""
    s = scores(q, k)
    return torch.softmax(s - s.amax(dim=-2, keepdim=True), dim=-1) @ v


@form()
def masked_after_softmax(q, k, v):
    return (torch.softmax(scores(q, k), dim=-1) * allowed(q.shape[2], k.shape[2])) @ v


@form()
def scaled_after_softmax(q, k, v):
    return (torch.softmax(q @ k.transpose(-2, -1), dim=-1) * D ** -0.5) @ v


@form()
def divided_by_the_sum_of_others(q, k, v):
    e = torch.exp(scores(q, k))
    return (e / (e.sum(-1, keepdim=True) - e)) @ v


@form(lambda n, m: [leaf(B, D, n, D), leaf(B, m, D, D), leaf(B, D, m, D)])
def keys_permuted(q, k, v):
    """Heads and features of the keys change places."""
    return torch.softmax(q @ k.permute(0, 3, 2, 1), dim=-1) @ v


@form(regions=0, misses=("NOT_A_REDUCTION",), square=True)
def values_contracted_over_queries(q, k, v):
    return torch.einsum("bhij,bhid->bhjd", torch.softmax(scores(q, k), dim=-1), v)


@form(regions=0, misses=("ESCAPES",))
def weights_returned(q, k, v):
    p = torch.softmax(scores(q, k), dim=-1)
    return p @ v, p


@form(regions=0, misses=("RANDOM",))
def dropped_weights(q, k, v):
    return F.dropout(torch.softmax(scores(q, k), dim=-1), 0.1) @ v
