"""The CPU target: C++ that calls the GEMM of libtorch."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fuse.codegen import Capabilities, Kernel, Schedule
from fuse.codegen.build import library
from fuse.codegen.cpu.emit import Emitter
from fuse.codegen.cpu.kernel import CpuKernel
from fuse.codegen.cpu.schedule import exchanged, schedules
from fuse.codegen.cpu.spell import CTYPE, OPS
from fuse.codegen.cpu.thin import thin
from fuse.codegen.cpu.walk import WalkEmitter
from fuse.codegen.lower import lower, refusal
from fuse.codegen.tile import TileProgram
from fuse.ir.program import Kind, Region, Slab
from fuse.reasons import Miss

# A product in bfloat16 is made again in the time that it takes to add its gradient to memory which no cache holds.
HALF = Slab(elements=1 << 23, rows=4096)
CAPABILITIES = Capabilities(
    ops=OPS, dtypes=frozenset(CTYPE), compute=frozenset({"float32", "float64"}),
    kinds=frozenset(k.value for k in Kind), shared=True, levels=8,
    slab={"float32": Slab(), "float64": Slab(), "bfloat16": HALF})


@dataclass(frozen=True)
class Cpu:
    name: str = "cpu"
    capabilities: Capabilities = CAPABILITIES

    def refuses(self, region: Region) -> Miss | None:
        return refusal(region, self.capabilities)

    def schedules(self, region: Region, hints: Mapping[str, int], options: Any = None) -> Sequence[Schedule]:
        return schedules(region, hints, options)

    def walk_tile(self, region: Region, hints: Mapping[str, int], options: Any = None) -> tuple[int, str] | None:
        schedule = schedules(region, hints, options)[0]
        return schedule.extent("col"), str(schedule.knob("lane", ""))

    def source(self, region: Region, schedule: Schedule) -> str:
        program = tiled(region, schedule)
        native = bool(schedule.knob("native"))
        if program.scans:
            return WalkEmitter(program, native).text()
        fixed = {axis: int(n) for axis, n in schedule.knobs if axis in program.dims}
        return Emitter(thin(program), native, schedule.parallel in ("", "inside"), fixed).text()

    def build(self, region: Region, schedule: Schedule, source: str) -> Kernel:
        return CpuKernel(tiled(region, schedule), schedule, library(source), source)


def tiled(region: Region, schedule: Schedule) -> TileProgram:
    region = exchanged(region) if schedule.knob("exchanged") else region
    return lower(region, schedule.kind == "slab", schedule.knob("lane", ""))


TARGET = Cpu()
