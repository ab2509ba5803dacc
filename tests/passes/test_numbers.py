"""Every plan, run by the reference interpreter, against autograd of the dense expression."""
from __future__ import annotations

import pytest
import torch

from fuse.ir.evaluate import evaluate
from fuse.ir.expr import const, lse, make, reduce_, sum_
from fuse.ir.reference import run, run_steps
from tests.passes.builders import SCORES, SIZES, N, V, cross_entropy, log_softmax, pick, plan, softmax

P, LOGP, L = softmax(), log_softmax(), lse(SCORES, V)
NLL = L - pick(SCORES)


def power(x, q):
    return make("pow", x, const(q, "float32"))


CASES = {
    "mean": (cross_entropy(),),
    "rows": (NLL,),
    "focal": (sum_((1.0 - make("exp", -NLL)) * NLL, N),),
    "entropy": (-sum_(P * LOGP, V), L - sum_(P * SCORES, V)),
    "varentropy": (sum_(P * LOGP * LOGP, V),),
    "brier": (sum_((P - 0.5) * (P - 0.5), V),),
    "gce": (power(pick(P), 0.7), sum_(power(P, 0.7), V)),
    "smoothing": (sum_(-sum_(LOGP, V) * (0.1 / 37) + NLL * 0.9, N),),
    "two sweeps": (sum_(make("log", P + 1e-3), V),),
    "z and accuracy": (cross_entropy(), L * L, reduce_("argmax", SCORES, V), reduce_("max", SCORES, V)),
    "total": (sum_(P * P, N, V),),
    "batch weighted": (sum_(NLL * (NLL / sum_(NLL, N)), N),),
    "softcap": (cross_entropy(make("tanh", SCORES * 0.1) * 10.0),),
}


def inputs():
    g = torch.Generator().manual_seed(0)
    y = torch.randint(0, SIZES["V"], (SIZES["N"],), generator=g)
    return {"x0": torch.randn(SIZES["N"], SIZES["D"], generator=g, dtype=torch.float64, requires_grad=True),
            "x1": torch.randn(SIZES["V"], SIZES["D"], generator=g, dtype=torch.float64, requires_grad=True), "x2": y}


@pytest.mark.parametrize("slab", [True, False], ids=["slab", "recompute"])
@pytest.mark.parametrize("shared_sweep", [True, False], ids=["shared", "separate"])
@pytest.mark.parametrize("name", CASES)
def test_plan_equals_autograd(name, slab, shared_sweep):
    values, env = CASES[name], inputs()
    want = [evaluate(v, env, SIZES, dtype="float64") for v in values]
    smooth = [w for w in want if w.requires_grad]
    g = torch.Generator().manual_seed(1)
    seeds = [torch.randn(w.shape, generator=g, dtype=torch.float64) for w in smooth]
    grads = torch.autograd.grad(smooth, [env["x0"], env["x1"]], seeds)
    fixed = {k: v.detach() for k, v in env.items()}
    p = plan(*values, slab=slab, shared_sweep=shared_sweep)
    for tile in (1, 7, 64):
        stored = run_steps(p.forward, fixed, SIZES, tile=tile)
        out = run(p.forward, fixed, SIZES, tile=tile)
        for i, w in enumerate(want):
            torch.testing.assert_close(out[f"out{i}"].to(w.dtype), w.detach(), rtol=1e-9, atol=1e-9)
        cotangents = dict(zip(p.backward.cotangents, seeds, strict=True))
        back = run(p.backward, {**fixed, **cotangents, **{n: stored[n] for n in p.saved}}, SIZES, tile=tile)
        for i, grad in enumerate(grads):
            torch.testing.assert_close(back[f"grad.x{i}"], grad, rtol=1e-8, atol=1e-9)


