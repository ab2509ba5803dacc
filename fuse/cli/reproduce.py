"""A script that reproduces a comparison: the graphs that Dynamo captured as modules, with inputs like those seen.

It holds no file and no module of the user's. Inputs are drawn anew, with the same shapes, strides, types, means and
deviations; small ones are written out.
"""
from __future__ import annotations

import builtins
import re
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from fuse import private
from fuse.cli.program import CONVENTION, Program
from fuse.cli.replace import Replaced

WRITTEN_OUT = 64       # elements


class Unwritable(Exception):
    """Something that no source text stands for; one sentence."""


HEAD = '''"""Compares fuse and Inductor with eager mode in float64 on a captured graph: python THIS_FILE

Made by `fuse verify`. `fuse inspect THIS_FILE` shows what fuse makes of it.
"""
from math import inf, nan

import torch
from torch import device
{imports}

def drawn(shape, strides, dtype, where, mean=0.0, deviation=0.0, low=0, high=0, infinite=0.0):
    """Numbers like those of the program: normal, whole between low and high, or true with probability mean."""
    base = [1 if step == 0 else n for n, step in zip(shape, strides)]
    if dtype == torch.bool:
        values = torch.rand(base) < mean
    elif dtype.is_floating_point or dtype.is_complex:
        values = torch.randn(base, dtype=torch.complex64 if dtype.is_complex else torch.float32) * deviation + mean
        values = torch.where(torch.rand(base) < infinite, -inf, values) if infinite else values
    else:
        values = torch.randint(low, high + 1, base)
    made = torch.empty_strided(base, strides, dtype=dtype, device=where)
    return made.copy_(values).expand(shape)

'''
TAIL = '''

def {convention}():
    torch.manual_seed(0)
    graphs = [{graphs}]
    return Graphs(graphs), ({arguments},)


class Graphs(torch.nn.Module):
    """Every captured graph, on inputs of its own."""

    def __init__(self, graphs):
        super().__init__()
        self.graphs = torch.nn.ModuleList(graphs)

    def forward(self, *inputs):
        return [graph(*given) for graph, given in zip(self.graphs, inputs)]


if __name__ == "__main__":
    from fuse.cli import main

    raise SystemExit(main(["verify", __file__, "--no-reproducer", *{options!r}]))
'''


def script(program: Program, options: list[str]) -> str:
    """The text. Unwritable if a graph holds what cannot be written down."""
    captured = captures(program)
    if not captured:
        raise Unwritable("Dynamo captured no graph")
    writer = Writer()
    names = [writer.module(gm) for gm, _ in captured]
    arguments = [f"({', '.join(map(argument, inputs))},)" for _, inputs in captured]
    head = HEAD.format(imports="\n".join(sorted(writer.imports)) + "\n" * bool(writer.imports))
    return head + "\n".join(writer.classes) + TAIL.format(
        convention=CONVENTION, graphs=", ".join(f"{n}()" for n in names), arguments=", ".join(arguments), options=options)


def captures(program: Program) -> list[tuple[GraphModule, list[Any]]]:
    """The graphs of one call in eager mode, with the inputs of each."""
    found: list[tuple[GraphModule, list[Any]]] = []
    copies = Replaced(torch.clone)

    def collect(gm: GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        found.append((private.untouched_copy(gm), list(inputs)))
        return gm.forward
    torch.compiler.reset()
    function: Callable[..., Any] = torch.compile(copies(program.function), backend=collect, dynamic=False)
    function(*copies(program.args), **copies(program.kwargs))
    return found


class Writer:
    """Turns graph modules into classes; bodies of higher-order ops become classes of their own."""

    def __init__(self) -> None:
        self.classes: list[str] = []
        self.imports = set[str]()

    def module(self, gm: GraphModule) -> str:
        """The name of the class that computes what `gm` computes."""
        lines = []
        for name in dict.fromkeys(str(n.target) for n in gm.graph.nodes if n.op in ("get_attr", "call_module")):
            held: Any = gm.get_submodule(name) if hasattr(gm, name) and isinstance(getattr(gm, name), torch.nn.Module) \
                else getattr(gm, name, None)
            lines.append(f"        self.{name} = {self.attribute(name, held)}")
        code = gm.graph.python_code("self")
        used = {name: value for name, value in code.globals.items() if re.search(rf"\b{re.escape(name)}\b", code.src)}
        self.imports.update(filter(None, (imported(name, value) for name, value in used.items())))
        body = "\n".join(f"    {line}".rstrip() for line in code.src.strip().splitlines())
        made = f"Graph{len(self.classes)}"
        init = "\n".join(["    def __init__(self):", "        super().__init__()", *lines])
        self.classes.append(f"\nclass {made}(torch.nn.Module):\n{init}\n\n{body}\n")
        return made

    def attribute(self, name: str, held: Any) -> str:
        if isinstance(held, GraphModule):
            return f"torch.fx.symbolic_trace({self.module(held)}())"      # higher-order ops want a graph
        if isinstance(held, Tensor):
            return argument(held)
        raise Unwritable(f"the graph holds {name}, a {type(held).__name__}")


def imported(name: str, value: Any) -> str | None:
    """The line that makes a global name of generated code known."""
    if name in ("torch", "device", "inf", "nan") or hasattr(builtins, name):
        return None
    if isinstance(value, types.ModuleType):
        return f"import {value.__name__} as {name}" if name != value.__name__ else f"import {name}"
    if value is type(None):
        return f"{name} = type(None)"
    module, qualified = getattr(value, "__module__", None), getattr(value, "__qualname__", "")
    if module is None or module.partition(".")[0] not in ("torch", "operator", "math", "_operator", "builtins", "einops"):
        raise Unwritable(f"the graph calls {name}, which is not a function of torch")
    return f"import {module}\n{name} = {module}.{qualified}"


def argument(value: Any) -> str:
    """The expression that makes an input like this one."""
    if isinstance(value, torch.SymInt):
        return str(int(value))
    if not isinstance(value, Tensor):
        return repr(value)
    made = "".join(_tensor(value.detach()))
    return f"{made}.requires_grad_()" if value.requires_grad else made


def _tensor(x: Tensor) -> Iterator[str]:
    where = str(x.device)
    if x.numel() <= WRITTEN_OUT:
        yield f"torch.tensor({x.tolist()!r}, dtype={x.dtype}, device={where!r})"
        return
    yield f"drawn({tuple(x.shape)}, {tuple(x.stride())}, {x.dtype}, {where!r}"
    if x.dtype == torch.bool:
        yield f", mean={x.float().mean().item():.6g}"
    elif x.dtype.is_floating_point or x.dtype.is_complex:
        whole = x.to(torch.complex128 if x.dtype.is_complex else torch.float64)
        finite = whole[whole.isfinite()]
        deviation = finite.std().item() if finite.numel() > 1 else 0.0
        yield f", mean={finite.mean().item() if finite.numel() else 0.0:.6g}, deviation={deviation:.6g}"
        if finite.numel() < x.numel():
            yield f", infinite={1 - finite.numel() / x.numel():.6g}"
    else:
        yield f", low={int(x.min())}, high={int(x.max())}"
    yield ")"
