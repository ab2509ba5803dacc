"""One node of Dynamo's graph traced alone, as a template: the ATen ops it stands for, with slots for its arguments."""
from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import fx

from fuse.frontend.context import Context
from fuse.frontend.symbols import hint, shape_of, size_of
from fuse.frontend.value import constant, example, has_tensor
from fuse.ir.size import Size
from fuse.private import OpOverload, overload_of, schema_of, trace_node


@dataclass(frozen=True)
class Record:
    """One op of a template; `Slot`s among the arguments are other records or the node's own inputs."""

    op: str | None
    overload: str
    args: dict[str, Any]
    dtype: str
    shape: tuple[Size, ...]
    output: int
    opaque: str = ""


@dataclass(frozen=True)
class Slot:
    index: int


@dataclass(frozen=True)
class Template:
    """Slots 0..inputs-1 are the node's tensor arguments; records follow. `writes` maps an input to its new value."""

    inputs: int
    records: tuple[Record, ...]
    result: Any
    writes: dict[int, Slot] = field(default_factory=dict)


class Untraceable(Exception):
    """The node stays opaque; the argument is the code of the reason."""


def map_nested(x: Any, f: Any) -> Any:
    if isinstance(x, (list, tuple)):
        return [map_nested(a, f) for a in x] if isinstance(x, list) else tuple(map_nested(a, f) for a in x)
    return f(x)


def map_tensors(x: Any, f: Any) -> Any:
    return map_nested(x, lambda a: f(a) if isinstance(a, torch.Tensor) else constant(a))


def argument_spec(arg: Any, tensors: list[fx.Node]) -> Any:
    """Arguments with tensor nodes replaced by slots (in order of appearance) and other nodes by their values."""
    if isinstance(arg, fx.Node):
        value = example(arg)
        if isinstance(value, torch.Tensor):
            if arg not in tensors:
                tensors.append(arg)
            return Slot(tensors.index(arg))
        if has_tensor(value):
            raise Untraceable("UNSUPPORTED_OP")
        return value
    if isinstance(arg, (list, tuple)):
        items = [argument_spec(a, tensors) for a in arg]
        return items if isinstance(arg, list) else tuple(items)
    if isinstance(arg, dict):
        return {k: argument_spec(v, tensors) for k, v in arg.items()}
    if isinstance(arg, slice):
        return slice(*(argument_spec(a, tensors) for a in (arg.start, arg.stop, arg.step)))
    return arg


def _filled(spec: Any, inputs: tuple[Any, ...]) -> Any:
    if isinstance(spec, Slot):
        return inputs[spec.index]
    if isinstance(spec, (list, tuple)):
        items = [_filled(a, inputs) for a in spec]
        return items if isinstance(spec, list) else tuple(items)
    if isinstance(spec, dict):
        return {k: _filled(v, inputs) for k, v in spec.items()}
    if isinstance(spec, slice):
        return slice(*(_filled(a, inputs) for a in (spec.start, spec.stop, spec.step)))
    return spec


def _fresh(t: Any) -> Any:
    with t.fake_mode, torch.no_grad():
        return torch.empty_strided(t.size(), t.stride(), dtype=t.dtype, device=t.device)


def trace(node: fx.Node, spec: Any, tensors: list[torch.Tensor], context: Context, mode: Any) -> Template:
    """Records one node. SymInts among the arguments become inputs too, so that the tracer knows them."""
    symbols: list[Any] = []

    def lift(x: Any) -> Any:
        if isinstance(x, (torch.SymInt, torch.SymFloat, torch.SymBool)):
            symbols.append(x)
            return Slot(len(tensors) + len(symbols) - 1)
        if isinstance(x, slice):
            return slice(lift(x.start), lift(x.stop), lift(x.step))
        return {k: map_nested(v, lift) for k, v in x.items()} if isinstance(x, dict) else x
    lifted = map_nested(spec, lift)

    target: Any = node.target

    def call(*inputs: Any) -> Any:
        args, kwargs = _filled(lifted, inputs)
        return getattr(args[0], target)(*args[1:], **kwargs) if node.op == "call_method" else target(*args, **kwargs)

    if mode is None or (not callable(target) and node.op != "call_method"):
        raise Untraceable("UNSUPPORTED_OP")
    with context.applied():
        traced = trace_node(call, [*map(_fresh, tensors), *symbols], mode)
    return Recorder(traced, [shape_of(t) for t in tensors]).template()


