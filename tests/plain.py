"""Test doubles: regions run by the reference interpreter instead of kernels, and graphs finished without Inductor."""
from __future__ import annotations

from types import SimpleNamespace

import pytest

from fuse.ir.reference import run_region


@pytest.fixture
def plain_kernels(monkeypatch):
    """No C++ and no Triton: every region runs in plain torch, tile by tile."""
    import fuse.runtime.plan as plan

    target = SimpleNamespace(name="plain", capabilities=SimpleNamespace(shared=True))
    monkeypatch.setattr(plan, "target_for", lambda tensors, options: target)
    monkeypatch.setattr(plan, "compile_region", lambda region, target, hints, options:
                        lambda env, sizes: run_region(region, env, sizes, tile=13))


@pytest.fixture
def without_inductor(monkeypatch):
    """What fuse leaves is run by AOTAutograd alone: seconds less per graph."""
    from torch._dynamo.backends.debugging import aot_eager

    from fuse import private

    monkeypatch.setattr(private, "inductor", lambda gm, inputs, patches: aot_eager(gm, inputs))
