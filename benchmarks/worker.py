"""What runs in a process of its own: the times and errors of a task's arms, or the first step and the peaks of one arm.

A job is a JSON object and so is what comes back; an arm that raises costs its own row and nothing else.
"""
from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import arms as shared
from benchmarks.cases import Case, Function, Suite, Task, arguments
from benchmarks.clock import gpu_state, interleaved, laps
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
    from benchmarks.floor import measured_rates

    return vars(measured_rates(job["device"], job["dtype"]))


# ---- steps ----------------------------------------------------------------------------------------------------------

def forward(function: Function, args: Tensors, cotangent: torch.Tensor) -> Iterator[None]:
    with torch.no_grad():
        function(*args)
    yield from ()


def both(function: Function, args: Tensors, cotangent: torch.Tensor) -> Iterator[None]:
    """Two laps: forward with what the backward needs, backward."""
    out = function(*args)
    yield
    torch.autograd.grad(out, leaves(args), cotangent)


def backward(function: Function, args: Tensors, cotangent: torch.Tensor) -> Callable[[], object]:
    """What is left when the forward is done; it runs once."""
    out = function(*args)
    return lambda: torch.autograd.grad(out, leaves(args), cotangent)


def leaves(args: Tensors) -> Tensors:
    return [x for x in args if x.requires_grad]


def all_of(step: Iterator[None]) -> None:
    for _ in step:
        pass


def cotangent_of(case: Case, args: Tensors) -> torch.Tensor:
    """1 for a loss, random numbers of the result's shape and type for anything else."""
    with torch.no_grad():
        out = case.function(*args)
    return torch.ones_like(out) if out.dim() == 0 else torch.randn_like(out)


# ---- times and errors -----------------------------------------------------------------------------------------------

def timed(job: Job) -> dict[str, Any]:
    """Arm -> mode -> row, and the floor's bytes and flops. Arms that cannot run have a status and a reason instead."""
    task = Task(**job["task"])
    suite = suite_of(task.suite)
    case = suite.cases[task.case]
    args = arguments(case, task)
    cotangent = cotangent_of(case, args)
    made, rows = ready(suite, case, job, args, cotangent)
    before = gpu_state() if task.device == "cuda" else {}
    for arm, modes in times(made, args, cotangent, job["repeat"], task.device).items():
        rows[arm] = modes
    clocks = {"before": before, "after": gpu_state()} if before else {}
    if "error" in job["measure"]:
        add_errors(rows, made, case, args, cotangent)
    return {"rows": rows, "clocks": clocks, **floor_of(case, task)}


def ready(suite: Suite, case: Case, job: Job, args: Tensors, cotangent: torch.Tensor) -> tuple[dict[str, Function], dict[str, Any]]:
    """The arms that run, compiled and warm, and the rows of those that do not."""
    made: dict[str, Function] = {}
    rows: dict[str, Any] = {}
    for arm in suite.arms_of(case, job["arms"]):
        use_caches(job["caches"], arm)
        try:
            function = suite.arms[arm](case)
            for step in (forward, both, forward, both):
                all_of(step(function, args, cotangent))
            made[arm] = function
        except (shared.Absent, ImportError) as error:
            rows[arm] = {"status": "absent", "reason": reason(error)}
        except Exception as error:
            rows[arm] = {"status": "failed", "reason": reason(error)}
    return made, rows


def use_caches(folder: str | None, arm: str) -> None:
    """Each arm has its own caches of compiled code, so that none is warmed by another."""
    if folder is not None:
        for name, part in (("TORCHINDUCTOR_CACHE_DIR", "inductor"), ("FUSE_CACHE_DIR", "fuse"), ("TRITON_CACHE_DIR", "triton")):
            os.environ[name] = str(Path(folder) / arm / part)


def reason(error: BaseException) -> str:
    """The kind of error and the first line of its message."""
    line = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {line}"[:300] if not isinstance(error, shared.Absent) else line


def times(made: dict[str, Function], args: Tensors, cotangent: torch.Tensor, repeat: int, device: str) -> dict[str, dict[str, Any]]:
    """Arm -> mode -> median, 20th and 80th percentile in milliseconds, and their number."""
    rows: dict[str, dict[str, Any]] = {arm: {} for arm in made}
    alone = interleaved({arm: partial(forward, f, args, cotangent) for arm, f in made.items()}, repeat, device)
    whole = interleaved({arm: partial(both, f, args, cotangent) for arm, f in made.items()}, repeat, device)
    for arm in made:
        columns = {"forward": [s[0] for s in alone[arm]], "backward": [s[1] for s in whole[arm]],
                   "both": [sum(s) for s in whole[arm]]}
        rows[arm] = {mode: {**spread(samples), "n": repeat, "status": "ok"} for mode, samples in columns.items()}
    return rows


