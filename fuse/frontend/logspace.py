"""Recurrences written with prefix sums, in logarithms or with a running product divided out.

    E_t * sum_{s <= t} b_s / E_s  =  h_t,   h_t = a_t h_{t-1} + b_t           E = exp(cumsum(log a)) or cumprod(a)

    exp(A + logcumsumexp(v - A)),  A = cumsum(log a)       b = exp(v)
    p * cumsum(b / p),             p = cumprod(a)

Both sides are taken apart into factors, so that neither the order of the operations matters nor where an exponential is
written as a factor. The identity is exact; in floating point the direct recurrence errs less, by what E loses, and where E
has become 0 the quotient is nan. Nothing may stand beside E and the sum (a constant added to E is the user's), and the two
are over one dimension of one shape.
"""
from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import fx

from fuse.frontend.candidates import Candidate, consumers
from fuse.frontend.recurrence import scanned
from fuse.frontend.scope import Scope
from fuse.frontend.value import Value, called
from fuse.frontend.views import source
from fuse.ir.expr import FLOATS
from fuse.reasons import Miss

PRODUCTS, QUOTIENTS = ("mul", "multiply"), ("div", "divide", "true_divide")
PREFIXES = ("cumsum", "logcumsumexp")
STEPS = 5                 # calls from the sum to the product


@dataclass(frozen=True)
class Factor:
    """`value`, its exponential (exp), its running product (cumprod), or the exponential of its prefix sum (growth).

    A prefix is the sum over all positions before and at one, along `dim` counted from the end, of a product `inner`.
    """

    kind: str
    value: Value
    dim: int = 0
    inner: frozenset[tuple[Factor, int]] = frozenset()


@dataclass
class Factors:
    """A value as a product of powers. `nodes`: the calls that were taken apart."""

    powers: Counter[Factor] = field(default_factory=Counter)
    nodes: set[fx.Node] = field(default_factory=set)

    def take(self, v: Value, power: int) -> None:
        """Multiplies by v ** power."""
        v = self._seen_through(v)
        args = v.args
        if v.op in (*PRODUCTS, *QUOTIENTS) and args.get("rounding_mode") is None:
            self._enter(v, (args["self"], power), (args["other"], power if v.op in PRODUCTS else -power))
        elif v.op == "reciprocal":
            self._enter(v, (args["self"], -power))
        elif v.op == "exp":
            self.nodes.add(v.node)
            self._exponential(args["self"], power)
        elif v.op == "cumprod" and args.get("dtype") is None:
            self._add(Factor("cumprod", source(v), _dim(v)), v, power)
        elif v.op == "cumsum" and args.get("dtype") is None:
            inner = Factors(nodes=self.nodes)
            inner.take(source(v), 1)
            self._add(Factor("prefix", v, _dim(v), frozenset(inner.powers.items())), v, power)
        else:
            self.powers[Factor("value", v)] += power

    def _exponential(self, v: Value, power: int) -> None:
        """Multiplies by exp(v) ** power."""
        v = self._seen_through(v)
        args = v.args
        plain = _both(args) and args.get("alpha", 1) == 1
        if v.op in ("add", "sub") and plain:
            self.nodes.add(v.node)
            self._exponential(args["self"], power)
            self._exponential(args["other"], power if v.op == "add" else -power)
        elif v.op in ("neg", "negative"):
            self.nodes.add(v.node)
            self._exponential(args["self"], -power)
        elif v.op == "cumsum" and args.get("dtype") is None:
            self._add(Factor("growth", source(v), _dim(v)), v, power)
        elif v.op == "logcumsumexp":
            inner = Factors(nodes=self.nodes)
            inner._exponential(source(v), 1)
            self._add(Factor("prefix", v, _dim(v), frozenset(inner.powers.items())), v, power)
        else:
            self.powers[Factor("exp", v)] += power

    def _enter(self, v: Value, *parts: tuple[Any, int]) -> None:
        self.nodes.add(v.node)
        for x, power in parts:
            self.take(x if isinstance(x, Value) else Value("constant", {"value": x}, v.dtype, (), v.node), power)

    def _add(self, factor: Factor, v: Value, power: int) -> None:
        self.nodes.add(v.node)
        self.powers[factor] += power

    def _seen_through(self, v: Value) -> Value:
        while v.op == "alias" and v.dtype == source(v).dtype:
            self.nodes.add(v.node)
            v = source(v)
        return v


