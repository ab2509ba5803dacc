"""What the compiler made of a kernel: how wide the registers of its arithmetic are, counted in the assembler's text."""
from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from fuse.codegen.build import assembly

# A packed or scalar floating-point instruction of x86 (vfmadd231ps %zmm0, ...), and the registers of ARM's (fmla v0.4s, ...).
X86 = re.compile(r"^\s+v?[a-z0-9]+?([ps])[sdh]\s+(.*)$")
ARM = re.compile(r"^\s+f[a-z]+\s+([zvsd])\d+(?:\.\d*[sdh])?,")
ARM_WIDTH = {"z": "scalable", "v": "128", "s": "scalar", "d": "scalar"}


@dataclass(frozen=True)
class Vectors:
    """Instructions by the width of their registers in bits; "scalar": one number at a time."""

    instructions: dict[str, int]

    @property
    def bits(self) -> int:
        """Of the widest; 0 if nothing is vectorised, or if the width is the machine's secret."""
        return max((int(w) for w in self.instructions if w.isdigit()), default=0)

    def to_dict(self) -> dict[str, Any]:
        return {"kernel": "fuse_kernel", "arch": "cpu", "vector_bits": self.bits, "instructions": self.instructions}


def vectors(source: str) -> Vectors:
    """Compiles the text to assembler. Refused(NO_COMPILER | BUILD_FAILED)."""
    return counted(assembly(source))


def counted(text: str) -> Vectors:
    found = Counter(width for line in text.splitlines() if (width := _width(line)))
    return Vectors(dict(sorted(found.items(), key=lambda item: -int(item[0]) if item[0].isdigit() else 0)))


def _width(line: str) -> str | None:
    if match := X86.match(line):
        if match[1] == "s":
            return "scalar"
        return next((bits for name, bits in (("%zmm", "512"), ("%ymm", "256"), ("%xmm", "128")) if name in match[2]), None)
    arm = ARM.match(line)
    return ARM_WIDTH[arm[1]] if arm else None
