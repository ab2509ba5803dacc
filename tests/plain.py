"""Test doubles: regions run by the reference interpreter instead of kernels, kernels that are built fast, and graphs
finished without Inductor."""
from __future__ import annotations

from types import SimpleNamespace

import pytest

from fuse.codegen import Capabilities
from fuse.ir.reference import run_region


@pytest.fixture
def plain_kernels(monkeypatch):
    """No C++ and no Triton: every region runs in plain torch, tile by tile."""
    import fuse.runtime.plan as plan

    target = SimpleNamespace(name="plain", capabilities=Capabilities(*[frozenset()] * 4), walk_tile=lambda *_, **__: (16, ""))
    monkeypatch.setattr(plan, "target_for", lambda tensors, options: target)
    monkeypatch.setattr(plan, "compile_region", lambda region, target, hints, options:
                        lambda env, sizes: run_region(region, env, sizes, tile=13))


@pytest.fixture
def without_inductor(monkeypatch):
    """What fuse leaves is run by AOTAutograd alone: seconds less per graph."""
    from torch._dynamo.backends.debugging import aot_eager

    from fuse import private

    monkeypatch.setattr(private, "inductor", lambda gm, inputs, patches: aot_eager(gm, inputs))


@pytest.fixture
def without_aot(monkeypatch):
    """What fuse leaves runs as it stands, op by op under ordinary autograd."""
    from fuse import private

    monkeypatch.setattr(private, "inductor", lambda gm, inputs, patches: gm.forward)


@pytest.fixture
def quick_builds(monkeypatch):
    """Kernels in half the compile time. What -O3 makes of them is tested on the regions of tests/codegen and by `make slow`."""
    from fuse.codegen import build

    flags = tuple("-O1" if flag == "-O3" else flag for flag in build.flags())
    assert flags != build.flags()
    monkeypatch.setattr(build, "flags", lambda: flags)
