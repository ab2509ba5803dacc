"""Arms of a comparison: the same training run in eager, torch.compile and fuse, each in a fresh process of its own.

Each arm starts with empty compile caches, the same seed and the same batches, so that its peak memory and its compile
time are its own. A script calls `run_in_fresh_process`, which starts it again for one arm; there it calls `train`.
"""
from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Table

ARMS = ("eager", "inductor", "fuse")
MIB = 2**20
CONSOLE = Console(stderr=True)
Batch = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Result:
    """One arm. Times in seconds; `peak` in bytes above what the process held when step 1 began."""

    losses: list[float]
    seconds: list[float]
    peak: int
    report: str = ""

    @property
    def step(self) -> float:
        return statistics.median(self.seconds[2:])  # step 0 compiles, step 1 warms up


class PeakMemory:
    """Bytes allocated at most since `start`, above what was held then: of the device, or of this process on a CPU."""

    def __init__(self, device: str) -> None:
        self.cuda = device == "cuda"
        self.held = 0

    def start(self) -> None:
        gc.collect()
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
            self.held = torch.cuda.memory_allocated()
        elif sys.platform == "linux":
            ctypes.CDLL(None).malloc_trim(0)  # else memory freed by the compiler would hide what the steps need
            try:
                Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
                self.held = self._status("VmRSS")
            except OSError:
                self.held = self._status("VmHWM")
        else:
            self.held = self._rusage()

    def read(self) -> int:
        if self.cuda:
            return torch.cuda.max_memory_allocated() - self.held
        return (self._status("VmHWM") if sys.platform == "linux" else self._rusage()) - self.held

    @staticmethod
    def _status(field: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))

    @staticmethod
    def _rusage() -> int:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def train(arm: str, loss_of: Callable[..., torch.Tensor], parameters: Iterable[torch.nn.Parameter], batches: Iterable[Batch],
          options: argparse.Namespace) -> Result:
    """Trains with AdamW for `options.steps` batches; `loss_of(*batch)` is what the arm compiles."""
    optimizer = torch.optim.AdamW(parameters, lr=options.lr)
    compiled = loss_of if arm == "eager" else torch.compile(loss_of, backend=arm, fullgraph=True)
    losses, seconds, memory = [], [], PeakMemory(options.device)
    for index, batch in enumerate(track(batches, f"{arm:>8}", options.steps, console=CONSOLE)):
        if index == 1:
            memory.start()  # weights, optimiser state and compiled code are there; what comes now belongs to the step
        start = time.perf_counter()
        loss = compiled(*batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())  # waits for the device
        seconds.append(time.perf_counter() - start)
    return Result(losses, seconds, memory.read(), explain(loss_of, batch) if arm == "fuse" else "")


def explain(function: Callable[..., torch.Tensor], batch: Batch) -> str:
    import fuse

    return str(fuse.explain(function, *batch))


def run_in_fresh_process(arm: str, *arguments: str) -> Result | None:
    """The same command for one arm alone. Its progress and its errors go to the terminal; None if it failed."""
    with tempfile.TemporaryDirectory(prefix="fuse-demo-") as folder:
        output = Path(folder) / "result.json"
        environment = {
            "TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor",
            "FUSE_CACHE_DIR": f"{folder}/fuse",
            "HF_HUB_OFFLINE": "1",
            "MALLOC_MMAP_THRESHOLD_": str(16 * MIB),  # what is freed is given back: the peak holds no fragmentation
        }
        command = [sys.executable, *sys.argv, *arguments, "--arms", arm, "--worker", str(output)]
        finished = subprocess.run(command, env=os.environ | environment, check=False)
        if finished.returncode == 0:
            return Result(**json.loads(output.read_text()))
    CONSOLE.print(f"[red]{arm} failed[/] with exit code {finished.returncode}; its error is printed above")
    return None


def difference(result: Result, baseline: Result) -> float:
    """The largest between two loss curves."""
    return max(abs(a - b) for a, b in zip(result.losses, baseline.losses, strict=True))


