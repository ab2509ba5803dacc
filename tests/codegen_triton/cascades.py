"""Chains of sums through torch.compile with the Triton target, their kernels interpreted; `test_triton_end_to_end.py` runs
this file in a process of its own. Judged as on the CPU: outputs and gradients against float64, beside eager."""
from __future__ import annotations

import pytest
import torch

from tests.plain import without_inductor  # noqa: F401 (fixture)
from tests.test_cascades import flow_einsum, flow_products, gradients, heads_last, linear_attention

CASES = [(flow_einsum, 7, 5, 33), (flow_einsum, 48, 32, 200), (linear_attention, 7, 5, 33)]
SLOW = [(f, d, m, n) for f in (flow_einsum, flow_products, heads_last, linear_attention)
        for d, m, n in ((32, 32, 130), (64, 64, 260), (96, 96, 390), (128, 96, 520), (256, 256, 1030))
        if f in (flow_einsum, linear_attention) or d < 100]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("function, width, kept, length", [*CASES, *(pytest.param(*c, marks=pytest.mark.slow) for c in SLOW)])
def test_values_and_gradients(function, width, kept, length, dtype, without_inductor):  # noqa: F811
    torch.manual_seed(0)
    swap = (lambda t: t.transpose(1, 2).contiguous()) if function is heads_last else (lambda t: t)
    args = [swap(torch.randn(1, 2, n, d)).to(dtype) for n, d in ((length, width), (length + 7, width), (length + 7, kept))]
    cotangent = swap(torch.randn(1, 2, length, kept))
    want = gradients(function, args, torch.float64, cotangent)
    eager = gradients(function, args, None, cotangent)
    torch._dynamo.reset()
    options = {"min_virtual_bytes": 0, "strict": True, "target": "triton"}
    torch._dynamo.utils.counters.clear()
    got = gradients(torch.compile(function, backend="fuse", options=options), args, None, cotangent)
    assert torch._dynamo.utils.counters["fuse"]["fused"] == 1
    for w, e, g in zip(want, eager, got, strict=True):
        assert (g - w).abs().max() <= (e - w).abs().max() + 1e-6 * w.abs().max()
