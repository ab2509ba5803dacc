"""The examples run as documented, at sizes of a smoke test."""
from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytest.importorskip("sklearn")
pytest.importorskip("rich")


def run(*arguments: str, folder: Path, example: str = "flowformer") -> dict:
    out = folder / "found.json"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    finished = subprocess.run([sys.executable, ROOT / f"examples/{example}.py", *arguments, "--json", str(out)],
                              cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "the losses are at most" in finished.stdout
    return json.loads(out.read_text())


@pytest.mark.slow
def test_the_flowformer_in_eager(tmp_path):
    found = run("--quick", "--arms", "eager", folder=tmp_path)["tasks"]
    assert list(found) == ["digits", "text"]
    assert all(len(task["eager"]["losses"]) == 3 for task in found.values())


@pytest.mark.slow
def test_the_flowformer_in_all_arms(tmp_path):
    """The script itself holds the losses to its bound."""
    found = run("--quick", folder=tmp_path)["tasks"]
    assert all(list(task) == ["eager", "inductor", "fuse"] for task in found.values())


@pytest.mark.parametrize("example", ["s4d", pytest.param("mamba", marks=pytest.mark.slow)])
def test_a_state_space_model_in_eager(example, tmp_path):
    found = run("--quick", "--arms", "eager", folder=tmp_path, example=example)
    assert len(found["arms"]["eager"]["losses"]) == 3


@pytest.mark.slow
@pytest.mark.parametrize("example", ["s4d", "mamba"])
def test_a_state_space_model_in_all_arms(example, tmp_path):
    found = run("--quick", folder=tmp_path, example=example)
    assert list(found["arms"]) == ["eager", "inductor", "fuse"] and "FUSED     scan" in found["arms"]["fuse"]["report"]
