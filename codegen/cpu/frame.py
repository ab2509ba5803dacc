"""C++ text as nested frames: a frame is a block being written, and knows which values have a name in it.

While an inner frame is open, a line added to an outer one lands before it: that is how a value is computed in the
outermost loop where everything it needs is known.
"""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any


def indented(lines: Iterable[str]) -> list[str]:
    """Directives stay at the margin."""
    return ["  " + line if line and not line.startswith("#") else line for line in lines]


@dataclass
class Frame:
    """`bound`: dim -> the C++ index that runs over it here; `names`: value id -> C++ name; `things`: other cached names."""

    header: str
    parent: Frame | None = None
    bound: dict[str, str] = field(default_factory=dict)
    footer: str = "}"
    lines: list[str] = field(default_factory=list)
    names: dict[int, str] = field(default_factory=dict)
    things: dict[object, Any] = field(default_factory=dict)
    after: list[str] = field(default_factory=list)     # lines that follow the block

    def open(self, header: str, bound: dict[str, str] | None = None, footer: str = "}") -> Frame:
        return Frame(header, self, {**self.bound, **(bound or {})}, footer)

    def add(self, *lines: str) -> None:
        self.lines += lines

    def close(self) -> Frame:
        """Writes the block into the parent, which is returned."""
        assert self.parent is not None
        self.parent.lines += [*self.header.splitlines(), *indented(self.lines), self.footer, *self.after]
        return self.parent

    @property
    def chain(self) -> list[Frame]:
        """From the outermost frame to this one."""
        return [*(self.parent.chain if self.parent is not None else ()), self]

    def name(self, value: int) -> str | None:
        return next((f.names[value] for f in reversed(self.chain) if value in f.names), None)

    def thing(self, key: object) -> object | None:
        return next((f.things[key] for f in reversed(self.chain) if key in f.things), None)
