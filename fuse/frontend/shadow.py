"""A pre-dispatch ATen view of Dynamo's graph, made node by node and only where somebody looks.

Dynamo's own graph stays the source of truth: re-tracing it as a whole loses custom backwards, crashes in checkpoint and
bakes constants into vmap. Here every node is traced alone on fresh fake tensors of Dynamo's own mode, memoised on its
target and the metadata of its arguments; composite ops (linear, cross_entropy_loss, softmax) stay whole; what cannot be
traced stays an opaque value. In-place ops are values: a later use of the mutated node sees the value after it.
"""
from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import fx

from fuse.frontend.context import Context, contexts, mutated_arguments
from fuse.frontend.symbols import hint, shape_of, size_of
from fuse.ir.size import Size
from fuse.private import trace_node


class Value:
    """One ATen result. `op` is the overload packet's name without a trailing underscore, None for an opaque value.

    `args` are by schema name: values, numbers, extents (Size), symbolic floats, lists of these. `stored` says that the
    value is the result of its Dynamo node, so that it can be read from there. The result of a Dynamo node is traced when
    somebody asks for its op: what a region only reads costs nothing.
    """

    def __init__(self, op: str | None, args: dict[str, Any], dtype: str, shape: tuple[Size, ...], node: fx.Node, *,
                 stored: bool = False, output: int = 0, grad: bool = True, opaque: str = "", overload: str = "",
                 resolve: Callable[[], Value] | None = None):
        self._op, self._args, self._output, self._opaque, self._overload = op, args, output, opaque, overload
        self.dtype, self.shape, self.node, self.stored, self.grad = dtype, shape, node, stored, grad
        self._resolve = resolve

    def _known(self) -> Value:
        if self._resolve is not None:
            resolve, self._resolve = self._resolve, None
            found = resolve()
            self._op, self._args, self._output = found.op, found.args, found.output
            self._opaque, self._overload = found.opaque, found.overload
        return self

    @property
    def op(self) -> str | None:
        return self._known()._op

    @property
    def args(self) -> dict[str, Any]:
        return self._known()._args

    @property
    def output(self) -> int:
        """Which of several results of the op this is."""
        return self._known()._output

    @property
    def opaque(self) -> str:
        """Why the value is opaque: a code of fuse.reasons, or nothing for an input."""
        return self._known()._opaque

    @property
    def overload(self) -> str:
        return self._known()._overload

    @property
    def where(self) -> str | None:
        return where(self.node)

    def sources(self) -> Iterator[Value]:
        for arg in self.args.values():
            yield from _values(arg)

    def __repr__(self) -> str:
        return f"<{self.node.name}: {self.op} {self.dtype}[{', '.join(map(str, self.shape))}]>"


def _values(arg: Any) -> Iterator[Value]:
    if isinstance(arg, Value):
        yield arg
    elif isinstance(arg, (list, tuple)):
        for a in arg:
            yield from _values(a)


def where(node: fx.Node) -> str | None:
    """The user's file:line that made the node: the innermost frame outside torch."""
    trace = node.meta.get("stack_trace") or ""
    frames = [line.strip() for line in trace.splitlines() if line.strip().startswith("File ")]
    for frame in reversed(frames):
        path, _, rest = frame[6:].partition('"')
        if "/torch/" not in path or "site-packages" not in path:
            return f"{path}:{rest.split('line ')[1].split(',')[0]}" if "line " in rest else path
    return None


def called(node: fx.Node) -> str:
    """The name of what a node calls."""
    if isinstance(node.target, torch._ops.OpOverload):
        return str(node.target._schema.name.split("::")[-1])
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")


def example(node: fx.Node) -> Any:
    return node.meta.get("example_value", node.meta.get("val"))


@dataclass(frozen=True)
class _Record:
    """One op of a template; `_Slot`s among the arguments are other records or the node's own inputs."""

    op: str | None
    overload: str
    args: dict[str, Any]
    dtype: str
    shape: tuple[Size, ...]
    output: int
    opaque: str = ""


@dataclass(frozen=True)
class _Slot:
    index: int


@dataclass(frozen=True)
class _Template:
    """Slots 0..inputs-1 are the node's tensor arguments; records follow. `writes` maps an input to its new value."""

    inputs: int
    records: tuple[_Record, ...]
    result: Any
    writes: dict[int, _Slot] = field(default_factory=dict)


