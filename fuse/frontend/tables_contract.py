"""Contractions: each is a sum of products over named dimensions, spelled with one letter per dimension."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from fuse.frontend.index import Linear
from fuse.frontend.operands import compute_type, harmonise
from fuse.frontend.value import Value
from fuse.frontend.views import Index, broadcast
from fuse.ir.expr import Axis, Expr, make, sum_
from fuse.ir.size import Size
from fuse.reasons import Miss, Refused

if TYPE_CHECKING:
    from fuse.frontend.importer import Pull


@dataclass(frozen=True)
class Product:
    """`result[out] = scale * sum_k prod_i operands[i][letters[i]]`, plus `extra` times `beta` broadcast to the result."""

    operands: tuple[Value, ...]
    letters: tuple[str, ...]
    out: str
    extra: Value | None = None
    alpha: Any = 1
    beta: Any = 1

    @cached_property
    def extents(self) -> dict[str, Size]:
        """The extent of every letter; a dimension of size 1 broadcasts."""
        found: dict[str, Size] = {}
        for letters, operand in zip(self.letters, self.operands, strict=True):
            for c, extent in zip(letters, operand.shape, strict=True):
                if found.get(c, Size.of(1)) == 1:
                    found[c] = extent
        return found

    @property
    def contracted(self) -> str:
        """The letters summed over, in order of appearance."""
        return "".join(dict.fromkeys(c for spelled in self.letters for c in spelled if c not in self.out))


def _tensor(v: Value, name: str) -> Value:
    found = v.args[name]
    assert isinstance(found, Value), (v, name)
    return found


def _linear(v: Value) -> Product:
    x, w, bias = _tensor(v, "input"), _tensor(v, "weight"), v.args.get("bias")
    rows = "abcdefgh"[:len(x.shape) - 1]
    return Product((x, w), (rows + "k", "v" + "k" if len(w.shape) == 2 else "k"), rows + ("v" if len(w.shape) == 2 else ""),
                   bias)


def _pair(v: Value, left: str, right: str, extra: Value | None = None) -> Product:
    a, b = _tensor(v, left), _tensor(v, right)
    batch = max(len(a.shape), len(b.shape)) - 2
    letters = "abcdefgh"[:max(batch, 0)]
    spell_a = "k" if len(a.shape) == 1 else letters[len(letters) - (len(a.shape) - 2):] + "mk"
    spell_b = "k" if len(b.shape) == 1 else letters[len(letters) - (len(b.shape) - 2):] + "kn"
    out = letters + ("m" if len(a.shape) > 1 else "") + ("n" if len(b.shape) > 1 else "")
    return Product((a, b), (spell_a, spell_b), out, extra, v.args.get("alpha", 1), v.args.get("beta", 1))


def _einsum(v: Value) -> Product:
    operands = tuple(v.args["tensors"])
    equation = v.args["equation"].replace(" ", "")
    left, arrow, right = equation.partition("->")
    inputs = left.split(",")
    ranks = [len(t.shape) - (len(s) - 3 if "..." in s else len(s)) for s, t in zip(inputs, operands, strict=True)]
    pool = [c for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if c not in equation]
    dots = max((r for s, r in zip(inputs, ranks, strict=True) if "..." in s), default=0)
    ellipsis = "".join(pool[:dots])
    spelled = tuple(s.replace("...", ellipsis[dots - r:] if "..." in s else "") for s, r in zip(inputs, ranks, strict=True))
    if not arrow:
        flat = "".join(inputs).replace(".", "")
        right = ("..." if "..." in left else "") + "".join(sorted(c for c in set(flat) if flat.count(c) == 1))
    return Product(operands, spelled, right.replace("...", ellipsis))


def _ends(v: Value) -> Product:
    a, b = _tensor(v, "self"), _tensor(v, "vec" if v.op == "mv" else "tensor" if v.op == "dot" else "vec2")
    if v.op == "mv":
        return Product((a, b), ("mk", "k"), "m")
    return Product((a, b), ("k", "k"), "") if v.op == "dot" else Product((a, b), ("m", "n"), "mn")


CONTRACTIONS: dict[str, Callable[[Value], Product]] = {
    "linear": _linear, "einsum": _einsum, "mv": _ends, "dot": _ends, "outer": _ends,
    "matmul": lambda v: _pair(v, "self", "other"), "mm": lambda v: _pair(v, "self", "mat2"),
    "bmm": lambda v: _pair(v, "self", "mat2"),
    "addmm": lambda v: _pair(v, "mat1", "mat2", _tensor(v, "self")),
    "baddbmm": lambda v: _pair(v, "batch1", "batch2", _tensor(v, "self")),
}


def product_of(v: Value) -> Product:
    try:
        return CONTRACTIONS[v.op or ""](v)
    except (AssertionError, ValueError, IndexError, KeyError) as error:
        raise Refused(Miss("UNSUPPORTED_OP", v.where, f"{v.op}: {error}")) from error


def contract(pull: Pull, v: Value, idx: Index) -> Expr:
    """The contraction at one index. Operands wider than the result were rounded to its type by autocast."""
    p = product_of(v)
    at = dict(zip(p.out, idx, strict=True))
    axes: list[Axis] = []
    for c in p.contracted:
        at[c], new = pull.bound(v, c, p.extents[c], idx)
        axes += new
    rounded = v.dtype if compute_type(v.dtype) != v.dtype else None
    factors = [pull.at_argument(v, operand, _index(letters, operand.shape, at), rounded)
               for letters, operand in zip(p.letters, p.operands, strict=True)]
    factors = harmonise(*factors, dtype=v.dtype)
    total = factors[0]
    for factor in factors[1:]:
        total = make("mul", total, factor)
    total = sum_(total, *axes)
    if pull.is_anchor(v):
        pull.anchors.append(total)
    if p.alpha != 1:
        total = total * pull.scalar(v, p.alpha, total.dtype)
    if p.extra is not None and p.beta != 0:
        extra, total = harmonise(pull.at_argument(v, p.extra, broadcast(p.extra.shape, idx), rounded), total)
        total = total + (extra if p.beta == 1 else extra * pull.scalar(v, p.beta, extra.dtype))
    return make("given", total, pull.read(v, idx)) if v.stored and v.node in pull.candidate.stored else total


def _index(letters: str, shape: Sequence[Any], at: dict[str, Linear]) -> Index:
    return tuple(Linear() if extent == 1 else at[c] for c, extent in zip(letters, shape, strict=True))
