"""Expressions: frozen, interned, typed. Values have named axes and broadcast by name; there are no views.

A tensor is read at an index tuple (`read(X, b, t+1, d)`), a dot is `sum(mul(a, b), axis)`, and two expressions that
are the same object mean the same value.
"""
from __future__ import annotations

import hashlib
import weakref
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fuse.ir.size import Size, product

FLOATS = ("float64", "float32", "bfloat16", "float16")
COMPLEXES = ("complex128", "complex64")
INTEGERS = ("int64", "int32", "int16", "int8", "uint8")


@dataclass(frozen=True)
class Axis:
    """A named index range `0 <= name < extent`. Two axes of one program with the same name are the same axis."""

    name: str
    extent: Size

    def __repr__(self) -> str:
        return f"{self.name}:{self.extent}"


@dataclass(frozen=True)
class Type:
    """Element type (a torch dtype's name) and the axes the value varies along, in order of first appearance."""

    dtype: str
    axes: tuple[Axis, ...] = ()

    @property
    def numel(self) -> Size:
        return product(a.extent for a in self.axes)

    @property
    def names(self) -> frozenset[str]:
        return frozenset(a.name for a in self.axes)


@dataclass(frozen=True)
class Buffer:
    """A stored tensor: an input, or a value that a step of the program defines."""

    name: str
    dtype: str
    shape: tuple[Size, ...] = ()

    def __repr__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join(map(str, self.shape))}]"


class IRError(ValueError):
    """An expression or program that breaks a rule of the IR; the message says what was expected."""


class Expr:
    """One operation on expressions. Build with `make`, compare with `is`."""

    __slots__ = ("__weakref__", "_digest", "args", "attrs", "op", "origin", "type")
    op: str
    args: tuple[Expr, ...]
    attrs: tuple[tuple[str, Any], ...]
    type: Type
    origin: str | None
    _digest: bytes | None

    def __getitem__(self, attr: str) -> Any:
        """The attribute `attr`; KeyError if the op has none of that name."""
        for key, value in self.attrs:
            if key == attr:
                return value
        raise KeyError(f"{self.op} has no attribute {attr!r}")

    @property
    def axes(self) -> tuple[Axis, ...]:
        return self.type.axes

    @property
    def dtype(self) -> str:
        return self.type.dtype

    @property
    def digest(self) -> bytes:
        """A hash of the expression's text, equal in every process."""
        if self._digest is None:
            h = hashlib.blake2b(f"{self.op} {self.attrs!r}".encode(), digest_size=16)
            for arg in self.args:
                h.update(arg.digest)
            self._digest = h.digest()
        return self._digest

    def has(self, axis: Axis) -> bool:
        return axis in self.type.axes

    def __add__(self, other: Operand) -> Expr:
        return make("add", self, lift(other, self))

    def __sub__(self, other: Operand) -> Expr:
        return make("sub", self, lift(other, self))

    def __mul__(self, other: Operand) -> Expr:
        return make("mul", self, lift(other, self))

    def __truediv__(self, other: Operand) -> Expr:
        return make("div", self, lift(other, self))

    def __radd__(self, other: Operand) -> Expr:
        return lift(other, self) + self

    def __rsub__(self, other: Operand) -> Expr:
        return lift(other, self) - self

    def __rmul__(self, other: Operand) -> Expr:
        return lift(other, self) * self

    def __rtruediv__(self, other: Operand) -> Expr:
        return lift(other, self) / self

    def __neg__(self) -> Expr:
        return make("neg", self)

    def __repr__(self) -> str:
        from fuse.ir.text import print_expr
        return print_expr(self)


Operand = Expr | int | float | bool
_interned: weakref.WeakValueDictionary[tuple[Any, ...], Expr] = weakref.WeakValueDictionary()


def make(op: str, *args: Expr, origin: str | None = None, **attrs: Any) -> Expr:
    """The interned expression `op(*args, **attrs)`. IRError if the op is unknown or its type rule refuses."""
    from fuse.ir.ops import OPS
    if op not in OPS:
        raise IRError(f"unknown op {op!r}")
    items = tuple(sorted(attrs.items()))
    # 1, 1.0 and True hash alike and nan differs from itself: the key spells the type and the digits.
    key = (op, tuple(id(a) for a in args), tuple((k, type(v).__name__, repr(v)) for k, v in items))
    found = _interned.get(key)
    if found is not None:
        return found
    row = OPS[op]
    if row.arity is not None and len(args) != row.arity:
        raise IRError(f"{op} takes {row.arity} arguments, got {len(args)}")
    expr = object.__new__(Expr)
    expr.op, expr.args, expr.attrs, expr.origin, expr._digest = op, args, items, origin, None
    expr.type = row.type_rule(args, dict(items))
    _interned[key] = expr
    return expr


def const(value: float | int | bool | complex, dtype: str) -> Expr:
    number: Callable[[Any], Any] = float if dtype in FLOATS else complex if dtype in COMPLEXES else int
    kind = bool if dtype == "bool" else number
    return make("const", value=kind(value), dtype=dtype)


