"""The physical floor: no program takes less time than its bytes at the machine's copy rate or its flops at its GEMM rate.

Bytes and flops are counted in fuse's IR of the case: every input read once and every result written once; every distinct
product that is summed, once. What fuse stores between forward and backward, or makes twice, does not count.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import torch

from benchmarks.cases import Case, Task, arguments

MODES = ("forward", "backward", "both")


@dataclass(frozen=True)
class Work:
    """What a mode cannot avoid: bytes moved, floating-point operations of products, bytes of results that stay."""

    bytes: int
    flops: int
    kept: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(self.bytes + other.bytes, self.flops + other.flops, self.kept + other.kept)

    def milliseconds(self, rates: Rates) -> float:
        return 1e3 * max(self.bytes / rates.copy, self.flops / rates.gemm)


@dataclass(frozen=True)
class Rates:
    """Bytes per second of a large copy (read and written), flops per second of a large matrix product."""

    copy: float
    gemm: float


def size_of(buffers: Iterable[Any], sizes: Mapping[str, int]) -> int:
    from fuse.ir.size import product

    return sum(product(b.shape).evaluate(sizes) * getattr(torch, b.dtype).itemsize for b in buffers)


def products(program: Any) -> set[Any]:
    """Every distinct product that the program's regions add up, and every recurrence they walk."""
    from fuse.ir.expr import FLOATS, topological

    found: set[Any] = set()
    for region in program.regions:
        found |= {e.args[0] for e in topological(region.bodies) if e.op == "sum" and e.args[0].op == "mul"}
        found |= {c.body for c in region.carries if c.body.op == "mul" and set(c.axes) - set(region.grid)}
        found |= {c.body for c in region.carries if c.body.op == "scan"}
    return {e for e in found if e.dtype in FLOATS}


def flops(program: Any, sizes: Mapping[str, int]) -> int:
    """Two for each element of a product that is summed: one multiplication, one addition."""
    return sum(2 * e.type.numel.evaluate(sizes) for e in products(program))


def work_of(program: Any, sizes: Mapping[str, int]) -> dict[str, Work]:
    """By mode. `program` is forward and backward together; the backward's share is what the forward alone lacks."""
    from fuse.passes import restrict

    results = [o for o in program.outputs if o.gradient_of is None]
    gradients = [o for o in program.outputs if o.gradient_of is not None]
    given = [b for b in program.inputs if b.name not in program.cotangents]
    cotangents = [b for b in program.inputs if b.name in program.cotangents]
    alone = flops(restrict(program, [o.buffer.name for o in results]), sizes)
    read, written = size_of(given, sizes), size_of((o.buffer for o in results), sizes)
    back, arriving = size_of((o.buffer for o in gradients), sizes), size_of(cotangents, sizes)
    both = flops(program, sizes)
    return {"forward": Work(read + written, alone, written), "backward": Work(read + arriving + back, both - alone, back),
            "both": Work(read + written + arriving + back, both, written + back)}


def counted(case: Case, task: Task) -> tuple[dict[str, Work], str]:
    """The work of each mode, summed over the regions fuse makes of the case, and the kinds it fuses or why it does not.

    What fuse leaves alone by default is counted all the same, with its cost test off; no work if it cannot be fused at all.
    """
    import fuse
    from benchmarks.arms import given
    from fuse.ir.text import parse_program

    def report(**options: Any) -> Any:
        torch._dynamo.reset()
        return fuse.explain(case.function, *arguments(case, task), fuse_options={**given, **options})
    found = report()
    says = ", ".join(k for r in found.regions for k in r.kinds) or f"no: {', '.join(dict.fromkeys(m.code for m in found.misses))}"
    regions = found.regions or report(min_virtual_bytes=0).regions
    programs = [parse_program(r.snapshots["canonical"]()) for r in regions]
    works = [work_of(p, dict(p.hints)) for p in programs]
    total = {m: sum((w[m] for w in works), Work(0, 0)) for m in MODES} if works else {}
    return {m: replace(w, flops=int(w.flops * case.visible)) for m, w in total.items()}, says


# ---- rates ----------------------------------------------------------------------------------------------------------

SIZES = {"cuda": (1 << 30, 8192), "cpu": (1 << 28, 2048), "tiny": (1 << 20, 64)}     # bytes of a copy, rows of a square matrix


def measured_rates(device: str, dtype: str, scale: str) -> Rates:
    """The best of a few copies, and of a few products of square matrices of random numbers."""
    count, n = SIZES[scale]
    source = torch.rand(count // 4, device=device)
    target = torch.empty_like(source)
    a, b = (torch.randn(n, n, device=device).to(getattr(torch, dtype)) for _ in range(2))
    copy = best(lambda: target.copy_(source), device)
    gemm = best(lambda: torch.mm(a, b), device)
    return Rates(2 * source.numel() * source.element_size() / copy, 2 * n ** 3 / gemm)


def best(step: Callable[[], object], device: str, repeat: int = 7) -> float:
    """Seconds."""
    def once() -> float:
        begun = perf_counter()
        step()
        if device == "cuda":
            torch.cuda.synchronize()
        return perf_counter() - begun
    once()
    return min(once() for _ in range(repeat))


def fraction(floor_ms: float | None, times: Sequence[float]) -> float | None:
    """Of the roofline that a median reaches: 1 is the floor."""
    return floor_ms / times[0] if floor_ms and times and times[0] else None
