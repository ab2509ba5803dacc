"""Long convolutions by FFT whose kernel is a sum of exponentials are recurrences: diagonal state spaces, moving averages.

    y_t = sum_{s <= t} k_{t-s} u_s,   k_l = Re sum_n c_n exp(l x_n)
        = Re sum_n c_n h_{n,t},       h_{n,t} = exp(x_n) h_{n,t-1} + u_t

    y = irfft(rfft(u, n) * rfft(k, n), n)[..., :L]          n >= len(u) + len(k) - 1: nothing wraps around

That the kernel is one is read off its own expression at a symbolic lag (`convolved`): it is linear in exponentials of the
lag, with rates and coefficients that do not depend on it. Neither the kernel nor a transform is stored.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import fx

from fuse.frontend.affine import affine_in
from fuse.frontend.candidates import Candidate, dependents
from fuse.frontend.index import Linear, linear
from fuse.frontend.operands import convert
from fuse.frontend.recurrence import refused
from fuse.frontend.scope import Scope
from fuse.frontend.tables_reduce import FREE
from fuse.frontend.value import Value, called
from fuse.frontend.views import Index, broadcast, source
from fuse.ir.expr import COMPLEXES, Axis, Expr, cast, const, make, sum_, topological
from fuse.ir.size import Size
from fuse.reasons import Miss

if TYPE_CHECKING:
    from fuse.frontend.importer import Pull


def find_convolutions(scope: Scope) -> tuple[list[Candidate], list[Miss]]:
    """Candidates for the graph's FFT convolutions; whether the kernel is a sum of exponentials, the import decides."""
    found = []
    for node in scope.graph.nodes:
        if called(node) == "fft_irfft":
            for user in list(node.users):
                candidate = _candidate(scope, user)
                if candidate is not None:
                    found.append(candidate)
    return found, []


def _candidate(scope: Scope, node: fx.Node) -> Candidate | None:
    y = scope.shadow.value(node)
    parts = _parts(y) if isinstance(y, Value) else None
    if parts is None:
        return None
    u, k, transforms = parts
    region = {node, *_lagged(scope, k.node)}
    for inner in sorted(transforms, key=scope.position.__getitem__, reverse=True):
        if set(inner.users) <= region | transforms:
            region.add(inner)
    scope.shadow.memo[node] = Value("convolved", {"input": u, "kernel": k}, y.dtype, y.shape, node, stored=True, grad=y.grad)
    return scope.candidate(region, [node])


def _lagged(scope: Scope, kernel: fx.Node) -> set[fx.Node]:
    """What the kernel is made of that depends on an `arange`, itself included."""
    above, todo = {kernel}, [kernel]
    while todo:
        new = [a for a in todo.pop().all_input_nodes if a not in above]
        above.update(new)
        todo += new
    lags = tuple(n for n in above if called(n) in FREE and n.op == "call_function")
    return above & dependents(lags)


def _parts(y: Value) -> tuple[Value, Value, set[fx.Node]] | None:
    """(u, k, the calls between) of irfft(rfft(u) * rfft(k))[..., :len(u)], if it is the causal convolution."""
    if y.op not in ("slice", "narrow") or int(y.args["dim"]) % len(y.shape) != len(y.shape) - 1 \
            or y.args.get("start") not in (0, None) or y.args.get("step") not in (1, None):
        return None
    back = source(y)
    product = back.args.get("self") if back.op == "fft_irfft" else None
    if not isinstance(product, Value) or product.op not in ("mul", "multiply"):
        return None
    sides = [product.args["self"], product.args["other"]]
    if not all(isinstance(s, Value) and s.op == "fft_rfft" and _plain(s, back) for s in sides) or not _plain(back, back):
        return None
    u, k = (source(s) for s in sides)
    if len(u.shape) < len(k.shape) or (len(u.shape) == len(k.shape) and _lags(u) and not _lags(k)):
        u, k = k, u
    n, length = back.args.get("n"), y.shape[-1]
    if not isinstance(n, (int, Size)) or not (Size.of(n) - u.shape[-1] - k.shape[-1] + 1).nonnegative():
        return None
    if u.shape[-1] != length or not (k.shape[-1] - length).nonnegative():
        return None
    return u, k, {back.node, product.node, *(s.node for s in sides)}


def _plain(v: Value, back: Value) -> bool:
    """A transform of the same length along the last dimension, with the usual norm."""
    return v.args.get("n") == back.args.get("n") and v.args.get("norm") in (None, "backward") \
        and int(v.args.get("dim", -1)) in (-1, len(v.shape) - 1)


