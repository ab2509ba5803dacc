"""What the tests of the gradient filter share: heads, distributions, and the bound that holds for every target.

A filtered gradient leaves out entries of dS that are below eps |g_i|, g_i being the cotangent of row i, so that
    |dX - exact|_id <= eps |g_i| sum_j |W_jd|        |dW - exact|_jd <= eps sum_i |g_i| |h_id|
"""
from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED = -100
SLACK = {torch.float32: 4e-6, torch.bfloat16: 2.0 ** -7}      # of the largest gradient: what rounding may add


def plain(h: Tensor, W: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(h, W).float(), y)


def softcapped(h: Tensor, W: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(torch.tanh(F.linear(h, W).float() / 8) * 8, y)


def smoothed(h: Tensor, W: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(h, W).float(), y, label_smoothing=0.1)


def weighted(h: Tensor, W: Tensor, y: Tensor) -> Tensor:
    """Rows that count very differently: each is judged beside its own cotangent."""
    each = F.cross_entropy(F.linear(h, W).float(), y, reduction="none")
    return (each * row_weights(len(y)).to(each.dtype)).sum()


def row_weights(n: int) -> Tensor:
    return 10.0 ** -(torch.arange(n) % 4)


FORMS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "plain": plain, "softcapped": softcapped, "smoothed": smoothed, "weighted": weighted}


def data(n: int, d: int, v: int, peaked: bool, dtype: torch.dtype = torch.float32, ignored: int = 0):
    """Random labels. Peaked: each row's probability lies on one word, not the label; else it is spread over all."""
    g = torch.Generator().manual_seed(n + v)
    W = torch.randn(v, d, generator=g)
    y = torch.randint(0, v, (n,), generator=g)
    h = W[torch.randint(0, v, (n,), generator=g)] if peaked else torch.randn(n, d, generator=g) * (0.5 / d ** 0.5)
    if ignored:
        y[::ignored] = IGNORED
    return h.to(dtype).requires_grad_(), W.to(dtype).requires_grad_(), y


def cotangents(form: str, y: Tensor) -> Tensor:
    """|g_i| in float64."""
    kept = (y != IGNORED).double()
    return kept * row_weights(len(y)).double() if form == "weighted" else kept / kept.sum()


def gradients(f, h: Tensor, W: Tensor, y: Tensor, scale: float = 1.0) -> list[Tensor]:
    wanted = [t for t in (h, W) if t.requires_grad]
    return list(torch.autograd.grad(f(h, W, y) * scale, wanted))


def filtered(f, eps: float | str, **options):
    torch._dynamo.reset()
    return torch.compile(f, backend="fuse", options={
        "min_virtual_bytes": 0, "strict": True, "gradient_filter": eps, **options})


def within_bound(form: str, eps: float, h: Tensor, W: Tensor, y: Tensor, **options) -> tuple[Tensor, Tensor]:
    """(dX, dW) of the filtered head, after checking both against float64."""
    dx, dw = gradients(filtered(FORMS[form], eps, **options), h, W, y)
    wide = [t.detach().double().requires_grad_() for t in (h, W)]
    exact = gradients(FORMS[form], *wide, y)
    g, slack = cotangents(form, y), SLACK[h.dtype]
    rows, words = (t.detach().abs() for t in wide)
    bounds = eps * g[:, None] * words.sum(0), (eps * (g[:, None] * rows).sum(0)).expand_as(dw)
    for found, want, bound in zip((dx, dw), exact, bounds, strict=True):
        assert found.isfinite().all()
        over = (found.double() - want).abs() - bound * (1 + 1e-3)
        assert over.max() <= slack * want.abs().max(), f"{form}: {over.max():.1e} beyond the bound"
    return dx, dw


def uniform(n: int, d: int, v: int, words: int):
    """Every word equally likely: h = 0. Labels among the first `words`."""
    h, W, y = data(n, d, v, peaked=False)
    return torch.zeros_like(h).requires_grad_(), W, y % words


def without_other_tiles(W: Tensor, y: Tensor, v: int, tile: int) -> Tensor:
    """dS of `uniform` in float64, without the tiles of words that do not hold the row's label."""
    ds = torch.full((len(y), v), 1.0 / v, dtype=torch.float64)
    ds[torch.arange(len(y)), y] -= 1
    here = (torch.arange(v)[None] // tile) == (y // tile)[:, None]
    return torch.where(here, ds, 0) / len(y)
