"""What the first step costs: fuse against Inductor, with empty and with warm caches, and where nothing is fused.

    python benchmarks/compile_time.py --repeat 3 --json results/compile_time.json

    head     a linear head with cross-entropy: one region
    mlp      two layers and a squared error: nothing amplifies
    conv     a small convolutional net: no contraction that fuse looks at
    llama    transformers' LlamaForCausalLM with 8 layers and its loss; --workloads llama, since it takes minutes
    llama-eager   the same with attention written out: nine regions

Every number comes from a process of its own: seconds from the call of torch.compile to the end of the first backward, less
those of the second step. `cold` starts from empty caches, `warm` from those that the cold process left. CPU seconds count
the process and the compilers it ran, which is steadier than the clock on a machine that others use; the arms take turns and
the least of the repetitions is shown. `over` is the difference to Inductor's row, beside the goal for it; of models that is
a part of Inductor's CPU seconds.
"""
from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ARMS = ("inductor", "fuse")
WORKLOADS = ("head", "mlp", "conv")
MODELS = {"llama": "sdpa", "llama-eager": "eager"}
PARTS = {"cold": 0.15, "warm": 0.05}     # of Inductor's time: the goals of the models
GOALS = {("head", "cold"): 3.0, ("head", "warm"): 0.5, ("mlp", "cold"): 0.1, ("mlp", "warm"): 0.1, ("conv", "cold"): 0.1,
         ("conv", "warm"): 0.1}


def workload(name: str, device: str):
    """(function, arguments); the function returns a scalar loss."""
    import torch
    import torch.nn.functional as F

    torch.manual_seed(0)
    if name in MODELS:
        return language_model(MODELS[name], device)
    if name == "head":
        def loss(h, weight, y):
            return F.cross_entropy(F.linear(h.tanh(), weight), y)
        return loss, (torch.randn(256, 128, device=device, requires_grad=True),
                      torch.randn(16384, 128, device=device, requires_grad=True), torch.randint(0, 16384, (256,), device=device))
    nn = torch.nn
    if name == "mlp":
        model, x = nn.Sequential(nn.Linear(256, 256), nn.GELU(), nn.Linear(256, 256)), torch.randn(512, 256, device=device)
    else:
        model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1))
        x = torch.randn(4, 3, 32, 32, device=device)
    model = model.to(device)
    return (lambda x: model(x).square().mean()), (x,)


def language_model(attention: str, device: str):
    """Sizes of the repository's demo, but for the number of layers."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    config = transformers.LlamaConfig(vocab_size=32000, hidden_size=256, intermediate_size=682, num_hidden_layers=8,
                                      num_attention_heads=4, max_position_embeddings=256, attn_implementation=attention)
    model = transformers.LlamaForCausalLM(config).to(device).train()
    return (lambda x: model(input_ids=x, labels=x, use_cache=False).loss), (torch.randint(32000, (8, 256), device=device),)


def cpu_seconds() -> float:
    return sum(r.ru_utime + r.ru_stime for r in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))


def spent(work: Callable[[], object]) -> tuple[float, float]:
    """(clock, CPU) seconds."""
    wall, cpu = time.perf_counter(), cpu_seconds()
    work()
    return time.perf_counter() - wall, cpu_seconds() - cpu


def first_step(name: str, arm: str, device: str) -> dict[str, float]:
    """In a fresh process."""
    import torch

    torch.set_num_threads(1)
    function, args = workload(name, device)
    compiled: list[Callable[..., torch.Tensor]] = []

    def first() -> None:
        compiled.append(torch.compile(function, backend=arm))
        compiled[0](*args).backward()
    begun = spent(first)
    again = spent(lambda: compiled[0](*args).backward())
    return {"wall_s": begun[0] - again[0], "cpu_s": begun[1] - again[1]}


def in_fresh_process(name: str, arm: str, device: str, caches: Path) -> dict[str, float]:
    """One compile thread: workers would outlive the measurement and hide their CPU time."""
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor"), "FUSE_CACHE_DIR": str(caches / "fuse"),
                   "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    done = subprocess.run([sys.executable, __file__, "--only", name, arm, "--device", device], capture_output=True, text=True,
                          env=environment)
    if done.returncode:
        raise RuntimeError(done.stderr)
    record: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return record


def measure(name: str, a: argparse.Namespace) -> list[dict[str, object]]:
    """One row for each kind of caches and each arm."""
    samples: dict[tuple[str, str], list[dict[str, float]]] = {}
    for _ in range(a.repeat):
        for arm in a.arms:
            with tempfile.TemporaryDirectory() as folder:
                for caches in ("cold", "warm"):
                    samples.setdefault((caches, arm), []).append(in_fresh_process(name, arm, a.device, Path(folder)))
    least = {key: {k: min(s[k] for s in taken) for k in taken[0]} for key, taken in samples.items()}
    rows: list[dict[str, object]] = []
    for caches, arm in [(caches, arm) for caches in ("cold", "warm") for arm in a.arms]:
        row, base = least[caches, arm], least.get((caches, "inductor"))
        over = {f"{k}_over": row[k] - base[k] for k in row} if base and arm != "inductor" else {}
        goal = {"goal_s": PARTS[caches] * base["cpu_s"] if name in MODELS else GOALS[name, caches]} if base and over else {}
        rows.append({"workload": name, "caches": caches, "arm": arm,
                     **{k: round(v, 3) for k, v in {**row, **over, **goal}.items()}})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", type=lambda s: s.split(","), default=list(WORKLOADS))
    parser.add_argument("--arms", type=lambda s: s.split(","), default=list(ARMS))
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--json", type=Path, help="write the record here")
    parser.add_argument("--only", nargs=2, metavar=("WORKLOAD", "ARM"), help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.only:
        print(json.dumps(first_step(*a.only, a.device)))
        return
    rows: list[dict[str, object]] = []
    columns = ["workload", "caches", "arm", "wall_s", "cpu_s", "wall_s_over", "cpu_s_over", "goal_s"]
    print("".join(f"{c:>13}" for c in columns))
    for name in a.workloads:
        for row in measure(name, a):
            rows.append(row)
            print("".join(f"{row.get(c, '')!s:>13}" for c in columns), flush=True)
    if a.json:
        import torch

        a.json.parent.mkdir(parents=True, exist_ok=True)
        a.json.write_text(json.dumps({"benchmark": "compile_time", "device": a.device, "torch": torch.__version__,
                                      "machine": platform.processor(), "repeat": a.repeat, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
