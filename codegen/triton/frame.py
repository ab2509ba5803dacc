"""What every kernel's text has: values and where they lie, stores of outputs and of what splits leave, parameters."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fuse.codegen.tile import Store, TileProgram
from fuse.codegen.triton.block import Block, fit
from fuse.codegen.triton.carry import Part
from fuse.codegen.triton.emit import Tiles


@dataclass(frozen=True)
class Source:
    """The text of one kernel and what its arguments mean (see `launch.bind`)."""

    name: str
    text: str
    arguments: dict[str, tuple[Any, ...]]
    constants: dict[str, tuple[Any, ...]]


class Frame:
    """A kernel in the making: `tiles` emits values, `after` holds what is done when every loop is over."""

    def __init__(self, program: TileProgram, tiles: Tiles):
        self.program, self.tiles, self.after = program, tiles, Block(1)
        self.parts: list[Part] = []

    def address(self, out: str, name: str, axes: Sequence[str], order: Sequence[str], *more: str) -> str:
        """out + sum of position * stride over `axes`, in `order`, with strides named after the buffer."""
        strides = {a: self.tiles.arguments(f"{name}_{a}", "out", name, a) for a in axes}
        return self.tiles.address([out, *more], strides, order)

    def mask(self, dims: Sequence[str], order: Sequence[str]) -> str:
        text = " & ".join(fit(self.tiles.range(d).mask, (d,), order) for d in dims)
        return f", mask={text}" if text else ""

    def store_part(self, part: Part, keeps: Sequence[str]) -> None:
        out = self.tiles.arguments(f"o_{part.var}", "part", part.name)
        split = self.tiles.arguments(f"o_{part.var}_split", "out", f"o_{part.var}", "split")
        axes = [*keeps, *(a for d in part.dims for a in self.program.dims[d])]
        at = self.address(out, f"o_{part.var}", axes, part.dims, f"far(split, {split})")
        self.after.add(f"tl.store({at}, {part.var}{self.mask(part.dims, part.dims)})")

    def emit(self, s: Store, block: Block | None = None) -> None:
        """Stores a value, where its dims have positions unless told otherwise."""
        t = self.tiles
        out = t.arguments(s.buffer, "output", s.buffer)
        text = t.boxed(s.value, s.dims)
        block = t.home(s.dims) if block is None else block
        if set(s.value.dims) != set(s.dims):
            text = f"tl.broadcast_to({text}, [{', '.join(t.range(d).size for d in s.dims)}])"
        block.add(f"tl.store({self.address(out, s.buffer, s.axes, s.dims)}, {text}{self.mask(s.dims, s.dims)})")

    def source(self, name: str, body: Sequence[str]) -> Source:
        """The function `name` with these lines."""
        arguments = self.tiles.arguments
        head = wrapped([*arguments.table, *(f"{c}: tl.constexpr" for c in arguments.constants)])
        text = f"\n\n@triton.jit\ndef {name}(\n{head}):\n" + "\n".join(body) + "\n"
        return Source(name, text, dict(arguments.table), dict(arguments.constants))


def wrapped(names: Sequence[str], width: int = 116) -> str:
    """Parameters, four to a line or so."""
    lines, line = [], ""
    for name in names:
        if len(line) + len(name) + 2 > width:
            lines.append(line)
            line = ""
        line += f"{name}, "
    return "".join(f"    {line.rstrip()}\n" for line in (*lines, line))
