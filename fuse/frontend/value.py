"""Values of the shadow: what one ATen op made of which arguments, and small questions to Dynamo's nodes."""
from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx

from fuse.frontend.symbols import size_of
from fuse.ir.size import Size
from fuse.private import OpOverload, overload_of


class Value:
    """One ATen result. `op` is the overload packet's name without a trailing underscore, None for an opaque value.

    `args` are by schema name: values, numbers, extents (Size), symbolic floats, lists of these. `stored` says that the
    value is the result of its Dynamo node, so that it can be read from there. The result of a Dynamo node is traced when
    somebody asks for its op: what a region only reads costs nothing.
    """

    def __init__(self, op: str | None, args: dict[str, Any], dtype: str, shape: tuple[Size, ...], node: fx.Node, *,
                 stored: bool = False, output: int = 0, grad: bool = True, opaque: str = "", overload: str = "",
                 since: int = -1, resolve: Callable[[], Value] | None = None):
        self._op, self._args, self._output, self._opaque, self._overload = op, args, output, opaque, overload
        self.dtype, self.shape, self.node, self.stored, self.grad = dtype, shape, node, stored, grad
        self.since = since          # the position in the graph from which the node's memory holds this value
        self._resolve = resolve

    def force(self) -> Value:
        """Makes the op known."""
        if self._resolve is not None:
            resolve, self._resolve = self._resolve, None
            found = resolve()
            self._op, self._args, self._output = found.op, found.args, found.output
            self._opaque, self._overload = found.opaque, found.overload
        return self

    @property
    def op(self) -> str | None:
        return self.force()._op

    @property
    def args(self) -> dict[str, Any]:
        return self.force()._args

    @property
    def output(self) -> int:
        """Which of several results of the op this is."""
        return self.force()._output

    @property
    def opaque(self) -> str:
        """Why the value is opaque: a code of fuse.reasons, or nothing for an input."""
        return self.force()._opaque

    @property
    def overload(self) -> str:
        return self.force()._overload

    @property
    def where(self) -> str | None:
        return where(self.node)

    def sources(self) -> Iterator[Value]:
        for arg in self.args.values():
            yield from flat(arg)

    def __repr__(self) -> str:
        return f"<{self.node.name}: {self.op} {self.dtype}[{', '.join(map(str, self.shape))}]>"


def flat(arg: Any) -> Iterator[Value]:
    """The values in a value or in nested lists of them."""
    if isinstance(arg, Value):
        yield arg
    elif isinstance(arg, (list, tuple)):
        for a in arg:
            yield from flat(a)


def where(node: fx.Node) -> str | None:
    """The user's file:line that made the node: the innermost frame outside torch. Else the module that did."""
    trace = node.meta.get("stack_trace") or ""
    frames = [line.strip() for line in trace.splitlines() if line.strip().startswith("File ")]
    for frame in reversed(frames):
        path, _, rest = frame[6:].partition('"')
        if "/torch/" not in path or "site-packages" not in path:
            return f"{path}:{rest.split('line ')[1].split(',')[0]}" if "line " in rest else path
    modules = list((node.meta.get("nn_module_stack") or {}).values())
    if not modules:
        return None
    name, kind = modules[-1]
    return f"module {name.partition('.')[2] or name} ({getattr(kind, '__name__', kind)})"


def origin_of(node: fx.Node) -> dict[str, Any]:
    """The metadata that say where a node comes from, for one that takes its place."""
    kept = ("stack_trace", "nn_module_stack", "source_fn_stack", "custom")
    return {k: node.meta[k] for k in kept if node.meta.get(k) is not None}


def arguments(node: fx.Node) -> tuple[Any, ...]:
    """The positional arguments, of any type."""
    return node.args


def called(node: fx.Node) -> str:
    """The name of what a node calls."""
    if isinstance(node.target, OpOverload):
        return overload_of(node.target)[0]
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")


def example(node: fx.Node) -> Any:
    return node.meta.get("example_value", node.meta.get("val"))


def constant(value: Any) -> Any:
    if isinstance(value, torch.SymInt):
        return size_of(value)
    if isinstance(value, (tuple, list)):
        return type(value)(map(constant, value)) if type(value) in (tuple, list) else tuple(map(constant, value))
    return value


def has_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor) or (isinstance(value, (tuple, list)) and any(map(has_tensor, value)))
