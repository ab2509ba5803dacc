"""Every kernel that the forms of `forms_vocab` become compiles ahead of time for devices that are not here: nothing spilled,
shared memory within the device, no dot's result transposed.

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
from tests.codegen_triton.corpus import FUSED, GEMMA, LARGE, SMALL, kernels

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
