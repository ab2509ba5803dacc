"""Generated programs: every one right, nearly all fused, and near misses left alone."""
from __future__ import annotations

import pytest
import torch
from torch._dynamo.utils import counters

from tests.generated import near_miss, program
from tests.plain import plain_kernels, quick_builds, without_aot, without_inductor  # noqa: F401 (fixtures)

CHUNK = 20


def clone(args):
    return [a.detach().clone().requires_grad_(a.requires_grad) for a in args]


def run(f, args):
    """Outputs, then the gradients of a fixed random combination of them."""
    args = clone(args)
    out = f(*args)
    outs = list(out) if isinstance(out, tuple) else [out]
    smooth = [o for o in outs if o.requires_grad]
    g = torch.Generator().manual_seed(5)
    torch.autograd.backward(smooth, [torch.randn(o.shape, generator=g, dtype=torch.float64).to(o.dtype) for o in smooth])
    return [o.detach() for o in outs], [a.grad for a in args if a.requires_grad]


def check(f, args):
    """Is it fused? Raises if a number differs. float64 on both sides, so only the order of additions may show."""
    torch._dynamo.reset()
    counters.clear()
    got = run(torch.compile(f, backend="fuse", options={"min_virtual_bytes": 0}), args)
    want = run(f, args)
    for g, w in zip([*got[0], *got[1]], [*want[0], *want[1]], strict=True):
        if w is None:
            assert g is None or not g.any()
            continue
        scale = float(w[torch.isfinite(w)].abs().max()) if torch.isfinite(w).any() else 1.0
        torch.testing.assert_close(g, w, rtol=1e-8, atol=1e-9 * max(scale, 1.0), equal_nan=True)
    return counters["fuse"]["fused"] > 0


@pytest.mark.parametrize("first", [*range(0, 60, CHUNK), *(pytest.param(first, marks=pytest.mark.slow)
                                                           for first in range(60, 300, CHUNK))])
def test_plans_of_generated_programs(first, plain_kernels, request):  # noqa: F811
    """A third of them through AOTAutograd, which takes longer than everything else together; `make slow` has the rest."""
    request.getfixturevalue("without_inductor" if first // CHUNK % 3 == 0 else "without_aot")
    fused = [check(*program(seed)) for seed in range(first, first + CHUNK)]
    assert sum(fused) >= 0.95 * CHUNK


@pytest.mark.parametrize("seed", range(12))
def test_kernels_of_generated_programs(seed, quick_builds, without_inductor):  # noqa: F811
    assert check(*program(1000 + seed))


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, 300, CHUNK))
def test_kernels_of_all_generated_programs(first, without_inductor):  # noqa: F811
    for seed in range(first, first + CHUNK):
        check(*program(seed))


@pytest.mark.parametrize("seed", range(10))
def test_near_misses_are_left_alone(seed, plain_kernels, without_inductor):  # noqa: F811
    assert not check(*near_miss(seed))
