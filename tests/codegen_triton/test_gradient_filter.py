"""The gradient filter in Triton kernels: their text, and their numbers under the interpreter."""
from __future__ import annotations

import pytest

from tests.codegen_triton.process import run_interpreted

pytest.importorskip("triton")


def test_numbers() -> None:
    run_interpreted("filtered.py", timeout=600)
