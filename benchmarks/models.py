"""Whole models as they are: transformers' own code, two plain ones, and three in which fuse has nothing to do.

    python benchmarks/models.py                        measures every model, writes results/models.json and docs/models.md
    python benchmarks/models.py --models Llama,T5      measures these anew and writes both
    python benchmarks/models.py --models=              writes docs/models.md from the record

Every model has random weights and is compiled unmodified; transformers' have 2 layers, eager attention, and give their logits
beside the loss of `model(input_ids, labels=...)`. The loss is differentiated. One fresh process a model.

    regions    by kind, as `fuse.explain` counts them; declined: its refusals by code, without what is merely small
    right      the loss and the gradient of every parameter err against float64 at most twice as much as eager mode or Inductor
               alone does, whichever errs more, plus 2e-6 of the largest entry
    peak       MB that the process grew to in one warm step above what it held, gradients included
    time       of a step with fuse over one with Inductor just before it: the median of all pairs, arms in turns
    compile    CPU seconds of the first step less those of the second, from empty caches, over Inductor's: the least of three
"""
from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from compile_time import spent
from measure import child, interleaved, peak_above, write
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
RECORD, PAGE = ROOT / "benchmarks/results/models.json", ROOT / "docs/models.md"
ROWS, LENGTH, WORDS, WIDTH = 2, 512, 16384, 64
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


class Images(nn.Module):
    """A net over images, and the loss of its classes."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(self.net(images), labels)


class Residual(nn.Module):
    def __init__(self, given: int, wide: int) -> None:
        super().__init__()
        stride = 1 if given == wide else 2
        self.one, self.two = nn.Conv2d(given, wide, 3, stride, 1, bias=False), nn.Conv2d(wide, wide, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(wide) for _ in range(2))
        self.past = nn.Conv2d(given, wide, 1, stride, bias=False) if stride > 1 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norms[1](self.two(self.norms[0](self.one(x)).relu()))
        return (y + self.past(x)).relu()


class Patches(nn.Module):
    """A small vision transformer with scaled_dot_product_attention."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.cut, self.places = nn.Conv2d(3, width, 4, 4), nn.Parameter(torch.randn(64, width) / 8)
        layer = partial(nn.TransformerEncoderLayer, width, 4, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.layers, self.head = nn.Sequential(layer(), layer()), nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(self.layers(self.cut(x).flatten(2).transpose(1, 2) + self.places).mean(1))
        return found


def residual() -> nn.Module:
    widths = (32, 32, 64, 128)
    blocks = [Residual(a, b) for a, b in pairwise(widths)]
    return nn.Sequential(nn.Conv2d(3, 32, 3, 1, 1), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))


def layers() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3072, 1024), nn.GELU(), nn.Linear(1024, 1024), nn.GELU(), nn.Linear(1024, 10))


SMALL = {"vocab_size": WORDS, "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4,
         "intermediate_size": 2 * WIDTH, "max_position_embeddings": LENGTH, "use_cache": False, "attn_implementation": "eager"}
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
    "Cohere": lambda: of("CohereForCausalLM", "CohereConfig", **SMALL, **KEYS, bos_token_id=0, eos_token_id=0),
    "GPT-2": lambda: of("GPT2LMHeadModel", "GPT2Config", vocab_size=WORDS, n_embd=WIDTH, n_layer=2, n_head=4, n_positions=LENGTH,
                        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False, bos_token_id=0, eos_token_id=0,
                        attn_implementation="eager"),
    "BERT": lambda: of("BertForMaskedLM", "BertConfig", **SMALL, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0),
    "T5": lambda: of("T5ForConditionalGeneration", "T5Config", vocab_size=WORDS, d_model=WIDTH, d_kv=16, d_ff=2 * WIDTH,
                     num_layers=2, num_heads=4, dropout_rate=0.0, decoder_start_token_id=0, use_cache=False,
                     attn_implementation="eager"),
    "Mamba": lambda: of("MambaForCausalLM", "MambaConfig", vocab_size=WORDS, hidden_size=WIDTH, num_hidden_layers=2,
                        state_size=8, use_cache=False),
    "nanoGPT": lambda: Plain(tied=False),
    "SASRec": lambda: Plain(tied=True),
}
SHORT = {"Mamba": 16}      # tokens: on a CPU its recurrence is unrolled while it is captured
NOTHING: dict[str, Callable[[], nn.Module]] = {
    "CNN": lambda: Images(residual()), "MLP": lambda: Images(layers()), "ViT": lambda: Images(Patches())}