def spread(samples: list[float]) -> dict[str, float]:
    """The median and the 20th and 80th percentiles, to four digits."""
    low, high = (statistics.quantiles(samples, n=5)[k] for k in (0, 3)) if len(samples) > 1 else (samples[0], samples[0])
    found = {"median_ms": statistics.median(samples), "p20_ms": low, "p80_ms": high}
    return {name: float(f"{value:.4g}") for name, value in found.items()}


def results(function: Function, args: Tensors, cotangent: torch.Tensor) -> Tensors:
    out = function(*args)
    return [out.detach(), *torch.autograd.grad(out, leaves(args), cotangent.to(out.dtype))]


def relative(got: Tensors, want: Tensors) -> list[float]:
    """The largest difference of each result, relative to its largest element; nan where something is not finite."""
    return [float((g.double() - w).abs().max() / w.abs().max().clamp_min(1e-300)) for g, w in zip(got, want, strict=True)]


def add_errors(rows: dict[str, Any], made: dict[str, Function], case: Case, args: Tensors, cotangent: torch.Tensor) -> None:
    """The errors of the output and of every gradient against float64, beside each time; a wrong arm is marked as wrong."""
    wide = [x.detach().double().requires_grad_(x.requires_grad) if x.is_floating_point() else x for x in args]
    want = results(case.exact or case.function, wide, cotangent)
    base = relative(results(case.function, args, cotangent), want)
    for arm, function in made.items():
        found = relative(results(function, args, cotangent), want)
        status = {"forward": verdict(found[:1], base[:1], args), "both": verdict(found, base, args)}
        for mode, row in rows[arm].items():
            shown = found[:1] if mode == "forward" else found
            row.update(errors=[float(f"{e:.1e}") for e in shown], status=status.get(mode, status["both"]))


def verdict(found: Sequence[float], base: Sequence[float], args: Tensors) -> str:
    """"wrong" if anything errs more than four times as much as eager mode does, plus two roundings of the type."""
    eps = max(torch.finfo(x.dtype).eps for x in args if x.is_floating_point())
    return "ok" if all(e <= 4 * b + 2 * eps for e, b in zip(found, base, strict=True)) else "wrong"


def floor_of(case: Case, task: Task) -> dict[str, Any]:
    from benchmarks.floor import counted

    try:
        work, fused = counted(case, task)
    except Exception as error:
        return {"work": {}, "fused": f"not counted: {reason(error)}"}
    return {"work": {mode: vars(w) for mode, w in work.items()}, "fused": fused}


# ---- the first step, and peaks --------------------------------------------------------------------------------------

def first(job: Job) -> dict[str, Any]:
    """Seconds from torch.compile to the end of the first step, less those of the second; MB of each mode if asked for."""
    task, arm = Task(**job["task"]), job["arms"][0]
    suite = suite_of(task.suite)
    case = suite.cases[task.case]
    use_caches(job["caches"], arm)
    try:
        args = arguments(case, task)
        cotangent = cotangent_of(case, args)
        made: list[Function] = []

        def begin() -> Iterator[None]:
            made.append(suite.arms[arm](case))
            yield from both(made[0], args, cotangent)
        cold = sum(laps(begin, task.device)) if job["caches"] else None
        if not made:
            made.append(suite.arms[arm](case))
        again = sum(laps(partial(both, made[0], args, cotangent), task.device))
        found: dict[str, Any] = {"seconds": round((cold - again) / 1e3, 3) if cold is not None else None}
        if job["peaks"]:
            found["peaks"] = peaks(made[0], args, cotangent, task.device)
        return found
    except Exception as error:
        return {"reason": reason(error)}


def peaks(function: Function, args: Tensors, cotangent: torch.Tensor, device: str) -> dict[str, float]:
    """MB above what was there: the inputs and, of the backward, what the forward left."""
    left = [backward(function, args, cotangent)]

    def again() -> None:
        left[:] = [backward(function, args, cotangent)]
    found = {"forward": peak_above(lambda: all_of(forward(function, args, cotangent)), lambda: None, device),
             "backward": peak_above(lambda: left.pop()(), again, device),
             "both": peak_above(lambda: all_of(both(function, args, cotangent)), lambda: None, device)}
    return {mode: round(mb, 2) for mode, mb in found.items()}
