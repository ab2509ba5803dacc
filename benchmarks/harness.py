"""A run: each task in processes of its own, its rows to disk as they come.

For each arm two fresh processes, the first with empty caches, the second with those the first left: the first step of
either is the cold and the warm compile time, and the peaks are taken in the second. Then one process times all arms in turns.
"""
from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from benchmarks import environment, records
from benchmarks.cases import Task
from benchmarks.floor import MODES, Rates, Work, fraction
from benchmarks.measure import child
from benchmarks.records import Record

SCRIPT = str(Path(__file__).with_name("run.py"))
MEASURES = ("time", "error", "memory", "compile")
Call = Callable[[dict[str, Any]], Any]


@dataclass
class Settings:
    """How a run measures. `caches` is kept if it is given; `call` does a job, in a fresh process unless it is a dry run."""

    out: Path
    device: str
    arms: tuple[str, ...] = ()
    measure: tuple[str, ...] = MEASURES
    repeat: int = 11
    threads: int = 2
    budget: float = float("inf")
    options: dict[str, Any] = field(default_factory=dict)
    caches: Path | None = None
    call: Call | None = None

    def job(self, what: str, **more: Any) -> Any:
        common = {"what": what, "threads": self.threads, "options": self.options, "arms": self.arms, "measure": self.measure}
        return (self.call or in_fresh_process)({**common, "repeat": self.repeat, **more})


def in_fresh_process(job: dict[str, Any]) -> Any:
    return child(SCRIPT, ["--worker", json.dumps(job)])


def run(tasks: Iterable[Task], settings: Settings, arms_of: Callable[[Task], list[str]], show: Callable[[Record], None]) -> int:
    """Measures the tasks and appends their records; returns how many rows are wrong or failed."""
    stamp, rates, begun, bad = environment.stamp(settings.device, settings.threads), dict[str, Rates](), time.monotonic(), 0
    for task in progress(list(tasks)):
        if time.monotonic() - begun > settings.budget:
            print(f"not measured, out of time: {task.suite} {task.name}", file=sys.stderr, flush=True)
            continue
        if task.dtype not in rates:
            rates[task.dtype] = Rates(**settings.job("rates", device=task.device, dtype=task.dtype))
        found = list(measured(task, settings, arms_of(task), rates[task.dtype]))
        stamped = [{**r, "environment": {**stamp, "copy_GBps": round(rates[task.dtype].copy / 1e9, 1),
                                         "gemm_GFLOPS": round(rates[task.dtype].gemm / 1e9, 1)}} for r in found]
        records.append(settings.out, stamped)
        for record in stamped:
            show(record)
            bad += record["status"] in ("wrong", "failed")
    return bad


def progress(tasks: list[Task]) -> Iterator[Task]:
    """With a bar where tqdm is installed and somebody looks."""
    try:
        from tqdm import tqdm
    except ImportError:
        return iter(tasks)
    return iter(tqdm(tasks, unit="task", disable=None))


def measured(task: Task, settings: Settings, arms: list[str], rates: Rates) -> Iterator[Record]:
    """A record for each arm and mode; a single one for an arm that cannot run."""
    folder = settings.caches / task.suite / task.name.replace("/", "-") if settings.caches else Path(mkdtemp(prefix="fuse-bench-"))
    try:
        starts = {arm: first_steps(task, settings, arm, folder) for arm in arms}
        timed = whole_task(task, settings, arms, folder)
    finally:
        if settings.caches is None:
            shutil.rmtree(folder, ignore_errors=True)
    for arm in arms:
        rows = timed["rows"].get(arm, {"status": "ok"} if starts[arm] else {})
        start = starts[arm]
        common = {"suite": task.suite, "case": task.case, "sizes": task.sizes, "x": task.x, "dtype": task.dtype,
                  "device": task.device, "arm": arm}
        if "reason" in rows:
            yield {**common, "mode": "both", **rows}
            continue
        for mode in MODES:
            yield {**common, "mode": mode, "status": "ok", **rows.get(mode, {}), **of_start(start, mode), **physical(timed, mode, rows, rates),
                   **({"clocks": timed["clocks"]} if timed.get("clocks") else {})}


def first_steps(task: Task, settings: Settings, arm: str, folder: Path) -> dict[str, Any]:
    """What the fresh processes of one arm say: `cold_s`, `warm_s`, `peaks`. A swept size is not worth the two compiles."""
    compiles = "compile" in settings.measure and task.x is None
    memory = "memory" in settings.measure
    if not compiles and not memory:
        return {}
    job = {"task": task.to_dict(), "arms": [arm], "caches": str(folder)}
    try:
        cold = settings.job("first", **job, peaks=False) if compiles else {}
        if "reason" in cold:
            return {}      # the process that times will say why
        warm = settings.job("first", **job, peaks=memory)
    except RuntimeError:
        return {}
    found = {"cold_s": cold.get("seconds"), "warm_s": warm.get("seconds")} if compiles else {}
    return {**found, **({"peaks": warm["peaks"]} if "peaks" in warm else {})}


def whole_task(task: Task, settings: Settings, arms: list[str], folder: Path) -> dict[str, Any]:
    """All arms in one process. If it dies, each arm in one of its own, so that one cannot take the others along."""
    if not {"time", "error"} & set(settings.measure):
        return {"rows": {}, "work": {}}
    job = {"task": task.to_dict(), "caches": str(folder)}
    try:
        return dict(settings.job("time", **{**job, "arms": arms}))
    except RuntimeError as error:
        if len(arms) == 1:
            return {"rows": {arms[0]: {"status": "failed", "reason": last_line(error)}}, "work": {}}
    parts = [whole_task(task, settings, [arm], folder) for arm in arms]
    return {**max(parts, key=lambda p: len(p["work"])), "rows": {a: r for p in parts for a, r in p["rows"].items()}}


def last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["the process died without a word"])[-1][:300]


def of_start(start: dict[str, Any], mode: str) -> dict[str, Any]:
    found = {k: start[k] for k in ("cold_s", "warm_s") if k in start} if mode == "both" else {}
    return {**found, **({"peak_mb": start["peaks"][mode]} if mode in start.get("peaks", {}) else {})}


def physical(timed: dict[str, Any], mode: str, rows: dict[str, Any], rates: Rates) -> dict[str, Any]:
    """The floor of the mode, the share of it that the arm reaches, and what fuse makes of the case."""
    said = {"fused": timed["fused"]} if "fused" in timed else {}
    if mode not in timed.get("work", {}):
        return said
    work = Work(**timed["work"][mode])
    floor = work.milliseconds(rates)
    median = rows.get(mode, {}).get("median_ms")
    share = fraction(floor, [median] if median else [])
    return {**said, **timed["work"][mode], "floor_ms": float(f"{floor:.3g}"), **({"roofline": round(share, 3)} if share else {})}
