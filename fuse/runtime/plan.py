"""An imported neighbourhood becomes an executable: passes, then a kernel for every region that will be launched."""
from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from typing import Any

from torch import Tensor
from torch.fx import Node

from fuse import private
from fuse.codegen import Target, compile_region
from fuse.frontend.candidates import Candidate
from fuse.frontend.symbols import numel_hint
from fuse.frontend.value import where
from fuse.ir.expr import FLOATS, Axis, rename_axes, topological
from fuse.ir.kinds import kinds_of
from fuse.ir.program import Program, Region, Term
from fuse.ir.text import print_program
from fuse.log import fail, miss_of
from fuse.options import Options
from fuse.passes import Context, compile_program
from fuse.reasons import Miss, Refused
from fuse.report import RegionReport
from fuse.runtime import ops
from fuse.runtime.executable import Executable, unbound


@dataclass
class Planned:
    """A region that is ready to be spliced in."""

    imported: Any
    executable: Executable
    key: str
    target: str

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

    def report(self) -> RegionReport:
        plan, kernels = self.executable.plan, self.executable.kernels
        forward = plan.forward
        hints = dict(self.imported.program.hints)
        built = {name: {r.name: getattr(k, name, None) for r, k in kernels.items()} for name in ("schedule", "source")}
        return RegionReport(
            kinds=kinds_of(forward), where=self.imported.where,
            streams=tuple(dict.fromkeys(str(a) for r in forward.regions for a in r.streams)),
            inputs=tuple(map(str, self.executable.inputs)), outputs=tuple(map(str, self.executable.outputs)),
            bytes_saved=bytes_virtual(self.imported), flops=flops(forward, hints), target=self.target,
            schedules={n: str(s) for n, s in built["schedule"].items() if s is not None},
            filters={r.name: c.eps for r in kernels for c in r.carries if c.eps is not None},
            sources={n: s for n, s in built["source"].items() if s is not None},
            notes=(*plan.notes, *self.executable.lacking.values(), *stored(self.imported.candidate)),
            snapshots={n: partial(print_program, p) for n, p in plan.snapshots.items()}, key=self.key)


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
    executable = ops.find(key)
    if executable is None:
        hints = dict(program.hints)
        plan = compile_program(program, Context(hints=hints, wrt=wrt, slab=wants_slab(program, wrt, target, options),
                                                shared_sweep=target.capabilities.shared, eps=options.eps))

        def build(region: Region) -> Any:
            return compile_region(region, target, hints, options)
        executable = Executable(program.inputs, plan, build, wrt=wrt, where=imported.where, strict=options.strict)
    needs = tuple(b.name in executable.wrt for b in executable.inputs)
    for part in (executable.training(needs), executable.opaque(needs)) if wrt else (executable.inference(),):
        miss = executable.prepare(part)
        if miss is not None:
            raise Refused(miss)
    return Planned(imported, ops.register(key, executable), key, target.name)


def wants_slab(program: Program, wrt: tuple[str, ...], target: Target, options: Options) -> bool:
    """Whether gradients may be computed in the forward: where the user says so, else where the target gains by it."""
    if options.schedule != "auto":
        return options.slab
    return target.capabilities.slab.issuperset(b.dtype for b in program.inputs if b.name in wrt and len(b.shape) > 1)


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
    name = ("cpu" if devices == {"cpu"} else "triton") if options.target == "auto" else options.target
    return target_named(name)


def target_named(name: str) -> Target:
    target: Target = import_module(f"fuse.codegen.{name}").TARGET
    return target


def key_of(program: Program, wrt: tuple[str, ...], target: str, options: Options) -> str:
    """Equal in every process that imports an equal program under equal options; sizes seen while compiling count, since
    they choose schedules."""
    parts = (canonical_text(program), repr(sorted(wrt)), repr(sorted(program.hints)), target, options.digest,
             repr(options.strict))
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


def bytes_virtual(imported: Any) -> int:
    """Bytes of the values that are not stored, as the user's graph would have stored them: of the products that amplify; of
    a scan or a cascade, which have none, everything that does not leave."""
    given = {*imported.exits, *imported.candidate.stored}
    nodes = [n for n in imported.anchors or imported.candidate.virtual if n not in given]
    tensors = [t for n in nodes if isinstance(t := n.meta.get("example_value"), Tensor)]
    return sum((numel_hint(t) or 0) * t.element_size() for t in tensors)


def stored(candidate: Candidate) -> Iterator[Miss]:
    """What the graph gives of the values that would otherwise not be stored, and the bytes it takes."""
    for escape in candidate.escapes:
        yield Miss("STORED", where(escape.node), escape.cost)


def flops(program: Program, hints: dict[str, int]) -> int:
    """Two for every product that a dot of the regions' bodies adds up."""
    total = 0
    for region in program.regions:
        dots = {e.args[0] for e in topological(region.bodies) if e.op == "sum" and e.args[0].op == "mul"}
        dots |= {c.body for c in region.carries if c.body.op == "mul" and set(c.axes) - set(region.grid)}
        total += sum(2 * e.type.numel.evaluate(hints) for e in dots if e.dtype in FLOATS)
    return total
