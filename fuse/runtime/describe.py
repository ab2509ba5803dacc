"""A planned region in words and numbers: what a report, a page or a program wants to know of it."""
from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fuse.formula import Formula
from fuse.frontend.symbols import numel_hint, shape_of, size_of
from fuse.ir.expr import FLOATS, Axis, topological
from fuse.ir.kinds import kind_of
from fuse.ir.program import Carry, Region
from fuse.ir.size import Size, product
from fuse.ir.text import print_expr, print_region
from fuse.report import CarryReport, WalkReport
from fuse.runtime.executable import Executable


def walks_of(executable: Executable, hints: Mapping[str, int], target: str, arch: str | None) -> tuple[WalkReport, ...]:
    """Every region that has been built, in the order of the program."""
    plan = executable.plan
    backward = {r.name for r in plan.backward.regions} if plan.backward else set()
    return tuple(_walk(r, kernel, "backward" if r.name in backward else "forward", hints, target, arch)
                 for r, kernel in executable.kernels.items())


def _walk(region: Region, kernel: Any, direction: str, hints: Mapping[str, int], target: str, arch: str | None) -> WalkReport:
    count, schedule = flops(region), getattr(kernel, "schedule", None)
    return WalkReport(
        name=region.name, direction=direction, kind=kind_of(region), streams=tuple(map(str, region.streams)),
        grid=tuple(map(str, region.grid)), reverse=region.reverse, sweeps=region.sweeps,
        carries=tuple(map(_carry, region.carries)),
        emits=tuple(f"{e.name}[{_axes(e.axes)}] = {print_expr(e.value)}" for e in region.emits),
        flops=count.evaluate(hints), flops_formula=str(count), schedule=str(schedule) if schedule is not None else "",
        eps=next((c.eps for c in region.carries if c.eps is not None), None), source=getattr(kernel, "source", ""),
        text=print_region(region), resources=partial(_resources, region, schedule, hints, target, arch))


def _carry(carry: Carry) -> CarryReport:
    return CarryReport(name=carry.name, kind=carry.kind.value, axes=tuple(map(str, carry.axes)),
                       over=tuple(map(str, carry.over)), level=carry.level, relative_to=carry.relative_to,
                       dtype=carry.storage or carry.body.dtype, body=print_expr(carry.body))


def _axes(axes: tuple[Axis, ...]) -> str:
    return ", ".join(a.name for a in axes)


def _resources(region: Region, schedule: Any, hints: Mapping[str, int], target: str, arch: str | None) -> list[dict[str, Any]]:
    """Compiles the kernels of the region once more, for the device that was asked for, and reads off what they take."""
    if schedule is None:
        return []
    if target == "triton":
        from fuse.codegen.triton.ahead import settled

        return [launch.usage.to_dict() for launch in settled(region, schedule, hints, arch or "sm90")[1]]
    from fuse.codegen.cpu import TARGET
    from fuse.codegen.cpu.ahead import vectors

    return [vectors(TARGET.source(region, schedule)).to_dict()]


def bytes_virtual(imported: Any) -> int:
    """Bytes of the values that are not stored, as the user's graph would have stored them: of the products that amplify; of
    a scan or a cascade, which have none, everything that does not leave."""
    return sum((numel_hint(t) or 0) * t.element_size() for t in _virtual(imported))


def formula_virtual(imported: Any) -> Formula:
    """The same by the sizes of each value; what is expanded takes no memory."""
    total = Formula()
    for tensor in _virtual(imported):
        stored = (n for n, stride in zip(shape_of(tensor), tensor.stride(), strict=True) if size_of(stride) != 0)
        total += Formula.product(1, [*stored, Size.of(tensor.element_size())])
    return total


def bytes_stored(executable: Executable, hints: Mapping[str, int]) -> int:
    """Bytes of what the region does store: its results, and what a backward that walks reads of the forward.

    Gradients that the forward computes already are left out: they are stored whoever computes them.
    """
    needs = tuple(b.name in executable.wrt for b in executable.inputs)
    opaque = executable.opaque(needs) if executable.wrt else None
    kept = [b for b in executable.training(needs).kept if b in opaque.inputs] if opaque is not None else []
    return sum(product(b.shape).evaluate(hints) * getattr(torch, b.dtype).itemsize for b in (*executable.outputs, *kept))


def _virtual(imported: Any) -> list[Tensor]:
    given = {*imported.exits, *imported.candidate.stored}
    nodes = [n for n in imported.anchors or imported.candidate.virtual if n not in given]
    return [t for n in nodes if isinstance(t := n.meta.get("example_value"), Tensor)]


def flops(region: Region) -> Formula:
    """Two for every product that a dot of the region's bodies adds up."""
    dots = {e.args[0] for e in topological(region.bodies) if e.op == "sum" and e.args[0].op == "mul"}
    dots |= {c.body for c in region.carries if c.body.op == "mul" and set(c.axes) - set(region.grid)}
    total = Formula()
    for dot in sorted((d for d in dots if d.dtype in FLOATS), key=lambda d: d.digest):
        total += Formula.product(2, sorted((a.extent for a in dot.axes), key=repr))
    return total
