"""Time on a clock that fits the device: laps of a step, arms interleaved, caches flushed, the GPU's clocks noted."""
from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise

import torch

Step = Callable[[], Iterator[None]]     # yields where a lap ends and the next begins
FLUSHED = 256 << 20     # bytes: more than the L2 of any GPU
TURN = 0.02             # seconds that a turn on a CPU lasts at least
GAP = 0.02              # seconds between rounds on a GPU, so that it does not throttle


def laps(step: Step, device: str) -> list[float]:
    """Milliseconds of each lap of a step, one more than it has yields."""
    return _cuda_laps(step) if device == "cuda" else _cpu_laps(step)


def _cpu_laps(step: Step) -> list[float]:
    marks = [time.perf_counter()]
    for _ in step():
        marks.append(time.perf_counter())
    marks.append(time.perf_counter())
    return [(b - a) * 1e3 for a, b in pairwise(marks)]


def _cuda_laps(step: Step) -> list[float]:
    """By events, with an L2 that holds nothing of the step."""
    torch.empty(FLUSHED, dtype=torch.int8, device="cuda").zero_()
    marks = [_event()]
    for _ in step():
        marks.append(_event())
    marks.append(_event())
    torch.cuda.synchronize()
    return [a.elapsed_time(b) for a, b in pairwise(marks)]


def _event() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)     # type: ignore[no-untyped-call]
    event.record()
    return event


def interleaved(steps: Mapping[str, Step], repeat: int, device: str) -> dict[str, list[list[float]]]:
    """The laps of each step in `repeat` turns, so that a slow moment of the machine hits all of them."""
    samples: dict[str, list[list[float]]] = {name: [] for name in steps}
    for _ in range(repeat):
        for name, step in steps.items():
            samples[name] += _turn(step, device)
        if device == "cuda":
            time.sleep(GAP)
    return samples


def _turn(step: Step, device: str) -> list[list[float]]:
    """One call, or on a CPU as many as fit: the first of several does not count, which finds what the arm before left behind
    (caches full of its values, threads asleep)."""
    begun, found = time.perf_counter(), [laps(step, device)]
    while device == "cpu" and time.perf_counter() - begun < TURN:
        found.append(laps(step, device))
    return found[1:] or found


def gpu_state() -> dict[str, float]:
    """The GPU's clocks (MHz), temperature (C) and power (W) now; nothing where nvidia-smi does not say."""
    names = ("clocks.sm", "clocks.mem", "temperature.gpu", "power.draw")
    command = ["nvidia-smi", f"--query-gpu={','.join(names)}", "--format=csv,noheader,nounits"]
    try:
        out = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.splitlines()[0]
        return {n: float(v) for n, v in zip(names, out.split(","), strict=True)}
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return {}
