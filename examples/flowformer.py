"""Train two small Flowformers three ways - eager, torch.compile, torch.compile with fuse - and compare them.

    python examples/flowformer.py
    python examples/flowformer.py --tasks digits --pixels 192 --steps 50
    python examples/flowformer.py --quick

digits    which digit is it? scikit-learn's handwritten digits as sequences of pixels, bidirectional Flow-Attention
text      what is the next byte? the text that every Python carries, causal Flow-Attention

Attention is written in plain PyTorch, after the Flowformer paper (arXiv 2202.06258): each query is a sink and each key a
source of a flow that is conserved in both, so that its cost is linear in the length. Nothing is downloaded. Each arm runs
in a fresh process with empty compile caches, the same seed and the same batches. The exit code is 1 if an arm fails or if
its losses are further from eager's than the bound that is printed.
"""
from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict

try:
    import torch
    import torch.nn.functional as F
    from sklearn.datasets import load_digits
    from torch import Tensor, nn

    from arms import (
        CONSOLE,
        Batch,
        Result,
        difference,
        parsed_or_quick,
        print_results,
        run,
        run_in_fresh_process,
        settings,
        train,
    )
    from corpus import load_bytes
except ImportError as error:
    sys.exit(f"{error}. The example needs more packages than fuse itself: pip install 'torch-fuse[demo]'.")

EPS = 1e-6
TASKS = ("digits", "text")
BOUNDS = {"float32": 1e-3, "bfloat16": 5e-2}  # how far the losses of two arms may be from each other at any step
TEXT = 400_000  # bytes of it