class Untraceable(Exception):
    """The node stays opaque; the argument is the code of the reason."""


class Shadow:
    """`value(node)` is the ATen value of a Dynamo node (a tuple of them for several results, else a constant)."""

    def __init__(self, graph: fx.Graph):
        self.graph = graph
        self.nodes = list(graph.nodes)
        self.position = {n: i for i, n in enumerate(self.nodes)}
        self.context: dict[fx.Node, Context] = contexts(self.nodes)
        self.mode = next((t.fake_mode for n in self.nodes if hasattr(t := example(n), "fake_mode")), None)
        self.templates: dict[Any, _Template | Untraceable] = {}
        self.memo: dict[fx.Node, Any] = {}
        self.written: dict[tuple[fx.Node, fx.Node], Value] = {}
        self.mutations: list[tuple[int, fx.Node, fx.Node]] = [
            (self.position[n], n, target) for n in self.nodes for target in mutated_arguments(n)]

    # ---- values ------------------------------------------------------------------------------------------------

    def value(self, node: fx.Node) -> Any:
        if node not in self.memo:
            tensor = example(node)
            self.memo[node] = self._value(node) if not isinstance(tensor, torch.Tensor) else Value(
                None, {}, str(tensor.dtype)[6:], shape_of(tensor), node, stored=True, grad=self.context[node].grad,
                resolve=lambda: self._value(node))
        return self.memo[node]

    @cached_property
    def data(self) -> frozenset[fx.Node]:
        """The nodes that depend on the elements of some input."""
        found: set[fx.Node] = set()
        for node in self.nodes:
            if node.op in ("placeholder", "get_attr"):
                known = isinstance(example(node), torch.Tensor)
            else:
                known = called(node) not in SHAPE_ONLY and any(a in found for a in node.all_input_nodes)
            if known:
                found.add(node)
        return frozenset(found)

    def value_at(self, node: fx.Node, position: int) -> Any:
        """The value that a use of `node` at this position in the graph sees."""
        own, tensor = self.position[node], example(node)
        if not self.mutations or not isinstance(tensor, torch.Tensor):
            return self.value(node)
        hits = [(p, m, t) for p, m, t in self.mutations if own < p < position and _shares(tensor, example(t))]
        if not hits:
            return self.value(node)
        _, mutation, target = hits[-1]
        self._written(mutation)
        new = self.written.get((mutation, target))
        if new is None or new.op is None:
            return self._opaque(node, tensor, "MUTATION")
        if _same_geometry(tensor, example(target)):
            return new
        if _contiguous_whole(tensor) and _contiguous_whole(example(target)):
            return Value("view", {"self": new, "size": list(shape_of(tensor))}, new.dtype, shape_of(tensor), node,
                         grad=new.grad)
        return self._opaque(node, tensor, "MUTATION")

    def _written(self, mutation: fx.Node) -> None:
        """Makes the values that a node leaves in its mutated arguments."""
        found = self.value(mutation)
        if isinstance(found, Value):
            found._known()

    def mutated_between(self, node: fx.Node, first: int, last: int) -> bool:
        """Does something change the node's memory at a position after `first` and up to `last`?"""
        return any(first < p <= last and _shares(example(node), example(t)) for p, _, t in self.mutations)

    def _value(self, node: fx.Node) -> Any:
        tensor = example(node)
        if node.op in ("placeholder", "get_attr"):
            return self._opaque(node, tensor) if isinstance(tensor, torch.Tensor) else constant(tensor)
        if node.op == "output":
            return None
        if node.target is operator.getitem and isinstance(example(node.args[0]), (tuple, list)):
            whole = self.value(node.args[0])
            part = whole[node.args[1]] if isinstance(whole, (tuple, list)) else None
            if part is None or not isinstance(part, Value):
                return self._opaque(node, tensor, "UNSUPPORTED_OP") if isinstance(tensor, torch.Tensor) else part
            return self._restamp(part, node)
        if not _has_tensor(tensor) and not mutated_arguments(node):
            return constant(tensor)
        try:
            return self._instantiate(node, self._template(node))
        except Untraceable as why:
            return _map_tensors(tensor, lambda t: self._opaque(node, t, str(why)))

    def _opaque(self, node: fx.Node, tensor: torch.Tensor, code: str = "") -> Value:
        mutated = code == "MUTATION"
        return Value(None, {}, str(tensor.dtype)[6:], shape_of(tensor), node, stored=not mutated, opaque=code,
                     grad=self.context[node].grad)

    def _restamp(self, value: Value, node: fx.Node) -> Value:
        return Value("alias", {"self": value}, value.dtype, value.shape, node, stored=True, grad=self.context[node].grad)

    # ---- tracing -----------------------------------------------------------------------------------------------

    def _template(self, node: fx.Node) -> _Template:
        context = self.context[node]
        if context.functorch:
            raise Untraceable("FUNCTORCH")
        tensors: list[fx.Node] = []
        spec = _spec((node.args, dict(node.kwargs)), tensors)
        for t in tensors:
            kind = type(example(t)).__name__
            if kind == "DTensor":
                raise Untraceable("DTENSOR")
            if not hasattr(example(t), "fake_mode"):
                raise Untraceable("FUNCTORCH" if "Batched" in kind or "Wrapped" in kind else "UNSUPPORTED_OP")
        key = (node.op, node.target, repr(spec), context.autocast, tuple(_geometry(example(t)) for t in tensors))
        if key not in self.templates:
            try:
                self.templates[key] = _trace(node, spec, [example(t) for t in tensors], context, self.mode)
            except Untraceable as why:
                self.templates[key] = why
            except Exception as error:  # whatever torch cannot trace alone stays what it is
                self.templates[key] = Untraceable("UNSUPPORTED_OP", error)
        found = self.templates[key]
        if isinstance(found, Untraceable):
            raise Untraceable(found.args[0])
        return found

    def _instantiate(self, node: fx.Node, template: _Template) -> Any:
        tensors: list[fx.Node] = []
        _spec((node.args, dict(node.kwargs)), tensors)
        position = self.position[node]
        slots: list[Value] = [self.value_at(t, position) for t in tensors]
        grad = self.context[node].grad
        fill = lambda x: slots[x.index] if isinstance(x, _Slot) else x  # noqa: E731
        for record in template.records:
            args = {k: _map(v, fill) for k, v in record.args.items()}
            slots.append(Value(record.op, args, record.dtype, record.shape, node, output=record.output, grad=grad,
                               opaque=record.opaque, overload=record.overload))
        for index, slot in template.writes.items():
            self.written[node, tensors[index]] = slots[slot.index]

        def result(slot: Any) -> Any:
            if not isinstance(slot, _Slot):
                return slot
            value = slots[slot.index]
            if slot.index < template.inputs:
                return self._restamp(value, node)
            value.stored = True
            return value
        return _map(template.result, result)


