"""Linear scores with a decay that telescopes become a scan; nothing else does."""
from __future__ import annotations

import pytest
import torch

from fuse.frontend import find
from fuse.ir.expr import topological
from fuse.options import Options
from fuse.passes import Context, compile_program
from tests.frontend.scanning import difference, graph_values
from tests.frontend.tracing import capture

B, H, L, D = 2, 2, 60, 3


def leaf(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, requires_grad=True)


def look(gm, inputs):
    """For every region: is there a scan after the passes, and the error of its outputs and gradients."""
    seen = []
    for imported in find(gm, Options(min_virtual_bytes=0))[0]:
        program = imported.program
        plan = compile_program(program, Context(hints=dict(program.hints)))
        scan = any(n.op == "scan" for n in topological(plan.forward.roots()))
        seen.append((scan, difference(imported, graph_values(gm, inputs, imported.inputs))))
    return seen


def regions(function, *extra: tuple[int, ...], length: int = L):
    torch.manual_seed(0)
    ((*seen,),) = capture(function, [*(leaf(B, H, length, D) for _ in range(3)), *(leaf(*s) for s in extra)], look=look)
    return seen


def distance(q):
    i = torch.arange(q.shape[2])
    return i[:, None] - i[None]


def per_step(q, k, v):
    decay = torch.where(distance(q) >= 0, 0.97 ** distance(q).clamp(min=0).float(), 0.0)
    return ((q @ k.mT) * decay) @ v


def per_head(q, k, v, g):
    return ((q @ k.mT) * torch.exp(distance(q) * g[:, None, None]).tril()) @ v


def not_at_all(q, k, v):
    return torch.tril(q @ k.mT) @ v * 0.5


def filled(q, k, v):
    return (q @ k.mT).masked_fill(distance(q) < 0, 0) @ v


def by_data(q, k, v, a):
    c = (-a.exp()).cumsum(-1)
    return ((q @ k.mT) * torch.exp((c[..., :, None] - c[..., None, :]).masked_fill(distance(q) < 0, -torch.inf))) @ v


def gated(q, k, v, a):
    """What varies with the position alone goes with the values, or stays outside."""
    return ((q @ k.mT) * a.sigmoid()[..., None, :]).tril() @ v * a.sigmoid()[..., None]


def in_one_einsum(q, k, v, a):
    """State-space duality's quadratic form; torch's own einsum makes the scores on its way."""
    c = a.cumsum(-1)
    difference = (c[..., :, None] - c[..., None, :]).masked_fill(~torch.ones(L, L).tril().bool(), -torch.inf)
    return torch.einsum("bhld,bhsd,bhls,bhsp->bhlp", q, k, torch.exp(difference), v)


@pytest.mark.parametrize("function, extra", [
    (per_step, []), (per_head, [(H,)]), (not_at_all, []), (filled, []), (by_data, [(B, H, L)]), (gated, [(B, H, L)]),
    (in_one_einsum, [(B, H, L)]),
], ids=lambda x: getattr(x, "__name__", ""))
def test_a_decay_that_telescopes(function, extra) -> None:
    ((scan, error),) = regions(function, *extra)
    assert scan and error <= 1e-10


def window(q, k, v):
    return (q @ k.mT).masked_fill((distance(q) < 0) | (distance(q) > 5), 0) @ v


def strict(q, k, v):
    return torch.tril(q @ k.mT, diagonal=-1) @ v


def future(q, k, v):
    return torch.triu(q @ k.mT) @ v


def squared(q, k, v):
    return torch.tril((q @ k.mT) ** 2) @ v


def normalised(q, k, v):
    s = torch.tril(q @ k.mT)
    return (s / s.abs().sum(-1, keepdim=True).clamp(min=1)) @ v


def gaussian(q, k, v):
    return ((q @ k.mT) * torch.exp(-0.01 * distance(q).float() ** 2).tril()) @ v


def other_step(q, k, v, a):
    """A weight of the key's own decay is no difference."""
    return ((q @ k.mT) * torch.exp(distance(q) * a[..., None, :]).tril()) @ v


def other_values(q, k, v, a):
    return ((q @ k.mT) * torch.exp(a[0][..., :, None] - a[1][..., None, :]).tril()) @ v


@pytest.mark.parametrize("function, extra", [
    (window, []), (strict, []), (future, []), (squared, []), (normalised, []), (gaussian, []), (other_step, [(B, H, L)]),
    (other_values, [(2, B, H, L)]),
], ids=lambda x: getattr(x, "__name__", ""))
def test_what_stays_a_product_of_scores(function, extra) -> None:
    for scan, error in regions(function, *extra):
        assert not scan and error <= 1e-10


def test_short_sequences_stay_products() -> None:
    ((scan, error),) = regions(per_step, length=20)
    assert not scan and error <= 1e-10
