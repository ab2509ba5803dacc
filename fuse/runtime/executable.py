"""An Executable runs a plan: it binds sizes, launches kernels, assembles outputs, and computes what is asked for.

What is asked for is a mask, `needs`: which inputs want a gradient. A frozen head computes no dW, and where nothing
wants a gradient nothing is kept for a backward.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fuse.ir.access import box
from fuse.ir.align import expand
from fuse.ir.evaluate import Evaluator
from fuse.ir.expr import Buffer, Expr, topological
from fuse.ir.index import affine
from fuse.ir.program import Check, Define, Output, Program, Region, Step
from fuse.ir.reference import run_region
from fuse.log import fail, miss_of
from fuse.passes import Plan, restrict
from fuse.private import assert_on_device
from fuse.reasons import Miss
from fuse.runtime.results import Results, roots

Needs = tuple[bool, ...]
Sizes = Mapping[str, Any]
Kernel = Callable[[Mapping[str, Tensor], Mapping[str, int]], dict[str, Tensor]]
Build = Callable[[Region], Kernel | Miss]


@dataclass(frozen=True)
class Part:
    """A program that is run as a whole: buffers ordered as `inputs` -> the outputs, then the stored buffers `kept`."""

    program: Program
    kept: tuple[Buffer, ...] = ()

    @property
    def inputs(self) -> tuple[Buffer, ...]:
        return self.program.inputs

    @property
    def results(self) -> tuple[Buffer, ...]:
        return tuple(o.buffer for o in self.program.outputs) + self.kept

    @cached_property
    def reads(self) -> frozenset[str]:
        return frozenset(b.name for b in self.inputs)

    @cached_property
    def made(self) -> Results:
        return Results(self.program, self.kept)

    @cached_property
    def dropped(self) -> list[set[str]]:
        """After step i: the names that nothing reads any more, so that their memory is given back."""
        live = {b.name for b in self.kept} | _names(roots(self.program.outputs))
        dropped: list[set[str]] = []
        for step in reversed(self.program.steps):
            seen = _names((step.value,) if isinstance(step, Define) else step.bodies) | set(_stores(step))
            dropped.append(seen - live)
            live |= seen
        return dropped[::-1]

    def fake(self, like: Tensor, sizes: Sizes) -> list[Tensor]:
        """Uninitialised tensors shaped and typed as the results; `like` gives the device, sizes may be symbolic."""
        return [like.new_empty([s.evaluate(sizes) for s in b.shape], dtype=getattr(torch, b.dtype))
                for b in self.results]


class Executable:
    """`inputs` are those of the imported program, `wrt` the names of those it was differentiated for; `build` makes a
    region's kernel or says why there is none."""

    def __init__(self, inputs: Sequence[Buffer], plan: Plan, build: Build, *, wrt: Iterable[str] = (),
                 where: str | None = None, strict: bool = False):
        self.inputs, self.plan, self.build, self.where, self.strict = tuple(inputs), plan, build, where, strict
        self.wrt = frozenset(wrt)
        self.binding = bind(self.inputs)
        self.symbols = tuple(sorted(self.binding))
        self.kernels: dict[Region, Kernel | None] = {}
        self.lacking: dict[str, Miss] = {}    # by code: why some regions have no kernel
        self._launchers: dict[int, Kernel | None] = {}    # by identity; the parts keep the regions alive
        self._parts: dict[tuple[str, Needs], Part | None] = {}

    # ---- which program -------------------------------------------------------------------------------------------

    @property
    def outputs(self) -> tuple[Buffer, ...]:
        return tuple(o.buffer for o in self.plan.forward.outputs)

    def differentiable(self, output: Buffer) -> bool:
        return f"ct.{output.name}" in (self.plan.backward.cotangents if self.plan.backward else ())

    def gradients(self, needs: Needs) -> tuple[Output, ...]:
        """The backward's outputs that `needs` asks for, in the order of the inputs."""
        if self.plan.backward is None:
            return ()
        table = {o.gradient_of: o for o in self.plan.backward.outputs}
        return tuple(table[b.name] for b, need in zip(self.inputs, needs, strict=True) if need and b.name in table)

    def inference(self) -> Part:
        """The forward alone: nothing is kept."""
        names = [b.name for b in self.outputs]
        return self._require("inference", (), lambda: Part(restrict(self.plan.forward, names)))

    def training(self, needs: Needs) -> Part:
        """The forward, keeping what the backward of `needs` reads of it."""
        return self._require("training", needs, lambda: self._training(needs))

    def opaque(self, needs: Needs) -> Part | None:
        """The gradients that are computed inside the op: those that walk a stream, or scatter."""
        return self._part("opaque", needs, lambda: self._gradients(needs, opened=False))

    def opened(self, needs: Needs) -> Part | None:
        """The gradients that are plain expressions of what the forward left and of the cotangents: the slab schedule's.

        They are traced through instead, so that Inductor scales what the forward left in place where autograd lets it;
        nothing is ever scaled twice.
        """
        return self._part("opened", needs, lambda: self._gradients(needs, opened=True))

    def _part(self, kind: str, needs: Needs, make: Callable[[], Part | None]) -> Part | None:
        key = (kind, needs)
        if key not in self._parts:
            self._parts[key] = make()
        return self._parts[key]

    def _require(self, kind: str, needs: Needs, make: Callable[[], Part]) -> Part:
        part = self._part(kind, needs, make)
        assert part is not None
        return part

    def _training(self, needs: Needs) -> Part:
        parts = [p for p in (self.opaque(needs), self.opened(needs)) if p is not None]
        wanted = {b.name: b for p in parts for b in p.inputs if b.name in self.plan.saved}
        kept = tuple(wanted[n] for n in self.plan.saved if n in wanted)
        return Part(restrict(self.plan.forward, [b.name for b in self.outputs], [b.name for b in kept]), kept)

    def _gradients(self, needs: Needs, opened: bool) -> Part | None:
        backward = self.plan.backward
        if backward is None:
            return None
        names = [o.buffer.name for o in self.gradients(needs) if is_plain(restrict(backward, [o.buffer.name])) is opened]
        return Part(restrict(backward, names)) if names else None

    # ---- running -------------------------------------------------------------------------------------------------

    def sizes(self, tensors: Sequence[Tensor]) -> dict[str, Any]:
        """The value of every size symbol, read off the inputs' shapes (SymInts while tracing)."""
        return {symbol: source.read(tensors) for symbol, source in self.binding.items()}

    def pick(self, part: Part, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
        """The inputs that `part` reads, by name."""
        return {b.name: t for b, t in zip(self.inputs, tensors, strict=True) if b.name in part.reads}

    def run(self, part: Part, env: dict[str, Tensor], sizes: Sizes) -> list[Tensor]:
        """The results of `part`, contiguous and each with memory of its own. Empties `env` as it goes."""
        given = list(env.values())
        for check in part.program.checks:
            hold(check, env, sizes)
        self._walk(part, env, sizes)
        return part.made.owned(env, sizes, given)

    def trace(self, part: Part, env: dict[str, Tensor], sizes: Sizes) -> list[Tensor]:
        """The results of `part`, which may be views of what is in `env`; under a tracer, its torch operations."""
        self._walk(part, env, sizes)
        return part.made.traced(env, sizes)

    def _walk(self, part: Part, env: dict[str, Tensor], sizes: Sizes) -> None:
        for step, dropped in zip(part.program.steps, part.dropped, strict=True):
            if isinstance(step, Define):
                env[step.name] = defined(step, env, sizes)
            else:
                env.update(self._launch(step, env, sizes))
            for name in dropped:
                env.pop(name, None)

    def prepare(self, part: Part | None) -> Miss | None:
        """Builds the kernels of `part`, or says which cannot be built. No compiler at all is no reason to decline."""
        for region in part.program.regions if part is not None else ():
            if region not in self.kernels:
                kernel = self.build(region)
                if isinstance(kernel, Miss) and kernel.code != "NO_COMPILER":
                    return kernel
                self._keep(region, kernel)
        return None

    def _keep(self, region: Region, kernel: Kernel | Miss) -> Kernel | None:
        """Without a kernel the region runs on the tiled path in plain torch, and a warning says why."""
        if isinstance(kernel, Miss):
            self.lacking[kernel.code] = kernel
            fail(kernel, self.strict, "")
        return self.kernels.setdefault(region, None if isinstance(kernel, Miss) else kernel)

    def _launch(self, region: Region, env: Mapping[str, Tensor], sizes: Sizes) -> dict[str, Tensor]:
        """One region by its kernel, or by the tiled path in plain torch where there is none or it fails."""
        if id(region) not in self._launchers:    # hashing a region takes as long as launching a small one
            known = region in self.kernels
            self._launchers[id(region)] = self.kernels[region] if known else self._keep(region, self.build(region))
        kernel = self._launchers[id(region)]
        if kernel is not None and torch.are_deterministic_algorithms_enabled() \
                and not getattr(kernel, "deterministic", True):
            kernel = None
        if kernel is not None:
            try:
                return kernel(env, sizes)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:
                fail(miss_of(error, self.where, "LAUNCH_FAILED"), self.strict, "", error)
                self.kernels[region] = self._launchers[id(region)] = None
        return run_region(region, env, sizes)


def is_plain(program: Program) -> bool:
    """Is it nothing but slices, pads and arithmetic, which any tracer can follow?"""
    placed = (box(t.index, o.buffer.shape) for o in program.outputs for t in o.terms)
    indices = (i for e in topological(program.roots()) if e.op == "read" for i in e.args)
    return not program.regions and None not in placed and all(affine(i) is not None for i in indices)


@dataclass(frozen=True)
class Source:
    """Where a size symbol is read: it is (dimension `dim` of input `index` - offset) / factor."""

    index: int
    dim: int
    factor: int = 1
    offset: int = 0

    def read(self, tensors: Sequence[Tensor]) -> Any:
        extent = tensors[self.index].shape[self.dim]
        return (extent - self.offset) // self.factor if (self.factor, self.offset) != (1, 0) else extent


def bind(inputs: Sequence[Buffer]) -> dict[str, Source]:
    """A source for every size symbol that some dimension gives: alone if possible, else as factor * symbol + offset."""
    found: dict[str, Source] = {}
    for i, buffer in enumerate(inputs):
        for d, size in enumerate(buffer.shape):
            terms = dict(size.terms)
            offset = terms.pop((), 0)
            if len(terms) == 1 and len(*terms) == 1:
                ((symbol,), factor), = terms.items()
                source = Source(i, d, factor, offset)
                if symbol not in found or (factor, offset) == (1, 0) != (found[symbol].factor, found[symbol].offset):
                    found[symbol] = source
    return found


def unbound(program: Program) -> set[str]:
    """Size symbols of the program that its inputs' shapes do not give."""
    used = {s for b in program.inputs for size in b.shape for s in size.symbols}
    for node in topological(program.roots()):
        used |= {s for a in node.axes for s in a.extent.symbols}
    return used - set(bind(program.inputs))


def hold(check: Check, env: Mapping[str, Tensor], sizes: Sizes) -> None:
    """Raises what eager raises for an index out of range; on a GPU, as there, an assertion on the device."""
    evaluator = Evaluator(env, sizes)
    index, extent = evaluator.value(check.index), evaluator.extent(check.extent)
    inside = (index >= 0) & (index < extent)
    if inside.device.type != "cpu":
        assert_on_device(inside.all())
    elif not inside.all():
        error, text = OUT_OF_RANGE[check.op]
        raise error(text.format(index=int(index[~inside].view(-1)[0]), extent=extent))


OUT_OF_RANGE: dict[str, tuple[type[Exception], str]] = {
    "target": (IndexError, "Target {index} is out of bounds."),
    "index": (IndexError, "index {index} is out of bounds for a dimension of size {extent}"),
    "embedding": (IndexError, "index out of range in self: {index} of {extent}"),
    "gather": (RuntimeError, "index {index} is out of bounds for a dimension of size {extent}"),
    "one_hot": (RuntimeError, "Class values must be non-negative and smaller than num_classes: {index} of {extent}"),
}


def defined(step: Define, env: Mapping[str, Tensor], sizes: Sizes) -> Tensor:
    evaluator = Evaluator(env, sizes)
    return expand(evaluator.value(step.value), step.value.axes, step.axes, [evaluator.count(a) for a in step.axes])


def _stores(step: Step) -> tuple[str, ...]:
    return (step.name,) if isinstance(step, Define) else step.stores


def _names(roots: Iterable[Expr]) -> set[str]:
    return {e["buffer"].name for e in topological(roots) if e.op == "read"}