def constant(value: Any) -> Any:
    if isinstance(value, torch.SymInt):
        return size_of(value)
    if isinstance(value, (tuple, list)):
        return type(value)(map(constant, value)) if type(value) in (tuple, list) else tuple(map(constant, value))
    return value


def _has_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor) or isinstance(value, (tuple, list)) and any(map(_has_tensor, value))


def _map(x: Any, f: Any) -> Any:
    if isinstance(x, (list, tuple)):
        return [_map(a, f) for a in x] if isinstance(x, list) else tuple(_map(a, f) for a in x)
    return f(x)


def _map_tensors(x: Any, f: Any) -> Any:
    return _map(x, lambda a: f(a) if isinstance(a, torch.Tensor) else constant(a))


def _geometry(t: torch.Tensor) -> tuple:
    return t.dtype, str(t.device), tuple(map(str, t.shape)), tuple(map(str, t.stride()))


def _same_geometry(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a is b or (_geometry(a) == _geometry(b) and str(a.storage_offset()) == str(b.storage_offset()))


def _shares(a: torch.Tensor, b: Any) -> bool:
    if a is b:
        return True
    try:
        return isinstance(b, torch.Tensor) and a.untyped_storage()._cdata == b.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):
        return False


def _contiguous_whole(t: torch.Tensor) -> bool:
    """A view of its whole storage in order: reshaping one such view gives another."""
    expected = 1
    for extent, stride in zip(reversed(t.shape), reversed(t.stride()), strict=True):
        if size_of(extent) != 1 and size_of(stride) != expected:
            return False
        expected = size_of(extent) * expected
    return size_of(t.storage_offset()) == 0 and size_of(t.untyped_storage().nbytes()) == size_of(t.itemsize) * expected


