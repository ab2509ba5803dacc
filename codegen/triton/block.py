"""Pieces of a kernel's text: blocks of lines, ranges of positions, the parameter list, broadcasting by name."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

Order = Sequence[str]


@dataclass(eq=False)
class Block:
    """Lines of one nesting level, `depth` loops deep (`flat`: a loop of one round is no loop in the text); `memo` holds
    the values that are valid in it."""

    depth: int
    flat: int = 0
    lines: list[str] = field(default_factory=list)
    memo: dict[tuple[object, ...], str] = field(default_factory=dict)

    def add(self, line: str) -> None:
        self.lines.append("    " * (self.depth - self.flat) + line)

    def inner(self, flat: bool = False) -> Block:
        return Block(self.depth + 1, self.flat + flat)


@dataclass(frozen=True)
class Range:
    """Where a dim is in a tile: `var` holds its flat positions, `mask` which of them exist, `size` how many there are.

    var = first + step: the scalar at which the tile begins, and 0 .. size - 1. No first: the tile begins at 0.
    """

    dim: str
    var: str
    mask: str
    size: str
    block: Block
    first: str = ""
    step: str = ""


class Arguments:
    """The kernel's parameters in order of first use: name -> what the launcher has to bind."""

    def __init__(self) -> None:
        self.table: dict[str, tuple[Any, ...]] = {}
        self.constants: dict[str, tuple[Any, ...]] = {}

    def __call__(self, name: str, *what: object) -> str:
        self.table.setdefault(name, what)
        return name

    def constant(self, name: str, *what: object) -> str:
        self.constants.setdefault(name, what)
        return name


def fit(text: str, dims: Order, order: Order) -> str:
    """`text` with dimensions `dims` made to broadcast in `order`."""
    if not dims or tuple(dims) == tuple(order):
        return text
    return f"{text}[{', '.join(':' if d in dims else 'None' for d in order)}]"


def within(dims: Order, order: Order) -> tuple[str, ...]:
    """`dims` in the order in which they occur in `order`."""
    return tuple(d for d in order if d in dims)
