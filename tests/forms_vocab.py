"""Losses over a large vocabulary, as users write them, and near misses.

`FORMS[name]` is a `Form`: a function of hidden states h [B, T, D], weight W [V, D], labels y [B, T] and extras by name,
the expected Miss codes (none: it is one fused region per entry of `regions`), and what is special about running it:
`raises` is what eager says where the form cannot be differentiated at all.
"""
from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

B, T, D, V = 3, 11, 6, 173
N = B * T
bf16 = torch.bfloat16


@dataclass(frozen=True)
class Form:
    name: str
    function: Callable[..., Any]
    dtype: torch.dtype = torch.float32
    regions: int = 1
    misses: tuple[str, ...] = ()
    autocast: bool = False
    dynamic: bool = True
    raises: str = ""


FORMS: dict[str, Form] = {}


def form(**settings: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        FORMS[function.__name__] = Form(function.__name__, function, **settings)
        return function
    return register


def arguments(form: Form, seed: int = 0, shape: tuple[int, int, int, int] = (B, T, D, V)) -> list[Any]:
    """Fresh arguments. A tenth of the labels is -100 where the form's source mentions it."""
    torch.manual_seed(seed)
    b, t, d, v = shape
    leaf = lambda *s: torch.randn(*s).to(form.dtype).requires_grad_()  # noqa: E731
    y = torch.randint(0, v, (b, t))
    source = inspect.getsource(form.function)
    if "-100" in source or "ignored" in source:
        y[:, ::5] = -100
    make = {
        "h": lambda: leaf(b, t, d), "W": lambda: leaf(v, d), "y": lambda: y, "bias": lambda: leaf(v), "Wt": lambda: leaf(d, v),
        "mask": lambda: (torch.rand(b, t) > 0.3).float(), "keep": lambda: torch.rand(b, t) > 0.3,
        "weights": lambda: torch.rand(v), "old": lambda: torch.randn(b, t - 1), "advantage": lambda: torch.randn(b),
        "frequency": lambda: torch.randn(b * t),
        "reference": lambda: torch.randn(2 * (b // 2)), "teacher": lambda: leaf(b, t, d), "V2": lambda: leaf(v, d),
        "q": lambda: torch.softmax(torch.randn(b * t, v), -1), "E": lambda: torch.randn(v, 4), "A": lambda: leaf(2, d),
        "Bm": lambda: leaf(v, 2), "prior": lambda: torch.randn(v), "scale": lambda: torch.tensor(1.7).requires_grad_(),
        "count": lambda: torch.tensor(float(b * t)), "rows": lambda: torch.randint(0, b * t, (19,)),
        "multi": lambda: (torch.rand(b, t, v) > 0.95).float(),         "W1": lambda: leaf(40, d), "W2": lambda: leaf(d, 40),
        "labels_t": lambda: torch.randint(0, t, (b, 17)), "queries": lambda: leaf(b, 40, d),
        "keys": lambda: leaf(b, 40, d), "M": lambda: torch.randn(v, v),
        "P": lambda: torch.nn.Parameter(torch.randn(d, d)),
    }
    return [make[p]() for p in inspect.signature(form.function).parameters]


def shifted(y: torch.Tensor) -> torch.Tensor:
    return F.pad(y, (0, 1), value=-100)[..., 1:].contiguous()


# ---- cross entropy in its many spellings ---------------------------------------------------------------------------

@form()
def nanogpt(h, W, y):
    logits = F.linear(h, W)
    return F.cross_entropy(logits.view(-1, logits.size(-1)), y.view(-1), ignore_index=-1)


@form(dtype=bf16)
def hf_padded_labels(h, W, y):
    logits = F.linear(h, W).float()
    return F.cross_entropy(logits.view(-1, W.shape[0]), shifted(y).view(-1), ignore_index=-100)


@form(dtype=bf16)
def hf_items_in_batch(h, W, y, count):
    logits = F.linear(h, W).float()
    return F.cross_entropy(logits.view(-1, W.shape[0]), shifted(y).view(-1), reduction="sum") / count


@form(dtype=bf16)
def old_shift(h, W, y):
    logits = F.linear(h, W).float()
    logits, y = logits[..., :-1, :].contiguous(), y[..., 1:].contiguous()
    return F.cross_entropy(logits.view(-1, W.shape[0]), y.view(-1))


@form(dtype=bf16)
def gemma_softcap(h, W, y):
    logits = F.linear(h, W) / 30.0
    logits = (torch.tanh(logits) * 30.0).float()
    return F.cross_entropy(logits.view(-1, W.shape[0]), shifted(y).view(-1), ignore_index=-100)


@form()
def sigmoid_softcap(h, W, y):
    logits = 30 * torch.sigmoid(F.linear(h, W).float() / 7.5)
    return F.cross_entropy(logits.view(-1, W.shape[0]), y.view(-1))


@form()
def divided_logits(h, W, y):
    return F.cross_entropy((F.linear(h, W) / 8.0).flatten(0, 1), y.flatten())


@form()
def learned_scale(h, W, y, scale):
    return F.cross_entropy((F.linear(h, W) * scale.exp()).reshape(-1, W.shape[0]), y.reshape(-1))


class Config:
    cap = 25.0


@form()
def scale_of_a_config(h, W, y):
    logits = torch.tanh(F.linear(h, W) / Config.cap) * (2 * Config.cap) * h.shape[-1] ** -0.5
    return F.cross_entropy(logits.view(-1, W.shape[0]), y.view(-1))


@form()
def masked_lm_bias(h, W, y, bias):
    return F.cross_entropy(F.linear(h, W, bias).view(-1, W.shape[0]), y.view(-1))


@form()
def added_bias(h, W, y, bias):
    return F.cross_entropy((h @ W.t() + bias).view(-1, W.shape[0]), y.view(-1))


@form()
def tied_rescaled(h, W, y):
    return F.cross_entropy(F.linear(h * D ** -0.5, W).view(-1, W.shape[0]), y.view(-1), ignore_index=-100)


@form()
def label_smoother(h, W, y):
    logits, y = F.linear(h, W)[..., :-1, :].contiguous(), y[..., 1:].contiguous()
    nlp = -F.log_softmax(logits, dim=-1)
    y = y.unsqueeze(-1)
    padding = y.eq(-100)
    nll = nlp.gather(dim=-1, index=torch.clamp(y, min=0))
    smooth = nlp.sum(dim=-1, keepdim=True, dtype=torch.float32)
    nll.masked_fill_(padding, 0.0)
    smooth.masked_fill_(padding, 0.0)
    active = padding.numel() - padding.long().sum()
    return 0.9 * nll.sum() / active + 0.1 * smooth.sum() / (active * nlp.shape[-1])


@form()
def fairseq_smoothing(h, W, y):
    lprobs = F.log_softmax(F.linear(h, W), dim=-1)
    y = y.unsqueeze(-1)
    nll, smooth = -lprobs.gather(dim=-1, index=y), -lprobs.sum(dim=-1, keepdim=True)
    pad = y.eq(1)
    nll, smooth = nll.masked_fill(pad, 0.0).sum(), smooth.masked_fill(pad, 0.0).sum()
    i = 0.1 / (lprobs.size(-1) - 1)
    return (1.0 - 0.1 - i) * nll + i * smooth


@form()
def smoothed(h, W, y):
    return F.cross_entropy(F.linear(h, W).view(-1, W.shape[0]), y.view(-1), label_smoothing=0.1, ignore_index=-100)


@form()
def smoothed_weighted(h, W, y, weights):
    return F.cross_entropy(F.linear(h, W).view(-1, W.shape[0]), y.view(-1), weights, label_smoothing=0.2, ignore_index=-100)


@form()
def class_weights(h, W, y, weights):
    return F.cross_entropy(F.linear(h, W).view(-1, W.shape[0]), y.view(-1), weight=weights, ignore_index=-100)


@form()
def class_weights_none(h, W, y, weights, mask):
    each = F.cross_entropy(F.linear(h, W).view(-1, W.shape[0]), y.view(-1), weight=weights, reduction="none")
    return (each * mask.view(-1)).mean()


@form()
def classes_second(h, W, y):
    return F.cross_entropy(F.linear(h, W).transpose(1, 2), y, ignore_index=-100)


@form()
def classes_second_smoothed(h, W, y):
    return F.cross_entropy(F.linear(h, W).permute(0, 2, 1), y, label_smoothing=0.1, reduction="none").mean()


@form(dtype=bf16)
def z_loss(h, W, y):
    logits = F.linear(h, W).view(-1, W.shape[0]).float()
    y = y.view(-1)
    counted = y != -100
    z = logits.logsumexp(-1).pow(2)
    return F.cross_entropy(logits, y, ignore_index=-100) + 1e-4 * (z * counted).sum() / counted.sum()


@form(dtype=bf16)
def z_loss_before_upcast(h, W, y):
    logits = F.linear(h, W)
    loss = F.cross_entropy(logits.float().view(-1, W.shape[0]), shifted(y).view(-1))
    return loss + 1e-4 * logits.logsumexp(dim=-1).to(h.dtype).pow(2).mean()


@form()
def masked_mean(h, W, y, mask):
    each = F.cross_entropy(F.linear(h, W).view(-1, W.shape[0]), y.view(-1), reduction="none")
    return (each * mask.view(-1)).sum() / mask.sum()


@form()
def soft_targets(h, W, q):
    return F.cross_entropy(F.linear(h, W).view(-1, W.shape[0]), q)


@form()
def soft_targets_smoothed(h, W, q, weights):
    return F.cross_entropy(F.linear(h, W).view(-1, W.shape[0]), q, weights, label_smoothing=0.1, reduction="sum")


@form()
def all_ignored(h, W, y):
    y = torch.full_like(y, -100)
    return F.cross_entropy(F.linear(h, W).view(-1, W.shape[0]), y.view(-1), ignore_index=-100)


@form()
def largest_logit_is_penalised(h, W, y):
    """The gradient of a maximum needs its position, of the first sweep, beside the softmax of the second."""
    logits = F.linear(h, W).view(-1, W.shape[0])
    return F.cross_entropy(logits, y.view(-1), ignore_index=-100) + 0.1 * logits.amax(-1).mean()


@form()
def nll_of_log_softmax(h, W, y):
    return F.nll_loss(F.log_softmax(F.linear(h, W).view(-1, W.shape[0]), dim=1), y.view(-1), ignore_index=-100)


@form()
def nll_of_log_softmax_plus_eps(h, W, y):
    p = torch.softmax(F.linear(h, W).view(-1, W.shape[0]), -1)
    return F.nll_loss(torch.log(p + 1e-9), y.view(-1))


@form()
def one_hot_times(h, W, y):
    lp = F.log_softmax(F.linear(h, W).view(-1, W.shape[0]), -1)
    return -(F.one_hot(y.view(-1), W.shape[0]) * lp).sum(-1).mean()


@form(dynamic=False)
def indexed_log_softmax(h, W, y):
    lp = F.log_softmax(F.linear(h, W).view(-1, W.shape[0]), -1)
    return -lp[torch.arange(lp.shape[0]), y.view(-1)].mean()


@form()
def indexed_two_ranges(h, W, y):
    lp = F.linear(h, W).log_softmax(-1)
    return -lp[torch.arange(y.shape[0])[:, None], torch.arange(y.shape[1])[None], y].sum()


@form()
def sasrec(h, W, y):
    return F.cross_entropy(torch.matmul(h.reshape(-1, h.shape[-1]), W.transpose(0, 1)), y.view(-1))


@form()
def transposed_weight(h, Wt, y):
    return F.cross_entropy((h @ Wt).view(-1, Wt.shape[1]), y.view(-1))


@form()
def einsum_head(h, W, y):
    return F.cross_entropy(torch.einsum("btd,vd->btv", h, W).reshape(-1, W.shape[0]), y.reshape(-1))


@form()
def addmm_head(h, W, y, bias):
    return F.cross_entropy(torch.addmm(bias, h.view(-1, h.shape[-1]), W.t(), alpha=0.5), y.view(-1))


@form()
def padded_vocabulary(h, W, y):
    logits = F.linear(h, W)
    logits = logits.masked_fill(torch.arange(W.shape[0]) >= W.shape[0] - 9, float("-inf"))
    return F.cross_entropy(logits.view(-1, W.shape[0]), y.clamp(max=W.shape[0] - 20).view(-1))


@form()
def padded_vocabulary_assigned(h, W, y):
    logits = F.linear(h, W)
    logits[:, :, W.shape[0] - 9:] = float("-inf")
    return F.cross_entropy(logits.view(-1, W.shape[0]), y.clamp(max=W.shape[0] - 20).view(-1))


@form()
def cut_vocabulary(h, W, y):
    return F.cross_entropy(F.linear(h, W)[..., :150].reshape(-1, 150), y.clamp(max=149).view(-1))


@form(autocast=True)
def autocast_head(h, W, y):
    logits = F.linear(h, W)
    return F.cross_entropy(logits.view(-1, W.shape[0]), y.view(-1))


@form()
def autocast_inside(h, W, y, bias):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = F.linear(h, W, bias)
        return F.cross_entropy(logits.view(-1, W.shape[0]), y.view(-1))


@form()
def cast_weight(h, W, y):
    logits = F.linear(h.bfloat16(), W.to(torch.bfloat16))
    return F.cross_entropy(logits.view(-1, W.shape[0]).float(), y.view(-1))


@form()
def index_rows_after_head(h, W, y, rows):
    logits = F.linear(h, W).view(-1, W.shape[0])
    return F.cross_entropy(logits.index_select(0, rows), y.view(-1)[rows])


@form()
def fancy_rows_after_head(h, W, y, rows):
    return F.cross_entropy(F.linear(h, W).view(-1, W.shape[0])[rows], y.view(-1)[rows])


@form()
def select_before_head(h, W, y, rows):
    return F.cross_entropy(F.linear(h.view(-1, h.shape[-1])[rows], W), y.view(-1)[rows])


@form()
def scattered_smoothing(h, W, y):
    lp = F.log_softmax(F.linear(h, W).view(-1, W.shape[0]), -1)
    target = torch.full_like(lp, 0.1 / (W.shape[0] - 1))
    target.scatter_(1, y.view(-1, 1), 0.9)
    return F.kl_div(lp, target, reduction="none").sum(-1).mean()


# ---- several statistics of one distribution ----------------------------------------------------------------------------

@form()
def with_accuracy(h, W, y):
    logits, y = F.linear(h, W).view(-1, W.shape[0]), y.view(-1)
    with torch.no_grad():
        accuracy = (logits.argmax(-1) == y).float().mean()
    return F.cross_entropy(logits, y), accuracy


@form()
def everything_at_once(h, W, y, keep):
    logits = F.linear(h, W)
    lp = logits.log_softmax(-1)
    entropy = -(lp.exp() * lp).sum(-1)
    z = torch.logsumexp(logits, -1)
    ce = F.cross_entropy(logits.view(-1, W.shape[0]), y.view(-1), reduction="none").view_as(y)
    right = logits.argmax(-1) == y
    return ((ce + 1e-3 * z ** 2 - 0.01 * entropy) * keep).sum() / keep.sum(), right.float().mean()


@form()
def dpo(h, W, y, keep, reference):
    logits = F.linear(h, W)[:, :-1]
    target, keep = y[:, 1:].clone(), keep[:, 1:]
    target = torch.where(keep, target, 0)
    lp = torch.gather(logits.log_softmax(-1), dim=2, index=target.unsqueeze(2)).squeeze(2)
    lp = (lp * keep).sum(-1)[: reference.shape[0]]
    chosen, rejected = lp.chunk(2)
    ref_chosen, ref_rejected = reference.chunk(2)
    return -F.logsigmoid(0.1 * (chosen - rejected - (ref_chosen - ref_rejected))).mean()


@form()
def grpo(h, W, y, keep, old, advantage):
    logits = F.linear(h, W)[:, :-1].float()
    logits.div_(0.9)
    target, keep = y[:, 1:], keep[:, 1:]
    lp = torch.gather(logits, -1, target.unsqueeze(-1)).squeeze(-1) - torch.logsumexp(logits, -1)
    p = logits.softmax(-1)
    entropy = torch.logsumexp(logits, -1) - (p * logits).sum(-1)
    ratio = torch.exp(lp - old)
    loss = -torch.min(ratio * advantage[:, None], ratio.clamp(0.8, 1.2) * advantage[:, None]) - 0.01 * entropy
    return (loss * keep).sum() / keep.sum()


@form(dynamic=False, misses=("TARGET_LACKS",), regions=0)
def logsumexp_by_sample(h, W, y):
    logits = F.linear(h, W)
    chosen = torch.gather(logits, -1, y.unsqueeze(-1)).squeeze(-1)
    return (chosen - torch.stack([torch.logsumexp(row, -1) for row in logits])).mean()


@form()
def dynamic_finetuning(h, W, y):
    logits = F.linear(h, W)
    lp = torch.gather(logits, -1, y.unsqueeze(-1)).squeeze(-1) - torch.logsumexp(logits, dim=-1)
    return -(lp.exp().detach() * lp).mean()


@form()
def weighted_by_confidence(h, W, y):
    lp = F.linear(h, W).log_softmax(-1)
    with torch.no_grad():
        w = torch.logsumexp(2 * lp, dim=-1)
    return -(torch.gather(lp, 2, y[..., None]).squeeze(2) * w).mean()


@form()
def focal(h, W, y):
    ce = F.cross_entropy(F.linear(h, W).view(-1, W.shape[0]), y.view(-1), reduction="none")
    return ((1 - torch.exp(-ce)) ** 2 * ce).mean()


@form()
def generalised(h, W, y):
    p = F.softmax(F.linear(h, W).view(-1, W.shape[0]), dim=1)
    chosen = torch.gather(p, 1, y.view(-1, 1)).squeeze(1)
    return ((1 - chosen ** 0.7) / 0.7).mean()


@form()
def symmetric(h, W, y):
    p = F.softmax(F.linear(h, W).view(-1, W.shape[0]), dim=1).clamp(min=1e-7, max=1.0)
    hot = torch.clamp(F.one_hot(y.view(-1), W.shape[0]).float(), min=1e-4, max=1.0)
    return (-1 * torch.sum(p * torch.log(hot), dim=1)).mean()


@form()
def normalised_ce(h, W, y):
    lp = F.log_softmax(F.linear(h, W).view(-1, W.shape[0]), dim=1)
    hot = F.one_hot(y.view(-1), W.shape[0]).float()
    return (-torch.sum(hot * lp, dim=1) / (-lp.sum(dim=1))).mean()


@form()
def tsallis(h, W, y):
    p = torch.softmax(F.linear(h, W), -1)
    return (1 - (p ** 1.5).sum(-1)).mean() + (1 - p.pow(2).sum(-1)).mean()


@form()
def poly(h, W, y):
    logits = F.linear(h, W).view(-1, W.shape[0])
    ce = F.cross_entropy(logits, y.view(-1), reduction="none")
    pt = torch.sum(F.one_hot(y.view(-1), W.shape[0]) * F.softmax(logits, dim=-1), dim=-1)
    return (ce + 1.5 * (1 - pt)).mean()


@form()
def confidence(h, W, y):
    p = F.linear(h, W).softmax(-1)
    best, label = p.max(dim=-1)
    return best.mean(), (label == y).float().mean()


@form()
def stable_by_hand(h, W, y):
    x = F.linear(h, W)
    e = torch.exp(x - x.amax(-1, keepdim=True))
    p = e / e.sum(-1, keepdim=True)
    return -torch.log(p.gather(-1, y.unsqueeze(-1))).mean()


@form()
def logsumexp_by_hand(h, W, y):
    x = F.linear(h, W).view(-1, W.shape[0])
    m = x.detach().max(dim=-1, keepdim=True).values
    lse = torch.log(torch.exp(x - m).sum(-1)) + m.squeeze(-1)
    return (lse - x[torch.arange(x.shape[0]), y.view(-1)]).mean()


@form()
def hinge(h, W, y):
    x = F.linear(h, W).view(-1, W.shape[0])
    margin = F.relu(1 + x - x.gather(1, y.view(-1, 1)))
    return margin.sum(-1).mean()


@form()
def cosface(h, W, y):
    cosine = F.linear(F.normalize(h, dim=-1), F.normalize(W, dim=-1)).view(-1, W.shape[0])
    return F.cross_entropy(30.0 * (cosine - 0.35 * F.one_hot(y.view(-1), W.shape[0])), y.view(-1))


@form()
def logit_adjustment(h, W, y, prior):
    return F.cross_entropy((F.linear(h, W) - prior.log_softmax(-1)[None, None]).view(-1, W.shape[0]), y.view(-1))


@form()
def multilabel(h, W, multi):
    return F.binary_cross_entropy_with_logits(F.linear(h, W), multi)


@form()
def last_token(h, W, y):
    return F.cross_entropy(F.linear(h, W)[:, -1, :], y[:, -1])


@form()
def squared_logits(h, W, y):
    x = F.linear(h, W).view(-1, W.shape[0])
    return F.cross_entropy(x, y.view(-1)) + 1e-4 * x.pow(2).mean()


@form()
def in_place_scaled(h, W, y):
    x = F.linear(h, W).view(-1, W.shape[0])
    x *= 0.5
    x.sub_(1.0).clamp_(-20, 20)
    return F.cross_entropy(x, y.view(-1))


@form()
def in_place_through_view(h, W, y):
    x = F.linear(h, W)
    x.view(-1, W.shape[0]).div_(2.0)
    return F.cross_entropy(x.flatten(0, 1), y.flatten())


@form()
def top_candidates(h, W, y, labels_t):
    lp = F.linear(h, W).transpose(1, 2).log_softmax(1)
    return lp.mean(1).gather(1, labels_t).mean()


@form()
def nt_xent(h):
    z = F.normalize(h.reshape(-1, h.shape[-1]), dim=-1)
    s = z @ z.T / 0.5
    n = z.shape[0]
    s = s.masked_fill(torch.eye(n, dtype=torch.bool), float("-inf"))
    return F.cross_entropy(s, (torch.arange(n) + n // 2) % n)


@form()
def nt_xent_filled_diagonal(h):
    z = F.normalize(h.reshape(-1, h.shape[-1]), dim=-1)
    n = z.shape[0]
    return F.cross_entropy((z @ z.T / 0.5).fill_diagonal_(-1e9), (torch.arange(n) + n // 2) % n)


@form()
def nt_xent_indexed_diagonal(h):
    z = F.normalize(h.reshape(-1, h.shape[-1]), dim=-1)
    s, i = z @ z.T / 0.5, torch.arange(z.shape[0])
    s[i, i] = float("-inf")
    return F.cross_entropy(s, (i + len(i) // 2) % len(i))


@form(regions=2)
def clip_two_matrices(h, teacher, scale):
    a, b = (F.normalize(t.reshape(-1, t.shape[-1]), dim=-1) for t in (h, teacher))
    s = scale.exp()
    label = torch.arange(a.shape[0])
    return (F.cross_entropy(s * a @ b.T, label) + F.cross_entropy(s * b @ a.T, label)) / 2


@form()
def clip_one_matrix(h, teacher, scale):
    a, b = (F.normalize(t.reshape(-1, t.shape[-1]), dim=-1) for t in (h, teacher))
    s = scale.exp() * a @ b.T
    label = torch.arange(a.shape[0])
    return (F.cross_entropy(s, label) + F.cross_entropy(s.T, label)) / 2


@form()
def likeliest_both_ways(h, W, y):
    """Statistics of rows and of columns, of which one is read by a sum over both."""
    s = F.linear(h, W).view(-1, W.shape[0])
    return F.cross_entropy(s, y.view(-1)) + (s.softmax(0) * s.softmax(1)).sum() + s.logsumexp(0).mean()


@form()
def distillation(h, W, y, teacher, V2):
    s, t = F.linear(h, W).view(-1, W.shape[0]), F.linear(teacher, V2).view(-1, W.shape[0])
    kd = F.kl_div(F.log_softmax(s / 2.0, -1), F.softmax(t / 2.0, -1), reduction="batchmean") * 4.0
    return 0.5 * kd + 0.5 * F.cross_entropy(s, y.view(-1))


@form(regions=0, misses=("TARGET_LACKS",))
def jensen_shannon(h, W, teacher, V2):
    s, t = F.linear(h, W).log_softmax(-1), F.linear(teacher, V2).log_softmax(-1)
    m = torch.logsumexp(torch.stack([s + torch.log(torch.tensor(0.5)), t + torch.log(torch.tensor(0.5))]), dim=0)
    kl = lambda a: F.kl_div(m, a, reduction="none", log_target=True)  # noqa: E731
    return (0.5 * kl(t) + 0.5 * kl(s)).sum(-1).mean()


@form()
def lora_head(h, W, y, A, Bm):
    x = F.linear(h, W) + F.linear(F.linear(h, A), Bm) * 2.0
    return F.cross_entropy(x.view(-1, W.shape[0]), y.view(-1))


@form()
def expected_embedding(h, W, y, E):
    p = F.linear(h, W).softmax(-1)
    return F.mse_loss(p @ E, E[y])


# ---- near misses -----------------------------------------------------------------------------------------------------

@form()
def logits_returned(h, W, y):
    logits = F.linear(h, W)
    return F.cross_entropy(logits.view(-1, W.shape[0]), y.view(-1)), logits


@form(regions=0, misses=("ESCAPES",))
def probabilities_returned(h, W, y):
    p = F.linear(h, W).softmax(-1)
    return F.nll_loss(p.log().view(-1, W.shape[0]), y.view(-1)), p


@form(regions=0, misses=("NOT_A_REDUCTION",))
def softmax_over_rows(h, W, y):
    p = torch.softmax(F.linear(h, W), dim=1)
    return p.pow(2).sum(-1).mean()


@form(regions=0, misses=("OTHER_USER",))
def top_k_sampling(h, W, y):
    logits = F.linear(h, W)
    return logits.topk(5, dim=-1).values.mean() + F.cross_entropy(logits.view(-1, W.shape[0]), y.view(-1))


@form(regions=0, misses=("OTHER_USER",))
def nucleus(h, W, y):
    ordered, _ = torch.sort(F.linear(h, W), descending=True)
    return (ordered.softmax(-1).cumsum(-1) < 0.9).sum(-1).float().mean()


@form(regions=0, misses=("RANDOM",))
def dropped_logits(h, W, y):
    return F.cross_entropy(F.dropout(F.linear(h, W), 0.1).view(-1, W.shape[0]), y.view(-1))


@form(regions=0, misses=("EXITS_TOO_BIG",))
def contracted_with_as_large(h, W, M):
    return F.linear(h, W).softmax(-1) @ M


@form()
def hidden_layer(h, W1, W2):
    return F.linear(F.silu(F.linear(h, W1)), W2)


@form()
def attention(queries, keys):
    s = queries @ keys.transpose(1, 2)
    return torch.softmax(s, -1) @ keys


@form(regions=0)    # P is a parameter: stored whatever happens, so that nothing amplifies
def plain_projection(h, P):
    return F.linear(h, P).sum()


@form(regions=0, misses=("MUTATION",), raises="modified by an inplace operation")
def changed_weight(h, W, y):
    logits = F.linear(h, W)
    with torch.no_grad():
        W.mul_(0.5)
    return F.cross_entropy(logits.view(-1, W.shape[0]), y.view(-1))


@form(regions=0, misses=("FUNCTORCH",))
def mapped(h, W, y):
    return torch.func.vmap(lambda x, t: F.cross_entropy(F.linear(x, W), t))(h, y).mean()


# ---- preferences, retrieval, ranking ---------------------------------------------------------------------------------

@form()
def unlikelihood(h, W, y):
    """The label likely, the word before it unlikely."""
    lp = F.log_softmax(F.linear(h, W), -1)
    unwanted = lp.gather(-1, y.roll(1, -1).unsqueeze(-1)).squeeze(-1)
    return F.nll_loss(lp.flatten(0, 1), y.flatten()) - torch.log1p(-unwanted.exp().clamp(max=0.999)).mean()


@form()
def in_batch_softmax(h, teacher, frequency):
    """Rows of a batch are each other's candidates, corrected by how often they are drawn."""
    u, v = F.normalize(h.flatten(0, 1), dim=-1), F.normalize(teacher.flatten(0, 1), dim=-1)
    return F.cross_entropy(u @ v.T / 0.05 - frequency, torch.arange(u.shape[0]))


@form()
def masked_distillation(h, W, teacher, V2, keep):
    s, t = F.linear(h, W) / 2, F.linear(teacher, V2).detach() / 2
    kl = F.kl_div(s.log_softmax(-1), t.log_softmax(-1), log_target=True, reduction="none").sum(-1)
    return (kl * keep).sum() / keep.sum() * 4


@form(regions=2)
def two_heads(h, W, y, V2):
    now, then = F.linear(h, W).flatten(0, 1), F.linear(h, V2).flatten(0, 1)
    return F.cross_entropy(now, y.flatten()) + F.cross_entropy(then, y.roll(-1, 1).flatten())


@form(regions=0, misses=("OTHER_USER", "OTHER_USER"))
def plackett_luce(h, W, teacher, V2):
    """The teacher's order of all words, which takes a sort."""
    s, t = F.linear(h, W), F.linear(teacher, V2)
    s = s.gather(-1, t.argsort(-1, descending=True))
    return (s.flip(-1).logcumsumexp(-1).flip(-1) - s).sum(-1).mean()
