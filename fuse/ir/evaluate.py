"""Dense evaluation of expressions in plain torch: the meaning of every op, and the run-time glue between kernels.

The value of an expression has one dimension per axis, in the order of `expr.axes`, fully expanded. Under a window
`{axis: (lo, hi)}` it is the slice `[lo:hi]` of that value along these axes; reductions, scans and picks along a
windowed axis still see all of it, and a shift sees the neighbours of the window.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from fuse.ir.access import evaluate_output, read_code
from fuse.ir.align import aligner, expand
from fuse.ir.expr import COMPLEXES, FLOATS, INTEGERS, Axis, Expr, const, make, reduce_, sum_, where
from fuse.ir.index import Affine, affine, bounds
from fuse.ir.ops import OPS
from fuse.ir.size import Size

__all__ = ["Affine", "Evaluator", "affine", "bounds", "evaluate", "evaluate_output", "linear_scan", "lse_pair"]

Window = Mapping[Axis, tuple[int, int]]
Code = Callable[["Evaluator"], Tensor]
COMPLEX_OF = {"float64": "complex128", "float32": "complex64"}


@lru_cache
def dtypes(override: str | None) -> dict[str, torch.dtype]:
    """Which torch dtype each element type is computed in."""
    def computed(name: str) -> str:
        if override is None:
            return name
        return override if name in FLOATS else COMPLEX_OF[override] if name in COMPLEXES else name
    return {n: getattr(torch, computed(n)) for n in (*FLOATS, *COMPLEXES, *INTEGERS, "bool")}


class Evaluator:
    """Values of expressions under one window, each computed once.

    `given(node, evaluator)` supplies `carry` nodes and, where it returns a tensor, `scan` nodes. `peak` is the number
    of elements of the largest value computed, children included (reads do not count: they are slices).
    """

    def __init__(self, env: Mapping[str, Tensor], sizes: Mapping[str, int], window: Window | None = None,
                 dtype: str | None = None, given: Callable[[Expr, Evaluator], Tensor | None] | None = None):
        self.env, self.sizes, self.given, self.override = env, sizes, given, dtype
        self.dtypes = dtypes(dtype)
        self.window = {axis.name: span for axis, span in (window or {}).items()}
        self.memo: dict[Expr, Tensor] = {}
        self.children: dict[frozenset[tuple[str, tuple[int, int] | None]], Evaluator] = {}
        self.own_peak = 0
        self._device: torch.device | None = None

    @property
    def device(self) -> torch.device:
        if self._device is None:
            self._device = next((t.device for t in self.env.values()), torch.device("cpu"))
        return self._device

    @property
    def peak(self) -> int:
        return max(self.own_peak, *(c.peak for c in self.children.values()), 0)

    def dtype(self, name: str) -> torch.dtype:
        """The torch dtype in which values of element type `name` are computed."""
        return self.dtypes[name]

    def extent(self, extent: Size) -> int:
        """Not forced to an int: while a graph is traced the sizes are SymInts and have to stay so."""
        constant = extent.constant
        value: int = extent.evaluate(self.sizes) if constant is None else constant
        return value

    def span(self, axis: Axis) -> tuple[int, int]:
        """The positions of `axis` that values have here."""
        return self.window.get(axis.name) or (0, self.extent(axis.extent))

    def count(self, axis: Axis) -> int:
        low, high = self.span(axis)
        return high - low

    def moved(self, changes: Mapping[Axis, tuple[int, int] | None]) -> Evaluator:
        """The evaluator whose window differs in these axes (None: the whole axis)."""
        if all(self.window.get(a.name) == span for a, span in changes.items()):
            return self
        key = frozenset((a.name, span) for a, span in changes.items())
        if key not in self.children:
            child = Evaluator(self.env, self.sizes, None, self.override, self.given)
            child.window = {**self.window, **{a.name: s for a, s in changes.items() if s is not None}}
            for axis, span in changes.items():
                if span is None:
                    child.window.pop(axis.name, None)
            child._device = self._device
            self.children[key] = child
        return self.children[key]

    def outside(self, axes: tuple[Axis, ...]) -> Evaluator:
        """The evaluator that sees the whole of `axes`."""
        return self.moved(dict.fromkeys(axes)) if self.window else self

    def value(self, root: Expr) -> Tensor:
        found = self.memo.get(root)
        if found is not None:
            return found
        for node, code in schedule(root):
            if node not in self.memo:
                self.memo[node] = found = code(self)
                if node.op not in STORED:
                    self._grow(found)
        return self.memo[root]

    def _grow(self, value: Tensor) -> None:
        count = value.numel()
        if isinstance(count, int) and count > self.own_peak:    # comparing SymInts would leave a guard
            self.own_peak = count

    def partial(self, x: Expr, axes: tuple[Axis, ...]) -> Tensor:
        """The sum of `x` over the windowed part of `axes`; dimensions are the other axes of `x`, in its order."""
        out = contraction(x, tuple(a for a in axes if a in x.axes))(self)
        self._grow(out)
        for axis in axes:
            if axis not in x.axes:
                out = out * self.count(axis)
        return out


def evaluate(expr: Any, env: Mapping[str, Tensor], sizes: Mapping[str, int], *, window: Window | None = None,
             dtype: str | None = None, carries: Callable[[Expr, Evaluator], Tensor | None] | None = None) -> Any:
    """The value of an expression, or the list of values of several, which then share subexpressions.

    `env` holds a tensor for every buffer read, `sizes` a number for every symbol. `dtype` computes every float in that
    type (complex numbers in its complex counterpart) whatever the expression says; None means as typed. `carries`
    gives the value of `carry` nodes. A result may alias a tensor of `env`.
    """
    evaluator = Evaluator(env, sizes, window, dtype, carries)
    return evaluator.value(expr) if isinstance(expr, Expr) else [evaluator.value(e) for e in expr]


def lse_pair(ell: Expr) -> tuple[Expr, Expr]:
    """(m, l) with L = m + log l: of x for `lse(x)`, combined for `logaddexp`, (L, 1) for anything else.

    l is 0 where every x is -inf (so that L is -inf there) and nan where one is +inf, as softmax has it.
    """
    if ell.op == "stop":
        m, total = lse_pair(ell.args[0])
        return make("stop", m), make("stop", total)
    if ell.op == "lse":
        x, axes = ell.args[0], ell["axes"]
        m = reduce_("max", x, *axes)
        return m, sum_(make("exp", x - _finite(m)), *axes)
    if ell.op == "logaddexp":
        (m, p), (n, q) = map(lse_pair, ell.args)
        top = make("maximum", m, n)
        return top, p * make("exp", m - _finite(top)) + q * make("exp", n - _finite(top))
    return ell, const(1, ell.dtype)


def _finite(m: Expr) -> Expr:
    return where(make("eq", m, const(float("-inf"), m.dtype)), 0, m)


def _lse(node: Expr) -> Expr:
    m, total = lse_pair(node)
    return m + make("log", total)


def _exp_sub(node: Expr) -> Expr:
    m, total = lse_pair(node.args[1])
    weight = make("exp", node.args[0] - m)
    return weight if total.op == "const" else weight / total


def _sub_lse(node: Expr) -> Expr:
    m, total = lse_pair(node.args[1])
    return node.args[0] - m if total.op == "const" else node.args[0] - m - make("log", total)


LOWERED: dict[str, Callable[[Expr], Expr]] = {"lse": _lse, "exp_sub": _exp_sub, "sub_lse": _sub_lse}
STORED = ("read", "const", "iota", "size", "carry")


@lru_cache(maxsize=4096)
def schedule(root: Expr) -> tuple[tuple[Expr, Code], ...]:
    """What to compute for `root`, in order. Pointwise arguments are listed; other ops ask for theirs themselves."""
    order: dict[Expr, Code] = {}
    stack = [(root, False)]
    while stack:
        node, ready = stack.pop()
        if node in order:
            continue
        if ready or not OPS[node.op].pointwise or node.op == "read" or node.op in LOWERED or not node.args:
            order[node] = code(node)
        else:
            stack.append((node, True))
            stack.extend((a, False) for a in reversed(node.args))
    return tuple(order.items())


@lru_cache(maxsize=16384)
def code(node: Expr) -> Code:
    """The function that evaluates one node."""
    if node.op in LOWERED:
        lowered = LOWERED[node.op](node)
        return lambda ev: ev.value(lowered)
    return CODES.get(node.op, _pointwise)(node)


def _pointwise(node: Expr) -> Code:
    meaning = OPS[node.op].meaning
    assert meaning is not None, node.op
    views = [aligner(a.axes, node.axes) for a in node.args]
    args = list(zip(node.args, views, strict=True))
    return lambda ev: meaning(*[ev.memo[a] if f is None else f(ev.memo[a]) for a, f in args])


def _const(node: Expr) -> Code:
    value, dtype = node["value"], node["dtype"]
    return lambda ev: torch.full((), value, dtype=ev.dtype(dtype), device=ev.device)


def _size(node: Expr) -> Code:
    return lambda ev: torch.full((), ev.extent(node["extent"]), dtype=torch.int64, device=ev.device)


def _iota(node: Expr) -> Code:
    return lambda ev: torch.arange(*ev.span(node["axis"]), device=ev.device)


def _cast(node: Expr) -> Code:
    x, dtype = node.args[0], node.dtype
    drops = x.dtype in COMPLEXES and dtype not in COMPLEXES
    return lambda ev: (ev.memo[x].real if drops else ev.memo[x]).to(ev.dtype(dtype))


def _carry(node: Expr) -> Code:
    def run(ev: Evaluator) -> Tensor:
        found = ev.given(node, ev) if ev.given is not None else None
        if found is None:
            raise KeyError(f"no value for carry {node['name']} ({node['part']})")
        return found
    return run


# ---- reductions -------------------------------------------------------------------------------------------------

def _leaves(x: Expr) -> list[Expr]:
    """The factors of a product that is larger than each of them; `[x]` if x is as large as one of its factors."""
    chain, stack = [], [x]
    while stack:
        e = stack.pop()
        if e.op == "mul":
            stack += reversed(e.args)
        else:
            chain.append(e)
    if x.op != "mul" or any(set(e.axes) >= set(x.axes) for e in chain):
        return [x]
    return [leaf for a in x.args for leaf in _leaves(a)]


def factors(x: Expr) -> list[Expr]:
    """The same, with factors that broadcast into another one multiplied into it."""
    out: list[Expr] = []
    for factor in sorted(_leaves(x), key=lambda e: -len(e.axes)):
        home = next((i for i, e in enumerate(out) if set(factor.axes) <= set(e.axes)), None)
        if home is None:
            out.append(factor)
        else:
            out[home] = out[home] * factor
    return out


@lru_cache(maxsize=4096)
def contraction(x: Expr, axes: tuple[Axis, ...]) -> Code:
    """Evaluates the sum of `x` over `axes` (all its own); a product larger than its factors is not built."""
    rest = tuple(a for a in x.axes if a not in axes)
    parts = factors(x) if x.dtype in FLOATS + COMPLEXES and axes else [x]
    if len(parts) == 1:
        dims = [parts[0].axes.index(a) for a in axes]
        kept = tuple(a for a in parts[0].axes if a not in axes)

        def plain(ev: Evaluator) -> Tensor:
            value = ev.value(parts[0])
            value = value.sum(dims, dtype=value.dtype) if dims else value
            return expand(value, kept, rest, [ev.count(a) for a in rest])
        return plain
    letter = {a: chr(ord("a") + i) if i < 26 else chr(ord("A") + i - 26) for i, a in enumerate(x.axes)}

    def spell(names: tuple[Axis, ...]) -> str:
        return "".join(letter[a] for a in names)
    equation = ",".join(spell(f.axes) for f in parts) + "->" + spell(rest)
    return lambda ev: torch.einsum(equation, *[ev.value(f) for f in parts])


def _sum(node: Expr) -> Code:
    x, axes = node.args[0], node["axes"]
    present = tuple(a for a in axes if a in x.axes)
    missing = [a for a in axes if a not in x.axes]
    inner = contraction(x, present)

    def run(ev: Evaluator) -> Tensor:
        out = inner(ev.outside(present))
        for axis in missing:
            out = out * ev.extent(axis.extent)
        return out
    return run


def _max(node: Expr) -> Code:
    x, axes = node.args[0], node["axes"]
    dims = [x.axes.index(a) for a in axes]

    def run(ev: Evaluator) -> Tensor:
        value = ev.outside(axes).value(x)
        if value.numel():
            return torch.amax(value, dims)
        shape = [n for i, n in enumerate(value.shape) if i not in dims]
        return torch.full(shape, lowest(value.dtype), dtype=value.dtype, device=value.device)
    return run


def lowest(dtype: torch.dtype) -> float | int:
    """The neutral element of max."""
    return float("-inf") if dtype.is_floating_point else False if dtype == torch.bool else torch.iinfo(dtype).min


def _argmax(node: Expr) -> Code:
    x, (axis,) = node.args[0], node["axes"]
    dim = x.axes.index(axis)
    return lambda ev: torch.argmax(ev.outside((axis,)).value(x), dim)


# ---- structured -------------------------------------------------------------------------------------------------

def linear_scan(a: Tensor, b: Tensor, start: Tensor, reverse: bool = False) -> Tensor:
    """`h_t = a_t h_{t-1} + b_t` along the first dimension, from the state `start`; from the last index if `reverse`."""
    state, states = start, []
    for x, y in zip(reversed(a.unbind(0)), reversed(b.unbind(0)), strict=True) if reverse else zip(a, b, strict=True):
        state = torch.addcmul(y, x, state)
        states.append(state)
    return torch.stack(states[::-1] if reverse else states) if states else torch.empty_like(b)


def _scan(node: Expr) -> Code:
    (a, b), axis, reverse = node.args, node["axis"], node["reverse"]
    dim = node.axes.index(axis)

    def run(ev: Evaluator) -> Tensor:
        found = ev.given(node, ev) if ev.given is not None else None
        if found is not None:
            return found
        whole = ev.outside((axis,))
        counts = [whole.count(x) for x in node.axes]
        x, y = (expand(whole.value(e), e.axes, node.axes, counts).movedim(dim, 0) for e in (a, b))
        out = linear_scan(x, y, torch.zeros_like(y[:1].sum(0)), reverse).movedim(0, dim)
        low, high = ev.span(axis)
        return out.narrow(dim, low, high - low)
    return run


def _shift(node: Expr) -> Code:
    x, axis, by = node.args[0], node["axis"], node["by"]
    dim = node.axes.index(axis)

    def run(ev: Evaluator) -> Tensor:
        low, high = ev.span(axis)
        n = ev.extent(axis.extent)
        first, last = min(max(low - by, 0), n), min(high - by, n)
        if axis.name in ev.window:
            value = ev.moved({axis: (first, max(last, first))}).value(x)
        else:
            value = ev.value(x).narrow(dim, first, max(last - first, 0))
        shape = list(value.shape)
        after = high - low - shape[dim] - (before := min(max(by - low, 0), high - low))
        first_zeros, last_zeros = (value.new_zeros([*shape[:dim], k, *shape[dim + 1:]]) for k in (before, after))
        return torch.cat([first_zeros, value, last_zeros], dim) if before or after else value
    return run


def _pick(node: Expr) -> Code:
    (x, index), axis = node.args, node["axis"]
    full = (*node.axes, axis)

    def run(ev: Evaluator) -> Tensor:
        value, at = ev.outside((axis,)).value(x), ev.value(index)
        counts, n = [ev.count(a) for a in node.axes], ev.extent(axis.extent)
        at = expand(at, index.axes, node.axes, counts)
        if n == 0:
            return value.new_zeros(counts)
        found = expand(value, x.axes, full, [*counts, n]).gather(-1, at.clamp(0, n - 1)[..., None])[..., 0]
        return torch.where((at >= 0) & (at < n), found, torch.zeros((), dtype=found.dtype, device=found.device))
    return run


CODES: dict[str, Callable[[Expr], Code]] = {
    "const": _const, "size": _size, "iota": _iota, "read": read_code, "carry": _carry, "cast": _cast, "sum": _sum,
    "max": _max, "argmax": _argmax, "scan": _scan, "shift": _shift, "pick": _pick,
}
