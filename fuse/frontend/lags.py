"""A causal convolution with a kernel that is linear in exponentials of the lag, as scans of the signal.

    k_l = exp(x l + c)      sum_{s <= t} k_{t-s} u_s = exp(c) h_t,   h_t = exp(x) h_{t-1} + u_t
    c k, k + k', sum_n k, Re k, ...           the same of the convolutions: the signal is real

Rates x and coefficients c may be anything that does not depend on the lag.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fuse.frontend.affine import affine_in
from fuse.frontend.index import Linear, linear
from fuse.frontend.operands import convert
from fuse.frontend.recurrence import refused
from fuse.frontend.value import Value
from fuse.frontend.views import Index, broadcast
from fuse.ir.expr import COMPLEXES, Axis, Expr, cast, const, make, sum_, topological

if TYPE_CHECKING:
    from fuse.frontend.importer import Pull


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
