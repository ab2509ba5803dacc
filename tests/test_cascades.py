"""Chains of sums along a sequence, end to end: values and gradients against float64, in several spellings."""
from __future__ import annotations

import contextlib

import pytest
import torch
import torch.nn.functional as F

import fuse
from tests.plain import quick_builds, without_inductor  # noqa: F401 (fixtures)

EPS = 1e-6


def flow_einsum(q, k, v):
    q, k = q.sigmoid(), k.sigmoid()
    incoming = 1 / torch.einsum("bhld,bhd->bhl", q + EPS, k.sum(2) + EPS)
    outgoing = 1 / torch.einsum("bhsd,bhd->bhs", k + EPS, q.sum(2) + EPS)
    sink = torch.einsum("bhld,bhd->bhl", q + EPS, (k * outgoing[..., None]).sum(2) + EPS)
    source = torch.einsum("bhsd,bhd->bhs", k + EPS, (q * incoming[..., None]).sum(2) + EPS).clamp(-1, 1)
    kv = torch.einsum("bhsd,bhsm->bhdm", k, v * (torch.softmax(source, -1) * k.shape[2])[..., None])
    return torch.einsum("bhld,bhdm->bhlm", q * incoming[..., None], kv) * torch.sigmoid(sink * q.shape[2] / k.shape[2])[..., None]


def flow_products(q, k, v):
    q, k = q.sigmoid(), k.sigmoid()
    incoming = 1 / ((q + EPS) * (k.sum(2, keepdim=True) + EPS)).sum(-1, keepdim=True)
    outgoing = 1 / ((k + EPS) * (q.sum(2, keepdim=True) + EPS)).sum(-1, keepdim=True)
    sink = ((q + EPS) * ((k * outgoing).sum(2, keepdim=True) + EPS)).sum(-1, keepdim=True)
    source = ((k + EPS) * ((q * incoming).sum(2, keepdim=True) + EPS)).sum(-1, keepdim=True)
    kv = k.transpose(-2, -1) @ (v * torch.softmax(source, 2) * k.shape[2])
    return ((q * incoming) @ kv) * torch.sigmoid(sink)


def heads_last(q, k, v):
    out = flow_einsum(*(t.transpose(1, 2) for t in (q, k, v)))
    return out.transpose(1, 2).contiguous()


def linear_attention(q, k, v):
    q, k = F.elu(q) + 1, F.elu(k) + 1
    return (q @ (k.mT @ v)) / (q @ k.sum(2)[..., None])


def gradients(function, args, dtype=None, cotangent=None):
    leaves = [a.detach().to(dtype or a.dtype).requires_grad_() for a in args]
    out = function(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, cotangent.to(out.dtype))]


@pytest.mark.parametrize("function", [flow_einsum, linear_attention, *(pytest.param(f, marks=pytest.mark.slow)
                                                                 for f in (flow_products, heads_last))])
@pytest.mark.parametrize(("length", "keys", "width"), [(67, 67, 7), (131, 77, 5)], ids=["square", "cross"])
def test_values_and_gradients(function, length, keys, width):
    torch.manual_seed(0)
    swap = (lambda t: t.transpose(1, 2).contiguous()) if function is heads_last else (lambda t: t)
    args = [swap(torch.randn(2, 3, n, d)) for n, d in ((length, 7), (keys, 7), (keys, width))]
    cotangent = swap(torch.randn(2, 3, length, width))
    report = fuse.explain(function, *(a.requires_grad_() for a in args), fuse_options={"min_virtual_bytes": 0, "strict": True})
    assert sum(len(g.regions) for g in report.graphs) == 1, str(report)
    torch._dynamo.reset()
    compiled = torch.compile(function, backend="fuse", options={"min_virtual_bytes": 0, "strict": True})
    want = gradients(function, args, torch.float64, cotangent)
    eager, got = gradients(function, args, None, cotangent), gradients(compiled, args, None, cotangent)
    for w, e, g in zip(want, eager, got, strict=True):
        scale = w.abs().max()
        assert (g - w).abs().max() <= (e - w).abs().max() + 1e-6 * scale


@pytest.mark.parametrize("how", ["bfloat16", *(pytest.param(how, marks=pytest.mark.slow) for how in ("float16", "autocast"))])
def test_element_types_and_lengths(how, quick_builds, without_inductor):  # noqa: F811
    """One compile serves every length but the first; half precision errs less than eager, whose sums are rounded."""
    compiled = torch.compile(flow_einsum, backend="fuse", options={"min_virtual_bytes": 0, "strict": True})
    ambient = torch.autocast("cpu", torch.bfloat16) if how == "autocast" else contextlib.nullcontext()
    torch._dynamo.utils.counters.clear()
    for length in (33, 40, 71):
        torch.manual_seed(length)
        args = [torch.randn(2, 3, length, 8).to(torch.float32 if how == "autocast" else getattr(torch, how)) for _ in range(3)]
        cotangent = torch.randn(2, 3, length, 8)
        want = gradients(flow_einsum, args, torch.float64, cotangent)
        with ambient:
            eager, got = gradients(flow_einsum, args, None, cotangent), gradients(compiled, args, None, cotangent)
        for w, e, g in zip(want, eager, got, strict=True):
            assert g.dtype == e.dtype and (g - w).abs().max() <= (e - w).abs().max()
    assert torch._dynamo.utils.counters["fuse"]["fused"] == 2
