"""Whole models as they are: transformers' own code and two plain ones, compiled and trained for a step. Writes docs/models.md.

    python benchmarks/models.py                        every model, the page is written anew
    python benchmarks/models.py --models llama,t5      these alone, printed

Every model has random weights, 2 layers and `model(input_ids, labels=...)` compiled unmodified, logits among its outputs; the
loss is differentiated. One fresh process a model. Times: medians of interleaved steps, as a share of Inductor's. Peaks: what
the process grew to in one warm step above what it held, gradients included. Right: the loss and the gradient of every
parameter err against float64 at most twice as much as eager mode does, plus 2e-6 of the largest entry.
"""
from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from measure import child, interleaved, machine, peak_above
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
ROWS, LENGTH, WORDS, WIDTH = 4, 256, 16384, 64
ARMS = ("eager", "inductor", "fuse")
SLACK = 2e-6
Step = Callable[[], Any]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, t, _ = x.shape
        q, k, v = (z.view(b, t, 4, -1).transpose(1, 2) for z in self.qkv(self.norms[0](x)).split(WIDTH, -1))
        scores = (q @ k.transpose(-2, -1)) * k.shape[-1] ** -0.5
        scores = scores.masked_fill(torch.ones(t, t, dtype=torch.bool).triu(1), float("-inf"))
        x = x + self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, t, -1))
        return x + self.mlp(self.norms[1](x))


