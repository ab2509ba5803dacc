"""Every case of the benchmarks on a GPU, against float64. Skipped where there is none."""
from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.cases import Task
from benchmarks.suites import SUITES
from benchmarks.worker import run

CASES = [(suite, case) for suite, found in SUITES.items() for case in found.cases]
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("suite", "case"), CASES)
def test_no_result_or_gradient_errs_more_than_eager_mode_does(suite: str, case: str, dtype: str) -> None:
    if suite == "scan" and dtype == "bfloat16":
        pytest.skip("complex numbers and exponentials of steps are float32 in every model")
    task = Task(suite, case, dict(SUITES[suite].cases[case].sizes["tiny"]), None, dtype, "cuda")
    job: dict[str, Any] = {"what": "time", "task": task.to_dict(), "arms": ["eager", "fuse"], "measure": ["time", "error"],
                           "caches": None, "repeat": 1, "threads": 2, "options": {"min_virtual_bytes": 0, "strict": True}}
    found = run(job)
    assert not found["fused"].startswith("no"), found["fused"]
    rows = found["rows"]["fuse"]
    assert {mode: row["status"] for mode, row in rows.items()} == dict.fromkeys(("forward", "backward", "both"), "ok"), rows
