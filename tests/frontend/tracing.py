"""Runs a form through Dynamo, keeps the graph, and evaluates what the frontend made of it against the graph itself."""
from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx
from torch.overrides import TorchFunctionMode

from fuse.ir.evaluate import evaluate_output
from fuse.ir.program import Buffer, Program

NARROW = {torch.float32, torch.bfloat16, torch.float16}
WIDE = {**dict.fromkeys(NARROW, torch.float64), torch.complex64: torch.complex128}


class Float64(TorchFunctionMode):
    """Everything floating is computed in float64, whatever the code casts to."""

    def __torch_function__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if getattr(function, "__name__", "") in ("_enter_autocast", "_exit_autocast"):
            return None
        if function in (torch.Tensor.float, torch.Tensor.half, torch.Tensor.bfloat16):
            function = torch.Tensor.double
        widen = lambda v: WIDE.get(v, v) if isinstance(v, torch.dtype) else v  # noqa: E731
        return function(*map(widen, args), **{k: widen(v) for k, v in (kwargs or {}).items()})


def capture(function: Callable[..., Any], args: list[Any], *, dynamic: bool = False, look: Callable[..., Any]) -> list[Any]:
    """`look(gm, example_inputs)` for every graph Dynamo makes of `function`."""
    seen: list[Any] = []

    def backend(gm: fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        seen.append(look(gm, inputs))
        return gm.forward
    torch._dynamo.reset()
    torch.compile(function, backend=backend, dynamic=dynamic)(*args)
    return seen


class Run(fx.Interpreter):
    """All values of a graph in float64, copied when they are made and once more when `freeze` nodes are reached."""

    def __init__(self, gm: fx.GraphModule):
        super().__init__(gm, garbage_collect_values=False)
        self.values: dict[str, Any] = {}

    def run_node(self, node: fx.Node) -> Any:
        if getattr(node.target, "__name__", "") in ("_enter_autocast", "_exit_autocast"):
            return None
        out = super().run_node(node)
        self.values[node.name] = out.clone() if isinstance(out, torch.Tensor) else out
        return out


def graph_values(gm: fx.GraphModule, inputs: list[Any]) -> dict[str, Any]:
    """Every node's value in float64."""
    wide = [x.detach().double().clone() if isinstance(x, torch.Tensor) and x.is_floating_point() else
            x.clone() if isinstance(x, torch.Tensor) else int(x.node.hint) for x in inputs]
    old = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with Float64(), torch.no_grad(), torch.autocast("cpu", enabled=False):
            run = Run(gm)
            run.run(*wide)
    finally:
        torch.set_default_dtype(old)
    return run.values


def sizes_of(buffers: tuple[Buffer, ...], tensors: list[torch.Tensor]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for buffer, tensor in zip(buffers, tensors, strict=True):
        for extent, n in zip(buffer.shape, tensor.shape, strict=True):
            if str(extent) in extent.symbols:
                sizes[str(extent)] = n
    return sizes


def outputs_of(program: Program, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    env: Mapping[str, torch.Tensor] = {b.name: t for b, t in zip(program.inputs, inputs, strict=True)}
    sizes = sizes_of(program.inputs, inputs)
    return [evaluate_output(o, env, sizes, dtype="float64") for o in program.outputs]


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative to the largest expected value; nan must meet nan and infinities must agree."""
    assert found.shape == expected.shape, (found.shape, expected.shape)
    found, expected = (torch.view_as_real(x) if x.is_complex() else x.double() for x in (found, expected))
    assert torch.equal(found.isnan(), expected.isnan())
    assert torch.equal(torch.where(found.isinf(), found, 0), torch.where(expected.isinf(), expected, 0))
    finite = expected.isfinite()
    if not finite.any():
        return 0.0
    return float((found - expected)[finite].detach().abs().max() / (expected[finite].detach().abs().max() + 1e-30))
