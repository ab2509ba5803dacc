"""Every kernel that the forms of `forms_vocab`, attention and chains of sums become compiles ahead of time for devices
that are not here: nothing spilled, shared memory within the device, no dot's result transposed.

    python -m pytest tests/codegen_triton/test_corpus.py -m slow -s      prints the table of registers
"""
from __future__ import annotations

import os

import pytest
import torch

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("Triton is interpreted in this process", allow_module_level=True)

from fuse.codegen.triton.ahead import transposed_dots
from tests.codegen_triton.corpus import FUSED, GEMMA, LARGE, SMALL, kernels, launched, regions
from tests.test_cascades import flow_einsum, linear_attention

DEVICES = ["sm80", "sm90", "sm100", "gfx942"]


def check(rows):
    for row in rows:
        print(row)
    assert not [str(row) for row in rows if not row.launch.usage.fits]
    for row in rows:
        assembly = row.launch.usage.assembly
        assert not transposed_dots(assembly["ttir"]) and not transposed_dots(assembly["ttgir"])


@pytest.mark.parametrize("name, dtype, shape, archs", [
    ("everything_at_once", "bfloat16", LARGE, ["sm90"]),
    ("gemma_softcap", "bfloat16", GEMMA, ["sm90", "sm100"]),
    ("smoothed_weighted", "float32", LARGE, ["sm80"]),
    ("nanogpt", "float16", SMALL, ["gfx942"]),
    ("index_rows_after_head", "bfloat16", LARGE, ["gfx942"]),
])
def test_some_forms_compile(name, dtype, shape, archs, monkeypatch):
    check(kernels([name], getattr(torch, dtype), shape, archs, monkeypatch))


@pytest.mark.slow
@pytest.mark.parametrize("shape", [LARGE, SMALL], ids=["large", "small"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_every_form_compiles(dtype, shape, monkeypatch):
    check(kernels(FUSED, getattr(torch, dtype), shape, DEVICES, monkeypatch))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("name", ["gemma_softcap", "label_smoother", "select_before_head", "index_rows_after_head"])
def test_the_widest_heads_compile(name, dtype, monkeypatch):
    check(kernels([name], getattr(torch, dtype), GEMMA, DEVICES, monkeypatch))


# ---- attention and chains of sums, by the width of a head -------------------------------------------------------------

HEADS = 8


def scores(q, k):
    return torch.matmul(q, k.transpose(-2, -1)) * q.shape[-1] ** -0.5


def weights(s):
    return torch.softmax(s.masked_fill(~torch.ones(*s.shape[-2:]).tril().bool(), float("-inf")), -1)


def causal(q, k, v):
    return weights(scores(q, k)) @ v


def additive_mask(q, k, v):
    return torch.softmax(scores(q, k) + torch.zeros(2, 1, q.shape[2], k.shape[2], dtype=q.dtype), -1) @ v


def grouped_queries(q, k, v):
    k, v = (t[:, ::4, None].expand(-1, -1, 4, -1, -1).flatten(1, 2) for t in (k, v))
    mask = torch.zeros(1, 1, *scores(q, k).shape[2:]).masked_fill(~torch.ones(q.shape[2], k.shape[2]).tril().bool(), -3e38)
    return torch.softmax(scores(q, k) + mask, -1, dtype=torch.float32).to(q.dtype) @ v


def softcapped(q, k, v):
    return weights(torch.tanh(scores(q, k) / 50) * 50) @ v


def heads(function, width, dtype, archs, patch):
    length = 65536 if function in (flow_einsum, linear_attention) else 4096
    batch = 1 if length > 4096 else 2
    def make():
        return [torch.randn(batch, HEADS, length, width, dtype=dtype, requires_grad=True) for _ in range(3)]
    rows = {}
    launched(f"{function.__name__} {width}", regions(function, make, "recompute", patch), archs, rows)
    check(rows.values())
    assert rows


@pytest.mark.parametrize("function, width, dtype, arch", [
    (causal, 128, "bfloat16", "sm90"), (flow_einsum, 64, "bfloat16", "sm90"), (linear_attention, 64, "float32", "gfx942"),
])
def test_some_heads_compile(function, width, dtype, arch, monkeypatch):
    heads(function, width, getattr(torch, dtype), [arch], monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("function, width", [
    (function, width) for function in (causal, additive_mask, grouped_queries, softcapped, flow_einsum, linear_attention)
    for width in (32, 64, 96, 128, 256) if (function, width) != (flow_einsum, 256)])     # four sums of 256 do not fit on an sm90
def test_heads_of_every_width_compile(function, width, dtype, monkeypatch):
    heads(function, width, getattr(torch, dtype), DEVICES, monkeypatch)