class Recorder:
    """Turns a traced graph into a template."""

    def __init__(self, traced: fx.GraphModule, shapes: list[tuple[Size, ...]]):
        self.traced, self.shapes, self.inputs = traced, shapes, len(shapes)
        self.records: list[Record] = []
        self.slots: dict[fx.Node, Any] = {}
        self.current: dict[int, Slot] = {}                    # input -> its value after writes
        self.view_of: dict[int, tuple[int, tuple[int, ...]]] = {}     # slot -> (input, records of the view chain)

    def template(self) -> Template:
        result: Any = None
        for i, node in enumerate(self.traced.graph.find_nodes(op="placeholder")):
            self.slots[node] = Slot(i) if i < self.inputs else constant(node.meta.get("val"))
        for node in self.traced.graph.nodes:
            if node.op == "get_attr":
                self.slots[node] = self._constant(node)
            elif node.op == "call_function":
                self.slots[node] = self._call(node)
            elif node.op == "output":
                result = self._argument(node.args[0])
        return Template(self.inputs, tuple(self.records), result, self.current)

    def _add(self, record: Record) -> Slot:
        self.records.append(record)
        return Slot(self.inputs + len(self.records) - 1)

    def _constant(self, node: fx.Node) -> Any:
        value = getattr(self.traced, str(node.target))
        if not isinstance(value, torch.Tensor):
            raise Untraceable("UNSUPPORTED_OP")
        known = value.numel() == 1 and not hasattr(value, "fake_mode")
        return self._add(Record("constant" if known else None, "", {"value": value.item()} if known else {},
                                 str(value.dtype)[6:], shape_of(value), 0))

    def _argument(self, arg: Any) -> Any:
        if isinstance(arg, fx.Node):
            return self.slots[arg]
        if isinstance(arg, (list, tuple)):
            return [self._argument(a) for a in arg] if isinstance(arg, list) else tuple(map(self._argument, arg))
        return arg

    def _call(self, node: fx.Node) -> Any:
        value, target = node.meta.get("val"), node.target
        if target is operator.getitem:
            whole, place = cast(Any, node.args)
            return self.slots[whole][place]
        if not has_tensor(value):
            return constant(value) if value is not None else None
        if not isinstance(target, OpOverload):
            raise Untraceable("UNSUPPORTED_OP")
        schema = schema_of(target)
        args = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
        args.update({a.name: self._argument(v) for a, v in zip(schema.arguments, node.args, strict=False)})
        args.update({k: self._argument(v) for k, v in node.kwargs.items()})
        name, overload = overload_of(target)
        known = target.namespace in ("aten", "prims")
        if name in POSITIONAL:
            self._count_from_front(name, node.args, args)
        functional = name[:-1] if schema.is_mutable and name.endswith("_") and not name.endswith("__") else name

        def record(tensor: torch.Tensor, output: int = 0) -> Slot:
            return self._add(Record(functional if known else None, overload, args,
                                     str(tensor.dtype)[6:], shape_of(tensor), output, "" if known else "UNSUPPORTED_OP"))
        if isinstance(value, torch.Tensor):
            slot: Any = record(value)
        else:
            slot = tuple(record(t, i) for i, t in enumerate(cast(Any, value)))
        if schema.is_mutable:
            self._write(schema, args, slot, functional == name)
        elif isinstance(slot, Slot) and functional in CHAIN and isinstance(origin := args.get("self"), Slot):
            self._chain(slot, origin)
        return slot

    def _count_from_front(self, name: str, given: tuple[Any, ...], args: dict[str, Any]) -> None:
        """A symbolic position that is negative for the sizes seen is so for all sizes that the guards admit."""
        tensor = given[0].meta["val"]
        for argument, key in zip(given[2:], POSITIONAL[name], strict=False):
            known = argument.meta["val"] if isinstance(argument, fx.Node) else None
            if isinstance(known, torch.SymInt) and (hint(known) or 0) < 0:
                args[key] = size_of(known) + size_of(tensor.shape[given[1]])

    def _chain(self, slot: Slot, source: Slot) -> None:
        base, chain = self.view_of.get(source.index, (source.index, ()))
        if base < self.inputs:
            self.view_of[slot.index] = (base, (*chain, slot.index))

    def _write(self, schema: Any, args: dict[str, Any], slot: Any, unknown: bool) -> None:
        """The value of an input after an in-place op on it, or on a chain of slices of it."""
        target = args.get("self")
        if unknown or not isinstance(target, Slot) or not isinstance(slot, Slot):
            raise Untraceable("MUTATION")
        base, chain = self.view_of.get(target.index, (target.index, ()))
        if not chain:
            root = next((i for i, s in self.current.items() if s.index == target.index), target.index)
            if root < self.inputs:
                self.current[root] = slot
            return
        old = self.current.get(base, Slot(base))
        links = [self.records[c - self.inputs] for c in chain]
        last = self.records[slot.index - self.inputs]
        self.current[base] = self._add(Record("write", "", {"self": old, "part": slot, "links": links},
                                               last.dtype, self.shapes[base], 0))


POSITIONAL = {"slice": ("start", "end"), "select": ("index",), "narrow": ("start",)}
CHAIN = ("slice", "select", "alias", "detach")
