"""Attention and linear attention as people write them, forward and with backward: eager, torch.compile, SDPA and fuse.

    python benchmarks/attention.py --dtype float32 --json benchmarks/results/attention-float32.json
    python benchmarks/attention.py --rows flow,linear --repeat 21

Rows that a record of the same settings has already are kept.

    additive      softmax attention with an additive mask                    1 x 8 heads x 2048 x 64
    causal        the same with the future filled by -inf                    1 x 8 heads x 2048 x 64
    flow          bidirectional Flow-Attention (arXiv 2202.06258)            4 x 8 heads x 4096 x 64
    flow-causal   its causal form: every sum is a prefix sum                 1 x 8 heads x 2048 x 64
    linear        linear attention with elu + 1, heads last                  4 x 4096 x 8 heads x 64

Times are taken in one process with the arms interleaved: read the ratios. Peak memory is what a fresh process grows by in
one warm step, above the inputs; errors are the largest difference of the output and of the gradients to float64, relative
to the largest element. `fused` says whether fuse took the program, or the code of its refusal: it then runs as
torch.compile runs it. SDPA is one call of torch's own kernel, where it can say what the row says.
"""
from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from measure import child, interleaved, peak_above, quantiles, write

EPS = 1e-6
ARMS = ("eager", "inductor", "sdpa", "fuse")


def additive(q, k, v, mask):
    w = torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]) + mask, dim=-1)
    return w @ v


def causal(q, k, v):
    w = (q @ k.mT) * (1.0 / math.sqrt(q.shape[-1]))
    future = torch.tril(torch.ones(q.shape[2], k.shape[2], device=q.device)) == 0
    return torch.softmax(w.masked_fill(future, float("-inf")), dim=-1) @ v


def flow(q, k, v):
    q, k = q.sigmoid(), k.sigmoid()
    incoming = 1.0 / torch.einsum("nhld,nhd->nhl", q + EPS, k.sum(dim=2) + EPS)
    outgoing = 1.0 / torch.einsum("nhld,nhd->nhl", k + EPS, q.sum(dim=2) + EPS)
    sink = torch.einsum("nhld,nhd->nhl", q + EPS, (k * outgoing[..., None]).sum(dim=2) + EPS)
    source = torch.einsum("nhld,nhd->nhl", k + EPS, (q * incoming[..., None]).sum(dim=2) + EPS).clamp(-1.0, 1.0)
    allocation = torch.sigmoid(sink * (float(q.shape[2]) / float(k.shape[2])))
    competition = torch.softmax(source, dim=-1) * float(k.shape[2])
    kv = torch.einsum("nhld,nhlm->nhdm", k, v * competition[..., None])
    return torch.einsum("nhld,nhdm->nhlm", q * incoming[..., None], kv) * allocation[..., None]


def flow_causal(q, k, v):
    q, k = q.sigmoid(), k.sigmoid()
    n = torch.arange(1, q.shape[2] + 1, dtype=q.dtype, device=q.device)[None, None]
    incoming = n / torch.einsum("nhld,nhld->nhl", q + EPS, k.cumsum(dim=2) + EPS)
    outgoing = n / torch.einsum("nhld,nhld->nhl", k + EPS, q.cumsum(dim=2) + EPS)
    sink = torch.einsum("nhld,nhld->nhl", q + EPS, (k * outgoing[..., None]).cumsum(dim=2) + EPS) / n
    source = torch.einsum("nhld,nhld->nhl", k + EPS, (q * incoming[..., None]).cumsum(dim=2) + EPS) / n
    e = torch.exp(source.clamp(-1.0, 1.0))
    competition = e / e.cumsum(dim=-1) * n
    kv = torch.einsum("nhld,nhlm->nhldm", k, v * competition[..., None]).cumsum(dim=2)
    return torch.einsum("nhld,nhldm->nhlm", q * (incoming / n)[..., None], kv) * sink.sigmoid()[..., None]


def linear(q, k, v):
    q, k = F.elu(q) + 1, F.elu(k) + 1
    kv = torch.einsum("nshd,nshm->nhmd", k, v)
    z = 1 / (torch.einsum("nlhd,nhd->nlh", q, k.sum(dim=1)) + EPS)
    return torch.einsum("nlhd,nhmd,nlh->nlhm", q, kv, z)


class Row(NamedTuple):
    """A benchmark: `shape` of q, k and v, `mask` whether an additive mask [queries, keys] follows, torch's own kernel."""

    function: Callable[..., torch.Tensor]
    shape: tuple[int, int, int, int]
    mask: bool = False
    sdpa: Callable[..., torch.Tensor] | None = None


ROWS = {
    "additive": Row(additive, (1, 8, 2048, 64), True, F.scaled_dot_product_attention),
    "causal": Row(causal, (1, 8, 2048, 64), False, partial(F.scaled_dot_product_attention, is_causal=True)),
    "flow": Row(flow, (4, 8, 4096, 64)),
    "flow-causal": Row(flow_causal, (1, 8, 2048, 64)),
    "linear": Row(linear, (4, 4096, 8, 64)),
}


def inputs(row: Row, a: argparse.Namespace) -> list[torch.Tensor]:
    torch.manual_seed(0)
    dtype = getattr(torch, a.dtype)
    leaves = [torch.randn(row.shape, device=a.device).to(dtype).requires_grad_() for _ in range(3)]
    return [*leaves, *([torch.randn(row.shape[2], row.shape[2], device=a.device).to(dtype)] if row.mask else [])]


