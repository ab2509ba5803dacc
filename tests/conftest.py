"""Each test starts from nothing compiled, each run from empty caches, and workers do not fight for the cores."""
from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

SCRATCH = "PYTEST_SCRATCH_OF_FUSE"  # made by the first process, inherited by the workers


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write what is generated into tests/golden")


def pytest_configure(config: pytest.Config) -> None:
    """Runs before any test module, and so before torch is imported and reads these variables."""
    scratch = os.environ.get(SCRATCH)
    if scratch is None:
        scratch = os.environ[SCRATCH] = tempfile.mkdtemp(prefix="fuse-tests-")
        config.add_cleanup(lambda: shutil.rmtree(scratch, ignore_errors=True))
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker is not None:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["FUSE_CACHE_DIR"] = str(Path(scratch) / "fuse")
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(Path(scratch) / "inductor")    # its precompiled headers take 10 s


@pytest.fixture(autouse=True)
def fresh_dynamo() -> Iterator[None]:
    """Forget what the test compiled. Tests that never import torch stay fast."""
    yield
    if "torch._dynamo" in sys.modules:
        sys.modules["torch._dynamo"].reset()
