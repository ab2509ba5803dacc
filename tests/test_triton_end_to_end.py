"""From torch.compile to numbers with the Triton target: the forms of `forms_vocab`, of attention and chains of
sums, their kernels interpreted."""
from __future__ import annotations

import pytest

from tests.codegen_triton.process import run_interpreted

pytest.importorskip("triton")


def test_forms() -> None:
    run_interpreted("forms.py", timeout=600)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["slab", "recompute", "columns", "symbols"])
def test_every_form(variant: str) -> None:
    run_interpreted("forms.py", "-m", "slow", "-k", f"test_every_form and {variant}", timeout=1800)


@pytest.mark.slow
def test_attention() -> None:
    run_interpreted("attention.py", timeout=600)


@pytest.mark.slow
def test_every_attention() -> None:
    run_interpreted("attention.py", "-m", "slow", timeout=1800)


def test_chains_of_sums() -> None:
    run_interpreted("cascades.py", timeout=600)


@pytest.mark.slow
def test_wider_chains_of_sums() -> None:
    run_interpreted("cascades.py", "-m", "slow", timeout=1800)
