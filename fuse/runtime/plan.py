"""An imported neighbourhood becomes an executable: passes, then a kernel for every region that will be launched."""
from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from time import perf_counter
from typing import Any, cast

import torch
from torch import Tensor
from torch.fx import Node

from fuse import private
from fuse.codegen import Target, compile_region
from fuse.frontend.candidates import Candidate
from fuse.frontend.value import where
from fuse.ir.expr import Axis, rename_axes, topological
from fuse.ir.kinds import kinds_of
from fuse.ir.program import Program, Region, Slab, Term
from fuse.ir.text import print_program
from fuse.log import fail, miss_of
from fuse.options import Options
from fuse.passes import Context, compile_program
from fuse.reasons import Miss, Refused
from fuse.report import RegionReport
from fuse.runtime import ops
from fuse.runtime.describe import bytes_stored, bytes_virtual, formula_virtual, walks_of
from fuse.runtime.executable import Executable, unbound


@dataclass
class Planned:
    """A region that is ready to be spliced in."""

    imported: Any
    executable: Executable
    key: str
    target: str
    arch: str | None
    seconds: dict[str, float]     # by pass, then for the kernels; none if a plan of before is used again

    @property
    def inputs(self) -> list[Node]:
        return list(self.imported.inputs)

    @property
    def exits(self) -> list[Node]:
        return list(self.imported.exits)

    @property
    def covered(self) -> list[Node]:
        return list(self.imported.candidate.covered)

    @property
    def takes(self) -> list[str]:
        return [b.dtype for b in self.executable.inputs]

    @property
    def gives(self) -> list[str]:
        return [b.dtype for b in self.executable.outputs]

    def report(self, body: int = 0, nodes: tuple[str, ...] = ()) -> RegionReport:
        """`body` is the index among the graph's bodies, `nodes` the names there of what the region replaced."""
        plan = self.executable.plan
        hints = dict(self.imported.program.hints)
        walks = walks_of(self.executable, hints, self.target, self.arch)
        forward = [w for w in walks if w.direction == "forward"]
        inputs, outputs = self.executable.inputs, self.executable.outputs
        return RegionReport(
            kinds=kinds_of(plan.forward), where=self.imported.where,
            streams=tuple(dict.fromkeys(str(a) for r in plan.forward.regions for a in r.streams)),
            inputs=tuple(map(str, inputs)), outputs=tuple(map(str, outputs)),
            sizes={s: f"dimension {at.dim} of {self.inputs[at.index].name}" for s, at in self.executable.binding.items()},
            bytes_saved=bytes_virtual(self.imported), bytes_formula=str(formula_virtual(self.imported)),
            bytes_stored=bytes_stored(self.executable, hints),
            flops=sum(w.flops for w in forward), target=self.target, walks=walks,
            notes=(*plan.notes, *self.executable.lacking.values(), *stored(self.imported.candidate)), seconds=dict(self.seconds),
            snapshots={n: partial(print_program, p) for n, p in plan.snapshots.items()}, key=self.key,
            body=body, nodes=nodes, operands=tuple(n.name for n in self.inputs), program=plan.snapshots["import"])


def plan_region(imported: Any, options: Options) -> Planned | Miss:
    """The region of `imported`, ready to be spliced in, or the Miss that says why there is none (with one warning)."""
    try:
        return _plan(imported, options)
    except Exception as error:
        if private.steers_dynamo(error):
            raise
        miss = miss_of(error, imported.where)
        fail(miss, options.strict, "This region is left to Inductor.", error)
        return miss