def make(row: Row, arm: str, a: argparse.Namespace) -> Callable[..., torch.Tensor]:
    if arm == "sdpa":
        assert row.sdpa is not None
        return row.sdpa
    if arm == "eager":
        return row.function
    torch._dynamo.reset()
    options = {"min_virtual_bytes": a.floor} if arm == "fuse" and a.floor is not None else None
    return torch.compile(row.function, backend=arm, options=options)  # type: ignore[call-overload,no-any-return]


def forward(f, args: list[torch.Tensor], cotangent: torch.Tensor) -> object:
    with torch.no_grad():
        return f(*args)


def both(f, args: list[torch.Tensor], cotangent: torch.Tensor) -> object:
    return torch.autograd.grad(f(*args), args[:3], cotangent)


STEPS = {"forward": forward, "forward+backward": both}


def times(row: Row, arms: list[str], a: argparse.Namespace) -> dict[str, dict[str, dict[str, float]]]:
    """Step -> arm -> milliseconds."""
    args = inputs(row, a)
    cotangent = torch.randn_like(args[0])
    made = {arm: make(row, arm, a) for arm in arms}
    found: dict[str, dict[str, dict[str, float]]] = {}
    for what, step in STEPS.items():
        steps = {arm: partial(step, f, args, cotangent) for arm, f in made.items()}
        interleaved(steps, 2, a.device)
        found[what] = {arm: quantiles(s) for arm, s in interleaved(steps, a.repeat, a.device).items()}
    return found


def peak(row: Row, arm: str, what: str, a: argparse.Namespace) -> float:
    args, f = inputs(row, a), make(row, arm, a)
    return peak_above(partial(STEPS[what], f, args, torch.randn_like(args[0])), lambda: None, a.device)


def errors(row: Row, arm: str, what: str, a: argparse.Namespace) -> list[float]:
    """Of the output and the gradients of q, k and v."""
    args, f = inputs(row, a), make(row, arm, a)
    cotangent = torch.randn_like(args[0])

    def results(f: Callable[..., torch.Tensor], args: list[torch.Tensor]) -> list[torch.Tensor]:
        out = f(*args)
        return [out.detach(), *torch.autograd.grad(out, args[:3], cotangent.to(out.dtype))]
    got = results(f, args)
    want = results(row.function, [x.detach().double().requires_grad_(x.requires_grad) for x in args])
    return [float((g.double() - w).abs().max() / w.abs().max()) for g, w in zip(got, want, strict=True)]


def fused(row: Row, a: argparse.Namespace) -> str:
    """"yes", or why not."""
    import fuse

    options = {"min_virtual_bytes": a.floor} if a.floor is not None else {}
    report = fuse.explain(row.function, *inputs(row, a), fuse_options=options)
    if any(graph.regions for graph in report.graphs):
        return "yes"
    codes = dict.fromkeys(miss.code for graph in report.graphs for miss in graph.misses)
    return f"no: {', '.join(codes) or 'nothing found'}"


def measured(name: str, a: argparse.Namespace) -> dict[str, object]:
    row = ROWS[name]
    arms = [arm for arm in a.arms if arm != "sdpa" or row.sdpa is not None]
    sizes = [f"--dtype={a.dtype}", f"--device={a.device}", f"--threads={a.threads}"]
    sizes += [f"--floor={a.floor}"] if a.floor is not None else []
    table: dict[str, dict[str, dict[str, object]]] = {}
    for what, found in times(row, arms, a).items():
        table[what] = {arm: {**t, "peak_mb": round(child(__file__, ["--only", "peak", name, arm, what, *sizes]), 1)}
                       for arm, t in found.items()}
    for arm in arms:
        table["forward+backward"][arm]["errors"] = [float(f"{e:.1e}") for e in
                                                    child(__file__, ["--only", "errors", name, arm, "forward", *sizes])]
    return {"shape": row.shape, "fused": fused(row, a), "steps": table}


def show(name: str, record: dict[str, object]) -> None:
    print(f"{name} {record['shape']}, fused: {record['fused']}")
    for what, arms in record["steps"].items():  # type: ignore[attr-defined]
        mine = arms["fuse"]["median_ms"] if "fuse" in arms else math.nan
        for arm, row in arms.items():
            spread = f"({row['p20_ms']:.1f} .. {row['p80_ms']:.1f})"
            print(f"  {what:18}{arm:10}{row['median_ms']:10.1f} ms {spread:>20}{row['peak_mb']:10.1f} MB"
                  f"   fuse takes {mine / row['median_ms']:.2f} of it   {row.get('errors', '')}", flush=True)


def earlier(path: Path | None, settings: dict[str, object]) -> dict[str, object]:
    """The rows that a record on disk has already, if it was made under the same settings."""
    found = json.loads(path.read_text()) if path is not None and path.exists() else {}
    same = all(found.get(key) == value for key, value in settings.items())
    return dict(found["rows"]) if found and same else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=lambda s: s.split(","), default=list(ROWS))
    parser.add_argument("--arms", type=lambda s: s.split(","), default=list(ARMS))
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=11)
    parser.add_argument("--floor", type=int, help="fuse's option min_virtual_bytes")
    parser.add_argument("--json", type=Path, help="write the record here")
    parser.add_argument("--only", nargs=4, metavar=("WHAT", "ROW", "ARM", "STEP"), help=argparse.SUPPRESS)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    if a.only:
        what, name, arm, step = a.only
        print(json.dumps({"peak": peak, "errors": errors}[what](ROWS[name], arm, step, a)))
        return
    record: dict[str, object] = {"benchmark": "attention", "dtype": a.dtype, "device": a.device, "threads": a.threads,
                                 "repeat": a.repeat}
    rows = earlier(a.json, record)
    record["rows"] = rows
    for name in a.rows:
        found = rows[name] = measured(name, a)
        show(name, found)
        if a.json:
            write(a.json, record)


if __name__ == "__main__":
    main()
