"""h[t] = a[t] h[t - 1] + b[t] as a program of its own: `fuse::scan` plans it and calls `fuse::forward`.

    fuse::scan(a, b, initial, dim, reverse, stamp) -> (states, final state)

The op is a composite: autograd, fake tensors and AOTAutograd see the ops that every region of a compiled graph calls.
Extents are symbols and the sizes a plan expects are rounded up to powers of two, so one plan serves many shapes. The
stamp of fuse's sources enters the keys of compilers' caches: what they keep on disk names buffers of this version.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fuse.codegen import compile_region
from fuse.frontend.symbols import hint
from fuse.ir.expr import Axis, Buffer, Expr, cast, const, iota, make, read, size, where
from fuse.ir.program import Output, Program, Region, Term
from fuse.ir.size import Size
from fuse.options import Options
from fuse.passes import Context, compile_program
from fuse.reasons import Miss
from fuse.runtime import ops
from fuse.runtime.executable import Executable, Kernel
from fuse.runtime.inductor import sources_digest
from fuse.runtime.plan import target_for, target_named

HALF = ("bfloat16", "float16")
UNKNOWN = 1024      # stands for a size without a hint
STAMP = sources_digest()[:16]

_library = torch.library.Library("fuse", "FRAGMENT")  # type: ignore[no-untyped-call]
_library.define(  # type: ignore[no-untyped-call]
    "scan(Tensor a, Tensor b, Tensor? initial, int dim, bool reverse, str stamp) -> (Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,))


def types(a: torch.dtype, b: torch.dtype) -> tuple[torch.dtype, torch.dtype]:
    """Of the states as they are returned, and of the state as it is carried."""
    found = torch.promote_types(a, b)
    return found, torch.float32 if str(found)[6:] in HALF else found


@dataclass(frozen=True)
class Call:
    """What a plan depends on. `shared`: the dimensions along which a is broadcast; `sizes` of b, as expected."""

    a: torch.dtype
    b: torch.dtype
    shared: tuple[bool, ...]
    initial: bool
    dim: int
    reverse: bool
    sizes: tuple[int, ...]

    def program(self) -> Program:
        """A first state is added to b where the walk begins, so that its gradient and that of a follow."""
        out, state = (str(t)[6:] for t in types(self.a, self.b))
        extents = tuple(Size.of(f"n{d}") for d in range(len(self.shared)))
        axes = [Axis(f"x{d}", extent) for d, extent in enumerate(extents)]
        along, others = axes[self.dim], axes[:self.dim] + axes[self.dim + 1:]
        zero, end = const(0, "int64"), size(along.extent) - 1
        first, last = (end, zero) if self.reverse else (zero, end)
        a = Buffer("a", str(self.a)[6:], tuple(Size.of(1) if s else n for s, n in zip(self.shared, extents, strict=True)))
        b = Buffer("b", str(self.b)[6:], extents)
        initial = Buffer("initial", state, tuple(x.extent for x in others))
        factor = cast(read(a, *(zero if s else x for s, x in zip(self.shared, axes, strict=True))), state)
        term = cast(read(b, *axes), state)
        if self.initial:
            term = term + where(make("eq", iota(along), first), factor * read(initial, *others), 0)
        states = make("scan", factor, term, axis=along, reverse=self.reverse)
        outputs = _output("states", cast(states, out), axes), _output("final", make("pick", states, last, axis=along), others)
        return Program((a, b, initial) if self.initial else (a, b), outputs)

    def key(self, target: str) -> str:
        """All that an executable depends on, so that a graph from a cache on disk finds its own in a new process."""
        flags = "".join(str(int(x)) for x in (*self.shared, self.initial, self.reverse))
        sizes = ",".join(map(str, self.sizes))
        return f"scan {str(self.a)[6:]} {str(self.b)[6:]} {flags} {self.dim} {sizes} {target}"


def _output(name: str, value: Expr, axes: Sequence[Axis]) -> Output:
    return Output(Buffer(name, value.dtype, tuple(x.extent for x in axes)), (Term(tuple(map(iota, axes)), value),))


def made(key: str) -> Executable:
    """The executable that a key describes."""
    _, a, b, flags, dim, sizes, name = key.split(" ")
    *shared, initial, reverse = (x == "1" for x in flags)
    likely = tuple(map(int, sizes.split(",")))
    call = Call(getattr(torch, a), getattr(torch, b), tuple(shared), initial, int(dim), reverse, likely)
    program, target, options = call.program(), target_named(name), Options()
    hints, wrt = {f"n{d}": n for d, n in enumerate(likely)}, tuple(x.name for x in program.inputs)
    plan = compile_program(program, Context(hints=hints, wrt=wrt, shared_sweep=target.capabilities.shared))

    def build(region: Region) -> Kernel | Miss:
        return compile_region(region, target, hints, options)
    return Executable(program.inputs, plan, build, wrt=wrt)


def _likely(extent: int | torch.SymInt) -> int:
    """The power of two that a size is rounded up to."""
    n = hint(extent)
    return 1 << max((UNKNOWN if n is None else n) - 1, 0).bit_length()


def _scan(a: Tensor, b: Tensor, initial: Tensor | None, dim: int, reverse: bool, stamp: str) -> tuple[Tensor, Tensor]:
    call = Call(a.dtype, b.dtype, tuple(bool(n == 1) for n in a.shape), initial is not None, dim, reverse,
                tuple(map(_likely, b.shape)))
    key = call.key(target_for([b], Options()).name)
    states, final = torch.ops.fuse.forward([x for x in (a, b, initial) if x is not None], key)
    return states, final


_library.impl("scan", _scan, "CompositeImplicitAutograd")  # type: ignore[no-untyped-call]
ops.makers["scan"] = made
