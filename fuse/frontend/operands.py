"""Element types and operands: what a pointwise rule gets, in the type in which the arithmetic is done.

Arithmetic happens in the compute type: float32 for anything narrower. A value that is never stored is never rounded to
its storage type, so a narrowing float cast is the identity; casts to integers and booleans are semantics and stay.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fuse.frontend.symbols import number
from fuse.frontend.value import Value
from fuse.ir.expr import FLOATS, Expr, cast

WIDTH = {"bool": 0, "uint8": 1, "int8": 1, "int16": 2, "int32": 3, "int64": 4, "float16": 5, "bfloat16": 5, "float32": 6,
         "float64": 7, "complex64": 8, "complex128": 9}


def compute_type(dtype: str) -> str:
    """The type in which values of this element type are computed."""
    return "float32" if dtype in ("bfloat16", "float16") else dtype


def convert(x: Expr, dtype: str) -> Expr:
    """x as a value of graph type `dtype`: floats are widened as needed, never rounded."""
    target = compute_type(dtype)
    if x.dtype in FLOATS and target in FLOATS and WIDTH[x.dtype] >= WIDTH[target]:
        return x
    return cast(x, target)


def widest(*dtypes: str) -> str:
    """Promotion of compute types; an integer beside a float is that float."""
    top = max(dtypes, key=WIDTH.__getitem__)
    return "complex128" if top == "complex64" and "float64" in dtypes else top


def harmonise(*xs: Expr, dtype: str = "bool") -> list[Expr]:
    """The operands in one type, at least the compute type of `dtype`."""
    common = widest(compute_type(dtype), *(x.dtype for x in xs))
    return [cast(x, common) for x in xs]


class Operands:
    """The arguments of one pointwise op at one index, as expressions. Numbers take the type of the result."""

    def __init__(self, value: Value, fetch: Callable[[str], Expr]):
        self.value, self.fetch = value, fetch

    def raw(self, name: str) -> Any:
        return self.value.args.get(name)

    def tensor(self, name: str) -> Expr | None:
        arg = self.raw(name)
        return self.fetch(name) if isinstance(arg, Value) else None

    def number(self, name: str, dtype: str) -> Expr:
        """A scalar argument, which may be a number that Dynamo passes as a tensor."""
        arg = self.raw(name)
        return cast(self.fetch(name), dtype) if isinstance(arg, Value) else number(arg, dtype)

    def maybe(self, name: str, dtype: str | None = None) -> Expr | None:
        """The argument as an expression in its own type; numbers in `dtype` or the result's compute type."""
        arg = self.raw(name)
        if arg is None:
            return None
        return self.fetch(name) if isinstance(arg, Value) else number(arg, dtype or compute_type(self.value.dtype))

    def scalar(self, name: str) -> Expr | None:
        """The argument; a 0-d tensor has no say in the type of the result, as in torch."""
        found, arg = self.maybe(name), self.raw(name)
        mine = compute_type(self.value.dtype)
        if found is not None and isinstance(arg, Value) and not arg.shape and self.value.shape and mine in FLOATS \
                and found.dtype in FLOATS and WIDTH[found.dtype] > WIDTH[mine]:
            return cast(found, mine)
        return found

    def __call__(self, *names: str) -> list[Expr]:
        """The named arguments in the type of the result."""
        found = [self.scalar(n) for n in names]
        assert all(x is not None for x in found), (self.value, names)
        return harmonise(*(x for x in found if x is not None), dtype=self.value.dtype)

    def compared(self, a: str, b: str) -> list[Expr]:
        """Two arguments of a comparison, promoted among themselves: a number takes its partner's type."""
        x, y = self.tensor(a), self.tensor(b)
        like = x if x is not None else y
        assert like is not None
        other = self.raw(b if x is not None else a)
        if x is None or y is None:
            dtype = "float32" if isinstance(other, (float, torch.SymFloat)) and like.dtype not in FLOATS else like.dtype
            if like.dtype == "bool" and not isinstance(other, bool):
                dtype = widest(dtype, "int64")
            constant = number(other, dtype)
            x, y = (constant, y) if x is None else (x, constant)
        assert x is not None and y is not None
        return harmonise(x, y)
