"""Linear forms of index expressions: `offset + sum_a coefficient_a * a` with coefficients that are extents."""
from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

from fuse.ir.expr import Axis, Expr, topological
from fuse.ir.size import Size

ZERO = Size({})


@dataclass(frozen=True)
class Affine:
    """`offset + sum(coefficient * position along axis)`; no coefficient is zero."""

    terms: dict[Axis, Size] = field(default_factory=dict)
    offset: Size = ZERO

    @property
    def single(self) -> Axis | None:
        """The axis, if the form is `axis + offset`."""
        return next(iter(self.terms)) if len(self.terms) == 1 and next(iter(self.terms.values())) == 1 else None


def _scaled(form: Affine, factor: Size) -> Affine:
    return Affine({a: c * factor for a, c in form.terms.items() if c * factor != 0}, form.offset * factor)


def _plus(a: Affine, b: Affine) -> Affine:
    terms = {axis: a.terms.get(axis, Size({})) + b.terms.get(axis, Size({})) for axis in {**a.terms, **b.terms}}
    return Affine({axis: c for axis, c in terms.items() if c != 0}, a.offset + b.offset)


def _form(node: Expr, args: list[Affine]) -> Affine | None:
    match node.op:
        case "const":
            return Affine({}, Size.of(node["value"]))
        case "size":
            return Affine({}, node["extent"])
        case "iota":
            return Affine({node["axis"]: Size.of(1)})
        case "add":
            return _plus(args[0], args[1])
        case "sub":
            return _plus(args[0], _scaled(args[1], Size.of(-1)))
        case "neg":
            return _scaled(args[0], Size.of(-1))
        case "mul" if not args[0].terms:
            return _scaled(args[1], args[0].offset)
        case "mul" if not args[1].terms:
            return _scaled(args[0], args[1].offset)
    return None


@lru_cache(maxsize=4096)
def affine(expr: Expr) -> Affine | None:
    """The linear form of an int64 expression, or None: `2*t + T - 1` is affine, `t*u`, `t // 2` and `y[t]` are not."""
    forms: dict[Expr, Affine] = {}
    for node in topological([expr]):
        args = [forms[a] for a in node.args if a in forms]
        found = _form(node, args) if node.dtype == "int64" and len(args) == len(node.args) else None
        if found is None:
            if node is expr:
                return None
            continue
        forms[node] = found
    return forms[expr]


def bounds(form: Affine) -> tuple[Size, Size] | None:
    """The least and the greatest value over all positions, or None where a coefficient's sign is not known."""
    low = high = form.offset
    for axis, coefficient in form.terms.items():
        reach = coefficient * (axis.extent - 1)
        if coefficient.nonnegative():
            high = high + reach
        elif (-coefficient).nonnegative():
            low = low + reach
        else:
            return None
    return low, high
