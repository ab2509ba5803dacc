"""The three library ops through which compiled graphs reach their executables.

    fuse::forward(inputs, key)                 the outputs; differentiable
    fuse::forward_saving(inputs, needs, key)   the outputs, then what the backward of `needs` will read
    fuse::backward(buffers, sizes, needs, key) the gradients that walk a stream, or scatter

Lists of tensors and one key instead of an op per region: nothing is registered while compiling, and AOTAutograd's cache
sees the key, a hash of the program and of the options. All three are pure, so saved tensors are ordinary tensors: a
second backward, checkpointing, offloading hooks and CUDA graphs need no special case.
"""
from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fuse.private import below_autograd, without_autocast
from fuse.runtime.executable import Executable, Needs, Part

KEPT_AFTER_RESET = 256
_executables: dict[str, Executable] = {}
makers: dict[str, Callable[[str], Executable]] = {}     # by the first word of keys that say how their executable is made
_lock = threading.Lock()

_library: Any = torch.library.Library("fuse", "DEF")  # type: ignore[no-untyped-call]
# Kernels read strides at launch, so Inductor is free to choose the layout of what it passes in.
for _schema in ("forward(Tensor[] inputs, str key) -> Tensor[]",
                "forward_saving(Tensor[] inputs, bool[] needs, str key) -> Tensor[]",
                "backward(Tensor[] buffers, SymInt[] sizes, bool[] needs, str key) -> Tensor[]"):
    _library.define(_schema, tags=(torch.Tag.flexible_layout, torch.Tag.pt2_compliant_tag))


def register(key: str, executable: Executable) -> Executable:
    """Makes `executable` reachable by `key`; an equal one that is there already stays."""
    with _lock:
        return _executables.setdefault(key, executable)


def find(key: str) -> Executable | None:
    return _executables.get(key)


def lookup(key: str) -> Executable:
    found = _executables.get(key)
    if found is None and (make := makers.get(key.partition(" ")[0])) is not None:
        found = register(key, make(key))
    if found is None:
        raise RuntimeError(
            f"fuse: a compiled graph asks for the executable {key}, which this process has not built. Executables are "
            'made when torch.compile runs backend="fuse"; a graph that was loaded without it (a saved package, an '
            "exported program) has to be compiled in this process")
    return found


def trim() -> None:
    """Forgets all but the most recent executables; a pending backward may still need those."""
    with _lock:
        for key in list(_executables)[:-KEPT_AFTER_RESET]:
            del _executables[key]


# ---- implementations --------------------------------------------------------------------------------------------

def _forward(inputs: list[Tensor], key: str) -> list[Tensor]:
    executable = lookup(key)
    return _run(executable, executable.inference(), inputs)


def _forward_saving(inputs: list[Tensor], needs: list[bool], key: str) -> list[Tensor]:
    executable = lookup(key)
    return _run(executable, executable.training(tuple(needs)), inputs)


def _run(executable: Executable, part: Part, inputs: list[Tensor]) -> list[Tensor]:
    with without_autocast():
        return executable.run(part, _resolved(executable.pick(part, inputs)), executable.sizes(inputs))


def _backward(buffers: list[Tensor], sizes: list[int], needs: list[bool], key: str) -> list[Tensor]:
    executable = lookup(key)
    part = _opaque(executable, tuple(needs))
    env = _resolved({b.name: t for b, t in zip(part.inputs, buffers, strict=True)})
    with without_autocast():
        return executable.run(part, env, dict(zip(executable.symbols, sizes, strict=True)))


def _resolved(env: dict[str, Tensor]) -> dict[str, Tensor]:
    """Memory that holds what it says: kernels do not see the bits of a lazy conjugation or negation."""
    return {name: t.resolve_conj().resolve_neg() for name, t in env.items()}


def _opaque(executable: Executable, needs: Needs) -> Part:
    part = executable.opaque(needs)
    assert part is not None, "fuse::backward is only called where it has gradients to compute"
    return part


def _on(tensors: list[Tensor]) -> Tensor:
    """A tensor on the device of the region: scalars may live on the CPU whatever the device."""
    return next((t for t in tensors if t.dim()), tensors[0])


def _fake_forward(inputs: list[Tensor], key: str) -> list[Tensor]:
    executable = lookup(key)
    return executable.inference().fake(_on(inputs), executable.sizes(inputs))


def _fake_forward_saving(inputs: list[Tensor], needs: list[bool], key: str) -> list[Tensor]:
    executable = lookup(key)
    return executable.training(tuple(needs)).fake(_on(inputs), executable.sizes(inputs))


