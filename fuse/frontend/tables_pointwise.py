"""Pointwise ATen ops as expressions, by overload packet. A rule gets the operands at one index and the value's own record."""
from __future__ import annotations

import math
from collections.abc import Callable

import torch

from fuse.frontend.operands import Operands, convert
from fuse.frontend.symbols import symbolic
from fuse.frontend.value import Value
from fuse.ir.expr import COMPLEXES, FLOATS, INTEGERS, Expr, cast, const, make, where
from fuse.reasons import Miss, Refused

Rule = Callable[[Operands], Expr]


def _refuse(value: Value, detail: str, code: str = "UNSUPPORTED_OP") -> Refused:
    return Refused(Miss(code, value.where, detail))


def _unary(op: str) -> Rule:
    return lambda o: make(op, *o("self"))


def _float(f: Callable[[Expr], Expr]) -> Rule:
    return lambda o: f(*o("self"))


def _part(op: str) -> Rule:
    def rule(o: Operands) -> Expr:
        x = o.tensor("self")
        assert x is not None
        return make(op, x) if x.dtype in COMPLEXES else x
    return rule


def _binary(op: str) -> Rule:
    return lambda o: make(op, *o("self", "other"))


def _compare(op: str, swap: bool = False) -> Rule:
    def rule(o: Operands) -> Expr:
        a, b = o.compared("self", "other")
        return make(op, *((b, a) if swap else (a, b)))
    return rule


def _scaled(o: Operands, x: Expr, name: str) -> Expr:
    return x if o.raw(name) in (None, 1) else x * o.number(name, x.dtype)


def _add(o: Operands) -> Expr:
    a, b = o("self", "other")
    return a + _scaled(o, b, "alpha")


def _sub(o: Operands) -> Expr:
    a, b = o("self", "other")
    return a - _scaled(o, b, "alpha")


def _rsub(o: Operands) -> Expr:
    a, b = o("self", "other")
    return b - _scaled(o, a, "alpha")


def _mul(o: Operands) -> Expr:
    if o.value.dtype == "bool":
        return make("and", *o("self", "other"))
    return make("mul", *o("self", "other"))


def _div(o: Operands) -> Expr:
    mode = o.raw("rounding_mode")
    if mode is None:
        return make("div", *o("self", "other"))
    a, b = o("self", "other")
    if a.dtype in INTEGERS:
        if mode == "floor":
            return make("floordiv", a, b)
        raise _refuse(o.value, "truncating division of integers")
    quotient = a / b
    floor = make("floor", quotient)
    return floor if mode == "floor" else where(make("lt", quotient, const(0, a.dtype)), -make("floor", -quotient), floor)


def _pow(o: Operands) -> Expr:
    base, exponent = o("self", "exponent")
    n = o.raw("exponent")
    if isinstance(n, (int, float)) and not isinstance(n, bool):
        if n in (1, 2, 3):
            return base if n == 1 else base * base if n == 2 else base * base * base
        if base.dtype in FLOATS and n in (0.5, -0.5, -1):
            return make("sqrt", base) if n == 0.5 else make("rsqrt", base) if n == -0.5 else const(1, base.dtype) / base
    if base.dtype not in FLOATS:
        raise _refuse(o.value, "a power of integers")
    return make("pow", base, exponent)


def _where(o: Operands) -> Expr:
    condition = o.tensor("condition")
    assert condition is not None
    a, b = o("self", "other")
    return make("where", cast(condition, "bool"), a, b)


def _masked_fill(o: Operands) -> Expr:
    mask = o.tensor("mask")
    assert mask is not None
    x, fill = o("self", "value")
    return where(cast(mask, "bool"), fill, x)


def _clamp(x: Expr, low: Expr | None, high: Expr | None) -> Expr:
    """Written with where so that the derivative is 1 on the bounds and nan passes, as in torch."""
    if low is not None:
        x = where(make("lt", x, low), low, x)
    return x if high is None else where(make("lt", high, x), high, x)


def _clamp_rule(low: str | None, high: str | None) -> Rule:
    def rule(o: Operands) -> Expr:
        names = [n for n in (low, high) if n and o.raw(n) is not None]
        x, *bounds = o("self", *names)
        found = dict(zip(names, bounds, strict=True))
        return _clamp(x, found.get(low or ""), found.get(high or ""))
    return rule


def _relu(x: Expr) -> Expr:
    zero = const(0, x.dtype)
    return where(make("le", x, zero), zero, x)


def _leaky(o: Operands) -> Expr:
    (x,) = o("self")
    return where(make("lt", const(0, x.dtype), x), x, x * o.number("negative_slope", x.dtype))


