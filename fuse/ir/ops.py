"""The ops: one row each. A row holds arity, type rule, one VJP per argument, the meaning in torch, and the sympy form.

Nothing else in fuse knows an op by more than its row: autodiff reads `vjp`, the reference interpreter `meaning`, the
merge pass `sympy`, a target its own table of spellings. A VJP `f(node, g)` gives the cotangent of one argument before
un-broadcasting; it follows torch's convention for complex numbers (the conjugate Wirtinger derivative).
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from fuse.ir.expr import COMPLEXES, FLOATS, INTEGERS, Axis, Expr, IRError, Type, cast, const, iota, make, reduce_, where

Attrs = dict[str, Any]
TypeRule = Callable[[tuple[Expr, ...], Attrs], Type]
VJP = Callable[[Expr, Expr], Expr]


@dataclass(frozen=True)
class Op:
    """`arity` None: any number. `vjp` is empty where no argument is differentiable. `meaning` gets tensors."""

    arity: int | None
    type_rule: TypeRule
    vjp: tuple[VJP | None, ...] = ()
    meaning: Callable[..., Any] | None = None
    sympy: Callable[..., Any] | None = None
    pointwise: bool = True


# ---- type rules -------------------------------------------------------------------------------------------------

def union(args: tuple[Expr, ...]) -> tuple[Axis, ...]:
    """Axes in order of first appearance; the same name with two extents is an error."""
    out: dict[str, Axis] = {}
    for arg in args:
        for axis in arg.axes:
            if out.setdefault(axis.name, axis) != axis:
                raise IRError(f"axis {axis.name} has two extents: {out[axis.name].extent} and {axis.extent}")
    return tuple(out.values())


def same(args: tuple[Expr, ...], _: Attrs) -> Type:
    dtypes = {a.dtype for a in args}
    if len(dtypes) != 1:
        raise IRError(f"arguments must have one dtype, got {', '.join(a.dtype for a in args)}")
    return Type(dtypes.pop(), union(args))


def floating(args: tuple[Expr, ...], attrs: Attrs) -> Type:
    out = same(args, attrs)
    if out.dtype not in FLOATS + COMPLEXES:
        raise IRError(f"expected a floating-point argument, got {out.dtype}")
    return out


def comparison(args: tuple[Expr, ...], attrs: Attrs) -> Type:
    return Type("bool", same(args, attrs).axes)


def boolean(args: tuple[Expr, ...], attrs: Attrs) -> Type:
    if any(a.dtype != "bool" for a in args):
        raise IRError(f"expected booleans, got {', '.join(a.dtype for a in args)}")
    return same(args, attrs)


def integer_(args: tuple[Expr, ...], attrs: Attrs) -> Type:
    out = same(args, attrs)
    if out.dtype not in INTEGERS:
        raise IRError(f"expected integers, got {out.dtype}")
    return out


def where_type(args: tuple[Expr, ...], attrs: Attrs) -> Type:
    if args[0].dtype != "bool":
        raise IRError(f"the condition of where must be bool, got {args[0].dtype}")
    return Type(same(args[1:], attrs).dtype, union(args))


def read_type(args: tuple[Expr, ...], attrs: Attrs) -> Type:
    buffer = attrs["buffer"]
    if len(args) != len(buffer.shape):
        raise IRError(f"{buffer.name} has {len(buffer.shape)} dimensions, read at {len(args)} indices")
    if any(a.dtype != "int64" for a in args):
        raise IRError(f"the indices of {buffer.name} must be int64")
    return Type(buffer.dtype, union(args))


def complex_type(args: tuple[Expr, ...], attrs: Attrs) -> Type:
    parts = same(args, attrs)
    if parts.dtype not in ("float32", "float64"):
        raise IRError(f"no complex numbers have parts of type {parts.dtype}")
    return Type({"float64": "complex128", "float32": "complex64"}[parts.dtype], parts.axes)


def part(dtype_of: Callable[[str], str]) -> TypeRule:
    return lambda args, _: Type(dtype_of(args[0].dtype), args[0].axes)


def reduced(dtype: str | None = None, total: bool = False) -> TypeRule:
    def rule(args: tuple[Expr, ...], attrs: Attrs) -> Type:
        axes, (x,) = attrs["axes"], args
        if total and x.dtype == "bool":
            raise IRError("cannot sum booleans: cast them first")
        missing = [a for a in axes if a not in x.axes]
        if missing and not total:
            raise IRError(f"cannot reduce over {missing[0]!r}: the argument has {list(x.axes)}")
        return Type(dtype or x.dtype, tuple(a for a in x.axes if a not in axes))
    return rule


def along(args: tuple[Expr, ...], attrs: Attrs) -> Type:
    axes = union(args)
    if attrs["axis"] not in axes:
        raise IRError(f"{attrs['axis']!r} is not an axis of the arguments {list(axes)}")
    return Type(same(args, attrs).dtype, axes)


def picked(args: tuple[Expr, ...], attrs: Attrs) -> Type:
    x, index = args
    if index.dtype != "int64" or index.has(attrs["axis"]):
        raise IRError("the index of pick must be int64 and constant along the axis")
    return Type(x.dtype, tuple(a for a in union(args) if a != attrs["axis"]))


# ---- VJP helpers ------------------------------------------------------------------------------------------------

def conj(x: Expr) -> Expr:
    return make("conj", x) if x.dtype in COMPLEXES else x


def real_of(dtype: str) -> str:
    return {"complex128": "float64", "complex64": "float32"}.get(dtype, dtype)


def zero(like: Expr) -> Expr:
    return const(0, like.dtype)


def uncast(node: Expr, g: Expr) -> Expr:
    """The cotangent through a cast: back to the source dtype (its real part if the source is real)."""
    source = node.args[0].dtype
    return cast(make("real", g) if g.dtype in COMPLEXES and source in FLOATS else g, source)


def chosen(node: Expr, g: Expr) -> Expr:
    """max: the cotangent goes to the first position that attains it, as torch.max(dim) has it.

    Positions are compared, not values: a value computed a second time, in other tiles, may differ in its last bit.
    """
    x, hit = node.args[0], None
    for axis in node["axes"]:
        here = make("eq", iota(axis), reduce_("argmax", x, axis))
        hit = here if hit is None else make("and", here, hit)
        x = reduce_("max", x, axis)
    return where(hit, g, zero(g)) if hit is not None else g


def scan_adjoint(node: Expr, g: Expr) -> Expr:
    """lambda_t = g_t + conj(a_{t+1}) lambda_{t+1}: the scan that runs the other way."""
    a, axis, reverse = conj(node.args[0]), node["axis"], node["reverse"]
    following = make("shift", a, axis=axis, by=1 if reverse else -1) if a.has(axis) else a
    return make("scan", following, g, axis=axis, reverse=not reverse)


def scan_coefficient(node: Expr, g: Expr) -> Expr:
    before = make("shift", node, axis=node["axis"], by=-1 if node["reverse"] else 1)
    return scan_adjoint(node, g) * conj(before)


def half_where(first: bool) -> VJP:
    def rule(node: Expr, g: Expr) -> Expr:
        return where(node.args[0], g, zero(g)) if first else where(node.args[0], zero(g), g)
    return rule


def extremum(compare: str, first: bool) -> VJP:
    def rule(node: Expr, g: Expr) -> Expr:
        a, b = node.args
        half = g * const(0.5, g.dtype)
        winner = make(compare, b, a) if first else make(compare, a, b)
        return where(make("eq", a, b), half, where(winner, g, zero(g)))
    return rule


def power_base(node: Expr, g: Expr) -> Expr:
    base, exponent = node.args
    return g * conj(exponent * make("pow", base, exponent - const(1, exponent.dtype)))


def unary(type_rule: TypeRule, meaning: Callable[..., Any], vjp: VJP | None = None, sympy: Any = None) -> Op:
    return Op(1, type_rule, (vjp,) if vjp else (), meaning, sympy)


def binary(type_rule: TypeRule, meaning: Callable[..., Any], vjp: tuple[VJP | None, VJP | None] | None = None,
           sympy: Any = None) -> Op:
    return Op(2, type_rule, vjp or (), meaning, sympy)


def reduction(type_rule: TypeRule, vjp: VJP | None = None) -> Op:
    return Op(1, type_rule, (vjp,) if vjp else (), pointwise=False)


def softmax_weight(node: Expr, g: Expr) -> Expr:
    return g * make("exp_sub", node.args[0], node)


TWO_OVER_SQRT_PI = 1.1283791670955126

LEAVES = {
    "const": Op(0, lambda _, at: Type(at["dtype"]),
                sympy=lambda sp, v: sp.Integer(v) if float(v).is_integer() else sp.Float(v)),
    "iota": Op(0, lambda _, at: Type("int64", (at["axis"],))),
    "size": Op(0, lambda _, at: Type("int64")),
    "read": Op(None, read_type),
    # A carry seen from inside its own region: `part` is running, final or prefix (inclusive, same position).
    "carry": Op(0, lambda _, at: Type(at["dtype"], at["axes"])),
}

POINTWISE = {
    "neg": unary(same, torch.neg, lambda n, g: -g, lambda sp, a: -a),
    "exp": unary(floating, torch.exp, lambda n, g: g * conj(n), lambda sp, a: sp.exp(a)),
    "log": unary(floating, torch.log, lambda n, g: g / conj(n.args[0]), lambda sp, a: sp.log(a)),
    "log1p": unary(floating, torch.log1p, lambda n, g: g / conj(n.args[0] + 1), lambda sp, a: sp.log(1 + a)),
    "expm1": unary(floating, torch.expm1, lambda n, g: g * conj(n + 1), lambda sp, a: sp.exp(a) - 1),
    "tanh": unary(floating, torch.tanh, lambda n, g: g * conj(1 - n * n), lambda sp, a: sp.tanh(a)),
    "sigmoid": unary(floating, torch.sigmoid, lambda n, g: g * conj(n * (1 - n)), lambda sp, a: 1 / (1 + sp.exp(-a))),
    "sqrt": unary(floating, torch.sqrt, lambda n, g: g / conj(n * 2), lambda sp, a: sp.sqrt(a)),
    "rsqrt": unary(floating, torch.rsqrt, lambda n, g: g * conj(n * n * n) * -0.5, lambda sp, a: 1 / sp.sqrt(a)),
    "abs": unary(part(real_of), torch.abs, lambda n, g: cast(g, n.args[0].dtype) * make("sign", n.args[0]),
                 lambda sp, a: sp.Abs(a)),
    "sign": unary(same, torch.sgn, None, lambda sp, a: sp.sign(a)),
    "sin": unary(floating, torch.sin, lambda n, g: g * conj(make("cos", n.args[0])), lambda sp, a: sp.sin(a)),
    "cos": unary(floating, torch.cos, lambda n, g: -(g * conj(make("sin", n.args[0]))), lambda sp, a: sp.cos(a)),
    "erf": unary(floating, torch.erf, lambda n, g: g * (make("exp", -(n.args[0] * n.args[0])) * TWO_OVER_SQRT_PI),
                 lambda sp, a: sp.erf(a)),
    "floor": unary(floating, torch.floor, None, lambda sp, a: sp.floor(a)),
    "not": unary(boolean, torch.logical_not),
    "isnan": unary(lambda a, at: Type("bool", a[0].axes), torch.isnan),
    # The same integer, proved to be a position of `axis`: where it is not, eager raises.
    "bounded": unary(integer_, lambda x, **_: x),
    "stop": unary(same, torch.detach, None, lambda sp, a: a),
    # Two names of one value: how it is made, which is differentiated, and where it is stored, which is read.
    "given": binary(floating, lambda made, kept: torch.broadcast_tensors(made, kept)[1],  # type: ignore[no-untyped-call]
                    (lambda n, g: g, None), lambda sp, a, b: b),
    "cast": Op(1, lambda a, at: Type(at["dtype"], a[0].axes), (uncast,)),
    "conj": unary(same, torch.conj_physical, lambda n, g: make("conj", g)),
    "real": unary(part(real_of), torch.real, lambda n, g: cast(g, n.args[0].dtype)),
    "imag": unary(part(real_of), torch.imag, lambda n, g: make("complex", zero(g), g)),
    "complex": binary(complex_type,
                      torch.complex, (lambda n, g: make("real", g), lambda n, g: make("imag", g))),
    "add": binary(same, torch.add, (lambda n, g: g, lambda n, g: g), lambda sp, a, b: a + b),
    "sub": binary(same, torch.sub, (lambda n, g: g, lambda n, g: -g), lambda sp, a, b: a - b),
    "mul": binary(same, torch.mul, (lambda n, g: g * conj(n.args[1]), lambda n, g: g * conj(n.args[0])),
                  lambda sp, a, b: a * b),
    "div": binary(floating, torch.div, (lambda n, g: g / conj(n.args[1]),
                                        lambda n, g: -(g * conj(n) / conj(n.args[1]))),
                  lambda sp, a, b: a / b),
    "pow": binary(floating, torch.pow, (power_base, lambda n, g: g * conj(n * make("log", n.args[0]))),
                  lambda sp, a, b: a ** b),
    "maximum": binary(same, torch.maximum, (extremum("lt", True), extremum("lt", False)),
                      lambda sp, a, b: sp.Max(a, b)),
    "minimum": binary(same, torch.minimum, (extremum("lt", False), extremum("lt", True)),
                      lambda sp, a, b: sp.Min(a, b)),
    "floordiv": binary(integer_, lambda a, b: torch.div(a, b, rounding_mode="floor")),
    "mod": binary(integer_, torch.remainder),
    "eq": binary(comparison, torch.eq), "ne": binary(comparison, torch.ne),
    "lt": binary(comparison, torch.lt), "le": binary(comparison, torch.le),
    "and": binary(boolean, torch.logical_and), "or": binary(boolean, torch.logical_or),
    "where": Op(3, where_type, (None, half_where(True), half_where(False)), torch.where),
    "logaddexp": binary(floating, torch.logaddexp, (lambda n, g: g * make("exp_sub", n.args[0], n),
                                                    lambda n, g: g * make("exp_sub", n.args[1], n))),
    # exp(x - L) and x - L for a log-sum-exp L, evaluated from its pair (m, l) as exp(x - m) / l and (x - m) - log l:
    # `exp(x - lse)` errs by 5e-4 at offset 1e4 in float32 and is wrong in fully masked rows. L is an `lse` or a
    # `logaddexp` of such; anything else counts as the pair (L, 1).
    "exp_sub": binary(floating, lambda x, ell: torch.exp(x - ell), (lambda n, g: g * n, lambda n, g: -(g * n))),
    "sub_lse": binary(floating, torch.sub, (lambda n, g: g, lambda n, g: -g)),
}

REDUCTIONS = {
    # Axes that the argument lacks multiply it by their extents.
    "sum": reduction(reduced(total=True),
                     lambda n, g: reduce_("sum", g, *(a for a in n["axes"] if not n.args[0].has(a)))),
    "max": reduction(reduced(), chosen),
    "argmax": reduction(reduced("int64")),                       # first index of the maximum; nan wins
    "lse": reduction(reduced(), softmax_weight),
}

STRUCTURED = {
    # h_t = a_t h_{t-1} + b_t along `axis` (downwards if `reverse`), h = 0 before the first step.
    "scan": Op(2, along, (scan_coefficient, scan_adjoint), pointwise=False),
    # x at position - by along `axis`, zero outside.
    "shift": Op(1, along, (lambda n, g: make("shift", g, axis=n["axis"], by=-n["by"]),), pointwise=False),
    # x at axis = index: sum_axis where(axis == index, x, 0), hence 0 for an index out of range.
    "pick": Op(2, picked, (lambda n, g: where(make("eq", iota(n["axis"]), n.args[1]), g, zero(g)), None),
               pointwise=False),
}

OPS: dict[str, Op] = {**LEAVES, **POINTWISE, **REDUCTIONS, **STRUCTURED}
