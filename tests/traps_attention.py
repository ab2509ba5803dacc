"""Forms that nearly are attention and are not: each must keep its own meaning, fused or refused.

`TRAPS[name]` is a `Form` as in forms_attention. Where a slip shows only in a gradient the docstring says so.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.forms_attention import LOWEST, B, D, Form, H, allowed, beside, form, leaf, scores

TRAPS: dict[str, Form] = {}


# ---- another axis ----------------------------------------------------------------------------------------------------

@form(into=TRAPS, regions=0, misses=("NOT_A_REDUCTION",))
def softmax_over_heads(q, k, v):
    return torch.softmax(scores(q, k), dim=1) @ v


@form(into=TRAPS)
def softmax_over_all_pairs(q, k, v):
    """One distribution over queries and keys together."""
    s = scores(q, k)
    return s.flatten(-2).softmax(-1).view_as(s) @ v


@form(into=TRAPS, regions=0, misses=("NOT_A_REDUCTION",))
def divided_by_the_sum_over_queries(q, k, v):
    e = torch.exp(scores(q, k))
    return (e / e.sum(-2, keepdim=True)) @ v


@form(into=TRAPS)
def keys_reshaped_instead_of_transposed(q, k, v):
    return torch.softmax(q @ k.reshape(B, H, D, -1) * D ** -0.5, dim=-1) @ v


# ---- another mask ----------------------------------------------------------------------------------------------------

@form(beside(lambda n, m: torch.where(allowed(n, m), 0.0, -1.5)), into=TRAPS)
def mask_added_twice(q, k, v, mask):
    return torch.softmax(scores(q, k) + mask + mask, dim=-1) @ v


@form(beside(lambda n, m: torch.where(allowed(n, m), 0.0, -1.5)), into=TRAPS)
def mask_subtracted(q, k, v, mask):
    return torch.softmax(scores(q, k) - mask, dim=-1) @ v


@form(into=TRAPS)
def mask_multiplied(q, k, v):
    """A hidden score becomes 0, which is no small weight."""
    return torch.softmax(scores(q, k) * allowed(q.shape[2], k.shape[2]), dim=-1) @ v


@form(into=TRAPS)
def mask_shifted_by_one(q, k, v):
    """The key at the query's own position is hidden too; the first query sees none."""
    keep = torch.arange(k.shape[2])[None] < torch.arange(q.shape[2])[:, None]
    return torch.softmax(scores(q, k).masked_fill(~keep, LOWEST), dim=-1) @ v


@form(into=TRAPS)
def masked_before_scaling(q, k, v):
    """The fill is scaled with the scores, to a third of it."""
    s = (q @ k.transpose(-2, -1)).masked_fill(~allowed(q.shape[2], k.shape[2]), -3.0)
    return torch.softmax(s / 3, dim=-1) @ v


# ---- another normaliser ----------------------------------------------------------------------------------------------

@form(into=TRAPS)
def normaliser_of_unmasked_scores(q, k, v):
    s = scores(q, k)
    e = torch.exp(s.masked_fill(~allowed(q.shape[2], k.shape[2]), float("-inf")))
    return (e / torch.exp(s).sum(-1, keepdim=True)) @ v


@form(into=TRAPS)
def normaliser_without_the_shift(q, k, v):
    s = scores(q, k)
    return (torch.exp(s - s.amax(-1, keepdim=True)) / torch.exp(s).sum(-1, keepdim=True)) @ v


@form(into=TRAPS)
def shifted_but_for_a_constant_one(q, k, v):
    """exp(s - max) / (1 + sum): the one is not shifted, so that the maximum counts."""
    s = scores(q, k)
    e = torch.exp(s - s.amax(-1, keepdim=True))
    return (e / (1 + e.sum(-1, keepdim=True))) @ v


@form(into=TRAPS)
def normaliser_detached(q, k, v):
    """Attention in the forward, another gradient."""
    s = scores(q, k)
    e = torch.exp(s - s.amax(-1, keepdim=True).detach())
    return (e / e.sum(-1, keepdim=True).detach()) @ v


@form(into=TRAPS)
def maximum_detached_on_one_side(q, k, v):
    """Attention in the forward; the gradient goes through the maximum of the denominator alone."""
    s = scores(q, k)
    top = s.amax(-1, keepdim=True)
    return (torch.exp(s - top.detach()) / torch.exp(s - top).sum(-1, keepdim=True)) @ v


@form(into=TRAPS)
def normalised_twice(q, k, v):
    p = torch.softmax(scores(q, k), dim=-1)
    return torch.softmax(p, dim=-1) @ v


@form(into=TRAPS)
def logarithm_of_the_weights(q, k, v):
    return F.log_softmax(scores(q, k), dim=-1) @ v


# ---- other operands --------------------------------------------------------------------------------------------------

@form(into=TRAPS)
def values_of_the_next_position(q, k, v):
    return torch.softmax(scores(q, k), dim=-1) @ v.roll(1, 2)


@form(into=TRAPS)
def keys_backwards(q, k, v):
    return torch.softmax(scores(q, k.flip(2)), dim=-1) @ v


@form(into=TRAPS)
def weights_detached(q, k, v):
    """Attention in the forward; only the values are trained."""
    return torch.softmax(scores(q, k), dim=-1).detach() @ v


@form(beside(lambda n, m: leaf(B, H, n, D)), into=TRAPS, regions=2)
def weights_of_other_queries(q, k, v, other):
    """The numerator is of one query, the statistics are another's."""
    s, t = scores(q, k), scores(other, k)
    return torch.exp(s - t.logsumexp(-1, keepdim=True)) @ v
