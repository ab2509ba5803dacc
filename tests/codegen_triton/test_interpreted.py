"""Runs `interpreted.py` with TRITON_INTERPRET=1, which Triton reads when it is imported."""
from __future__ import annotations

import pytest

from tests.codegen_triton.process import run_interpreted

pytest.importorskip("triton")


def test_numbers() -> None:
    run_interpreted("interpreted.py", timeout=600)


@pytest.mark.slow
def test_all_numbers() -> None:
    run_interpreted("interpreted.py", "-m", "slow", timeout=1800)
