"""A run: each task in processes of its own, its rows to disk as they come.

For each arm two fresh processes, the first with empty caches, the second with those the first left: the first step of
either is the cold and the warm compile time, and the peaks are taken in the second. Then one process times all arms in turns
(and, on a GPU, asks the allocator for the peaks where the compile time is not measured).
"""
from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from benchmarks import environment, records, worker
from benchmarks.cases import Task
from benchmarks.floor import MODES, Rates, Work, fraction
from benchmarks.measure import child
from benchmarks.records import Record

SCRIPT = str(Path(__file__).with_name("run.py"))
MEASURES = ("time", "error", "memory", "compile")
Call = Callable[[dict[str, Any]], Any]
T = TypeVar("T")


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

    def rates(self, task: Task) -> Rates:
        """Measured in this process: nothing here depends on what it has done before."""
        job = {"what": "rates", "threads": self.threads, "options": self.options, "device": task.device, "dtype": task.dtype}
        return Rates(**(self.call or worker.run)({**job, "scale": "tiny" if self.call else task.device}))


def in_fresh_process(job: dict[str, Any]) -> Any:
    """RuntimeError with what the process said last if it dies. Peaks need an allocator that gives back what is freed, which would
    slow down whatever is timed."""
    arguments = ["--worker", json.dumps(job)]
    if job.get("peaks"):
        return child(SCRIPT, arguments)
    done = subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr or f"the process ended with {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def run(tasks: Iterable[Task], settings: Settings, arms_of: Callable[[Task], list[str]], show: Callable[[Record], None]) -> int:
    """Measures the tasks and appends their records; returns how many rows are wrong or failed."""
    stamp, rates, begun, bad = environment.stamp(settings.device, settings.threads), dict[str, Rates](), time.monotonic(), 0
    for task in progress(list(tasks)):
        if time.monotonic() - begun > settings.budget:
            print(f"not measured, out of time: {task.suite} {task.name}", file=sys.stderr, flush=True)
            continue
        if task.dtype not in rates:
            rates[task.dtype] = settings.rates(task)
        found = list(measured(task, settings, arms_of(task), rates[task.dtype]))
        stamped = [{**r, "environment": {**stamp, "copy_GBps": round(rates[task.dtype].copy / 1e9, 1),
                                         "gemm_GFLOPS": round(rates[task.dtype].gemm / 1e9, 1)}} for r in found]
        records.append(settings.out, stamped)
        for record in stamped:
            show(record)
            bad += record["status"] in ("wrong", "failed")
    return bad


def progress(tasks: list[T]) -> Iterator[T]:
    """With a bar where tqdm is installed and somebody looks."""
    try:
        from tqdm import tqdm
    except ImportError:
        return iter(tasks)
    return iter(tqdm(tasks, unit="task", disable=None))


def measured(task: Task, settings: Settings, arms: list[str], rates: Rates) -> Iterator[Record]:
    """A record for each arm and mode; a single one for an arm that cannot run."""
    with caches(task, settings) as folder:
        starts = {arm: first_steps(task, settings, arm, folder) for arm in arms}
        timed = whole_task(task, settings, arms, folder)
    for arm in arms:
        common = {"suite": task.suite, "case": task.case, "sizes": task.sizes, "x": task.x, "dtype": task.dtype,
                  "device": task.device, "arm": arm, **told(arm, settings)}
        rows = timed["rows"].get(arm, {})
        if "reason" in {**starts[arm], **rows}:
            yield {**common, "mode": "both", **starts[arm], **rows}
            continue
        clocks = {"clocks": timed["clocks"]} if "clocks" in timed else {}
        for mode in MODES:
            yield {**common, "mode": mode, "status": "ok", **rows.get(mode, {}), **of_start(starts[arm], mode),
                   **physical(timed, mode, rows, rates), **clocks}


def told(arm: str, settings: Settings) -> dict[str, Any]:
    """fuse's options from the command line: a row that was measured under them is one of its own."""
    return {"options": settings.options} if settings.options and arm.startswith("fuse") else {}


@contextmanager
def caches(task: Task, settings: Settings) -> Iterator[str | None]:
    """The folder of the task's compiled code: kept if the settings say where, else empty and gone afterwards.

    A dry run, whose process goes on, keeps to the caches it has.
    """
    if settings.call:
        yield None
    elif settings.caches:
        yield str(settings.caches / task.suite / task.name.replace("/", "-"))
    else:
        with TemporaryDirectory(prefix="fuse-bench-") as folder:
            yield folder


def first_steps(task: Task, settings: Settings, arm: str, folder: str | None) -> dict[str, Any]:
    """What the fresh processes of one arm say: `cold_s`, `warm_s`, `peaks`, or a status and a reason.

    The compile time of a swept size is not measured.
    """
    compiles = "compile" in settings.measure and task.x is None
    memory = "memory" in settings.measure and not own_counter(task, settings)
    if not compiles and not memory:
        return {}
    job = {"task": task.to_dict(), "arms": [arm], "caches": folder}
    try:
        cold = settings.job("first", **job, peaks=False) if compiles else {}
        warm = cold if "reason" in cold else settings.job("first", **job, peaks=memory)
    except RuntimeError as error:
        return {"status": "failed", "reason": last_line(error)}
    if "reason" in warm:
        return warm
    found: dict[str, Any] = {"cold_s": cold["seconds"], "warm_s": warm["seconds"]} if compiles else {}
    return {**found, **({"peaks": warm["peaks"]} if memory else {})}


def own_counter(task: Task, settings: Settings) -> bool:
    """A GPU's allocator counts exactly in any process, so that none of its own is needed where there is none anyway."""
    return task.device == "cuda" and ("compile" not in settings.measure or task.x is not None)


def whole_task(task: Task, settings: Settings, arms: list[str], folder: str | None) -> dict[str, Any]:
    """All arms in one process. If it dies, each arm in one of its own, so that one cannot take the others along."""
    if not {"time", "error"} & set(settings.measure):
        return {"rows": {}, "work": {}}
    job = {"task": task.to_dict(), "caches": folder, "peaks": "memory" in settings.measure and own_counter(task, settings)}
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
    found: dict[str, Any] = {k: start[k] for k in ("cold_s", "warm_s") if k in start and mode == "both"}
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
    floors = {"floor_ms": float(f"{floor:.3g}"), "floor_mb": round(work.kept / 1e6, 2)}
    return {**said, "bytes": work.bytes, "flops": work.flops, **floors, **({"roofline": round(share, 3)} if share else {})}