class Plain(nn.Module):
    """nanoGPT's way: `logits, loss = model(idx, targets)`. With `tied`, SASRec's: items are scored by their embeddings and
    the padding item is left out of the loss."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.blocks, self.norm = nn.Sequential(Block(), Block()), nn.LayerNorm(WIDTH)
        self.head = None if tied else nn.Linear(WIDTH, WORDS, bias=False)

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.words(input_ids) + self.places(torch.arange(input_ids.shape[1]))
        x = self.norm(self.blocks(x))
        logits = x @ self.words.weight.T if self.head is None else self.head(x)
        loss = F.cross_entropy(logits.view(-1, logits.size(-1)), labels.view(-1), ignore_index=0 if self.head is None else -1)
        return logits, loss


SMALL = {"vocab_size": WORDS, "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4,
         "intermediate_size": 2 * WIDTH, "max_position_embeddings": LENGTH, "use_cache": False}
KEYS = {"num_key_value_heads": 2}


def of(model: str, config: str, **more: Any) -> nn.Module:
    import transformers

    found: nn.Module = getattr(transformers, model)(getattr(transformers, config)(**more))
    return found


MODELS: dict[str, Callable[[], nn.Module]] = {
    "Llama": lambda: of("LlamaForCausalLM", "LlamaConfig", **SMALL, **KEYS),
    "Qwen3": lambda: of("Qwen3ForCausalLM", "Qwen3Config", **SMALL, **KEYS, head_dim=16),
    "Gemma2": lambda: of("Gemma2ForCausalLM", "Gemma2Config", **SMALL, **KEYS, head_dim=16, sliding_window=64),
    "Granite": lambda: of("GraniteForCausalLM", "GraniteConfig", **SMALL, **KEYS, logits_scaling=8.0),
    "Cohere": lambda: of("CohereForCausalLM", "CohereConfig", **SMALL, **KEYS),
    "GPT-2": lambda: of("GPT2LMHeadModel", "GPT2Config", vocab_size=WORDS, n_embd=WIDTH, n_layer=2, n_head=4, n_positions=LENGTH,
                        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False, bos_token_id=0, eos_token_id=0),
    "BERT": lambda: of("BertForMaskedLM", "BertConfig", **SMALL, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0),
    "T5": lambda: of("T5ForConditionalGeneration", "T5Config", vocab_size=WORDS, d_model=WIDTH, d_kv=16, d_ff=2 * WIDTH,
                     num_layers=2, num_heads=4, dropout_rate=0.0, decoder_start_token_id=0, use_cache=False),
    "Mamba": lambda: of("MambaForCausalLM", "MambaConfig", vocab_size=WORDS, hidden_size=WIDTH, num_hidden_layers=2,
                        state_size=8, use_cache=False),
    "nanoGPT": lambda: Plain(tied=False),
    "SASRec": lambda: Plain(tied=True),
}
SHORT = {"Mamba": 16}      # tokens: on a CPU its recurrence is unrolled while it is captured


def inputs(name: str) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    length = SHORT.get(name, LENGTH)
    ids, labels = (torch.randint(1, WORDS, (ROWS * LENGTH // length, length), generator=g) for _ in range(2))
    return {"input_ids": ids, "labels": labels}


def loss_of(out: Any) -> torch.Tensor:
    return out[1] if isinstance(out, tuple) else out.loss


def trained(call: Callable[..., Any], model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """One step, up to the gradients."""
    model.zero_grad()
    loss = loss_of(call(**batch))
    loss.backward()
    return loss.detach()


def values(call: Callable[..., Any], model: nn.Module, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    found = {"loss": trained(call, model, batch)}
    return found | {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def right(model: nn.Module, calls: dict[str, Callable[..., Any]], batch: dict[str, torch.Tensor]) -> bool:
    sys.path.append(str(ROOT))
    from tests.frontend.tracing import Float64

    eager, got, wide = values(model, model, batch), values(calls["fuse"], model, batch), copy.deepcopy(model).double()
    torch.set_default_dtype(torch.float64)
    with Float64():
        want = values(wide, wide, batch)
    torch.set_default_dtype(torch.float32)
    largest = max(float(w.abs().max()) for w in want.values())

    def error(x: dict[str, torch.Tensor], n: str) -> float:
        return float((x[n] - want[n]).abs().max() / max(float(want[n].abs().max()), 1e-6 * largest))
    return eager.keys() == got.keys() == want.keys() and all(error(got, n) <= 2 * error(eager, n) + SLACK for n in want)


def measured(name: str, repeat: int) -> dict[str, Any]:
    """What one model gives, in this (fresh) process."""
    import fuse

    torch.manual_seed(0)
    model, batch = MODELS[name]().train(), inputs(name)
    report = fuse.explain(model, **batch)
    torch._dynamo.reset()
    calls: dict[str, Callable[..., Any]] = {"eager": model}
    calls |= {arm: torch.compile(model, backend=arm) for arm in ARMS[1:]}
    steps: dict[str, Step] = {arm: partial(trained, call, model, batch) for arm, call in calls.items()}
    peaks = {arm: round(peak_above(step, model.zero_grad, "cpu")) for arm, step in steps.items()}
    times = {arm: statistics.median(t) for arm, t in interleaved(steps, repeat, "cpu").items()}
    return {"regions": Counter(k for r in report.regions for k in r.kinds), "graphs": len(report.graphs),
            "misses": Counter(m.code for m in report.misses), "breaks": [b.splitlines()[0] for b in report.graph_breaks],
            "stored": sum(n.code == "STORED" for r in report.regions for n in r.notes),
            "right": right(model, calls, batch), "peaks": peaks, "milliseconds": {a: round(t, 1) for a, t in times.items()}}


def counted(found: dict[str, int]) -> str:
    return ", ".join(f"{n} {k}" for k, n in found.items()) or "none"


def row(name: str, m: dict[str, Any]) -> str:
    peaks, times = m["peaks"], m["milliseconds"]
    cells = [name, counted(m["regions"]), "yes" if m["stored"] else "no", counted(m["misses"]), str(len(m["breaks"])),
             "yes" if m["right"] else "**no**", " / ".join(str(peaks[a]) for a in ARMS),
             f"{times['fuse'] / times['inductor']:.2f}"]
    return "| " + " | ".join(cells) + " |"


def page(found: dict[str, dict[str, Any]], threads: int) -> str:
    head = ["model", "regions", "logits stored", "declined", "graph breaks", "right", "peak MB: " + " / ".join(ARMS),
            "time of Inductor's"]
    breaks = {f"- {name}: {text}" for name, m in found.items() for text in m["breaks"]}
    return "\n".join([
        "# Models", "", "Made by `python benchmarks/models.py`, which says what the columns mean.", "",
        f"{ROWS * LENGTH} tokens, {WORDS} words, width {WIDTH}, 2 layers, float32, {threads} threads of {machine()},",
        f"torch {torch.__version__}.", "", "| " + " | ".join(head) + " |", "|" + "---|" * len(head),
        *(row(name, m) for name, m in found.items()), "", *(["Graph breaks:", "", *sorted(breaks), ""] if breaks else [])])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=lambda s: s.split(","))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--only", metavar="MODEL", help=argparse.SUPPRESS)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    if a.only:
        print(json.dumps(measured(a.only, a.repeat)))
        return
    found: dict[str, dict[str, Any]] = {}
    for name in a.models or MODELS:
        found[name] = child(__file__, [f"--only={name}", f"--threads={a.threads}", f"--repeat={a.repeat}"])
        print(row(name, found[name]), flush=True)
    if not a.models:
        (ROOT / "docs/models.md").write_text(page(found, a.threads))


if __name__ == "__main__":
    main()
