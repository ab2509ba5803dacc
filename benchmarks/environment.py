"""The stamp of a record: what it was measured with, and on."""
from __future__ import annotations

import os
import platform
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.measure import machine

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "triton", "liger-kernel", "cut-cross-entropy", "fla-core", "mamba-ssm", "accelerated-scan", "mambapy",
            "transformers")


def stamp(device: str, threads: int) -> dict[str, Any]:
    """Versions, machine, threads, commit, time, and how busy the machine was when the run began."""
    import torch

    gpu = torch.cuda.get_device_name() if device == "cuda" and torch.cuda.is_available() else None
    return {"python": platform.python_version(), **{p: v for p in PACKAGES if (v := installed(p))}, "machine": machine(),
            "gpu": gpu, "threads": threads, "commit": commit(), "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "load": round(os.getloadavg()[0], 2)}


def installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def commit() -> str:
    """The checkout's commit, with a + if it has changes; "unknown" outside a repository."""
    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True).stdout.strip()
    try:
        return git("rev-parse", "--short=12", "HEAD") + "+" * bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return "unknown"