def _both(args: dict[str, Any]) -> bool:
    return isinstance(args.get("self"), Value) and isinstance(args.get("other"), Value)


def _dim(v: Value) -> int:
    return int(v.args["dim"]) % len(v.shape) - len(v.shape)


def find_logspace(scope: Scope) -> tuple[list[Candidate], list[Miss]]:
    """Candidates for the products of a graph that are recurrences. There is nothing to refuse: a prefix sum is no mistake."""
    found: list[Candidate] = []
    taken: set[fx.Node] = set()
    for node in [n for n in scope.graph.nodes if called(n) in PREFIXES]:
        for result in _downstream(node):
            candidate = None if result in taken else _candidate(scope, result)
            if candidate is not None:
                found.append(candidate)
                taken |= set(candidate.virtual)
                break
    return found, []


def _downstream(node: fx.Node) -> Iterator[fx.Node]:
    level = {node}
    for _ in range(STEPS):
        level = {u for n in level for u in consumers(n) if called(u) in ("mul", "add", "exp", "div", "truediv")}
        yield from level


def _candidate(scope: Scope, node: fx.Node) -> Candidate | None:
    v = scope.shadow.value(node)
    if not isinstance(v, Value) or v.op not in ("exp", *PRODUCTS, *QUOTIENTS) or v.dtype not in FLOATS:
        return None
    factors = Factors()
    factors.take(v, 1)
    parts = _parts(v, factors)
    if parts is None or any(scope.shadow.context[n].functorch for n in factors.nodes):
        return None
    scope.shadow.memo[node] = scanned(*parts, len(v.shape) + _the(factors, "prefix").dim, node)
    region = {node}
    for n in sorted(factors.nodes - {node}, key=scope.position.__getitem__, reverse=True):
        if set(consumers(n)) <= region:
            region.add(n)
    return scope.candidate(region, [node])


def _the(factors: Factors, *kinds: str) -> Factor:
    return next(f for f in factors.powers if f.kind in kinds)


def _parts(v: Value, factors: Factors) -> tuple[Value, Value] | None:
    """(a, b) if the factors are E and the prefix sum of b / E."""
    powers = {f: n for f, n in factors.powers.items() if n}
    if sorted(f.kind for f in powers) not in (["growth", "prefix"], ["cumprod", "prefix"]) or set(powers.values()) != {1}:
        return None
    e, prefix = _the(factors, "growth", "cumprod"), _the(factors, "prefix")
    inner = {f: n for f, n in prefix.inner if n}
    if inner.pop(e, None) != -1 or e.dim != prefix.dim or prefix.value.shape != v.shape \
            or e.value.shape[e.dim] != v.shape[e.dim] or any(f.kind not in ("value", "exp") for f in inner):
        return None
    growth = e.value if e.kind == "cumprod" else _applied("exp", e.value)
    total: Value | None = None
    for f, n in inner.items():
        for _ in range(abs(n)):
            x = f.value if f.kind == "value" else _applied("exp", f.value)
            if n < 0:
                x = _applied("reciprocal", x)
            total = x if total is None else _joined(v, total, x)
    return None if total is None or total.dtype != v.dtype or growth.dtype != v.dtype else (growth, total)


def _applied(op: str, x: Value) -> Value:
    return Value(op, {"self": x}, x.dtype, x.shape, x.node, grad=x.grad)


def _joined(like: Value, x: Value, y: Value) -> Value:
    return Value("mul", {"self": x, "other": y}, like.dtype, like.shape, like.node, grad=like.grad)