def _elu(o: Operands) -> Expr:
    (x,) = o("self")
    alpha, scale, inner = (o.number(n, x.dtype) for n in ("alpha", "scale", "input_scale"))
    zero = const(0, x.dtype)
    negative = make("expm1", make("minimum", x, zero) * inner) * alpha * scale
    return where(make("le", x, zero), negative, x * scale)


def _softplus(o: Operands) -> Expr:
    (x,) = o("self")
    beta, threshold = float(o.raw("beta")), float(o.raw("threshold"))
    scaled = x * beta
    soft = make("log1p", make("exp", make("minimum", scaled, const(threshold, x.dtype)))) * (1 / beta)
    return where(make("lt", const(threshold, x.dtype), scaled), x, soft)


def _log_sigmoid(x: Expr) -> Expr:
    """log sigmoid(x) = min(x, 0) - log(1 + exp(-|x|))."""
    zero = const(0, x.dtype)
    return where(make("lt", x, zero), x, zero) - make("log1p", make("exp", -make("abs", x)))


def _gelu(o: Operands) -> Expr:
    (x,) = o("self")
    if o.raw("approximate") == "tanh":
        inner = (x + x * x * x * 0.044715) * math.sqrt(2 / math.pi)
        return x * 0.5 * (make("tanh", inner) + 1)
    return x * 0.5 * (make("erf", x * math.sqrt(0.5)) + 1)


def _bit(op: str, logical: bool = False) -> Rule:
    def rule(o: Operands) -> Expr:
        a, b = o.maybe("self"), o.maybe("other")
        assert a is not None and b is not None
        if not logical and (a.dtype != "bool" or b.dtype != "bool"):
            raise _refuse(o.value, "a bitwise operation on integers")
        return make(op, truth(a), truth(b))
    return rule


def _xor(o: Operands) -> Expr:
    a, b = o.maybe("self"), o.maybe("other")
    assert a is not None and b is not None
    return make("ne", truth(a), truth(b))


def truth(x: Expr) -> Expr:
    return x if x.dtype == "bool" else make("ne", x, const(0, x.dtype))


def _not(o: Operands) -> Expr:
    x = o.tensor("self")
    assert x is not None
    if o.value.op == "bitwise_not" and x.dtype != "bool":
        raise _refuse(o.value, "a bitwise operation on integers")
    return make("not", truth(x))


def _classify(kind: str) -> Rule:
    def rule(o: Operands) -> Expr:
        x = o.tensor("self")
        assert x is not None
        if x.dtype not in FLOATS:
            return const(kind == "isfinite", "bool")
        infinite = make("eq", make("abs", x), const(math.inf, x.dtype))
        nan = make("isnan", x)
        return nan if kind == "isnan" else infinite if kind == "isinf" else make("not", make("or", nan, infinite))
    return rule


def _nan_to_num(o: Operands) -> Expr:
    (x,) = o("self")
    if x.dtype not in FLOATS:
        return x
    limit = torch.finfo(getattr(torch, o.value.dtype)).max
    replace = [o.raw(n) for n in ("nan", "posinf", "neginf")]
    nan, high, low = (d if r is None else float(r) for r, d in zip(replace, (0.0, limit, -limit), strict=True))
    x = where(make("isnan", x), nan, x)
    x = where(make("eq", x, const(math.inf, x.dtype)), high, x)
    return where(make("eq", x, const(-math.inf, x.dtype)), low, x)


def _xlogy(o: Operands) -> Expr:
    a, b = o("self", "other")
    return xlogy(a, b)


def xlogy(a: Expr, b: Expr) -> Expr:
    """a log b, and 0 where a is 0 (unless b is nan); the logarithm itself is kept finite there, for its derivative."""
    silent = make("and", make("eq", a, const(0, a.dtype)), make("not", make("isnan", b)))
    return a * make("log", where(silent, 1, b))


def _addc(op: str) -> Rule:
    def rule(o: Operands) -> Expr:
        x, a, b = o("self", "tensor1", "tensor2")
        return x + _scaled(o, make(op, a, b), "value")
    return rule


def _lerp(o: Operands) -> Expr:
    a, b, w = o("self", "end", "weight")
    return a + w * (b - a)


def _threshold(o: Operands) -> Expr:
    x, t, value = o("self", "threshold", "value")
    return where(make("le", x, t), value, x)


def _to(o: Operands) -> Expr:
    x = o.tensor("self")
    assert x is not None
    if x.dtype in COMPLEXES and o.value.dtype not in COMPLEXES:
        raise _refuse(o.value, "a cast from complex to real")
    return truth(x) if o.value.dtype == "bool" else convert(x, o.value.dtype)


def _copy(o: Operands) -> Expr:
    source = o.tensor("src") if o.value.op == "copy" else o.maybe("value")
    assert source is not None
    return truth(source) if o.value.dtype == "bool" else convert(source, o.value.dtype)


