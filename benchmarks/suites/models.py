"""Whole models as they are, measured by models.py, whose page docs/models.md tells more of them."""
from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from benchmarks import environment, records
from benchmarks.harness import Settings, last_line, progress
from benchmarks.measure import child
from benchmarks.records import Record

SCRIPT = Path(__file__).parents[1] / "models.py"
QUICK = ("nanoGPT",)
ARMS = ("eager", "inductor", "fuse")


def names() -> list[str]:
    """The models that models.py knows; it imports its neighbours by their bare names."""
    sys.path.append(str(SCRIPT.parent))
    from benchmarks import models

    return list(models.MODELS)


def chosen(patterns: list[str], quick: bool) -> list[str]:
    return [n for n in names() if (any(fnmatch(n, p) for p in patterns) if patterns else not quick or n in QUICK)]


def run(models: list[str], settings: Settings, show: Callable[[Record], None]) -> int:
    """Measures the models and appends their records; returns how many rows are wrong or failed."""
    stamp, bad = environment.stamp("cpu", settings.threads), 0
    for name in progress(models):
        found = [{**r, "environment": stamp} for r in measured(name, settings)]
        records.append(settings.out, found)
        for record in found:
            show(record)
            bad += record["status"] in ("wrong", "failed")
    return bad


def measured(name: str, settings: Settings, call: Callable[[str, list[str]], Any] = child) -> Iterator[Record]:
    """A record for each arm. Errors are judged, not told: `right` compares every parameter's gradient with float64."""
    common: Record = {"suite": "models", "case": name, "sizes": {}, "x": None, "dtype": "float32", "device": "cpu",
                      "mode": "both"}
    try:
        found = call(str(SCRIPT), [f"--only={name}", f"--threads={settings.threads}", f"--repeat={settings.repeat}"])
    except RuntimeError as error:
        yield {**common, "arm": "fuse", "status": "failed", "reason": last_line(error)}
        return
    for arm in ARMS:
        wrong = arm == "fuse" and not found["right"]
        yield {**common, "arm": arm, "status": "wrong" if wrong else "ok", "median_ms": found["milliseconds"][arm],
               "n": settings.repeat,
               "peak_mb": found["peaks"][arm], "fused": ", ".join(found["regions"]) or "no"}
