"""What the benchmarks share: interleaved times, peak memory of a fresh process, the machine's name, the record on disk."""
from __future__ import annotations

import gc
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

Step = Callable[[], object]


def seconds(step: Step, device: str) -> float:
    """Of one call, with the device's work done before and after."""
    synchronise(device)
    start = time.perf_counter()
    step()
    synchronise(device)
    return time.perf_counter() - start


def synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def interleaved(steps: Mapping[str, Step], repeat: int, device: str) -> dict[str, list[float]]:
    """Milliseconds of `repeat` calls of each step, in turns, so that a slow moment of the machine hits all of them."""
    samples: dict[str, list[float]] = {arm: [] for arm in steps}
    for _ in range(repeat):
        for arm, step in steps.items():
            samples[arm].append(seconds(step, device) * 1e3)
    return samples


def peak_above(step: Step, reset: Callable[[], object], device: str) -> float:
    """MB by which a step grows this process, which has done it once before (weights and code do not count)."""
    step()
    reset()
    gc.collect()
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    step()
    return (_resident("VmHWM") - before) / 1e6


def _resident(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def machine() -> str:
    """The processor's name and what it multiplies natively."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = (line.partition(":")[2].strip() for line in info.splitlines() if line.startswith("model name"))
    known = [f for f in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f in info.split()]
    return " ".join([next(names, platform.machine()), *known])


def child(script: str, arguments: list[str], **environment: str) -> Any:
    """What a fresh process of the script prints as its last line, which is JSON. RuntimeError if it fails."""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", **environment}     # freed blocks go back at once
    out = subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, env=environment)
    if out.returncode:
        raise RuntimeError(out.stderr)
    return json.loads(out.stdout.splitlines()[-1])


def write(path: Path, record: Mapping[str, Any]) -> None:
    """The record as JSON, with the versions and the machine it was taken on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stamp = {"torch": torch.__version__, "python": platform.python_version(), "machine": machine()}
    path.write_text(json.dumps({**record, **stamp}, indent=1) + "\n")