def _plan(imported: Any, options: Options) -> Planned:
    program: Program = imported.program
    tensors = [n.meta["example_value"] for n in imported.inputs]
    if missing := unbound(program):
        raise Refused(Miss("UNBOUND_SIZE", imported.where, ", ".join(sorted(missing))))
    wrt = wanted_gradients(imported, tensors)
    target = target_for(tensors, options)
    key = key_of(program, wrt, target.name, options)
    executable, seconds = ops.find(key), dict[str, float]()
    if executable is None:
        hints = dict(program.hints)
        able = target.capabilities
        slab = wanted_slab(program, wrt, target, options)
        context = Context(hints=hints, wrt=wrt, slab=slab is not None, beside=slab or Slab(), shared_sweep=able.shared,
                          recomputes=able.recomputes, eps=options.eps,
                          walk_tile=partial(target.walk_tile, hints=hints, options=options))
        plan = compile_program(program, context)
        seconds = dict(plan.seconds)

        def build(region: Region) -> Any:
            begun = perf_counter()
            kernel = compile_region(region, target, hints, options)
            seconds["kernels"] = seconds.get("kernels", 0.0) + perf_counter() - begun
            return kernel
        executable = Executable(program.inputs, plan, build, wrt=wrt, where=imported.where, strict=options.strict)
    needs = tuple(b.name in executable.wrt for b in executable.inputs)
    for part in (executable.training(needs), executable.opaque(needs)) if wrt else (executable.inference(),):
        miss = executable.prepare(part)
        if miss is not None:
            raise Refused(miss)
    return Planned(imported, ops.register(key, executable), key, target.name, options.arch, seconds)


def wanted_slab(program: Program, wrt: tuple[str, ...], target: Target, options: Options) -> Slab | None:
    """Where gradients may be computed in the forward: as the user says, else where the target gains by it for all types."""
    if options.schedule != "auto":
        return Slab() if options.slab else None
    found = [target.capabilities.slab.get(b.dtype) for b in program.inputs if b.name in wrt and len(b.shape) > 1]
    known = [slab for slab in found if slab is not None]
    if len(known) < len(found):
        return None
    return Slab(min((s.elements for s in known), default=math.inf), max((s.rows for s in known), default=0))


def wanted_gradients(imported: Any, tensors: list[Tensor]) -> tuple[str, ...]:
    """The inputs that need a gradient, or none of them if no exit does (no_grad)."""
    if not any(n.meta["example_value"].requires_grad for n in imported.exits):
        return ()
    return tuple(b.name for b, t in zip(imported.program.inputs, tensors, strict=True) if t.requires_grad)


def target_for(tensors: list[Tensor], options: Options) -> Target:
    """The target the user named, else the one for the device of the tensors (scalars may live on the CPU anyway)."""
    devices = {t.device.type for t in tensors if t.dim()} or {tensors[0].device.type}
    if len(devices) > 1:
        raise Refused(Miss("TARGET_LACKS", None, f"the operands live on {' and '.join(sorted(devices))}"))
    if options.arch not in (None, "cpu"):
        return target_for_arch(str(options.arch))
    name = ("cpu" if devices == {"cpu"} or options.arch else "triton") if options.target == "auto" else options.target
    return target_named(name)


def target_for_arch(arch: str) -> Target:
    """Kernels for a GPU that need not be here."""
    from fuse.codegen.triton import Triton
    from fuse.codegen.triton.ahead import machine

    target: Any = Triton(machine(arch))
    return cast(Target, target)


def target_named(name: str) -> Target:
    target: Target = import_module(f"fuse.codegen.{name}").TARGET
    return target


def key_of(program: Program, wrt: tuple[str, ...], target: str, options: Options) -> str:
    """Equal in every process that imports an equal program under equal options; sizes seen while compiling count, and how many
    threads there are, since they choose schedules, and these what is kept for the backward."""
    parts = (canonical_text(program), repr(sorted(wrt)), repr(sorted(program.hints)), target, options.digest,
             repr(options.strict), repr(torch.get_num_threads()))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def canonical_text(program: Program) -> str:
    """The program without origins and with axes named by first appearance: the layers of a model then share a plan."""
    roots = [*program.roots(), *program.anchors]
    names: dict[str, Axis] = {}
    for node in topological(roots):
        for axis in node.axes:
            names.setdefault(axis.name, Axis(f"a{len(names)}", axis.extent))
    fresh = iter(rename_axes(roots, names))
    outputs = tuple(replace(o, terms=tuple(Term(tuple(next(fresh) for _ in t.index), next(fresh)) for t in o.terms))
                    for o in program.outputs)
    checks = tuple(replace(c, index=next(fresh)) for c in program.checks)
    text = print_program(replace(program, outputs=outputs, checks=checks, anchors=tuple(fresh)))
    return re.sub(r" +# .*", "", text)


def stored(candidate: Candidate) -> Iterator[Miss]:
    """What the graph gives of the values that would otherwise not be stored, and the bytes it takes."""
    for escape in candidate.escapes:
        yield Miss("STORED", where(escape.node), escape.cost)
