"""A linear head with cross-entropy, forward and backward: eager, torch.compile and fuse, time and peak memory.

    python benchmarks/head.py --rows 2048 --width 768 --vocabulary 50304 --dtype float32 --json results/head.json

Times are taken in one process with the arms interleaved, so that a slow moment of the machine hits all of them; read the
ratios. Peak memory is taken in a fresh process per arm: what the process grew to during one warm step, above what it held
before (inputs, weights and code), so gradients count. Errors are those of the loss and the gradients against float64.

    python benchmarks/head.py --dtype bfloat16 --peaked 11 --gradient-filter auto

adds an arm per schedule that leaves out negligible parts of the gradients, and gives each row one likely word, as training
does: random rows alone are nearly uniform over the words, so that such an arm would leave out what counts.
"""
from __future__ import annotations

import argparse
import json
import statistics
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from measure import child, interleaved, peak_above, seconds, write

ARMS: dict[str, dict[str, object]] = {
    "eager": {},
    "inductor": {"backend": "inductor"},
    "fuse": {"backend": "fuse"},
    "fuse-recompute": {"backend": "fuse", "options": {"schedule": "recompute"}},
    "fuse-least-memory": {"backend": "fuse", "options": {"schedule": "least-memory"}},
}


def loss(h: torch.Tensor, weight: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(F.linear(h, weight).float(), y)


def make(arm: str):
    return torch.compile(loss, **ARMS[arm]) if ARMS[arm] else loss  # type: ignore[call-overload]


def inputs(a: argparse.Namespace):
    torch.manual_seed(0)
    dtype = getattr(torch, a.dtype)
    h = torch.randn(a.rows, a.width, device=a.device)
    weight = torch.randn(a.vocabulary, a.width, device=a.device) * a.width ** -0.5
    y = torch.randint(0, a.vocabulary, (a.rows,), device=a.device)
    if a.peaked:
        h += a.peaked * weight[torch.randint(0, a.vocabulary, (a.rows,), device=a.device)]
    return h.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), y


def step(f, h, weight, y) -> None:
    h.grad = weight.grad = None
    f(h, weight, y).backward()


def times(a: argparse.Namespace) -> dict[str, dict[str, float]]:
    args = inputs(a)
    steps = {arm: partial(step, make(arm), *args) for arm in a.arms}
    cold = {arm: seconds(s, a.device) * 1e3 for arm, s in steps.items()}
    interleaved(steps, 1, a.device)
    samples = interleaved(steps, a.repeat, a.device)
    return {arm: {"first_ms": round(cold[arm], 1), "median_ms": round(statistics.median(s), 2), "min_ms": round(min(s), 2),
                  "max_ms": round(max(s), 2), "n": len(s)} for arm, s in samples.items()}


def errors(a: argparse.Namespace, arm: str) -> list[float]:
    """Relative error of the loss, dh and dW against float64 on a slice of the problem that fits."""
    rows = min(a.rows, 256)
    h, weight, y = inputs(a)
    h = h.detach()[:rows].requires_grad_()
    found = [make(arm)(h, weight, y[:rows])]
    found += torch.autograd.grad(found[0], [h, weight])
    wide = [t.detach().double().requires_grad_() for t in (h, weight)]
    want = [F.cross_entropy(F.linear(*wide), y[:rows])]
    want += torch.autograd.grad(want[0], wide)
    return [float((f.double() - w).abs().max() / w.abs().max()) for f, w in zip(found, want, strict=True)]


def peak(a: argparse.Namespace, arm: str) -> float:
    """MB above the inputs during one warm step, in this (fresh) process."""
    f, args = make(arm), inputs(a)

    def reset() -> None:
        args[0].grad = args[1].grad = None
    return peak_above(partial(step, f, *args), reset, a.device)


def _sizes(a: argparse.Namespace) -> list[str]:
    names = ("rows", "width", "vocabulary", "dtype", "device", "threads", "peaked", "gradient-filter")
    return [f"--{n}={getattr(a, n.replace('-', '_'))}" for n in names]


def gradient_filter(text: str) -> str | float:
    return text if text in ("off", "auto") else float(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--vocabulary", type=int, default=50304)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--peaked", type=float, default=0.0, help="logit of each row's likely word (11: p = 0.4 of 50304 words)")
    parser.add_argument("--gradient-filter", type=gradient_filter, default="off", help="adds arms with this value of the option")
    parser.add_argument("--arms", type=lambda s: s.split(","))
    parser.add_argument("--json", type=Path, help="write the record here")
    parser.add_argument("--only", nargs=2, metavar=("WHAT", "ARM"), help=argparse.SUPPRESS)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    if a.gradient_filter != "off":
        for schedule in ("auto", "recompute"):
            name = "fuse-filter" + (f"-{schedule}" if schedule != "auto" else "")
            ARMS[name] = {"backend": "fuse", "options": {"schedule": schedule, "gradient_filter": a.gradient_filter}}
    a.arms = a.arms or list(ARMS)
    if a.only:
        print(json.dumps({"peak": peak, "errors": errors}[a.only[0]](a, a.only[1])))
        return
    table = times(a)
    for arm, row in table.items():
        row["peak_mb"] = round(child(__file__, ["--only", "peak", arm, *_sizes(a)]), 1)
        errors_of = child(__file__, ["--only", "errors", arm, *_sizes(a)])
        row["error_loss"], row["error_dh"], row["error_dw"] = (float(f"{e:.1e}") for e in errors_of)
    columns = list(next(iter(table.values())))
    print(f"{a.rows} x {a.width} x {a.vocabulary} {a.dtype} on {a.device}, {a.threads} threads, torch {torch.__version__}")
    print("".join(f"{c:>14}" for c in ["arm", *columns]))
    for arm, row in table.items():
        print("".join(f"{c!s:>14}" for c in [arm, *row.values()]))
    if a.json:
        record = {"benchmark": "head", "rows": a.rows, "width": a.width, "vocabulary": a.vocabulary, "dtype": a.dtype,
                  "device": a.device, "threads": a.threads, "peaked": a.peaked, "gradient_filter": a.gradient_filter,
                  "arms": table}
        write(a.json, record)


if __name__ == "__main__":
    main()
