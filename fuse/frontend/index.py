"""Index arithmetic: what a view does to an index, as linear forms over axes with extents as coefficients.

    flat index of (i, j) in [n, m]     ->  i*m + j
    i*m + j, 0 <= j < m, by m          ->  (i, j)
    n of extent B*T, by T              ->  Split(n, T): the caller restarts with n = no*T + ni
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from fuse.ir.expr import Axis, Expr, iota, make, size
from fuse.ir.size import Size, product

Atom = Axis | Expr
ZERO, ONE = Size.of(0), Size.of(1)


class Split(Exception):
    """A view needs `axis` as a pair (outer, inner) with this inner extent; the import restarts with it."""

    def __init__(self, axis: Axis, inner: Size):
        super().__init__(f"{axis!r} by {inner}")
        self.axis, self.inner = axis, inner


def _key(atom: Atom) -> tuple[int, str]:
    return (0, atom.name) if isinstance(atom, Axis) else (1, _spell(atom))


@lru_cache(maxsize=4096)
def _spell(expr: Expr) -> str:
    """A text that is equal for equal expressions and does not depend on addresses."""
    return f"{expr.op}{expr.attrs!r}({','.join(map(_spell, expr.args))})"


@dataclass(frozen=True)
class Linear:
    """`offset + sum(coefficient * atom)`: atoms are axes, or int64 expressions that depend on data."""

    terms: tuple[tuple[Atom, Size], ...] = ()
    offset: Size = ZERO

    @staticmethod
    def build(terms: Iterable[tuple[Atom, Size]], offset: Size = ZERO) -> Linear:
        total: dict[Atom, Size] = {}
        for atom, coefficient in terms:
            total[atom] = total.get(atom, ZERO) + coefficient
        return Linear(tuple(sorted(((a, c) for a, c in total.items() if c != 0), key=lambda t: _key(t[0]))), offset)

    @staticmethod
    def of(value: Linear | Axis | Expr | Size | int) -> Linear:
        if isinstance(value, Linear):
            return value
        return Linear(((value, ONE),)) if isinstance(value, (Axis, Expr)) else Linear((), Size.of(value))

    @property
    def constant(self) -> Size | None:
        return None if self.terms else self.offset

    @property
    def axes(self) -> frozenset[Axis]:
        """Every axis the index varies along, those inside data-dependent parts included."""
        return frozenset(x for a, _ in self.terms for x in ((a,) if isinstance(a, Axis) else a.axes))

    @property
    def affine(self) -> bool:
        return all(isinstance(a, Axis) for a, _ in self.terms)

    def __add__(self, other: Linear | Axis | Size | int) -> Linear:
        other = Linear.of(other)
        return Linear.build((*self.terms, *other.terms), self.offset + other.offset)

    def __mul__(self, factor: Size | int) -> Linear:
        return Linear.build(((a, c * factor) for a, c in self.terms), self.offset * factor)

    def __sub__(self, other: Linear | Axis | Size | int) -> Linear:
        return self + Linear.of(other) * -1

    def bounds(self) -> tuple[Size, Size] | None:
        """The least and greatest value, or None if a sign or a data-dependent part is unknown."""
        low = high = self.offset
        for atom, c in self.terms:
            if not isinstance(atom, Axis):
                reach = _known_bound(atom)
                if reach is None:
                    return None
            else:
                reach = atom.extent - 1
            if c.nonnegative():
                high = high + c * reach
            elif (-c).nonnegative():
                low = low + c * reach
            else:
                return None
        return low, high

    def within(self, extent: Size) -> bool:
        """Proves 0 <= index < extent."""
        found = self.bounds()
        return found is not None and found[0].nonnegative() and (extent - 1 - found[1]).nonnegative()

    def expr(self) -> Expr:
        total: Expr | None = None
        for atom, c in self.terms:
            base = iota(atom) if isinstance(atom, Axis) else atom
            term = base if c == 1 else make("mul", base, size(c))
            total = term if total is None else make("add", total, term)
        if total is None:
            return size(self.offset)
        return total if self.offset == 0 else make("add", total, size(self.offset))


def decided(difference: Linear, strict: bool) -> bool | None:
    """Whether difference < 0 (or <= 0) at every position, or at none; None if that cannot be said."""
    found = difference.bounds()
    if found is None:
        return None
    low, high = found
    if (-high - (1 if strict else 0)).nonnegative():
        return True
    return False if (low - (0 if strict else 1)).nonnegative() else None


def _known_bound(expr: Expr) -> Size | None:
    """The greatest value of a data-dependent part that is never negative."""
    if expr.op == "mod" and expr.args[1].op in ("const", "size"):
        return linear(expr.args[1]).offset - 1
    return None


def linear(expr: Expr) -> Linear:
    """The linear form of an int64 expression; what is not linear stays as one atom."""
    if expr.op == "const":
        return Linear.of(int(expr["value"]))
    if expr.op == "size":
        return Linear.of(expr["extent"])
    if expr.op == "iota":
        return Linear.of(expr["axis"])
    if expr.op in ("add", "sub"):
        a, b = map(linear, expr.args)
        return a + b if expr.op == "add" else a - b
    if expr.op == "neg":
        return linear(expr.args[0]) * -1
    if expr.op == "mul":
        a, b = map(linear, expr.args)
        for x, y in ((a, b), (b, a)):
            if y.constant is not None:
                return x * y.constant
    return Linear.of(expr)


def divide(index: Linear, by: Size) -> tuple[Linear, Linear]:
    """(q, r) with index = q*by + r and 0 <= r < by. Raises Split where an axis has to be cut in two first."""
    if by == 1:
        return index, Linear()
    quotient: list[tuple[Atom, Size]] = []
    rest: list[tuple[Atom, Size]] = []
    for atom, c in index.terms:
        part = c.divided_by(by)
        (rest if part is None else quotient).append((atom, c if part is None else part))
    whole = index.offset.divided_by(by)
    if whole is None and index.offset.constant is not None and by.constant is not None:
        whole = Size.of(index.offset.constant // by.constant)
    q = Linear.build(quotient, whole or ZERO)
    r = Linear.build(rest, index.offset if whole is None else index.offset - whole * by)
    if r.within(by):
        return q, r
    for atom, c in r.terms:
        inner = by.divided_by(c)
        if inner is not None and isinstance(atom, Axis) and inner != 1 and inner != atom.extent \
                and atom.extent.divided_by(inner) is not None:
            raise Split(atom, inner)
    flat = r.expr()
    return (q + Linear.of(make("floordiv", flat, size(by)))), Linear.of(make("mod", flat, size(by)))


def strides(shape: Sequence[Size]) -> list[Size]:
    return [product(shape[i + 1:]) for i in range(len(shape))]


def flatten(index: Sequence[Linear], shape: Sequence[Size]) -> Linear:
    total = Linear()
    for i, stride in zip(index, strides(shape), strict=True):
        total = total + i * stride
    return total


def unflatten(flat: Linear, shape: Sequence[Size], divmod_: Callable[[Linear, Size], tuple[Linear, Linear]] = divide) \
        -> list[Linear]:
    """The multi-index of `flat` in `shape`, peeled from the inside."""
    out: list[Linear] = []
    for extent in reversed(shape[1:]):
        flat, rest = divmod_(flat, extent)
        out.append(rest)
    return [flat, *reversed(out)] if shape else []


def reshape(index: Sequence[Linear], source: Sequence[Size], target: Sequence[Size]) -> list[Linear]:
    """The index in `source` of the element that stands at `index` in the same data viewed as `target`."""
    out: list[Linear] = []
    for (s0, s1), (t0, t1) in _groups(source, target):
        src, dst, idx = source[s0:s1], target[t0:t1], index[t0:t1]
        wide = [i for i, e in enumerate(src) if e != 1]
        thin = [i for i, e in enumerate(dst) if e != 1]
        if len(wide) == len(thin) and all(src[a] == dst[b] for a, b in zip(wide, thin, strict=True)):
            values = {a: idx[b] for a, b in zip(wide, thin, strict=True)}
        else:
            values = dict(zip(wide, unflatten(flatten([idx[b] for b in thin], [dst[b] for b in thin]),
                                              [src[a] for a in wide]), strict=True))
        out += [values.get(i, Linear()) for i in range(s1 - s0)]
    return out


def _groups(source: Sequence[Size], target: Sequence[Size]) -> Iterable[tuple[tuple[int, int], tuple[int, int]]]:
    """Cuts both shapes into the smallest runs of equal product."""
    s = t = 0
    while s < len(source) or t < len(target):
        s1, t1 = _smallest_run(source, target, s, t)
        yield (s, s1), (t, t1)
        s, t = s1, t1


def _smallest_run(source: Sequence[Size], target: Sequence[Size], s: int, t: int) -> tuple[int, int]:
    spans = sorted(((i, j) for i in range(s, len(source) + 1) for j in range(t, len(target) + 1) if i + j > s + t),
                   key=lambda p: (p[0] - s) + (p[1] - t))
    for i, j in spans:
        if product(source[s:i]) == product(target[t:j]) and (i > s or j > t):
            rest = product(source[i:]) == product(target[j:])
            if rest:
                return i, j
    return len(source), len(target)