def _spec(arg: Any, tensors: list[fx.Node]) -> Any:
    """Arguments with tensor nodes replaced by slots (in order of appearance) and other nodes by their values."""
    if isinstance(arg, fx.Node):
        value = example(arg)
        if isinstance(value, torch.Tensor):
            if arg not in tensors:
                tensors.append(arg)
            return _Slot(tensors.index(arg))
        if _has_tensor(value):
            raise Untraceable("UNSUPPORTED_OP")
        return value
    if isinstance(arg, (list, tuple)):
        items = [_spec(a, tensors) for a in arg]
        return items if isinstance(arg, list) else tuple(items)
    if isinstance(arg, dict):
        return {k: _spec(v, tensors) for k, v in arg.items()}
    if isinstance(arg, slice):
        return slice(*(_spec(a, tensors) for a in (arg.start, arg.stop, arg.step)))
    return arg


def _fill(spec: Any, inputs: tuple[Any, ...]) -> Any:
    if isinstance(spec, _Slot):
        return inputs[spec.index]
    if isinstance(spec, (list, tuple)):
        items = [_fill(a, inputs) for a in spec]
        return items if isinstance(spec, list) else tuple(items)
    if isinstance(spec, dict):
        return {k: _fill(v, inputs) for k, v in spec.items()}
    if isinstance(spec, slice):
        return slice(*(_fill(a, inputs) for a in (spec.start, spec.stop, spec.step)))
    return spec


def _fresh(t: torch.Tensor) -> torch.Tensor:
    with t.fake_mode, torch.no_grad():
        return torch.empty_strided(t.size(), t.stride(), dtype=t.dtype, device=t.device)


def _trace(node: fx.Node, spec: Any, tensors: list[torch.Tensor], context: Context, mode: Any) -> _Template:
    """Records one node. SymInts among the arguments become inputs too, so that the tracer knows them."""
    symbols: list[Any] = []

    def lift(x: Any) -> Any:
        if isinstance(x, (torch.SymInt, torch.SymFloat, torch.SymBool)):
            symbols.append(x)
            return _Slot(len(tensors) + len(symbols) - 1)
        if isinstance(x, slice):
            return slice(lift(x.start), lift(x.stop), lift(x.step))
        return {k: _map(v, lift) for k, v in x.items()} if isinstance(x, dict) else x
    lifted = _map(spec, lift)

    def call(*inputs: Any) -> Any:
        args, kwargs = _fill(lifted, inputs)
        if node.op == "call_method":
            return getattr(args[0], node.target)(*args[1:], **kwargs)
        return node.target(*args, **kwargs)
    if mode is None or not callable(node.target) and node.op != "call_method":
        raise Untraceable("UNSUPPORTED_OP")
    with context.applied():
        traced = trace_node(call, [*map(_fresh, tensors), *symbols], mode)
    return _Recorder(traced, [shape_of(t) for t in tensors]).template()


