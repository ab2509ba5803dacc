"""Reductions and normalisations. The statistics of a softmax are a primitive: lse, exp_sub, sub_lse.

    softmax(x)_v      = exp_sub(x_v, L),  L = lse_v(x)
    log_softmax(x)_v  = sub_lse(x_v, L)
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from fuse.frontend.index import Linear
from fuse.frontend.operands import compute_type, convert
from fuse.frontend.symbols import number
from fuse.frontend.tables_pointwise import truth
from fuse.frontend.value import Value
from fuse.frontend.views import Index, source
from fuse.ir.expr import FLOATS, Axis, Expr, cast, const, make, reduce_, size, sum_, where
from fuse.ir.size import Size, product
from fuse.reasons import Miss, Refused

if TYPE_CHECKING:
    from fuse.frontend.importer import Pull

Rule = Callable[["Pull", Value, Index], Expr]


def dims_of(v: Value, rank: int, name: str = "dim") -> list[int]:
    """The reduced dimensions; none given means all."""
    given = v.args.get(name)
    if given is None or given == []:
        return list(range(rank))
    return sorted({d % max(rank, 1) for d in ([given] if isinstance(given, int) else given)})


def body(pull: Pull, v: Value, idx: Index) -> tuple[Expr, list[Axis], Size]:
    """The argument of a reduction with fresh axes in the reduced dimensions, these axes, and how many elements they span."""
    src = source(v)
    dims = dims_of(v, len(src.shape))
    keep = bool(v.args.get("keepdim", False))
    kept = iter(i for d, i in enumerate(idx) if not (keep and d in dims))
    at: list[Linear] = []
    axes: list[Axis] = []
    for d, extent in enumerate(src.shape):
        if d in dims:
            position, new = pull.bound(v, f"r{d}", extent, idx)
            axes += new
        else:
            position = next(kept)
        at.append(position)
    return pull.at_argument(v, src, tuple(at)), axes, product(src.shape[d] for d in dims)


def _typed(x: Expr, dtype: str) -> Expr:
    return truth(x) if dtype == "bool" else convert(x, dtype)


def _sum(pull: Pull, v: Value, idx: Index) -> Expr:
    x, axes, _ = body(pull, v, idx)
    return sum_(_typed(x, v.dtype), *axes)


def _mean(pull: Pull, v: Value, idx: Index) -> Expr:
    x, axes, count = body(pull, v, idx)
    return _over(sum_(_typed(x, v.dtype), *axes), count)


def _over(x: Expr, count: Size) -> Expr:
    return x / cast(size(count), x.dtype)


def over(op: str, x: Expr, axes: Sequence[Axis]) -> Expr:
    """max, argmax or lse of x, which may be constant along some of the axes: n equal terms add log n to an lse."""
    present = [a for a in axes if x.has(a)]
    if op == "argmax" and not present:
        return const(0, "int64")
    if op == "lse":
        count = product(a.extent for a in axes if not x.has(a))
        found = reduce_("lse", x, *present)
        return found if count == 1 else found + make("log", cast(size(count), x.dtype))
    return reduce_(op, x, *present)


def _extremum(sign: int) -> Rule:
    def rule(pull: Pull, v: Value, idx: Index) -> Expr:
        x, axes, _ = body(pull, v, idx)
        if v.output == 1 or v.op in ("argmax", "argmin"):
            if (v.args.get("dim") is None and len(source(v).shape) > 1) or len(axes) != 1:
                raise Refused(Miss("UNSUPPORTED_OP", v.where, f"{v.op} over several axes"))
            return over("argmax", x if sign > 0 else -x, axes)
        return over("max", x, axes) if sign > 0 else -over("max", -x, axes)
    return rule


def _logsumexp(pull: Pull, v: Value, idx: Index) -> Expr:
    x, axes, _ = body(pull, v, idx)
    return over("lse", convert(x, v.dtype), axes)


def _any_all(negate: bool) -> Rule:
    def rule(pull: Pull, v: Value, idx: Index) -> Expr:
        x, axes, _ = body(pull, v, idx)
        hit = make("not", truth(x)) if negate else truth(x)
        found = make("ne", sum_(cast(hit, "int64"), *axes), const(0, "int64"))
        return make("not", found) if negate else found
    return rule


def _norm(pull: Pull, v: Value, idx: Index) -> Expr:
    x, axes, _ = body(pull, v, idx)
    x = convert(x, v.dtype)
    order = v.args.get("ord", v.args.get("p"))
    order = 2.0 if order is None else float(order)
    size_ = make("abs", x)
    if order == float("inf"):
        return over("max", size_, axes)
    if order == 1:
        return sum_(size_, *axes)
    if order == 2:
        return make("sqrt", sum_(x * x, *axes))
    if order <= 0:
        raise Refused(Miss("UNSUPPORTED_OP", v.where, f"the {order}-norm"))
    return make("pow", sum_(make("pow", size_, const(order, x.dtype)), *axes), const(1 / order, x.dtype))


def _variance(root: bool) -> Rule:
    def rule(pull: Pull, v: Value, idx: Index) -> Expr:
        x, axes, count = body(pull, v, idx)
        x = convert(x, v.dtype)
        correction = v.args.get("correction", 1 if v.args.get("unbiased", True) else 0)
        off = x - _over(sum_(x, *axes), count)
        free = cast(size(count), x.dtype) - number(1 if correction is None else correction, x.dtype)
        variance = sum_(off * off, *axes) / where(make("lt", free, const(0, x.dtype)), 0, free)
        return make("sqrt", variance) if root else variance
    return rule


def unshifted(v: Value, dim: int) -> Value:
    """x where v is x less its own maximum along `dim`: the same softmax, and one sweep less."""
    if v.op != "sub" or not v.shape or v.args.get("alpha", 1) != 1:
        return v
    x, top = v.args["self"], v.args["other"]
    while isinstance(top, Value) and top.op in ("alias", "detach"):
        top = source(top)
    if not isinstance(top, Value) or top.op not in ("max", "amax") or top.output or source(top) != x or x.dtype != v.dtype:
        return v
    along = top.args.get("dim") is not None and dims_of(top, len(v.shape)) == [dim % len(v.shape)]
    return x if along and top.args.get("keepdim") else v


def normalised(pull: Pull, v: Value, idx: Index, dim: int, dtype: str) -> tuple[Expr, Expr]:
    """(x at the index, lse of x over `dim`): over the very axis of the index if that enumerates the dimension."""
    src = unshifted(source(v), dim)
    d = dim % max(len(src.shape), 1)
    x = convert(pull.at_argument(v, src, idx), dtype)
    if not src.shape:
        return x, x
    others = (*idx[:d], *idx[d + 1:])
    position, axes = pull.rebound(v, f"s{d}", idx[d], src.shape[d], others)
    whole = x if position == idx[d] else convert(pull.at_argument(v, src, (*idx[:d], position, *idx[d + 1:])), dtype)
    return x, over("lse", whole, axes)


def _softmax(op: str) -> Rule:
    return lambda pull, v, idx: make(op, *normalised(pull, v, idx, int(v.args["dim"]), v.dtype))


def _cumsum(pull: Pull, v: Value, idx: Index) -> Expr:
    src, d = source(v), int(v.args["dim"]) % len(v.shape)
    axes = idx[d].axes
    if len(axes) != 1 or idx[d] != Linear.of(axis := next(iter(axes))) or axis.extent != src.shape[d] \
            or any(axis in i.axes for k, i in enumerate(idx) if k != d):
        raise Refused(Miss("UNSUPPORTED_OP", v.where, "a prefix sum read elsewhere than at its own position"))
    x = convert(pull.at_argument(v, src, idx), v.dtype)
    return make("scan", const(1, x.dtype), x, axis=axis, reverse=False)


def _triangle(lower: bool) -> Rule:
    def rule(pull: Pull, v: Value, idx: Index) -> Expr:
        x = pull.at_argument(v, source(v), idx)
        offset = (idx[-1] - idx[-2]).expr()
        diagonal = number(v.args.get("diagonal", 0), "int64")
        keep = make("le", offset, diagonal) if lower else make("le", diagonal, offset)
        return where(keep, x, 0) if x.dtype != "bool" else make("and", keep, x)
    return rule


def _one_hot(pull: Pull, v: Value, idx: Index) -> Expr:
    label, position = cast(pull.at_argument(v, source(v), idx[:-1]), "int64"), idx[-1].expr()
    if position.op == "iota" and position["axis"].extent == v.shape[-1]:      # eager raises for a label beyond the classes
        pull.require("one_hot", label, v.shape[-1])
        label = make("bounded", label, axis=position["axis"])
    return cast(make("eq", position, label), "int64")


def _kl_div(pull: Pull, v: Value, idx: Index) -> Expr:
    from fuse.frontend.tables_pointwise import xlogy

    def pointwise(x: Expr, t: Expr) -> Expr:
        return make("exp", t) * (t - x) if v.args.get("log_target") else xlogy(t, t) - t * x
    return elementwise_loss(pull, v, idx, pointwise)


def elementwise_loss(pull: Pull, v: Value, idx: Index, pointwise: Callable[[Expr, Expr], Expr]) -> Expr:
    """A loss of two tensors: elementwise, its sum (reduction 2) or its mean (reduction 1)."""
    x, t = source(v), v.args["target"]
    reduction = int(v.args.get("reduction", 1))
    shape = _broadcast_shape(x.shape, t.shape)
    axes: list[Axis] = []
    at: Sequence[Linear] = idx
    if reduction:
        at = []
        for d, extent in enumerate(shape):
            position, new = pull.bound(v, f"r{d}", extent, ())
            at.append(position)
            axes += new
    from fuse.frontend.views import broadcast
    operands = [convert(pull.at_argument(v, o, broadcast(o.shape, at)), v.dtype) for o in (x, t)]
    total = sum_(pointwise(*operands), *axes)
    return _over(total, product(shape)) if reduction == 1 else total


def _broadcast_shape(a: Sequence[Size], b: Sequence[Size]) -> list[Size]:
    n = max(len(a), len(b))
    wide = [[Size.of(1)] * (n - len(s)) + list(s) for s in (a, b)]
    return [y if x == 1 else x for x, y in zip(*wide, strict=True)]


def _mse(pull: Pull, v: Value, idx: Index) -> Expr:
    return elementwise_loss(pull, v, idx, lambda x, t: (x - t) * (x - t))


def _bce_logits(pull: Pull, v: Value, idx: Index) -> Expr:
    if v.args.get("weight") is not None or v.args.get("pos_weight") is not None:
        raise Refused(Miss("UNSUPPORTED_OP", v.where, "weights of binary_cross_entropy_with_logits"))

    def pointwise(x: Expr, t: Expr) -> Expr:
        zero = const(0, x.dtype)
        return where(make("lt", x, zero), 0, x) - x * t + make("log1p", make("exp", -make("abs", x)))
    return elementwise_loss(pull, v, idx, pointwise)


REDUCTIONS: dict[str, Rule] = {
    "sum": _sum, "mean": _mean, "amax": _extremum(1), "amin": _extremum(-1), "max": _extremum(1), "min": _extremum(-1),
    "argmax": _extremum(1), "argmin": _extremum(-1), "logsumexp": _logsumexp, "any": _any_all(False), "all": _any_all(True),
    "linalg_vector_norm": _norm, "norm": _norm, "var": _variance(False), "std": _variance(True),
    "kl_div": _kl_div, "mse_loss": _mse, "binary_cross_entropy_with_logits": _bce_logits,
}
# The result is as large as the argument.
SHAPED: dict[str, Rule] = {
    "softmax": _softmax("exp_sub"), "log_softmax": _softmax("sub_lse"), "cumsum": _cumsum,
    "_softmax": _softmax("exp_sub"), "_log_softmax": _softmax("sub_lse"),
    "special_softmax": _softmax("exp_sub"), "special_log_softmax": _softmax("sub_lse"),
    "tril": _triangle(True), "triu": _triangle(False), "one_hot": _one_hot,
}
SCANS = ("cumsum",)      # of these: a position depends on those before it


def _filled(value: Any) -> Rule:
    return lambda pull, v, idx: number(value, compute_type(v.dtype))


def _full(pull: Pull, v: Value, idx: Index) -> Expr:
    fill = v.args.get("fill_value", v.args.get("s", v.args.get("value")))
    if isinstance(fill, Value):
        return convert(pull.at_argument(v, fill, ()), v.dtype)
    return number(fill, compute_type(v.dtype))


def _arange(pull: Pull, v: Value, idx: Index) -> Expr:
    start, step = v.args.get("start", 0) or 0, v.args.get("step", 1)
    if v.dtype in FLOATS:
        dtype = compute_type(v.dtype)
        position = cast(idx[0].expr(), dtype)
        scaled = position if step == 1 else position * number(step, dtype)
        return scaled if start == 0 else scaled + number(start, dtype)
    if not isinstance(start, (int, Size)) or not isinstance(step, (int, Size)):
        raise Refused(Miss("UNSUPPORTED_OP", v.where, "arange of fractions as integers"))
    return cast((idx[0] * step + Size.of(start)).expr(), v.dtype)


def _eye(pull: Pull, v: Value, idx: Index) -> Expr:
    hit = make("eq", idx[0].expr(), idx[1].expr())
    return hit if v.dtype == "bool" else cast(hit, compute_type(v.dtype))


# Values that depend on no tensor's elements.
FREE: dict[str, Rule] = {
    **dict.fromkeys(("zeros", "zeros_like", "new_zeros"), _filled(0)),
    **dict.fromkeys(("ones", "ones_like", "new_ones"), _filled(1)),
    **dict.fromkeys(("full", "full_like", "new_full", "scalar_tensor", "constant"), _full), "arange": _arange, "eye": _eye,
}
