"""torch's higher-order ops `scan` and `associative_scan`: the step is a graph of its own.

    scan(step, [s], [x])                         the loop h[k], y[k] = step(h[k - 1], x[k]), as any other (recurrence.py)
    associative_scan(combine, [a, b])            scan(a, b), if the combination is proved to be that of affine maps:
                                                 (a', b') of (l, r) = (a_l a_r, a_r b_l + b_r), leaves in either order

What `combine` is, its own expression says. torch 2.13 differentiates the op wrongly on GPUs: a scan has the right gradient.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import fx

from fuse.frontend.affine import affine_in
from fuse.frontend.candidates import Candidate
from fuse.frontend.context import mutated_arguments
from fuse.frontend.importer import Pull
from fuse.frontend.index import Linear
from fuse.frontend.recurrence import made, one_step, refused, rolled, scanned
from fuse.frontend.scope import Scope
from fuse.frontend.shadow import Shadow
from fuse.frontend.steps import Family
from fuse.frontend.symbols import shape_of
from fuse.frontend.value import Value, arguments, called, example, where
from fuse.ir.expr import Axis
from fuse.ir.size import Size
from fuse.private import HigherOrderOperator
from fuse.reasons import Miss, Refused


def find_bodies(scope: Scope) -> tuple[list[Candidate], list[Miss]]:
    """Candidates for the graph's higher-order scans, and a Miss for each that is no linear recurrence."""
    found: list[Candidate] = []
    misses: list[Miss] = []
    for node in scope.graph.nodes:
        show = SHOWN.get(called(node)) if isinstance(node.target, HigherOrderOperator) else None
        if show is not None:
            try:
                found.append(_candidate(scope, node, show))
            except Refused as refusal:
                misses.append(refusal.miss)
    return found, misses


def _candidate(scope: Scope, node: fx.Node, show: Callable[[Scope, fx.Node, fx.Graph], list[Value]]) -> Candidate:
    owner = node.graph.owning_module
    body = getattr(owner, str(arguments(node)[0].target), None)
    if not isinstance(body, fx.GraphModule) or any(mutated_arguments(n) for n in body.graph.nodes):
        raise Refused(Miss("NOT_A_SCAN", where(node), "the step cannot be looked into, or changes a tensor in place"))
    scope.shadow.memo[node] = tuple(show(scope, node, body.graph))
    items = [n for n in node.users if n.op == "call_function"]
    return scope.candidate({node, *items}, items, (node,))


def _nodes(graph: fx.Graph) -> tuple[list[fx.Node], list[Any]]:
    """Placeholders and results."""
    results = arguments(graph.output_node())[0]
    return graph.find_nodes(op="placeholder"), list(results) if isinstance(results, (list, tuple)) else [results]


# ---- scan -----------------------------------------------------------------------------------------------------------

@dataclass(eq=False)
class Body:
    """The step of a `scan` as a function of its position. `given`: what stands for a node, at a position."""

    name: str
    shadow: Shadow
    length: Size
    flipped: bool
    families: list[Family] = field(default_factory=list)
    results: dict[Family, Value] = field(default_factory=dict)
    given: dict[fx.Node, Callable[[Linear], Value]] = field(default_factory=dict)
    built: dict[Linear, dict[Value, Value]] = field(default_factory=dict)

    def like(self, f: Family) -> Value:
        return self.results[f]

    def definition(self, f: Family, k: Linear) -> Value:
        v = self.results[f]
        if v.node.op == "placeholder":
            return self.given[v.node](k)
        given = {n: make(k) for n, make in self.given.items()}
        return rebuilt(v, given, self.built.setdefault(k, {}))


def rebuilt(v: Value, given: Mapping[fx.Node, Value], memo: dict[Value, Value]) -> Value:
    """The value with its arguments made from `given`, what stands for placeholders and for states."""
    def argument(x: Any) -> Any:
        if isinstance(x, (list, tuple)):
            return type(x)(map(argument, x))
        if not isinstance(x, Value):
            return x
        return given[x.node] if x.stored and x.node in given else rebuilt(x, given, memo)
    if v not in memo:
        if v.op is None:
            raise refused(v, f"{v.node.target} in a step")
        args = {name: argument(x) for name, x in v.args.items()}
        memo[v] = Value(v.op, args, v.dtype, v.shape, v.node, output=v.output, grad=v.grad, overload=v.overload)
    return memo[v]