def inputs(name: str) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    if name in NOTHING:
        return {"images": torch.randn(32, 3, 32, 32, generator=g), "labels": torch.randint(0, 10, (32,), generator=g)}
    length = SHORT.get(name, LENGTH)
    ids, labels = (torch.randint(1, WORDS, (ROWS * LENGTH // length, length), generator=g) for _ in range(2))
    return {"input_ids": ids, "labels": labels}


def loss_of(out: Any) -> torch.Tensor:
    return out if isinstance(out, torch.Tensor) else out[1] if isinstance(out, tuple) else out.loss


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

    eager, plain, got = (values(calls[arm], model, batch) for arm in ARMS)
    wide = copy.deepcopy(model).double()
    batch = {k: t.double() if t.is_floating_point() else t for k, t in batch.items()}
    torch.set_default_dtype(torch.float64)
    with Float64():
        want = values(wide, wide, batch)
    torch.set_default_dtype(torch.float32)
    largest = max(float(w.abs().max()) for w in want.values())

    def error(x: dict[str, torch.Tensor], n: str) -> float:
        return float((x[n] - want[n]).abs().max() / max(float(want[n].abs().max()), 1e-6 * largest))
    return eager.keys() == got.keys() == want.keys() and all(
        error(got, n) <= 2 * max(error(eager, n), error(plain, n)) + SLACK for n in want)


def made(name: str) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    return (MODELS | NOTHING)[name]().train(), inputs(name)


def arms(model: nn.Module, batch: dict[str, torch.Tensor]) -> tuple[dict[str, Callable[..., Any]], dict[str, Step]]:
    """Calls of the model and training steps, by arm."""
    calls: dict[str, Callable[..., Any]] = {"eager": model}
    calls |= {arm: torch.compile(model, backend=arm) for arm in ARMS[1:]}
    return calls, {arm: partial(trained, call, model, batch) for arm, call in calls.items()}


def values_of(name: str) -> dict[str, Any]:
    """What is found, whether it is right and the memory it takes, in this (fresh) process."""
    import fuse

    model, batch = made(name)
    report = fuse.explain(model, **batch)
    torch._dynamo.reset()
    calls, steps = arms(model, batch)
    peaks = {arm: round(peak_above(step, model.zero_grad, "cpu")) for arm, step in steps.items()}
    return {"regions": Counter(k for r in report.regions for k in r.kinds), "graphs": len(report.graphs),
            "misses": Counter(m.code for m in report.misses if m.code != "TOO_SMALL"),
            "breaks": [b.splitlines()[0] for b in report.graph_breaks],
            "stored": sum(n.code == "STORED" for r in report.regions for n in r.notes),
            "right": right(model, calls, batch), "peaks": peaks}


def times_of(name: str, repeat: int) -> dict[str, Any]:
    """Of steps, in this (fresh) process."""
    steps = arms(*made(name))[1]
    interleaved(steps, 2, "cpu")
    times = interleaved(steps, repeat, "cpu")
    ratio = statistics.median(f / i for f, i in zip(times["fuse"], times["inductor"], strict=True))
    return {"ratio": round(ratio, 3), "milliseconds": {a: round(statistics.median(t), 1) for a, t in times.items()}}


def first_step(name: str, arm: str) -> float:
    """CPU seconds, in this (fresh) process."""
    model, batch = made(name)
    steps: list[Step] = []

    def first() -> None:
        steps.append(partial(trained, torch.compile(model, backend=arm), model, batch))
        steps[0]()
    return spent(first)[1] - spent(lambda: steps[0]())[1]


def compile_times(name: str, repeat: int = 3) -> dict[str, float]:
    """The least of some fresh processes with empty caches and one compile thread, which hides no work."""
    least = dict.fromkeys(ARMS[1:], float("inf"))
    for _ in range(repeat):
        for arm in least:
            with tempfile.TemporaryDirectory() as folder:
                found = child(__file__, ["--only", name, arm], TORCHINDUCTOR_CACHE_DIR=f"{folder}/inductor",
                              FUSE_CACHE_DIR=f"{folder}/fuse", TORCHINDUCTOR_COMPILE_THREADS="1")
            least[arm] = round(min(least[arm], found), 2)
    return least


# ---- the page -------------------------------------------------------------------------------------------------------

def counted(found: dict[str, int]) -> str:
    return ", ".join(f"{n} {k}" for k, n in found.items()) or "none"


def line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def row(name: str, m: dict[str, Any]) -> str:
    cells = [name, counted(m["regions"]), "yes" if m["stored"] else "no", counted(m["misses"]), str(len(m["breaks"])),
             "yes" if m["right"] else "**no**", *(str(m["peaks"][a]) for a in ARMS), f"{m['ratio']:.2f}" if "ratio" in m else "-"]
    if name in NOTHING:
        cells.append(f"{m['compile']['fuse'] / m['compile']['inductor']:.2f}" if "compile" in m else "-")
    return line(*cells)


def table(found: dict[str, dict[str, Any]], names: Iterable[str], *more: str) -> list[str]:
    head = ["model", "regions", "logits stored", "declined", "graph breaks", "right", *(f"{a}, MB" for a in ARMS), "time", *more]
    return [line(*head), "|" + "---|" * len(head), *(row(n, found[n]) for n in names if "right" in found.get(n, {})), ""]


def page(record: dict[str, Any]) -> str:
    found = record["models"]
    breaks = sorted({f"- {name}: {text}" for name, m in found.items() for text in m.get("breaks", ())})
    explained = [text.strip() for text in str(__doc__).splitlines() if text.startswith("    ") and "python" not in text]
    return "\n".join([
        "# Models", "", "Made by `python benchmarks/models.py`: random weights, every model as it is, trained for a step.",
        f"{ROWS * LENGTH} tokens ({LENGTH} a row, Mamba 16), {WORDS} words, width {WIDTH}, 2 layers, eager attention, float32,",
        f"{record['threads']} threads of {record['machine']}, torch {record['torch']}.", "", *table(found, MODELS),
        "Three models in which fuse has nothing to do (32 images):", "", *table(found, NOTHING, "compile"),
        *(["Graph breaks:", "", *breaks, ""] if breaks else []), "What the columns say:", "", "```", *explained, "```", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=lambda s: [name for name in s.split(",") if name], default=[*MODELS, *NOTHING])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--parts", type=lambda s: s.split(","), default=["values", "times", "compile"], help="of a measurement")
    parser.add_argument("--only", nargs=2, metavar=("MODEL", "PART"), help=argparse.SUPPRESS)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    if a.only:
        name, part = a.only
        print(json.dumps(values_of(name) if part == "values" else times_of(name, a.repeat) if part == "times"
                         else first_step(name, part)))
        return
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {"benchmark": "models", "models": {}}
    for name in a.models:
        found = record["models"].setdefault(name, {})
        for part in ("values", "times"):
            if part in a.parts:
                found |= child(__file__, ["--only", name, part, f"--threads={a.threads}", f"--repeat={a.repeat}"])
        if "compile" in a.parts and name in NOTHING:
            found["compile"] = compile_times(name)
        print(name, found, flush=True)
        write(RECORD, record | {"threads": a.threads})
    PAGE.write_text(page(json.loads(RECORD.read_text())))


if __name__ == "__main__":
    main()