def table_of(results: dict[str, Result]) -> Table:
    baseline = next(iter(results.values()))
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("arm", "step", "relative", "peak memory", "first step", "loss", "difference"):
        table.add_column(heading, justify="left" if heading == "arm" else "right", no_wrap=True)
    for arm, result in results.items():
        table.add_row(
            arm,
            f"{result.step * 1000:.0f} ms",
            f"{result.step / baseline.step:.2f}x",
            f"{result.peak / MIB:.0f} MiB",
            f"{result.seconds[0]:.1f} s",
            f"{result.losses[0]:.3f} -> {result.losses[-1]:.3f}",
            "-" if result is baseline else f"{difference(result, baseline):.1e}",
        )
    return table


def print_results(results: dict[str, Result]) -> None:
    print("\nstep: median time, the first two left out. peak memory: the most held above what was held before step 1.")
    print(f"first step: compiles. difference: the largest between this loss curve and that of {next(iter(results))}.\n")
    Console(width=max(100, CONSOLE.width)).print(table_of(results))
    for result in results.values():
        if result.report:
            print(f"What fuse did with the step:\n{result.report}")


def run(options: argparse.Namespace, compare: Callable[[argparse.Namespace], int],
        train_arm: Callable[[str, argparse.Namespace], Result]) -> int:
    """A script's exit code: it compares the arms or, started again for one of them, trains that one."""
    if options.worker is None:
        return compare(options)
    (arm,) = options.arms
    options.worker.write_text(json.dumps(asdict(train_arm(arm, options))))
    return 0


def conclude(found: dict[str, Result | None], bound: float, options: argparse.Namespace) -> int:
    """Prints the arms, writes them to `options.json`, and returns the exit code: 1 if an arm failed or if the losses of two
    are more than `bound` apart."""
    results = {arm: result for arm, result in found.items() if result is not None}
    apart = 0.0
    if results:
        print_results(results)
        apart = max(difference(result, next(iter(results.values()))) for result in results.values())
        print(f"the losses are {'at most' if apart <= bound else 'MORE THAN'} {bound:g} apart")
    if options.json:
        arms = {arm: asdict(result) for arm, result in results.items()}
        options.json.write_text(json.dumps({"settings": settings(options), "torch": torch.__version__, "arms": arms}, indent=1))
    return 0 if len(results) == len(found) and apart <= bound else 1


def arm_names(text: str) -> list[str]:
    names = text.split(",")
    if unknown := set(names) - set(ARMS):
        raise argparse.ArgumentTypeError(f"unknown arm {', '.join(sorted(unknown))}: choose from {', '.join(ARMS)}")
    return names


def add_arguments(parser: argparse.ArgumentParser, sizes: dict[str, int],
                  dtypes: tuple[str, ...] = ("float32", "bfloat16")) -> None:
    """What every comparison lets the user choose, and the sizes of this one with their defaults."""
    parser.add_argument("--arms", type=arm_names, default=list(ARMS), help="comma-separated (default: all three)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=dtypes, default="float32")
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write every loss and time to this file")
    parser.add_argument("--lr", type=float, default=1e-3, help="learning rate of AdamW (default %(default)s)")
    for name, value in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=value, help="(default %(default)s)")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)


def checked(parser: argparse.ArgumentParser, options: argparse.Namespace, sizes: dict[str, int]) -> argparse.Namespace:
    if options.steps < 3 or min(vars(options)[name] for name in sizes) < 1:
        parser.error("--steps must be at least 3 (one compiles, one warms up) and every size at least 1")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: this torch sees no CUDA device")
    return options


def parsed_or_quick(parser: argparse.ArgumentParser, sizes: dict[str, int], quick: dict[str, int], arguments: list[str] | None,
                    dtypes: tuple[str, ...] = ("float32", "bfloat16")) -> argparse.Namespace:
    """The options of a script that has a smoke test: --quick takes the place of sizes."""
    parser.add_argument("--quick", action="store_true", help="a smoke test: tiny sizes, in which there is nothing to gain")
    add_arguments(parser, sizes, dtypes)
    options = parser.parse_args(arguments)
    if options.quick:
        vars(options).update(quick)
    return checked(parser, options, sizes)


def settings(options: argparse.Namespace) -> dict[str, object]:
    """The options that decide the numbers, for a report."""
    return {name: value for name, value in vars(options).items() if name not in ("json", "worker")}
