"""Counts as formulas: sums of products whose factors stay apart, since 2*2048*32000*256 says more than its value."""
from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from math import prod

from fuse.ir.size import Size


class Formula:
    """A sum of products of sizes. `str` is arithmetic that Python evaluates, once every symbol in it has a value."""

    def __init__(self, terms: Mapping[tuple[Size, ...], int] | None = None):
        self.terms = Counter(terms or {})

    @staticmethod
    def product(coefficient: int, factors: Iterable[Size]) -> Formula:
        """coefficient * the factors; those equal to 1 are left out."""
        return Formula({tuple(f for f in factors if f != 1): coefficient})

    def __add__(self, other: Formula) -> Formula:
        return Formula(self.terms + other.terms)

    def evaluate(self, sizes: Mapping[str, int]) -> int:
        """The number for these values of the symbols. KeyError names a symbol without one."""
        return sum(c * prod(f.evaluate(sizes) for f in factors) for factors, c in self.terms.items())

    def __str__(self) -> str:
        return " + ".join("*".join([str(c)] * (c != 1 or not factors) + [_factor(f) for f in factors])
                          for factors, c in self.terms.items()) or "0"


def _factor(size: Size) -> str:
    return f"({size})" if len(size.terms) > 1 else str(size)
