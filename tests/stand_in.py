"""Stand-ins for the parts around the backend: a front end that knows one loss, kernels that are the reference path, and a
compiler for the rest that takes no time."""
from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch._dynamo.utils import counters

from fuse.codegen import Capabilities
from fuse.frontend.shadow import where as place_of
from fuse.frontend.symbols import shape_of, symbol_hints
from fuse.ir.expr import Axis, Buffer, cast, const, dot, lse, make, read, sum_, where
from fuse.ir.program import Output, Program, Region, Term
from fuse.ir.reference import run_region
from fuse.reasons import Miss


@dataclass
class Imported:
    program: Program
    inputs: list[torch.fx.Node]
    exits: list[torch.fx.Node]
    where: str | None
    anchors: list[torch.fx.Node]
    candidate: Any = field(default_factory=lambda: SimpleNamespace(covered=(), escapes=(), stored=frozenset()))


def find(gm: torch.fx.GraphModule, options: Any, outermost: bool) -> tuple[list[Imported], list[Miss]]:
    """F.cross_entropy(F.linear(h, W), y) of matrices; a loss of anything else is refused."""
    found, misses = [], []
    for node in gm.graph.find_nodes(op="call_function", target=F.cross_entropy):
        logits, y = node.args[:2]
        if logits.target is not torch._C._nn.linear:
            misses.append(Miss("NOT_A_REDUCTION", place_of(node)))
            continue
        h, W = logits.args[:2]
        tensors = [n.meta["example_value"] for n in (h, W, y, node)]
        (n, d), (v, _) = shape_of(tensors[0]), shape_of(tensors[1])
        dtypes = [str(t.dtype).removeprefix("torch.") for t in tensors]
        hints = tuple(sorted(symbol_hints(tensors).items()))
        found.append(Imported(cross_entropy(n, d, v, *dtypes, hints=hints), [h, W, y], [node], place_of(logits), [logits]))
    return found, misses


def cross_entropy(n: Any, d: Any, v: Any, h: str, w: str, y: str, out: str, hints: Any = ()) -> Program:
    A, D, V = Axis("a0", n), Axis("a1", d), Axis("a2", v)
    x0, x1, x2 = Buffer("x0", h, (n, d)), Buffer("x1", w, (v, d)), Buffer("x2", y, (n,))
    scores = dot(cast(read(x0, A, D), "float32"), cast(read(x1, V, D), "float32"), D)
    label = read(x2, A)
    kept = make("ne", label, const(-100, "int64"))
    loss = sum_(where(kept, lse(scores, V) - make("pick", scores, label, axis=V), 0), A) / sum_(cast(kept, "float32"), A)
    output = Output(Buffer("y0", out, ()), (Term((), cast(loss, out)),))
    return Program((x0, x1, x2), (output,), anchors=(scores,), hints=hints)


@dataclass
class Kernels:
    """Kernels that are the reference path, and a record of what was launched: the widths of the carries of each region."""

    launched: list[list[str]] = field(default_factory=list)
    broken: bool = False

    def compile_region(self, region: Region, *_: Any) -> Any:
        def kernel(env: Any, sizes: Any) -> Any:
            if self.broken:
                raise RuntimeError("the device is on fire")
            self.launched.append([carry_text(c) for c in region.carries])
            return run_region(region, env, sizes)
        return kernel


def carry_text(carry: Any) -> str:
    """'lse[a0]', 'sum[a0, a1]': what a carry is, whatever its name."""
    return f"{carry.kind.value}[{', '.join(sorted(a.name for a in carry.axes))}]"


def install(monkeypatch: Any) -> Kernels:
    """Puts everything here in the place of what it stands for."""
    import fuse.frontend
    import fuse.runtime.ops
    import fuse.runtime.plan
    from fuse import backend

    kernels = Kernels()
    monkeypatch.setattr(fuse.frontend, "find", find)
    monkeypatch.setattr(fuse.runtime.plan, "compile_region", kernels.compile_region)
    monkeypatch.setattr(fuse.runtime.plan, "target_for", lambda *_: Target)
    monkeypatch.setattr(fuse.runtime.ops, "_executables", {})
    monkeypatch.setattr(backend, "finish", quick)
    counters["fuse"].clear()
    return kernels


class Target:
    name = "stand-in"
    capabilities = Capabilities(*[frozenset()] * 4)

    @staticmethod
    def walk_tile(region: Any, hints: Any, options: Any) -> tuple[int, str]:
        return 16, ""


def quick(gm: torch.fx.GraphModule, example_inputs: Any, *_: Any, **__: Any) -> Any:
    """What is left runs through AOTAutograd, but is not compiled."""
    from torch._dynamo.backends.debugging import aot_eager

    return aot_eager(gm, example_inputs)
