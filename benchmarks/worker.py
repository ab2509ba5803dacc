"""What runs in a process of its own: the times and errors of a task's arms, or the first step and the peaks of one arm.

A job is a JSON object and so is what comes back; an arm that raises costs its own row and nothing else.
"""
from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import arms as shared
from benchmarks.cases import Case, Function, Suite, Task, arguments
from benchmarks.clock import gpu_state, interleaved, laps
from benchmarks.floor import MODES, counted, measured_rates
from benchmarks.measure import peak_above

Job = dict[str, Any]
Tensors = list[torch.Tensor]


def suite_of(name: str) -> Suite:
    from benchmarks.suites import SUITES

    return SUITES[name]


def run(job: Job) -> Any:
    """What the job's `what` asks for: "time", "first" or "rates"."""
    torch.set_num_threads(job["threads"])
    shared.given.clear()
    shared.given.update(job["options"])
    return {"time": timed, "first": first, "rates": rates}[job["what"]](job)


def rates(job: Job) -> dict[str, float]:
    return vars(measured_rates(job["device"], job["dtype"], job["scale"]))


# ---- steps ----------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Work:
    """A case with its inputs. The cotangent is 1 for a loss, random numbers of the result's shape for anything else."""

    case: Case
    args: Tensors
    cotangent: torch.Tensor
    device: str

    @classmethod
    def of(cls, case: Case, task: Task) -> Work:
        args = arguments(case, task)
        with torch.no_grad():
            out = case.function(*args)
        return cls(case, args, torch.ones_like(out) if out.dim() == 0 else torch.randn_like(out), task.device)

    @property
    def leaves(self) -> Tensors:
        return [x for x in self.args if x.requires_grad]

    def forward(self, function: Function) -> Iterator[None]:
        with torch.no_grad():
            function(*self.args)
        yield from ()

    def both(self, function: Function) -> Iterator[None]:
        """Two laps: forward with what the backward needs, backward."""
        out = function(*self.args)
        yield
        torch.autograd.grad(out, self.leaves, self.cotangent)

    def backward(self, function: Function) -> Callable[[], object]:
        """What is left when the forward is done; it runs once."""
        out = function(*self.args)
        return lambda: torch.autograd.grad(out, self.leaves, self.cotangent)

    def results(self, function: Function) -> Tensors:
        out = function(*self.args)
        return [out.detach(), *torch.autograd.grad(out, self.leaves, self.cotangent.to(out.dtype))]

    def wide(self) -> Work:
        """The same in float64."""
        args = [x.detach().double().requires_grad_(x.requires_grad) if x.is_floating_point() else x for x in self.args]
        return replace(self, args=args)


def all_of(step: Iterator[None]) -> None:
    for _ in step:
        pass


# ---- times and errors -----------------------------------------------------------------------------------------------

def timed(job: Job) -> dict[str, Any]:
    """Arm -> mode -> row, and the floor's bytes and flops. Arms that cannot run have a status and a reason instead."""
    task = Task(**job["task"])
    suite = suite_of(task.suite)
    try:
        work = Work.of(suite.cases[task.case], task)
    except (shared.Absent, ImportError) as error:
        return {"rows": {arm: excused(error) for arm in suite.arms_of(suite.cases[task.case], job["arms"])}, "work": {}}
    made, rows = ready(suite, work, job)
    before = gpu_state() if task.device == "cuda" else {}
    rows |= times(made, work, job["repeat"])
    clocks = {"clocks": {"before": before, "after": gpu_state()}} if before else {}
    if "error" in job["measure"]:
        add_errors(rows, made, work)
    if job.get("peaks"):
        add_peaks(rows, made, work)
    return {"rows": rows, **clocks, **floor_of(work.case, task)}


def ready(suite: Suite, work: Work, job: Job) -> tuple[dict[str, Function], dict[str, Any]]:
    """The arms that run, compiled and warm, and the rows of those that do not."""
    made: dict[str, Function] = {}
    rows: dict[str, Any] = {}
    for arm in suite.arms_of(work.case, job["arms"]):
        use_caches(job["caches"], arm)
        try:
            function = suite.arms[arm](work.case)
            for step in (work.forward, work.both) * 2:
                all_of(step(function))
            made[arm] = function
        except Exception as error:
            rows[arm] = excused(error)
    return made, rows


def use_caches(folder: str | None, arm: str) -> None:
    """Each arm has its own caches of compiled code, so that none is warmed by another."""
    if folder is not None:
        for name, part in (("TORCHINDUCTOR_CACHE_DIR", "inductor"), ("FUSE_CACHE_DIR", "fuse"), ("TRITON_CACHE_DIR", "triton")):
            os.environ[name] = str(Path(folder) / arm / part)


def excused(error: Exception) -> dict[str, str]:
    """A row without numbers: the arm is absent here, or it failed."""
    absent = isinstance(error, (shared.Absent, ImportError, NotImplementedError))
    return {"status": "absent" if absent else "failed", "reason": reason(error)}


