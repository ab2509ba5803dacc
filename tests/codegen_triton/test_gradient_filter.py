"""The gradient filter in Triton kernels: their text, and their numbers under the interpreter."""
from __future__ import annotations

import re
from dataclasses import replace

import pytest

from fuse.codegen.triton import Triton
from fuse.codegen.triton.launch import Machine
from fuse.ir.expr import make, read
from fuse.ir.program import Region
from tests.codegen_triton import zoo
from tests.codegen_triton.process import run_interpreted

pytest.importorskip("triton")
SIZES = dict(B=8, T=1025, V=50304, D=64)


def region(eps: float | None) -> Region:
    """Both gradients of a head, filtered beside the rows' cotangents."""
    head = zoo.Head(dtype="bfloat16")
    both = (head.dx("bfloat16"), head.dw("bfloat16"))
    scale = None if eps is None else make("abs", read(head.g, head.b, head.t))
    return head.case("both", *(replace(c, eps=eps, scale=scale) for c in both)).region


def test_a_tile_is_multiplied_under_a_condition() -> None:
    target = Triton(Machine("sm90", 100))
    texts = [target.source(r, target.schedules(r, SIZES)[0]) for r in (region(None), region(2.0 ** -12))]
    guarded = [len(re.findall(r"if tl.max.*> 0:\n +c\d = dot\(", text)) for text in texts]
    assert guarded == [0, 2]


@pytest.mark.parametrize("arch", ["sm90", "gfx942"])
def test_the_condition_compiles(arch: str) -> None:
    from fuse.codegen.triton.ahead import settled

    filtered = region(2.0 ** -12)
    schedule = Triton(Machine(arch, 100)).schedules(filtered, SIZES)[0]
    for row in (launch.usage for launch in settled(filtered, schedule, SIZES, arch)[1]):
        assert row.fits, row


@pytest.mark.slow
def test_numbers() -> None:
    run_interpreted("filtered.py", timeout=600)
