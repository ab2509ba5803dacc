"""The regions that functions become, at any size: traced with fake tensors, planned, never run."""
from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import fuse.runtime.plan as plan
from fuse.codegen import Schedule
from fuse.codegen.triton import Triton
from fuse.codegen.triton.ahead import UNITS, Launch, settled
from fuse.codegen.triton.launch import Machine
from fuse.codegen.triton.schedule import part
from fuse.frontend import find
from fuse.ir.program import Region
from fuse.options import Options
from tests.forms_vocab import FORMS, arguments

FUSED = [name for name, form in FORMS.items() if form.regions]
# B, T, D, V: through a slab; on chip; offsets beyond 32 bits
LARGE, SMALL, GEMMA = (2, 2048, 2048, 50304), (3, 257, 64, 1000), (2, 4096, 2304, 256000)


Found = list[tuple[Region, dict[str, int]]]


def regions(function: Callable[..., Any], make: Callable[[], Sequence[Any]], schedule: str, patch) -> Found:
    """(region, sizes) for every kernel that `function` would be given on a GPU. `patch` is a MonkeyPatch."""
    found: Found = []
    options = Options.parse({"target": "triton", "min_virtual_bytes": 0, "schedule": schedule, "strict": True})

    def record(region, target, hints, options):
        found.append((region, dict(hints)))
        return lambda env, sizes: {}

    def backend(gm, inputs):
        for imported in find(gm, options)[0]:
            plan.plan_region(imported, options)
        return gm.forward
    patch.setattr(plan, "compile_region", record)
    torch._dynamo.reset()
    with FakeTensorMode(allow_non_fake_inputs=True):
        torch.compile(function, backend=backend)(*make())
    return found


@dataclass(frozen=True)
class Row:
    """A kernel, and where it comes from."""

    form: str
    region: Region
    schedule: Schedule
    number: int
    launch: Launch

    def __str__(self) -> str:
        u, s = self.launch.usage, part(self.schedule, self.number)
        tile = f"{s.extent('row'):3} x {s.extent('col'):3} x {s.extent('deep'):2} w{s.knob('warps')}"
        allowed = " (all allowed)" if s.knob("registers") else ""
        return (f"{self.form:28} {u.arch:7} {s.kind:12} {u.kernel} {tile}: {u.registers:3} registers{allowed}, "
                f"{u.spills:4} B spilled, {u.shared / 1024:3.0f} K shared{'' if u.fits else '  does not fit'}")


def kernels(names: list[str], dtype: torch.dtype, shape: tuple[int, int, int, int], archs: Iterable[str], patch) -> list[Row]:
    """Every different kernel of these forms, under both ways to compute gradients, as the launcher would run it."""
    rows: dict[str, Row] = {}
    for name in names:
        form = replace(FORMS[name], dtype=dtype)
        for how in ("slab", "recompute"):
            found = regions(form.function, lambda form=form: arguments(form, shape=shape), how, patch)
            launched(name, found, archs, rows)
    return list(rows.values())


def launched(name: str, found: Found, archs: Iterable[str], rows: dict[str, Row]) -> None:
    """Adds the kernels of the regions to `rows`."""
    for region, sizes in found:
        for arch in archs:
            schedule = Triton(Machine(arch, UNITS[arch])).schedules(region, sizes)[0]
            schedule, launches = settled(region, schedule, sizes, arch)
            for k, launch in enumerate(launches):
                rows.setdefault(launch.key, Row(name, region, schedule, k, launch))