def _fake_backward(buffers: list[Tensor], sizes: list[int], needs: list[bool], key: str) -> list[Tensor]:
    executable = lookup(key)
    return _opaque(executable, tuple(needs)).fake(_on(buffers), dict(zip(executable.symbols, sizes, strict=True)))


# ---- autograd ---------------------------------------------------------------------------------------------------

class _Differentiable(torch.autograd.Function):
    """`needs` is known here and nowhere below: autograd says which inputs want a gradient."""

    @staticmethod
    def forward(ctx: Any, key: str, *inputs: Tensor) -> tuple[Tensor, ...]:
        executable = lookup(key)
        needs = tuple(ctx.needs_input_grad[1:])
        part = executable.training(needs)
        for buffer, need in zip(executable.inputs, needs, strict=True):
            if need and buffer.name not in executable.wrt:
                raise RuntimeError(f"fuse: a gradient is wanted for {buffer}, which needed none when it was compiled")
        with below_autograd():
            results = torch.ops.fuse.forward_saving(inputs, needs, key)
        outputs = results[:len(executable.outputs)]
        read = {b.name for p in (executable.opaque(needs), executable.opened(needs)) if p for b in p.inputs}
        saved = {b.name: t for b, t in zip(executable.inputs, inputs, strict=True) if b.name in read}
        saved |= {b.name: t for b, t in zip(part.kept, results[len(outputs):], strict=True)}
        ctx.save_for_backward(*saved.values())
        ctx.executable, ctx.key, ctx.needs, ctx.names = executable, key, needs, tuple(saved)
        ctx.sizes = executable.sizes(inputs)
        ctx.shapes = [o.shape for o in outputs]
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*(t for b, t in zip(executable.outputs, outputs, strict=True)
                                      if not executable.differentiable(b)))
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        with torch.no_grad():
            gradients = _gradients(ctx, cotangents)
        if torch.is_grad_enabled():
            mark: Any = _Once.apply
            gradients = tuple(None if g is None else mark(g.detach().requires_grad_()) for g in gradients)
        return (None, *gradients)


class _Once(torch.autograd.Function):
    """Marks gradients made under create_graph=True: without it a second derivative would silently be left out."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Tensor:
        raise RuntimeError("fuse: trying to differentiate twice a function that can be differentiated once; "
                           "leave what needs second derivatives out of torch.compile")


def _gradients(ctx: Any, cotangents: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    """One per input: from the op, or traced as expressions that anyone may fuse further."""
    executable, needs = ctx.executable, ctx.needs
    env = dict(zip(ctx.names, ctx.saved_tensors, strict=True))
    present = next((c for c in cotangents if c is not None), None)
    if present is None:
        return (None,) * len(needs)
    for buffer, shape, given in zip(executable.outputs, ctx.shapes, cotangents, strict=True):
        env[f"ct.{buffer.name}"] = present.new_zeros(shape, dtype=getattr(torch, buffer.dtype)) \
            if given is None else given
    found: dict[str | None, Tensor] = {}
    if (part := executable.opaque(needs)) is not None:
        gradients = torch.ops.fuse.backward([env[b.name] for b in part.inputs],
                                            [ctx.sizes[s] for s in executable.symbols], needs, ctx.key)
        found |= {o.gradient_of: g for o, g in zip(part.program.outputs, gradients, strict=True)}
    if (part := executable.opened(needs)) is not None:
        with without_autocast():
            gradients = executable.trace(part, {b.name: env[b.name] for b in part.inputs}, ctx.sizes)
        found |= {o.gradient_of: g for o, g in zip(part.program.outputs, gradients, strict=True)}
    return tuple(found.get(b.name) for b in executable.inputs)


def _autograd(inputs: list[Tensor], key: str) -> list[Tensor]:
    if torch.is_grad_enabled() and any(t.requires_grad for t in inputs):
        return list(_Differentiable.apply(key, *inputs))  # type: ignore[no-untyped-call]
    with below_autograd():
        return list(torch.ops.fuse.forward(inputs, key))


_implementations: dict[str, tuple[Any, Any]] = {
    "forward": (_forward, _fake_forward), "forward_saving": (_forward_saving, _fake_forward_saving),
    "backward": (_backward, _fake_backward)}
for _name, (_real, _fake) in _implementations.items():
    _library.impl(_name, _real, "CompositeExplicitAutograd")
    torch.library.register_fake(f"fuse::{_name}", _fake, lib=_library)
_library.impl("forward", _autograd, "Autograd")