def lift(value: Operand, like: Expr) -> Expr:
    return value if isinstance(value, Expr) else const(value, like.dtype)


def iota(axis: Axis) -> Expr:
    """The position along `axis`, int64."""
    return make("iota", axis=axis)


def size(extent: Size | int) -> Expr:
    """An extent as an int64 value."""
    extent = Size.of(extent)
    return const(extent.constant, "int64") if extent.constant is not None else make("size", extent=extent)


def read(buffer: Buffer, *index: Expr | Axis) -> Expr:
    """`buffer` at one integer expression per dimension; an Axis stands for its position."""
    return make("read", *(iota(i) if isinstance(i, Axis) else i for i in index), buffer=buffer)


def cast(x: Expr, dtype: str) -> Expr:
    return x if x.dtype == dtype else make("cast", x, dtype=dtype)


def where(condition: Expr, a: Operand, b: Operand) -> Expr:
    like = a if isinstance(a, Expr) else b
    assert isinstance(like, Expr), "where needs one expression branch"
    return make("where", condition, lift(a, like), lift(b, like))


def reduce_(op: str, x: Expr, *axes: Axis) -> Expr:
    """`op` in sum, max, argmax, lse over `axes`; axes that x lacks multiply a sum by their extent."""
    return make(op, x, axes=tuple(sorted(axes, key=lambda a: a.name))) if axes else x


def sum_(x: Expr, *axes: Axis) -> Expr:
    return reduce_("sum", x, *axes)


def dot(a: Expr, b: Expr, *axes: Axis) -> Expr:
    return sum_(a * b, *axes)


def lse(x: Expr, axis: Axis) -> Expr:
    return reduce_("lse", x, axis)


def topological(roots: Iterable[Expr], leaves: Container[Expr] = ()) -> list[Expr]:
    """Every expression below `roots`, arguments first, each once; what lies below `leaves` is left out."""
    order: list[Expr] = []
    seen: set[Expr] = set()
    stack: list[Expr | tuple[Expr]] = [*roots]
    stack.reverse()
    while stack:
        node = stack.pop()
        if isinstance(node, tuple):            # its arguments are done
            order.append(node[0])
        elif node not in seen:
            seen.add(node)
            if not node.args or node in leaves:
                order.append(node)
            else:
                stack.append((node,))
                stack += node.args[::-1]
    return order


def rebuild(node: Expr, args: Iterable[Expr], **attrs: Any) -> Expr:
    """`node` with other arguments (and attributes), same op and origin."""
    return make(node.op, *args, origin=node.origin, **{**dict(node.attrs), **attrs})


def rewrite(roots: Iterable[Expr], rule: Callable[[Expr], Expr | None],
            memo: dict[Expr, Expr] | None = None) -> list[Expr]:
    """Rewrites bottom-up: `rule(node)` sees a node whose arguments are done and returns its replacement or None.

    `memo` may hold replacements decided beforehand: what is below such a node is not visited.
    """
    roots = list(roots)
    done: dict[Expr, Expr] = {} if memo is None else memo
    stack = [(r, False) for r in reversed(roots)]
    while stack:
        node, ready = stack.pop()
        if node in done:
            continue
        if not ready:
            stack.append((node, True))
            stack.extend((a, False) for a in reversed(node.args))
            continue
        args = tuple(done[a] for a in node.args)
        same = node if all(a is b for a, b in zip(args, node.args, strict=True)) else rebuild(node, args)
        done[node] = rule(same) or same
    return [done[r] for r in roots]


def substitute(root: Expr, replacements: Mapping[Expr, Expr]) -> Expr:
    return rewrite([root], lambda _: None, dict(replacements))[0]


def rename_axes(roots: Iterable[Expr], names: Mapping[str, Axis]) -> list[Expr]:
    """Replaces axes by name, in iota and in the `axes` / `axis` attributes, simultaneously."""
    roots = list(roots)
    done: dict[Expr, Expr] = {}
    for node in topological(roots):
        # Attributes change together with the arguments: a reduction's axes must be axes of its operand.
        attrs = {k: _renamed(node.op, v, names) if k in ("axis", "axes") else v for k, v in node.attrs}
        done[node] = make(node.op, *(done[a] for a in node.args), origin=node.origin, **attrs)
    return [done[r] for r in roots]


def _renamed(op: str, axes: Axis | tuple[Axis, ...], names: Mapping[str, Axis]) -> Axis | tuple[Axis, ...]:
    if isinstance(axes, Axis):
        return names.get(axes.name, axes)
    swapped = tuple(names.get(a.name, a) for a in axes)
    return swapped if op == "carry" else tuple(sorted(swapped, key=lambda a: a.name))    # a carry's are its dimensions


def reads_of(roots: Iterable[Expr]) -> Iterator[Expr]:
    return (e for e in topological(roots) if e.op == "read")
