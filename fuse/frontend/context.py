"""What surrounds a node of Dynamo's graph without being an argument: autocast, grad mode, functorch levels, mutation."""
from __future__ import annotations

import contextlib
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from fuse.private import OpOverload, schema_of

Autocast = tuple[tuple[str, str, bool], ...]      # (device type, dtype, enabled), the innermost last


@dataclass(frozen=True)
class Context:
    autocast: Autocast = ()
    grad: bool = True
    functorch: bool = False

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """The autocast regions that surround the node inside the graph; those outside it are active anyway."""
        with contextlib.ExitStack() as stack:
            for device, dtype, enabled in self.autocast:
                stack.enter_context(torch.autocast(device, dtype=getattr(torch, dtype), enabled=enabled))
            yield


def _name(target: Any) -> str:
    return getattr(target, "__name__", str(target))


def contexts(nodes: Sequence[fx.Node]) -> dict[fx.Node, Context]:
    """One walk over the graph in order: enter and exit nodes come in pairs."""
    found: dict[fx.Node, Context] = {}
    autocast: list[tuple[fx.Node, tuple[str, str, bool]]] = []
    grad, inference, functorch = torch.is_grad_enabled(), 0, 0
    current = Context((), grad, False)
    for node in nodes:
        found[node] = current
        if node.op != "call_function":
            continue
        name = _name(node.target)
        if name == "_enter_autocast":
            device, dtype, enabled = (*node.args, None, None, True)[:3] if len(node.args) < 3 else node.args[:3]
            dtype = dtype or torch.get_autocast_dtype(str(device))
            autocast.append((node, (str(device), str(dtype)[6:], bool(enabled))))
        elif name == "_exit_autocast":
            autocast = [a for a in autocast if a[0] is not node.args[0]]
        elif name == "_set_grad_enabled":
            grad = bool(node.args[0])
        elif name in ("_enter_inference_mode", "_exit_inference_mode"):
            inference += 1 if name == "_enter_inference_mode" and node.args[0] else -1 if inference else 0
        elif name.endswith("_increment_nesting"):
            functorch += 1
        elif name.endswith("_decrement_nesting"):
            functorch -= 1
        else:
            continue
        current = Context(tuple(a for _, a in autocast), grad and inference <= 0, functorch > 0)
    return found


IN_PLACE = {operator.setitem, operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ifloordiv,
            operator.ipow, operator.iand, operator.ior, operator.ixor, operator.imod, operator.imatmul}


def mutated_arguments(node: fx.Node) -> list[fx.Node]:
    """The arguments that the node changes in place."""
    if node.op not in ("call_function", "call_method"):
        return []
    found: list[Any] = []
    name = node.target if isinstance(node.target, str) else _name(node.target)
    if isinstance(node.target, OpOverload):
        found = [a for a, s in zip(node.args, schema_of(node.target).arguments, strict=False)
                 if s.alias_info is not None and s.alias_info.is_write]
    elif node.args and (node.target in IN_PLACE if node.op == "call_function" else False):
        found = [node.args[0]]
    elif node.args and name.endswith("_") and not name.endswith("__") and name not in HARMLESS:
        found = [node.args[0]]
    elif node.args and node.kwargs.get("inplace"):
        found = [node.args[0]]
    if node.kwargs.get("out") is not None:
        found.append(node.kwargs["out"])
    return [a for a in found if isinstance(a, fx.Node)]


HARMLESS = {"requires_grad_", "share_memory_", "retain_grad_"}
