"""One step of a scan, for one lane of one column.

    h = a h + b             complex: both parts together
    h = e + (s += b)        a running sum: e is what the tile was entered with, s starts from zero

A running sum forgets no rounding error, so what a tile adds to it is added up apart.
"""
from __future__ import annotations

from dataclasses import dataclass

from fuse.codegen.cpu.blocks import Pass
from fuse.codegen.cpu.riders import states_of
from fuse.codegen.cpu.values import Values
from fuse.codegen.tile import Const, Scan, TileProgram, Value


@dataclass(frozen=True)
class Step:
    scan: Scan
    program: TileProgram
    values: Values
    at: Pass

    @property
    def states(self) -> list[str]:
        """The new states: of a complex scan its real and its imaginary part."""
        return self.running() if self.scan.a is None else self.affine()

    def named(self, prefix: str) -> list[str]:
        return [self.at.at(f"{prefix}_{state}") for _, state in states_of(self.scan)]

    def name(self, value: Value | None) -> str:
        assert value is not None
        return self.values.get(value, self.at.body)

    def running(self) -> list[str]:
        s = self.scan
        terms = [s.b, *([s.imaginary.b] if s.imaginary else [])]
        return [f"{e} + ({h} += {self.name(b)})" for e, h, b in zip(self.named("e"), self.named("h"), terms, strict=True)]

    def affine(self) -> list[str]:
        s, old = self.scan, self.named("h")
        if s.imaginary is None:
            return [f"{self.name(s.a)} * {old[0]} + {self.name(s.b)}"]
        summands, (re, im) = [self.summand(s.b), self.summand(s.imaginary.b)], old
        a, i = self.name(s.a), self.name(s.imaginary.a)
        return [f"{summands[0]}{a} * {re} - {i} * {im}", f"{summands[1]}{a} * {im} + {i} * {re}"]

    def summand(self, value: Value) -> str:
        """First, so that each state is two steps behind the one before: it is known early. A zero is left out."""
        source = self.program.defines[value.id]
        return "" if isinstance(source, Const) and source.value == 0 else f"{self.name(value)} + "