def reason(error: BaseException) -> str:
    """The kind of error and the first line of its message."""
    line = next(iter(str(error).strip().splitlines()), "")
    return line if isinstance(error, shared.Absent) else f"{type(error).__name__}: {line}"[:300]


def times(made: dict[str, Function], work: Work, repeat: int) -> dict[str, dict[str, Any]]:
    """Arm -> mode -> median, 20th and 80th percentile in milliseconds, and their number."""
    alone = interleaved({arm: partial(work.forward, f) for arm, f in made.items()}, repeat, work.device)
    whole = interleaved({arm: partial(work.both, f) for arm, f in made.items()}, repeat, work.device)
    rows = {}
    for arm in made:
        columns = {"forward": [s[0] for s in alone[arm]], "backward": [s[1] for s in whole[arm]],
                   "both": [sum(s) for s in whole[arm]]}
        rows[arm] = {mode: {**spread(samples), "n": len(samples), "status": "ok"} for mode, samples in columns.items()}
    return rows


def spread(samples: list[float]) -> dict[str, float]:
    """The median and the 20th and 80th percentiles, to four digits."""
    low, high = (statistics.quantiles(samples, n=5)[k] for k in (0, 3)) if len(samples) > 1 else (samples[0], samples[0])
    found = {"median_ms": statistics.median(samples), "p20_ms": low, "p80_ms": high}
    return {name: float(f"{value:.4g}") for name, value in found.items()}


def relative(got: Tensors, want: Tensors) -> list[float]:
    """The largest difference of each result, relative to its largest element; nan where something is not finite."""
    return [float((g.double() - w).abs().max() / w.abs().max().clamp_min(1e-300)) for g, w in zip(got, want, strict=True)]


def add_errors(rows: dict[str, Any], made: dict[str, Function], work: Work) -> None:
    """The errors of the output and of every gradient against float64, beside each time; a wrong arm is marked as wrong."""
    try:
        want = work.wide().results(work.case.exact or work.case.function)
        base = relative(work.results(work.case.function), want)
    except torch.OutOfMemoryError as error:
        for modes in rows.values():
            modes.update({mode: {**row, "unchecked": reason(error)} for mode, row in modes.items() if mode in MODES})
        return
    eps = max(torch.finfo(x.dtype).eps for x in work.args if x.is_floating_point())
    for arm, function in made.items():
        found = relative(work.results(function), want)
        for mode, row in rows[arm].items():
            count = 1 if mode == "forward" else len(found)
            row.update(errors=[float(f"{e:.1e}") for e in found[:count]], status=verdict(found[:count], base, eps))


def add_peaks(rows: dict[str, Any], made: dict[str, Function], work: Work) -> None:
    for arm, function in made.items():
        for mode, mb in peaks(function, work).items():
            rows[arm][mode]["peak_mb"] = mb


def verdict(found: Sequence[float], base: Sequence[float], eps: float) -> str:
    """"wrong" if anything errs more than four times as much as eager mode does, plus two roundings of the type."""
    return "ok" if all(e <= 4 * b + 2 * eps for e, b in zip(found, base, strict=False)) else "wrong"


def floor_of(case: Case, task: Task) -> dict[str, Any]:
    """Bytes and flops by mode, and what fuse makes of the case."""
    try:
        work, fused = counted(case, task)
    except Exception as error:
        return {"work": {}, "fused": f"not counted: {reason(error)}"}
    return {"work": {mode: vars(w) for mode, w in work.items()}, "fused": fused}


# ---- the first step, and peaks --------------------------------------------------------------------------------------

def first(job: Job) -> dict[str, Any]:
    """`seconds` from torch.compile to the end of the first step, less those of the second; `peaks` if asked for."""
    task, arm = Task(**job["task"]), job["arms"][0]
    suite = suite_of(task.suite)
    use_caches(job["caches"], arm)
    try:
        work = Work.of(suite.cases[task.case], task)
        made: list[Function] = []

        def begin() -> Iterator[None]:
            made.append(suite.arms[arm](work.case))
            yield from work.both(made[0])
        begun = sum(laps(begin, task.device))
        again = sum(laps(partial(work.both, made[0]), task.device))
        found: dict[str, Any] = {"seconds": round((begun - again) / 1e3, 3)}
        return {**found, "peaks": peaks(made[0], work)} if job["peaks"] else found
    except Exception as error:
        return excused(error)


def peaks(function: Function, work: Work) -> dict[str, float]:
    """MB above what was there: the inputs and, of the backward, what the forward left."""
    left = [work.backward(function)]

    def again() -> None:
        left[:] = [work.backward(function)]
    found = {"forward": peak_above(lambda: all_of(work.forward(function)), lambda: None, work.device),
             "backward": peak_above(lambda: left.pop()(), again, work.device),
             "both": peak_above(lambda: all_of(work.both(function)), lambda: None, work.device)}
    return {mode: round(mb, 2) for mode, mb in found.items()}
