"""A pre-dispatch ATen view of Dynamo's graph, made node by node and only where somebody looks.

Dynamo's own graph stays the source of truth: re-tracing it as a whole loses custom backwards, crashes in checkpoint and
bakes constants into vmap. Here every node is traced alone on fresh fake tensors of Dynamo's own mode, memoised on its
target and the metadata of its arguments, for the whole process where nothing else matters (recall.py); composite ops
(linear, cross_entropy_loss, softmax) stay whole; what cannot be traced stays an opaque value. In-place ops are values: a
later use of the mutated node sees the value after it.
"""
from __future__ import annotations

import operator
from functools import cached_property
from typing import Any

import torch
from torch import fx

from fuse.frontend.context import Context, contexts, mutated_arguments
from fuse.frontend.recall import keep, lasting, recall
from fuse.frontend.symbols import shape_of, size_of
from fuse.frontend.trace import CHAIN, Slot, Template, Untraceable, argument_spec, map_nested, map_tensors, trace
from fuse.frontend.value import Value, called, constant, example, has_tensor, where
from fuse.private import memory_of

__all__ = ["Shadow", "Value", "called", "example", "where"]

# Calls whose result does not depend on the elements of their argument.
SHAPE_ONLY = ("zeros_like", "ones_like", "new_zeros", "new_ones", "size", "dim", "numel")