def flow(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """[B, H, L, D] each: what flows in and out of each position is conserved in turn, then sources compete for sinks."""
    q, k = q.sigmoid(), k.sigmoid()
    incoming = 1 / torch.einsum("nhld,nhd->nhl", q + EPS, k.sum(dim=2) + EPS)
    outgoing = 1 / torch.einsum("nhld,nhd->nhl", k + EPS, q.sum(dim=2) + EPS)
    sink = torch.einsum("nhld,nhd->nhl", q + EPS, (k * outgoing[..., None]).sum(dim=2) + EPS)
    source = torch.einsum("nhld,nhd->nhl", k + EPS, (q * incoming[..., None]).sum(dim=2) + EPS).clamp(-1.0, 1.0)
    competition = torch.softmax(source, dim=-1) * k.shape[2]
    kv = torch.einsum("nhld,nhlm->nhdm", k, v * competition[..., None])
    return torch.einsum("nhld,nhdm->nhlm", q * incoming[..., None], kv) * sink.sigmoid()[..., None]


def flow_causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The same with every sum over the positions so far; as written it stores a state of [B, H, L, D, D] twice."""
    q, k = q.sigmoid(), k.sigmoid()
    n = torch.arange(1, q.shape[2] + 1, dtype=q.dtype, device=q.device)
    incoming = n / torch.einsum("nhld,nhld->nhl", q + EPS, k.cumsum(dim=2) + EPS)
    outgoing = n / torch.einsum("nhld,nhld->nhl", k + EPS, q.cumsum(dim=2) + EPS)
    sink = torch.einsum("nhld,nhld->nhl", q + EPS, (k * outgoing[..., None]).cumsum(dim=2) + EPS) / n
    source = torch.einsum("nhld,nhld->nhl", k + EPS, (q * incoming[..., None]).cumsum(dim=2) + EPS) / n
    e = torch.exp(source.clamp(-1.0, 1.0))
    competition = e / e.cumsum(dim=-1) * n
    kv = torch.einsum("nhld,nhlm->nhldm", k, v * competition[..., None]).cumsum(dim=2)
    return torch.einsum("nhld,nhldm->nhlm", q * (incoming / n)[..., None], kv) * sink.sigmoid()[..., None]


class Block(nn.Module):
    def __init__(self, hidden: int, attention: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.heads, self.attention = max(1, hidden // 32), attention
        self.before, self.between = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.qkv, self.out = nn.Linear(hidden, 3 * hidden), nn.Linear(hidden, hidden)
        self.mlp = nn.Sequential(nn.Linear(hidden, 2 * hidden), nn.GELU(), nn.Linear(2 * hidden, hidden))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.before(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(self.attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.mlp(self.between(x))


class Flowformer(nn.Module):
    """Of pixels [B, L, 1] to one of ten digits, or of bytes [B, L] to the byte after each."""

    def __init__(self, options: argparse.Namespace, task: str) -> None:
        super().__init__()
        self.digits = task == "digits"
        length = options.pixels**2 if self.digits else options.seq
        self.embed = nn.Linear(1, options.hidden) if self.digits else nn.Embedding(256, options.hidden)
        self.places = nn.Parameter(torch.randn(length, options.hidden) * 0.02)
        self.blocks = nn.Sequential(*(Block(options.hidden, flow if self.digits else flow_causal) for _ in range(options.layers)))
        self.norm, self.head = nn.LayerNorm(options.hidden), nn.Linear(options.hidden, 10 if self.digits else 256)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x = self.norm(self.blocks(self.embed(x) + self.places))
        logits = self.head(x.mean(dim=1) if self.digits else x)
        return F.cross_entropy(logits.flatten(0, -2), y.flatten())


def batches(options: argparse.Namespace, task: str) -> Iterator[Batch]:
    """The same for every arm."""
    places = torch.Generator().manual_seed(1)
    for x, y in _digits(options, places) if task == "digits" else _text(options, places):
        dtype = getattr(torch, options.dtype) if x.is_floating_point() else x.dtype
        yield x.to(options.device, dtype), y.to(options.device)


def _digits(options: argparse.Namespace, places: torch.Generator) -> Iterator[Batch]:
    """Images of 8 x 8 pixels, enlarged, line by line."""
    found = load_digits()
    images, labels = torch.from_numpy(found.images).float()[:, None] / 16, torch.from_numpy(found.target).long()
    for _ in range(options.steps):
        chosen = torch.randint(len(labels), (options.batch,), generator=places)
        large = F.interpolate(images[chosen], size=(options.pixels, options.pixels), mode="bilinear")
        yield large.flatten(1)[..., None], labels[chosen]


def _text(options: argparse.Namespace, places: torch.Generator) -> Iterator[Batch]:
    text = torch.from_numpy(load_bytes(TEXT).copy()).long()
    for _ in range(options.steps):
        starts = torch.randint(len(text) - options.seq, (options.batch,), generator=places)
        windows = torch.stack([text[start : start + options.seq + 1] for start in starts.tolist()])
        yield windows[:, :-1], windows[:, 1:]


def train_arm(arm: str, task: str, options: argparse.Namespace) -> Result:
    torch.manual_seed(0)
    model = Flowformer(options, task).to(options.device, getattr(torch, options.dtype)).train()
    return train(arm, model, model.parameters(), batches(options, task), options)


def compare(options: argparse.Namespace) -> int:
    bound, passed, report = BOUNDS[options.dtype], True, {}
    for task in options.tasks:
        length = options.pixels**2 if task == "digits" else options.seq
        CONSOLE.print(f"{task}: {options.batch} sequences of {length} positions a step")
        results = {arm: result for arm in options.arms if (result := run_in_fresh_process(arm, "--tasks", task))}
        if results:
            print_results(results)
            baseline = next(iter(results.values()))
            apart = max(difference(result, baseline) for result in results.values())
            print(f"{task}: the losses are {'at most' if apart <= bound else 'MORE THAN'} {bound:g} apart\n")
            passed &= apart <= bound
        passed &= len(results) == len(options.arms)
        report[task] = {arm: asdict(result) for arm, result in results.items()}
    if options.json:
        found = {"settings": settings(options), "torch": torch.__version__, "tasks": report}
        options.json.write_text(json.dumps(found, indent=1))
    return 0 if passed else 1


def task_names(text: str) -> list[str]:
    names = text.split(",")
    if unknown := set(names) - set(TASKS):
        raise argparse.ArgumentTypeError(f"unknown task {', '.join(sorted(unknown))}: choose from {', '.join(TASKS)}")
    return names


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = {"steps": 6, "batch": 8, "pixels": 128, "seq": 512, "hidden": 64, "layers": 1}
    parser.add_argument("--tasks", type=task_names, default=list(TASKS), help="comma-separated (default: both)")
    quick = {"steps": 3, "batch": 2, "pixels": 10, "seq": 24, "hidden": 32}
    return parsed_or_quick(parser, sizes, quick, arguments)


if __name__ == "__main__":
    sys.exit(run(parse(), compare, lambda arm, options: train_arm(arm, options.tasks[0], options)))