def _dropout(o: Operands) -> Expr:
    if o.raw("p") and o.raw("train"):
        raise _refuse(o.value, "dropout with p > 0 in training", "RANDOM")
    (x,) = o("input")
    return x


def _number(o: Operands) -> Expr:
    """Python arithmetic on floats that Dynamo passes as 0-d tensors."""
    names = [n for n in o.value.args if n != "expr"]
    return symbolic(o.raw("expr"), "float64", {n: o.fetch(n) for n in names})


def _remainder(o: Operands) -> Expr:
    a, b = o("self", "other")
    if a.dtype in INTEGERS and o.value.op == "remainder":
        return make("mod", a, b)
    if a.dtype in FLOATS and o.value.op == "remainder":
        return a - b * make("floor", a / b)
    raise _refuse(o.value, "fmod")


def _floor_divide(o: Operands) -> Expr:
    a, b = o("self", "other")
    return make("floordiv", a, b) if a.dtype in INTEGERS else make("floor", a / b)


def _numeric(op: str) -> Rule:
    """max/min of two tensors; on booleans or / and."""
    def rule(o: Operands) -> Expr:
        return make({"maximum": "or", "minimum": "and"}[op] if o.value.dtype == "bool" else op, *o("self", "other"))
    return rule


def _scale(factor: float, op: str) -> Rule:
    return _float(lambda x: make(op, x) * factor)


POINTWISE: dict[str, Rule] = {
    **{n: _unary(n) for n in ("exp", "log", "log1p", "expm1", "tanh", "sigmoid", "sqrt", "rsqrt", "sin", "cos", "erf",
                              "neg", "abs", "sign", "conj")},
    "real": _part("real"), "imag": _part("imag"), "negative": _unary("neg"), "absolute": _unary("abs"), "sgn": _unary("sign"),
    "floor": _float(lambda x: make("floor", x) if x.dtype in FLOATS else x),
    "ceil": _float(lambda x: -make("floor", -x) if x.dtype in FLOATS else x),
    "square": _float(lambda x: x * x), "reciprocal": _float(lambda x: const(1, x.dtype) / x),
    "exp2": _float(lambda x: make("exp", x * math.log(2))), "log2": _scale(1 / math.log(2), "log"),
    "log10": _scale(1 / math.log(10), "log"), "relu": _float(_relu), "silu": _float(lambda x: x * make("sigmoid", x)),
    "log_sigmoid": _float(_log_sigmoid), "leaky_relu": _leaky, "elu": _elu, "gelu": _gelu, "softplus": _softplus,
    "add": _add, "sub": _sub, "subtract": _sub, "rsub": _rsub, "mul": _mul, "multiply": _mul, "div": _div,
    "divide": _div, "true_divide": _div, "pow": _pow, "floor_divide": _floor_divide, "remainder": _remainder,
    "fmod": _remainder, "maximum": _numeric("maximum"), "minimum": _numeric("minimum"), "max": _numeric("maximum"),
    "min": _numeric("minimum"), "logaddexp": _binary("logaddexp"), "xlogy": _xlogy, "addcmul": _addc("mul"),
    "addcdiv": _addc("div"), "lerp": _lerp,
    "eq": _compare("eq"), "ne": _compare("ne"), "lt": _compare("lt"), "le": _compare("le"),
    "gt": _compare("lt", swap=True), "ge": _compare("le", swap=True), "not_equal": _compare("ne"),
    "greater": _compare("lt", swap=True), "greater_equal": _compare("le", swap=True), "less": _compare("lt"),
    "less_equal": _compare("le"),
    "logical_and": _bit("and", True), "logical_or": _bit("or", True), "bitwise_and": _bit("and"),
    "bitwise_or": _bit("or"), "__and__": _bit("and"), "__or__": _bit("or"), "logical_xor": _xor,
    "bitwise_xor": _xor, "__xor__": _xor,
    "logical_not": _not, "bitwise_not": _not, "isnan": _classify("isnan"), "isinf": _classify("isinf"),
    "isfinite": _classify("isfinite"), "nan_to_num": _nan_to_num,
    "where": _where, "masked_fill": _masked_fill, "clamp": _clamp_rule("min", "max"), "clip": _clamp_rule("min", "max"),
    "clamp_min": _clamp_rule("min", None), "clamp_max": _clamp_rule(None, "max"),
    "hardtanh": _clamp_rule("min_val", "max_val"), "threshold": _threshold,
    "number": _number, "to": _to, "_to_copy": _to, "type_as": _to, "fill": _copy, "copy": _copy,
    "dropout": _dropout, "native_dropout": _dropout,
}
