"""The CPU target: C++ that calls the GEMM of libtorch."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fuse.codegen import Capabilities, Kernel, Schedule
from fuse.codegen.build import library
from fuse.codegen.cpu import emit
from fuse.codegen.cpu.kernel import CpuKernel
from fuse.codegen.cpu.schedule import schedules
from fuse.codegen.cpu.spell import CTYPE, OPS
from fuse.codegen.lower import lower, refusal
from fuse.ir.program import Kind, Region
from fuse.reasons import Miss

CAPABILITIES = Capabilities(
    ops=OPS, dtypes=frozenset(CTYPE), compute=frozenset({"float32", "float64"}),
    kinds=frozenset(k.value for k in (Kind.SUM, Kind.MAX, Kind.ARGMAX, Kind.LSE)), shared=True, levels=8)


@dataclass(frozen=True)
class Cpu:
    name: str = "cpu"
    capabilities: Capabilities = CAPABILITIES

    def refuses(self, region: Region) -> Miss | None:
        return refusal(region, self.capabilities)

    def schedules(self, region: Region, hints: Mapping[str, int], options: Any = None) -> Sequence[Schedule]:
        return schedules(region, hints, options)

    def source(self, region: Region, schedule: Schedule) -> str:
        return emit.source(lower(region, schedule.kind == "slab"), bool(schedule.knob("native")))

    def build(self, region: Region, schedule: Schedule, source: str) -> Kernel:
        return CpuKernel(lower(region, schedule.kind == "slab"), schedule, library(source), source)


TARGET = Cpu()
