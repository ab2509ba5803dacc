"""Extents: integer polynomials in size symbols, so that a dynamic shape is a symbol and not a special case."""
from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property, reduce

Monomial = tuple[str, ...]


class Size:
    """An immutable polynomial with integer coefficients: `Size.of(3)`, `Size.symbol("T") - 1`.

    Every symbol stands for an integer >= 1; `nonnegative` decides on that assumption alone.
    """

    __slots__ = ("__dict__", "terms")

    def __init__(self, terms: Mapping[Monomial, int]):
        self.terms = tuple(sorted((m, c) for m, c in terms.items() if c))

    @staticmethod
    def of(value: int | str | Size) -> Size:
        if isinstance(value, Size):
            return value
        return Size({(value,): 1}) if isinstance(value, str) else Size({(): int(value)})

    symbol = of

    @cached_property
    def constant(self) -> int | None:
        """The value if no symbol occurs, else None."""
        if not self.terms:
            return 0
        return self.terms[0][1] if len(self.terms) == 1 and self.terms[0][0] == () else None

    @cached_property
    def symbols(self) -> frozenset[str]:
        return frozenset(s for m, _ in self.terms for s in m)

    def evaluate(self, sizes: Mapping[str, int]) -> int:
        """The value under `sizes` (ints or SymInts). KeyError names a missing symbol."""
        total = 0
        for monomial, coefficient in self.terms:
            total = total + coefficient * reduce(lambda a, s: a * sizes[s], monomial, 1)
        return total

    def nonnegative(self) -> bool:
        """Proves `self >= 0` for all symbols >= 1, by expanding in `symbol - 1`; False means not proved."""
        shifted: Size = reduce(
            lambda total, term: total + reduce(lambda a, s: a * (Size.of(s) + 1), term[0], Size.of(term[1])),
            self.terms, Size({}))
        return all(c >= 0 for _, c in shifted.terms)

    def divided_by(self, other: int | Size) -> Size | None:
        """The exact quotient, or None. The divisor must be a single monomial."""
        other = Size.of(other)
        if len(other.terms) != 1:
            return Size.of(1) if self == other else None
        (monomial, coefficient), out = other.terms[0], {}
        for m, c in self.terms:
            rest = list(m)
            if c % coefficient or any(rest.count(s) < monomial.count(s) for s in monomial):
                return None
            for s in monomial:
                rest.remove(s)
            out[tuple(rest)] = c // coefficient
        return Size(out)

    def __add__(self, other: int | Size) -> Size:
        out = dict(self.terms)
        for m, c in Size.of(other).terms:
            out[m] = out.get(m, 0) + c
        return Size(out)

    def __mul__(self, other: int | Size) -> Size:
        out: dict[Monomial, int] = {}
        for m, c in self.terms:
            for n, d in Size.of(other).terms:
                key = tuple(sorted(m + n))
                out[key] = out.get(key, 0) + c * d
        return Size(out)

    def __neg__(self) -> Size:
        return self * -1

    def __sub__(self, other: int | Size) -> Size:
        return self + Size.of(other) * -1

    def __rsub__(self, other: int) -> Size:
        return Size.of(other) - self

    __radd__, __rmul__ = __add__, __mul__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, (int, Size)) and self.terms == Size.of(other).terms

    def __hash__(self) -> int:
        return hash(self.terms)

    def __repr__(self) -> str:
        def term(m: Monomial, c: int) -> str:
            return "*".join(([str(c)] if c != 1 or not m else []) + list(m))
        return "+".join(term(m, c) for m, c in reversed(self.terms)).replace("+-", "-") or "0"


def product(sizes: Iterable[int | Size]) -> Size:
    return reduce(lambda a, b: a * b, map(Size.of, sizes), Size.of(1))