def _lags(v: Value) -> bool:
    """Is v made from an `arange`, a few calls away?"""
    level = [v]
    for _ in range(12):
        level = [s for x in level if x.op is not None for s in x.sources()]
        if any(x.op == "arange" for x in level):
            return True
    return False


# ---- the rule -------------------------------------------------------------------------------------------------------

def _convolved(pull: Pull, v: Value, idx: Index) -> Expr:
    u, k = v.args["input"], v.args["kernel"]
    axis = next(iter(idx[-1].axes), None)
    if axis is None or idx[-1] != Linear.of(axis) or axis.extent != u.shape[-1] or any(axis in i.axes for i in idx[:-1]):
        raise refused(v, "the convolution is read at other positions than its own")
    lag, axes = pull.bound(v, "lag", k.shape[-1], idx)
    if len(axes) != 1:
        raise refused(v, "the lags of the kernel are cut in parts")
    kernel = pull.at_argument(v, k, (*broadcast(k.shape, idx)[:-1], lag))
    signal = convert(pull.at_argument(v, u, broadcast(u.shape, idx)), v.dtype)
    found = Convolution(axes[0], axis, signal).of(kernel)
    if found is None:
        raise refused(k, "the kernel is not a sum of exponentials of the lag")
    return found


class Convolution:
    """sum_{s <= t} k_{t-s} u_s, for a kernel k that is an expression of the lag and a real signal u of the time t."""

    def __init__(self, lag: Axis, time: Axis, signal: Expr):
        self.lag, self.time, self.signal = lag, time, signal

    def of(self, k: Expr) -> Expr | None:
        """The convolution with the kernel k, or None if k is not linear in exponentials of the lag."""
        if not k.has(self.lag):
            return k * self._scan(const(1, k.dtype))
        rule = KERNELS.get(k.op)
        return rule(self, k) if rule is not None else None

    def _scan(self, a: Expr) -> Expr:
        return make("scan", a, cast(self.signal, a.dtype), axis=self.time, reverse=False)

    def _each(self, k: Expr) -> Expr | None:
        """For what is linear with real coefficients: k's op of the convolutions with its arguments."""
        args = [self.of(a) for a in k.args]
        return None if None in args else make(k.op, *(a for a in args if a is not None), **dict(k.attrs))

    def _cast(self, k: Expr) -> Expr | None:
        inner = k.args[0]
        if inner.dtype in COMPLEXES and k.dtype not in COMPLEXES:
            return None
        return self._each(k) if inner.dtype not in ("int64", "bool") else None

    def _mul(self, k: Expr) -> Expr | None:
        x, y = k.args
        if x.has(self.lag) and y.has(self.lag):
            return self.of(make("exp", x.args[0] + y.args[0])) if (x.op, y.op) == ("exp", "exp") else None
        factor, rest = (y, x) if x.has(self.lag) else (x, y)
        found = self.of(rest)
        return None if found is None else factor * found

    def _div(self, k: Expr) -> Expr | None:
        x, y = k.args
        found = None if y.has(self.lag) else self.of(x)
        return None if found is None else found / y

    def _exp(self, k: Expr) -> Expr | None:
        """exp(x l + c) = exp(c) exp(x)^l"""
        leaves = {e: shift for e in topological([k]) if (shift := self._position(e)) is not None}
        if not leaves:
            return None
        form = affine_in(k.args[0], leaves)
        if form is None or form[0] is None or any(x is not None and x.has(self.lag) for x in form):
            return None
        h = self._scan(make("exp", form[0]))
        return h if form[1] is None else make("exp", form[1]) * h

    def _position(self, e: Expr) -> Expr | None:
        """The offset of a cast of `lag + offset`; None for anything else."""
        inner = e
        while inner.op == "cast":
            inner = inner.args[0]
        if e.op != "cast" or e.dtype in ("int64", "bool") or inner.dtype != "int64" or not inner.has(self.lag):
            return None
        offset = linear(inner) - self.lag
        return cast(offset.expr(), e.dtype) if offset.constant is not None else None

    def _sum(self, k: Expr) -> Expr | None:
        found = self.of(k.args[0]) if self.lag not in k["axes"] else None
        return None if found is None else sum_(found, *k["axes"])


KERNELS: dict[str, Callable[[Convolution, Expr], Expr | None]] = {
    "add": Convolution._each, "sub": Convolution._each, "neg": Convolution._each, "real": Convolution._each,
    "imag": Convolution._each, "conj": Convolution._each, "cast": Convolution._cast, "mul": Convolution._mul,
    "div": Convolution._div, "exp": Convolution._exp, "sum": Convolution._sum,
}
CONVOLUTIONS: dict[str, Callable[[Any, Value, Index], Expr]] = {"convolved": _convolved}