class Shadow:
    """`value(node)` is the ATen value of a Dynamo node (a tuple of them for several results, else a constant)."""

    def __init__(self, graph: fx.Graph):
        self.graph = graph
        self.nodes = list(graph.nodes)
        self.position = {n: i for i, n in enumerate(self.nodes)}
        self.context: dict[fx.Node, Context] = contexts(self.nodes)
        self.mode = next((t.fake_mode for n in self.nodes if hasattr(t := example(n), "fake_mode")), None)
        self.templates: dict[Any, Template | Untraceable] = {}
        self.memo: dict[fx.Node, Any] = {}
        self.written: dict[tuple[fx.Node, fx.Node], Value] = {}
        self.mutated: dict[tuple[fx.Node, fx.Node], Value] = {}
        self.given: dict[fx.Node, Value] = {}      # what a region gives for a node, if not its value where it is made
        self.mutations: list[tuple[int, fx.Node, fx.Node]] = [
            (self.position[n], n, target) for n in self.nodes for target in mutated_arguments(n)]

    # ---- values ------------------------------------------------------------------------------------------------

    def value(self, node: fx.Node) -> Any:
        if node not in self.memo:
            tensor = example(node)
            self.memo[node] = self._value(node) if not isinstance(tensor, torch.Tensor) else Value(
                None, {}, str(tensor.dtype)[6:], shape_of(tensor), node, stored=True, grad=self.context[node].grad,
                since=self.position[node], resolve=lambda: self._value(node))
        return self.memo[node]

    @cached_property
    def floats(self) -> dict[str, fx.Node]:
        """The 0-d tensor behind every symbolic float: Dynamo passes floats that may change as tensors."""
        return {str(f.node.expr): n.all_input_nodes[0] for n in self.nodes
                if isinstance(f := example(n), torch.SymFloat) and called(n) == "item"}

    def _number(self, node: fx.Node, x: Any) -> Any:
        """A symbolic float that depends on such tensors, as a value of them."""
        names = {str(s) for s in x.node.expr.free_symbols} & self.floats.keys() if isinstance(x, torch.SymFloat) else ()
        if not names:
            return x
        args = {"expr": x.node.expr, **{n: self.value(self.floats[n]) for n in sorted(names)}}
        return Value("number", args, "float64", (), node)

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
        when, mutation, target = hits[-1]
        key = (node, mutation)
        if key not in self.mutated:
            self.mutated[key] = self._seen_as(node, target, self._written(mutation, target), when)
            self.mutated[key].since = when
        return self.mutated[key]

    def _written(self, mutation: fx.Node, target: fx.Node) -> Value | None:
        """The value that a node leaves in an argument it mutates; None if fuse cannot express it."""
        found = self.value(mutation)
        if isinstance(found, Value):
            found.force()
        lost = not self.context[mutation].grad and example(target).requires_grad
        return None if lost else self.written.get((mutation, target))

    def _seen_as(self, node: fx.Node, target: fx.Node, new: Value | None, when: int) -> Value:
        """What was written into `target`, seen through `node`, which shares its memory."""
        tensor, other = example(node), example(target)
        dtype, shape, grad = str(tensor.dtype)[6:], shape_of(tensor), self.context[node].grad
        if new is not None:
            if _same_geometry(tensor, other):
                return Value("alias", {"self": new}, dtype, shape, node, stored=True, grad=new.grad)
            if _contiguous_whole(tensor) and _contiguous_whole(other):
                return Value("view", {"self": new, "size": list(shape)}, dtype, shape, node, stored=True, grad=new.grad)
            links = self._links(target, node)
            if links:
                args = {"self": self.value_at(node, when), "part": new, "links": links}
                return Value("write", args, dtype, shape, node, stored=True, grad=new.grad)
        return Value(None, {}, dtype, shape, node, stored=True, grad=grad, opaque="MUTATION")

    def _links(self, view: fx.Node, base: fx.Node) -> list[Value]:
        """The chain of slices that makes `view` from `base`, outermost first; empty if it is anything else."""
        found: list[Value] = []
        v = self.value(view)
        while isinstance(v, Value) and v.op in CHAIN and v.node is not base:
            found.insert(0, v)
            v = v.args["self"]
        return found if isinstance(v, Value) and v.node is base else []

    def mutated_between(self, node: fx.Node, first: int, last: int) -> bool:
        """Does something change the node's memory at a position after `first` and up to `last`?"""
        return any(first < p <= last and _shares(example(node), example(t)) for p, _, t in self.mutations)

    def _value(self, node: fx.Node) -> Any:
        tensor = example(node)
        if node.op in ("placeholder", "get_attr"):
            return self._opaque(node, tensor) if isinstance(tensor, torch.Tensor) else constant(tensor)
        if node.op == "output":
            return None
        arguments: tuple[Any, ...] = node.args
        if node.target is operator.getitem and isinstance(example(arguments[0]), (tuple, list)):
            whole = self.value(arguments[0])
            part = whole[arguments[1]] if isinstance(whole, (tuple, list)) else None
            if part is None or not isinstance(part, Value):
                return self._opaque(node, tensor, "UNSUPPORTED_OP") if isinstance(tensor, torch.Tensor) else part
            return self._opaque(node, tensor, part.opaque) if part.op is None else self._restamp(part, node)
        if not has_tensor(tensor) and not mutated_arguments(node):
            return constant(tensor)
        try:
            return self._instantiate(node, self._template(node))
        except Untraceable as why:
            code = str(why)
            return map_tensors(tensor, lambda t: self._opaque(node, t, code))

    def _opaque(self, node: fx.Node, tensor: torch.Tensor, code: str = "") -> Value:
        return Value(None, {}, str(tensor.dtype)[6:], shape_of(tensor), node, stored=example(node) is tensor, opaque=code,
                     grad=self.context[node].grad, since=self.position[node])

    def _restamp(self, value: Value, node: fx.Node) -> Value:
        return Value("alias", {"self": value}, value.dtype, value.shape, node, stored=True, grad=self.context[node].grad,
                     since=self.position[node])

    # ---- tracing -----------------------------------------------------------------------------------------------

    def _template(self, node: fx.Node) -> Template:
        context = self.context[node]
        if context.functorch:
            raise Untraceable("FUNCTORCH")
        tensors: list[fx.Node] = []
        spec = argument_spec((node.args, dict(node.kwargs)), tensors)
        for t in tensors:
            kind = type(example(t)).__name__
            if kind == "DTensor":
                raise Untraceable("DTENSOR")
            if not hasattr(example(t), "fake_mode"):
                raise Untraceable("FUNCTORCH" if "Batched" in kind or "Wrapped" in kind else "UNSUPPORTED_OP")
        key = (node.op, node.target, repr(spec), context.autocast, tuple(_geometry(example(t)) for t in tensors))
        if key not in self.templates:
            self.templates[key] = self._traced(key, node, spec, [example(t) for t in tensors])
        found = self.templates[key]
        if isinstance(found, Untraceable):
            raise Untraceable(found.args[0])
        return found

    def _traced(self, key: Any, node: fx.Node, spec: Any, tensors: list[torch.Tensor]) -> Template | Untraceable:
        name = lasting(key, node, spec, tensors)
        found = recall(name)
        if found is None:
            try:
                found = trace(node, spec, tensors, self.context[node], self.mode)
            except Untraceable as why:
                return why
            except Exception as error:  # whatever torch cannot trace alone stays what it is
                return Untraceable("UNSUPPORTED_OP", error)
            keep(name, found)
        return found

    def _instantiate(self, node: fx.Node, template: Template) -> Any:
        tensors: list[fx.Node] = []
        argument_spec((node.args, dict(node.kwargs)), tensors)
        position = self.position[node]
        slots: list[Value] = [self.value_at(t, position) for t in tensors]
        grad = self.context[node].grad
        fill = lambda x: slots[x.index] if isinstance(x, Slot) else self._number(node, x)  # noqa: E731
        for record in template.records:
            args = {k: map_nested(v, fill) for k, v in record.args.items()}
            slots.append(Value(record.op, args, record.dtype, record.shape, node, output=record.output, grad=grad,
                               opaque=record.opaque, overload=record.overload))
        alone = isinstance(example(node), torch.Tensor)      # one of several results is stored where it is taken out
        for index, slot in template.writes.items():
            self.written[node, tensors[index]] = slots[slot.index]

        def result(slot: Any) -> Any:
            if not isinstance(slot, Slot):
                return slot
            value = slots[slot.index]
            if slot.index < template.inputs:
                return self._restamp(value, node)
            value.stored, value.since = alone, position
            return value
        return map_nested(template.result, result)


def _geometry(t: torch.Tensor) -> tuple[Any, ...]:
    return t.dtype, str(t.device), tuple(map(str, t.shape)), tuple(map(str, t.stride()))


def _same_geometry(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a is b or (_geometry(a) == _geometry(b) and str(a.storage_offset()) == str(b.storage_offset()))


def _shares(a: torch.Tensor, b: Any) -> bool:
    return a is b or (isinstance(b, torch.Tensor) and (memory := memory_of(a)) == memory_of(b) and memory != -1)


def _contiguous_whole(t: torch.Tensor) -> bool:
    """A view of its whole storage in order: reshaping one such view gives another."""
    expected = size_of(1)
    for extent, stride in zip(reversed(t.shape), reversed(t.stride()), strict=True):
        if size_of(extent) != 1 and size_of(stride) != expected:
            return False
        expected = size_of(extent) * expected
    return size_of(t.storage_offset()) == 0 and size_of(t.untyped_storage().nbytes()) == size_of(t.itemsize) * expected