def _loop(scope: Scope, node: fx.Node, body: fx.Graph) -> list[Value]:
    _, start, xs, more = (*arguments(node), ())[:4]
    inner = Shadow(body)
    inputs, results = _nodes(body)
    if len(inputs) != len(start) + len(xs) + len(more) or not all(isinstance(inner.value(r), Value) for r in results):
        raise Refused(Miss("NOT_A_SCAN", where(node), "a step of another form"))
    loop = Body(node.name, scope.shadow, shape_of(example(xs[0]))[0], flipped=all(called(x) == "flip" for x in xs))
    for i, result in enumerate(results):
        family = Family((), previous=inputs[i], start=start[i]) if i < len(start) else Family(())
        loop.families.append(family)
        loop.results[family] = inner.value(result)
    for family, result in zip(loop.families[:len(start)], results, strict=False):
        loop.given[result] = partial(made, loop, "state", family)
    for i, n in enumerate(inputs):
        loop.given[n] = _given(scope, loop, i, start, xs, more)
    last = Linear.of(loop.length - 1)
    return [one_step(loop, f, last, node) if f.is_state else rolled(loop, f, 0, node, tensor=example(node)[i])
            for i, f in enumerate(loop.families)]


def _given(scope: Scope, loop: Body, i: int, start: Sequence[fx.Node], xs: Sequence[fx.Node],
           more: Sequence[fx.Node]) -> Callable[[Linear], Value]:
    if i < len(start):
        return partial(made, loop, "carried", loop.families[i])
    if i < len(start) + len(xs):
        x = scope.shadow.value(xs[i - len(start)])
        return lambda k: Value("select", {"self": x, "dim": 0, "index": k}, x.dtype, x.shape[1:], x.node, grad=x.grad)
    outer = scope.shadow.value(more[i - len(start) - len(xs)])
    return lambda k: outer


# ---- associative_scan -----------------------------------------------------------------------------------------------

def _combination(scope: Scope, node: fx.Node, body: fx.Graph) -> list[Value]:
    _, xs, more = (*arguments(node), ())[:3]
    if len(xs) != 2 or more:
        raise Refused(Miss("NOT_A_SCAN", where(node), f"a combination of {len(xs)} tensors and {len(more)} others"))
    a = next((i for i in (0, 1) if _affine(scope, body, i)), None)
    if a is None:
        raise Refused(Miss("NOT_A_SCAN", where(node), "the combination is not (a_l a_r, a_r b_l + b_r)"))
    factors, terms = (scope.shadow.value(xs[i]) for i in (a, 1 - a))
    found = [scanned(factors, None, 0, node), scanned(factors, terms, 0, node)]
    return found if a == 0 else found[::-1]


def _affine(scope: Scope, body: fx.Graph, a: int) -> bool:
    """Is the combination that of affine maps, with the factor at place `a`?"""
    inputs, results = _nodes(body)
    inner = Shadow(body)
    values = [inner.value(r) for r in results]
    if len(inputs) != 4 or len(values) != 2 or not all(isinstance(v, Value) for v in values):
        return False
    shape = tuple(map(shape_of, map(example, inputs)))
    if len(set(shape)) > 1 or any(v.shape != shape[0] for v in values):
        return False
    axes = [Axis(f"combined.{d}", extent) for d, extent in enumerate(shape[0])]
    index = tuple(Linear.of(x) if x.extent != 1 else Linear() for x in axes)
    pull = Pull(Candidate((), (), tuple(results), frozenset(), inner, scope.hints, None), {})
    leaves = {n: Value("leaf", {"name": n.name}, str(example(n).dtype)[6:], shape[0], n) for n in inputs}
    try:
        found = [pull.at(leaves[v.node] if v.node in leaves else rebuilt(v, leaves, {}), index) for v in values]
    except Refused:
        return False
    al, bl, ar, br = (pull.at(leaves[inputs[i]], index) for i in (a, 1 - a, 2 + a, 3 - a))
    return affine_in(found[a], al) == (ar, None) and affine_in(found[1 - a], bl) == (ar, br)


SHOWN = {"scan": _loop, "associative_scan": _combination}
