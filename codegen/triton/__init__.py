"""The GPU target: Triton source for NVIDIA and AMD.

A region becomes one or more pieces (`pieces`), each one kernel whose text `kernel` assembles from values (`emit`) and
carries (`carry`); `launch` runs them. Triton is imported when a kernel is built, not before.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fuse.codegen import Capabilities, Kernel, Schedule
from fuse.codegen.lower import lower, refusal
from fuse.codegen.triton.chain import Chain
from fuse.codegen.triton.kernel import Sweep, stages_of, sweep
from fuse.codegen.triton.launch import Machine
from fuse.codegen.triton.module import directory, load
from fuse.codegen.triton.pieces import KINDS, RECOMPUTE, Piece, pieces
from fuse.codegen.triton.schedule import candidates, part
from fuse.codegen.triton.spell import DTYPES, HEADER, SPELLED_BY_TYPE, SPELLINGS, helpers_of
from fuse.codegen.triton.stages import staged
from fuse.codegen.triton.walk import walk
from fuse.codegen.walk import walks
from fuse.ir.program import Kind, Region
from fuse.reasons import Miss, Refused


def text_of(region: Region, schedule: Schedule) -> tuple[str, list[tuple[Piece, Sweep]]]:
    """The module's source and, per piece, the kernel in it."""
    kernels: list[tuple[Piece, Sweep]]
    if walks(region):
        stages = staged(region) if schedule.knob("staged") else (region,)
        kernels = [stage(r, part(schedule, k), k) for k, r in enumerate(stages)]
    else:
        kernels = [(p, sweep(f"sweep{k}", p.program, part(schedule, k), stages_of(p.program) if p.slab else ()))
                   for k, p in enumerate(pieces(region, schedule.kind, bool(schedule.knob("apart"))))]
    body = "".join(kernel.text for _, kernel in kernels)
    return HEADER + helpers_of(body) + body, kernels


def stage(region: Region, schedule: Schedule, number: int) -> tuple[Piece, Sweep]:
    """A region with scans, over real numbers and with the schedule's lane in its grid, is one kernel; as is a stage of one
    that has none left."""
    if not walks(region):
        (piece,) = pieces(region, RECOMPUTE)
        return piece, sweep(f"sweep{number}", piece.program, schedule)
    program = lower(region, False, str(schedule.knob("lane", "")))
    kernel = walk(f"walk{number}", program)
    return Piece(program.region, kernel.program, False), kernel


CAPABILITIES = Capabilities(
    ops=frozenset(SPELLINGS) | SPELLED_BY_TYPE, dtypes=frozenset(DTYPES), compute=frozenset({"float32"}),
    kinds=frozenset(k.value for k in (Kind.SUM, Kind.MAX, Kind.ARGMAX, Kind.LSE, Kind.AFFINE)), shared=True, levels=8,
    recomputes=True)


def whole(region: Region, kernels: Sequence[tuple[Piece, Sweep]]) -> Region:
    """The region whose buffers the kernels see: of a walk in one piece that of the piece."""
    return kernels[0][0].region if walks(region) and len(kernels) == 1 else region


def untold(region: Region) -> Miss | None:
    """Why no kind of schedule gives a text for the region; None if one does."""
    miss: Miss | None = None
    for kind, apart in KINDS:
        try:
            text_of(region, Schedule(kind, (("row", 16), ("col", 16), ("deep", 16)), knobs=(("apart", apart),)))
            return None
        except Refused as refused:
            miss = refused.miss if miss is None else miss
    return miss


@dataclass(frozen=True)
class Triton:
    """`machine` overrides what is found at run time, to look at another device's schedules and source."""

    machine: Machine | None = None
    name: str = "triton"
    capabilities: Capabilities = CAPABILITIES

    def refuses(self, region: Region) -> Miss | None:
        machine = self.machine or machine_here()
        if isinstance(machine, Miss):
            return machine
        miss = refusal(region, self.capabilities)
        return untold(region) if miss is None else miss

    def schedules(self, region: Region, hints: Mapping[str, int], options: Any = None) -> Sequence[Schedule]:
        machine = self.machine or machine_here()
        return () if isinstance(machine, Miss) else candidates(region, hints, machine.arch, options)

    def walk_tile(self, region: Region, hints: Mapping[str, int], options: Any = None) -> tuple[int, str] | None:
        return None

    def source(self, region: Region, schedule: Schedule) -> str:
        return text_of(region, schedule)[0]

    def build(self, region: Region, schedule: Schedule, source: str) -> Kernel:
        """Refused(BUILD_FAILED) if Triton does not accept the module. It compiles each kernel at its first launch."""
        machine = self.machine or machine_here()
        if isinstance(machine, Miss):
            raise Refused(machine)
        _, kernels = text_of(region, schedule)
        try:
            module = load(source, directory())
        except Exception as error:
            raise Refused(Miss("BUILD_FAILED", None, f"{type(error).__name__}: {error}")) from error
        return Chain(whole(region, kernels), schedule, machine, [(p, k, getattr(module, k.name)) for p, k in kernels], source)


def machine_here() -> Machine | Miss:
    """The device kernels would run on, or why there is none."""
    try:
        from triton import knobs
    except ImportError:
        return Miss("TARGET_LACKS", None, "the package triton is not installed")
    if knobs.runtime.interpret:
        return Machine("sm90", 4, interpreted=True)
    if not torch.cuda.is_available():
        return Miss("TARGET_LACKS", None, "no CUDA or ROCm device (TRITON_INTERPRET=1 runs kernels without one)")
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    arch = properties.gcnArchName.partition(":")[0] if torch.version.hip else f"sm{properties.major}{properties.minor}"
    return Machine(arch, properties.multi_processor_count)


TARGET = Triton()
