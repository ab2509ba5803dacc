"""Sizes and scalars of Dynamo's graph: SymInts become extents, symbolic numbers become expressions."""
from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

import sympy
import torch

from fuse.ir.expr import FLOATS, Expr, cast, const, make, size
from fuse.ir.size import Size
from fuse.reasons import Miss, Refused

Dim = int | torch.SymInt


@lru_cache(maxsize=4096)
def _polynomial(expr: sympy.Expr) -> Size:
    """An integer polynomial; what is not one (a floor division with a rest, say) is a symbol of its own."""
    if expr.is_Integer:
        return Size.of(int(expr))
    if expr.is_Add or expr.is_Mul:
        parts = [_polynomial(a) for a in expr.args]
        total = parts[0]
        for part in parts[1:]:
            total = total + part if expr.is_Add else total * part
        return total
    if expr.is_Pow and expr.exp.is_Integer and 0 < int(expr.exp) <= 8:
        total = Size.of(1)
        for _ in range(int(expr.exp)):
            total = total * _polynomial(expr.base)
        return total
    if type(expr).__name__ in ("FloorDiv", "CleanDiv"):
        exact = _polynomial(expr.args[0]).divided_by(_polynomial(expr.args[1]))
        if exact is not None:
            return exact
    return Size.symbol(str(expr))


def size_of(dim: Dim | Size) -> Size:
    """The extent as a polynomial in the graph's size symbols, known equalities applied."""
    if isinstance(dim, Size):
        return dim
    return _polynomial(dim.node.expr) if isinstance(dim, torch.SymInt) else Size.of(int(dim))


def shape_of(tensor: torch.Tensor) -> tuple[Size, ...]:
    return tuple(size_of(d) for d in tensor.shape)


def hint(dim: Dim) -> int | None:
    """The value seen while compiling; for a size that depends on data the most it can be, or None if nothing is known."""
    if not isinstance(dim, torch.SymInt):
        return int(dim)
    return int(dim.node.hint) if dim.node.has_hint() else _most(dim.node.shape_env.bound_sympy(dim.node.expr).upper)


def _most(bound: Any) -> int | None:
    """A selection of rows, say, has at most as many as there are."""
    return int(bound) if getattr(bound, "is_Integer", False) and bound < 1 << 40 else None


def numel_hint(tensor: torch.Tensor) -> int | None:
    """Elements the tensor really holds: expanded dimensions count once."""
    total = 1
    for extent, stride in zip(tensor.shape, tensor.stride(), strict=True):
        n, s = hint(extent), hint(stride)
        if n is None or s is None:
            return None
        total *= n if s != 0 else 1
    return total


def symbol_hints(tensors: Iterable[torch.Tensor]) -> dict[str, int]:
    """The value of every symbol in the shapes of these tensors, or the most it can be."""
    found: dict[str, int] = {}
    for tensor in tensors:
        for dim in (d for d in tensor.shape if hasattr(d, "node")):
            values = dim.node.shape_env.backed_var_to_val if hasattr(dim.node.shape_env, "backed_var_to_val") \
                else dim.node.shape_env.var_to_val
            for symbol in dim.node.expr.free_symbols:
                most = _most(dim.node.shape_env.bound_sympy(symbol).upper)
                if symbol in values:
                    found[str(symbol)] = int(values[symbol])
                elif most is not None:
                    found[str(symbol)] = most
    return found


def number(value: Any, dtype: str) -> Expr:
    """A Python or symbolic number as an expression of element type `dtype`."""
    if hasattr(value, "node"):
        value = value.node.expr
    if isinstance(value, Size):
        if not all(s.isidentifier() for s in value.symbols):
            raise Refused(Miss("UNBOUND_SIZE", None, lambda: f"the number {value} is not a polynomial of sizes"))
        return cast(size(value), dtype)
    if isinstance(value, sympy.Basic):
        return cast(symbolic(value, dtype if dtype in FLOATS else "float32", {}), dtype)
    return const(value, dtype)


def symbolic(expr: sympy.Basic, dtype: str, known: Mapping[str, Expr]) -> Expr:
    """sympy arithmetic over sizes and the numbers in `known`, evaluated in floating point."""
    name = type(expr).__name__
    if expr.is_number and expr.is_real:
        return const(float(expr), dtype)
    if expr.is_Symbol:
        return cast(known[str(expr)] if str(expr) in known else size(Size.symbol(str(expr))), dtype)
    args = [symbolic(a, dtype, known) for a in expr.args]
    if expr.is_Add or expr.is_Mul:
        total = args[0]
        for arg in args[1:]:
            total = make("add" if expr.is_Add else "mul", total, arg)
        return total
    if name in ("ToFloat", "Identity"):
        return args[0]
    if name in ("IntTrueDiv", "FloatTrueDiv"):
        return make("div", *args)
    if name in ("FloatPow", "PowByNatural", "Pow"):
        return make("pow", *args)
    if name == "OpaqueUnaryFn_sqrt":
        return make("sqrt", args[0])
    if name == "OpaqueUnaryFn_log":
        return make("log", args[0])
    raise Refused(Miss("UNBOUND_SIZE", None, lambda: f"the number {expr} cannot be computed from sizes"))