class _Recorder:
    """Turns a traced graph into a template."""

    def __init__(self, traced: fx.GraphModule, shapes: list[tuple[Size, ...]]):
        self.traced, self.shapes, self.inputs = traced, shapes, len(shapes)
        self.records: list[_Record] = []
        self.slots: dict[fx.Node, Any] = {}
        self.current: dict[int, _Slot] = {}                    # input -> its value after writes
        self.view_of: dict[int, tuple[int, tuple[int, ...]]] = {}     # slot -> (input, records of the view chain)

    def template(self) -> _Template:
        result: Any = None
        for i, node in enumerate(self.traced.graph.find_nodes(op="placeholder")):
            self.slots[node] = _Slot(i) if i < self.inputs else constant(node.meta.get("val"))
        for node in self.traced.graph.nodes:
            if node.op == "get_attr":
                self.slots[node] = self._constant(node)
            elif node.op == "call_function":
                self.slots[node] = self._call(node)
            elif node.op == "output":
                result = self._argument(node.args[0])
        return _Template(self.inputs, tuple(self.records), result, self.current)

    def _add(self, record: _Record) -> _Slot:
        self.records.append(record)
        return _Slot(self.inputs + len(self.records) - 1)

    def _constant(self, node: fx.Node) -> Any:
        value = getattr(self.traced, str(node.target))
        if not isinstance(value, torch.Tensor):
            raise Untraceable("UNSUPPORTED_OP")
        known = value.numel() == 1 and not hasattr(value, "fake_mode")
        return self._add(_Record("constant" if known else None, "", {"value": value.item()} if known else {},
                                 str(value.dtype)[6:], shape_of(value), 0))

    def _argument(self, arg: Any) -> Any:
        if isinstance(arg, fx.Node):
            return self.slots[arg]
        if isinstance(arg, (list, tuple)):
            return [self._argument(a) for a in arg] if isinstance(arg, list) else tuple(map(self._argument, arg))
        return arg

    def _call(self, node: fx.Node) -> Any:
        value = node.meta.get("val")
        if node.target is operator.getitem:
            return self.slots[node.args[0]][node.args[1]]
        if not _has_tensor(value):
            return constant(value) if value is not None else None
        if not isinstance(node.target, torch._ops.OpOverload):
            raise Untraceable("UNSUPPORTED_OP")
        schema = node.target._schema
        args = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
        args.update({a.name: self._argument(v) for a, v in zip(schema.arguments, node.args, strict=False)})
        args.update({k: self._argument(v) for k, v in node.kwargs.items()})
        name = node.target._schema.name.split("::")[-1]
        known = node.target.namespace in ("aten", "prims")
        if name in POSITIONAL:
            self._count_from_front(node, args)
        functional = name[:-1] if schema.is_mutable and name.endswith("_") and not name.endswith("__") else name

        def record(tensor: torch.Tensor, output: int = 0) -> _Slot:
            return self._add(_Record(functional if known else None, node.target._overloadname, args,
                                     str(tensor.dtype)[6:], shape_of(tensor), output, "" if known else "UNSUPPORTED_OP"))
        if isinstance(value, torch.Tensor):
            slot: Any = record(value)
        else:
            slot = tuple(record(t, i) for i, t in enumerate(value))
        if schema.is_mutable:
            self._write(schema, args, slot, functional == name)
        elif isinstance(slot, _Slot) and functional in CHAIN and isinstance(args.get("self"), _Slot):
            self._chain(slot, args["self"])
        return slot

    def _count_from_front(self, node: fx.Node, args: dict[str, Any]) -> None:
        """A symbolic position that is negative for the sizes seen is so for all sizes that the guards admit."""
        tensor = node.args[0].meta["val"]
        for argument, name in zip(node.args[2:4], POSITIONAL[node.target._schema.name.split("::")[-1]], strict=False):
            known = argument.meta["val"] if isinstance(argument, fx.Node) else None
            if isinstance(known, torch.SymInt) and (hint(known) or 0) < 0:
                args[name] = size_of(known) + size_of(tensor.shape[node.args[1]])

    def _chain(self, slot: _Slot, source: _Slot) -> None:
        base, chain = self.view_of.get(source.index, (source.index, ()))
        if base < self.inputs:
            self.view_of[slot.index] = (base, (*chain, slot.index))

    def _write(self, schema: Any, args: dict[str, Any], slot: Any, unknown: bool) -> None:
        """The value of an input after an in-place op on it, or on a chain of slices of it."""
        target = args.get("self")
        if unknown or not isinstance(target, _Slot) or not isinstance(slot, _Slot):
            raise Untraceable("MUTATION")
        base, chain = self.view_of.get(target.index, (target.index, ()))
        if not chain:
            root = next((i for i, s in self.current.items() if s.index == target.index), target.index)
            if root < self.inputs:
                self.current[root] = slot
            return
        old = self.current.get(base, _Slot(base))
        links = [self.records[c - self.inputs] for c in chain]
        last = self.records[slot.index - self.inputs]
        self.current[base] = self._add(_Record("write", "", {"self": old, "part": slot, "links": links},
                                               last.dtype, self.shapes[base], 0))


POSITIONAL = {"slice": ("start", "end"), "select": ("index",), "narrow": ("start",)}
SHAPE_ONLY = ("zeros_like", "ones_like", "new_zeros", "new_ones", "size", "dim", "numel")
CHAIN = ("slice", "select", "alias", "detach")
