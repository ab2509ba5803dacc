"""Train a small Llama three ways - eager, torch.compile, torch.compile with fuse - and compare speed, memory and loss.

    python examples/train_lm.py
    python examples/train_lm.py --device cuda --dtype bfloat16 --batch 16 --seq 1024
    python examples/train_lm.py --arms eager,fuse --steps 50 --json result.json

The model is transformers' own LlamaForCausalLM, made from a configuration; the text is what every Python carries.
Nothing is downloaded. Each arm runs in a fresh process with empty compile caches, the same seed and the same batches,
so that its peak memory and its compile time are its own.
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
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

try:
    import torch
    import transformers
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.progress import track
    from rich.table import Table

    from corpus import load_tokens
except ImportError as error:
    sys.exit(f"{error}. The demo needs more packages than fuse itself: pip install 'torch-fuse[demo]', or `make demo`.")

ARMS = ("eager", "inductor", "fuse")
VOCABULARY = 32_000
MIB = 2**20
CONSOLE = Console(stderr=True)


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


def build_model(options: argparse.Namespace) -> torch.nn.Module:
    transformers.logging.set_verbosity_error()
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=options.hidden,
        intermediate_size=options.hidden * 8 // 3,
        num_hidden_layers=options.layers,
        num_attention_heads=max(1, options.hidden // 64),
        max_position_embeddings=options.seq,
        attn_implementation="sdpa",
    )
    model = transformers.LlamaForCausalLM(config)
    return model.to(options.device, getattr(torch, options.dtype)).train()


def batches(options: argparse.Namespace) -> Iterator[torch.Tensor]:
    """[batch, seq] windows of the corpus, at the same places for every arm."""
    tokens = torch.from_numpy(load_tokens(VOCABULARY)).long()
    places = torch.Generator().manual_seed(1)
    for _ in range(options.steps):
        starts = torch.randint(len(tokens) - options.seq, (options.batch,), generator=places)
        yield torch.stack([tokens[start : start + options.seq] for start in starts.tolist()]).to(options.device)


def loss_function(model: torch.nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    def loss_of(x: torch.Tensor) -> torch.Tensor:
        # Only the loss leaves: what leaves a compiled function has to be stored, and the logits are the largest value.
        return model(input_ids=x, labels=x, use_cache=False).loss

    return loss_of


def step() -> tuple[Callable[[torch.Tensor], torch.Tensor], tuple[torch.Tensor]]:
    """What is compiled, for `fuse inspect examples/train_lm.py:step`."""
    options = parse([])
    tokens = torch.randint(VOCABULARY, (options.batch, options.seq), device=options.device)
    return loss_function(build_model(options)), (tokens,)


def train(arm: str, options: argparse.Namespace) -> Result:
    torch.manual_seed(0)
    model = build_model(options)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr)
    loss_of = loss_function(model)
    compiled = loss_of if arm == "eager" else torch.compile(loss_of, backend=arm, fullgraph=True)
    losses, seconds, memory = [], [], PeakMemory(options.device)
    for index, x in enumerate(track(batches(options), f"{arm:>8}", options.steps, console=CONSOLE)):
        if index == 1:
            memory.start()  # weights, optimiser state and compiled code are there; what comes now belongs to the step
        start = time.perf_counter()
        loss = compiled(x)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())  # waits for the device
        seconds.append(time.perf_counter() - start)
    return Result(losses, seconds, memory.read(), explain(loss_of, x) if arm == "fuse" else "")


def explain(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> str:
    import fuse

    return str(fuse.explain(function, x))


def run_in_fresh_process(arm: str) -> Result | None:
    """The same command for one arm alone. Its progress and its errors go to the terminal; None if it failed."""
    with tempfile.TemporaryDirectory(prefix="fuse-demo-") as folder:
        output = Path(folder) / "result.json"
        environment = {
            "TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor",
            "FUSE_CACHE_DIR": f"{folder}/fuse",
            "HF_HUB_OFFLINE": "1",
            "MALLOC_MMAP_THRESHOLD_": str(16 * MIB),  # what is freed is given back: the peak holds no fragmentation
        }
        command = [sys.executable, __file__, *sys.argv[1:], "--arms", arm, "--worker", str(output)]
        finished = subprocess.run(command, env=os.environ | environment, check=False)
        if finished.returncode == 0:
            return Result(**json.loads(output.read_text()))
    CONSOLE.print(f"[red]{arm} failed[/] with exit code {finished.returncode}; its error is printed above")
    return None


def table_of(results: dict[str, Result]) -> Table:
    baseline = next(iter(results.values()))
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("arm", "step", "relative", "peak memory", "first step", "loss", "difference"):
        table.add_column(heading, justify="left" if heading == "arm" else "right", no_wrap=True)
    for arm, result in results.items():
        difference = max(abs(a - b) for a, b in zip(result.losses, baseline.losses, strict=True))
        table.add_row(
            arm,
            f"{result.step * 1000:.0f} ms",
            f"{result.step / baseline.step:.2f}x",
            f"{result.peak / MIB:.0f} MiB",
            f"{result.seconds[0]:.1f} s",
            f"{result.losses[0]:.3f} -> {result.losses[-1]:.3f}",
            "-" if result is baseline else f"{difference:.1e}",
        )
    return table


def compare(options: argparse.Namespace) -> int:
    rows, logits = options.batch * options.seq, options.batch * options.seq * VOCABULARY * 4
    CONSOLE.print(f"{rows} tokens x {VOCABULARY} words a step: the logits alone are {logits / MIB:.0f} MiB in float32.")
    load_tokens(VOCABULARY)
    results = {arm: result for arm in options.arms if (result := run_in_fresh_process(arm))}
    if results:
        print_results(results)
    if options.json:
        settings = {name: value for name, value in vars(options).items() if name not in ("json", "worker")}
        versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        arms = {arm: asdict(result) for arm, result in results.items()}
        options.json.write_text(json.dumps({"settings": settings, "versions": versions, "arms": arms}, indent=1))
    return 0 if len(results) == len(options.arms) else 1


def print_results(results: dict[str, Result]) -> None:
    print("\nstep: median time, the first two left out. peak memory: the most held above what was held before step 1.")
    print(f"first step: compiles. difference: the largest between this loss curve and that of {next(iter(results))}.\n")
    Console(width=max(100, CONSOLE.width)).print(table_of(results))
    for result in results.values():
        if result.report:
            print(f"What fuse did with the step:\n{result.report}")


def arm_names(text: str) -> list[str]:
    names = text.split(",")
    if unknown := set(names) - set(ARMS):
        raise argparse.ArgumentTypeError(f"unknown arm {', '.join(sorted(unknown))}: choose from {', '.join(ARMS)}")
    return names


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", type=arm_names, default=list(ARMS), help="comma-separated (default: all three)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write every loss and time to this file")
    parser.add_argument("--lr", type=float, default=1e-3, help="learning rate of AdamW (default %(default)s)")
    sizes = {"steps": 12, "batch": 8, "seq": 256, "hidden": 256, "layers": 4}
    for name, value in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=value, help="(default %(default)s)")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.steps < 3 or min(vars(options)[name] for name in sizes) < 1:
        parser.error("--steps must be at least 3 (one compiles, one warms up) and every size at least 1")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: this torch sees no CUDA device")
    return options


def main() -> int:
    options = parse()
    if options.worker is None:
        return compare(options)
    (arm,) = options.arms
    options.worker.write_text(json.dumps(asdict(train(arm, options))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
