"""Complex values as pairs of real ones: targets see real regions only.

    a + b, a - b, -a, conj a, sum a         part by part
    a b                                     (a.re b.re - a.im b.im, a.re b.im + a.im b.re)
    exp a                                   (exp(a.re) cos(a.im), exp(a.re) sin(a.im))
    a scan                                  one pair of states, since it rotates: its parts are two leaves that name the carry

A complex buffer is read as the real one with a last dimension of 2 that it is in memory; a complex result is stored as
NAME.re and NAME.im. A part that is the constant 0 is left out of products.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch

from fuse.codegen.roles import refuse
from fuse.ir.expr import COMPLEXES, Buffer, Expr, cast, const, make, rebuild, topological
from fuse.ir.program import Carry, Kind, Region
from fuse.ir.size import Size

TWO = Size.of(2)
REAL = {"complex64": "float32", "complex128": "float64"}


class Pair(NamedTuple):
    re: Expr
    im: Expr


@dataclass(frozen=True)
class Recurrence:
    """h = a h + b of a complex scan; `a` None counts as 1."""

    a: Pair | None
    b: Pair
    reverse: bool


class Paired:
    """`region` over real values. `scans`: what the leaves `NAME.re` and `NAME.im` (carry, part "scan") stand for."""

    def __init__(self, region: Region):
        self.names = {c.body: c.name for c in region.carries if c.kind is Kind.AFFINE}
        self.pairs: dict[Expr, Pair] = {}
        self.reals: dict[Expr, Expr] = {}
        self.scans: dict[str, Recurrence] = {}
        carries = [part for c in region.carries for part in self.carry(c)]
        emits = [replace(e, name=f"{e.name}{suffix}", value=value)
                 for e in region.emits for suffix, value in self.parts(e.value)]
        self.region = replace(region, carries=tuple(carries), emits=tuple(emits))

    def carry(self, carry: Carry) -> list[Carry]:
        if carry.body.dtype in COMPLEXES and carry.kind not in (Kind.SUM, Kind.AFFINE):
            raise refuse(f"a complex {carry.kind.value}", carry.body.origin)
        entries = [e for _, e in self.parts(carry.entry)] if carry.entry is not None else [None, None]
        return [replace(carry, name=f"{carry.name}{suffix}", body=body, entry=entry)
                for (suffix, body), entry in zip(self.parts(carry.body), entries, strict=False)]

    def parts(self, x: Expr) -> list[tuple[str, Expr]]:
        """(suffix of the name, value): two for a complex value."""
        for node in topological([x]):
            self.visit(node)
        return [(".re", self.pairs[x].re), (".im", self.pairs[x].im)] if x in self.pairs else [("", self.reals[x])]

    def visit(self, node: Expr) -> None:
        if node in self.pairs or node in self.reals:
            return
        args: list[Any] = [self.pairs.get(a) or self.reals[a] for a in node.args]
        if node.dtype in COMPLEXES:
            self.pairs[node] = self.pair(node, args)
        elif any(isinstance(a, Pair) for a in args):
            self.reals[node] = self.real(node, args)
        else:
            self.reals[node] = rebuild(node, args) if tuple(args) != node.args else node

    def real(self, node: Expr, args: list[Any]) -> Expr:
        if node.op in ("real", "imag"):
            return Pair(*args[0])[node.op == "imag"]
        if node.op == "abs":
            return make("sqrt", _squared(args[0]))
        raise refuse(f"{node.op} of a complex value", node.origin)

    def pair(self, node: Expr, args: list[Any]) -> Pair:
        dtype = REAL[node.dtype]
        match node.op:
            case "const":
                return Pair(const(node["value"].real, dtype), const(node["value"].imag, dtype))
            case "read":
                buffer = node["buffer"]
                real = Buffer(buffer.name, dtype, (*buffer.shape, TWO))
                return Pair(*(make("read", *args, const(k, "int64"), buffer=real) for k in (0, 1)))
            case "cast":
                (x,) = args
                x = x if isinstance(x, Pair) else Pair(x, const(0, dtype))
                return Pair(cast(x.re, dtype), cast(x.im, dtype))
            case "where":
                return Pair(*(make("where", args[0], x, y) for x, y in zip(args[1], args[2], strict=True)))
            case "neg" | "stop" | "sum" | "shift":
                return Pair(*(rebuild(node, [x]) for x in args[0]))
            case "scan":
                return self.scan(node, args)
        rule = RULES.get(node.op)
        if rule is None:
            raise refuse(f"{node.op} of complex values", node.origin)
        return rule(*args)

    def scan(self, node: Expr, args: list[Any]) -> Pair:
        name = self.names.get(node)
        if name is None:
            raise refuse("a scan without a carry", node.origin)
        one = node.args[0].op == "const" and node.args[0]["value"] == 1
        self.scans[name] = Recurrence(None if one else args[0], args[1], bool(node["reverse"]))
        return Pair(*(make("carry", name=f"{name}.{part}", part="scan", dtype=REAL[node.dtype], axes=node.axes)
                      for part in ("re", "im")))


def _is_zero(x: Expr) -> bool:
    return x.op == "const" and x["value"] == 0


def _product(x: Expr, y: Expr) -> Expr:
    return x if _is_zero(x) else y if _is_zero(y) else x * y


def _sum(x: Expr, y: Expr) -> Expr:
    return y if _is_zero(x) else x if _is_zero(y) else x + y


def _difference(x: Expr, y: Expr) -> Expr:
    return x if _is_zero(y) else -y if _is_zero(x) else x - y


def _squared(x: Pair) -> Expr:
    return _sum(_product(x.re, x.re), _product(x.im, x.im))


def _times(x: Pair, y: Pair) -> Pair:
    return Pair(_difference(_product(x.re, y.re), _product(x.im, y.im)), _sum(_product(x.re, y.im), _product(x.im, y.re)))


def _conj(x: Pair) -> Pair:
    return Pair(x.re, x.im if _is_zero(x.im) else -x.im)


def _over(x: Pair, y: Pair) -> Pair:
    top, bottom = _times(x, _conj(y)), _squared(y)
    return Pair(top.re / bottom, top.im if _is_zero(top.im) else top.im / bottom)


def _exp(x: Pair) -> Pair:
    length = make("exp", x.re)
    return Pair(length * make("cos", x.im), length * make("sin", x.im))


RULES: dict[str, Callable[..., Pair]] = {
    "add": lambda x, y: Pair(_sum(x.re, y.re), _sum(x.im, y.im)),
    "sub": lambda x, y: Pair(_difference(x.re, y.re), _difference(x.im, y.im)),
    "mul": _times, "div": _over, "conj": _conj, "exp": _exp, "complex": Pair,
}


# ---- at a launch ----------------------------------------------------------------------------------------------------

def complex_names(region: Region) -> tuple[frozenset[str], frozenset[str]]:
    """The complex buffers that the region reads, and those it stores."""
    reads = {n["buffer"].name for n in topological(region.bodies) if n.op == "read" and n.dtype in COMPLEXES}
    stores = {n for c in region.carries if c.body.dtype in COMPLEXES for n in c.stores}
    return frozenset(reads), frozenset(stores | {e.name for e in region.emits if e.value.dtype in COMPLEXES})


class ComplexKernel:
    """A kernel of a paired region with the buffers of the region itself."""

    def __init__(self, kernel: Any, reads: frozenset[str], stores: frozenset[str]):
        self.kernel, self.reads, self.stores = kernel, reads, stores

    def __getattr__(self, name: str) -> Any:
        return getattr(self.kernel, name)

    def __call__(self, env: Mapping[str, torch.Tensor], sizes: Mapping[str, int]) -> dict[str, torch.Tensor]:
        real = {n: torch.view_as_real(env[n].resolve_conj()) for n in self.reads}
        out: dict[str, torch.Tensor] = self.kernel({**env, **real}, sizes)
        for name in self.stores:
            out[name] = torch.complex(out.pop(f"{name}.re"), out.pop(f"{name}.im"))
        return out
