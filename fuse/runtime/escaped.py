"""A tensor that a compiled graph gave detached, with its history again."""
from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Make = Callable[..., Tensor]


def attached(make: Make, value: Tensor, roots: Sequence[Any]) -> Tensor:
    """`value` with the history of `make(*roots)`, which is what it holds. Without gradients: `value` itself."""
    if not torch.is_grad_enabled() or not any(isinstance(r, Tensor) and r.requires_grad for r in roots):
        return value
    found: Tensor = _Escaped.apply(make, value, *roots)  # type: ignore[no-untyped-call]
    return found


class _Escaped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, make: Make, value: Tensor, *roots: Any) -> Tensor:
        ctx.make, ctx.autocast = make, _autocast(value.device.type)
        ctx.save_for_backward(*(r for r in roots if isinstance(r, Tensor)))
        ctx.others = [None if isinstance(r, Tensor) else r for r in roots]
        ctx.set_materialize_grads(False)
        return value.detach()

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor | None) -> tuple[Tensor | None, ...]:
        if cotangent is None:
            return (None,) * len(ctx.needs_input_grad)
        twice, needs = torch.is_grad_enabled(), ctx.needs_input_grad[2:]
        saved = iter(ctx.saved_tensors)
        roots = [next(saved) if other is None else other for other in ctx.others]
        if not twice:
            roots = [r.detach().requires_grad_() if need else r for r, need in zip(roots, needs, strict=True)]
        with torch.enable_grad(), ctx.autocast():
            made = ctx.make(*roots)
        wanted = [r for r, need in zip(roots, needs, strict=True) if need]
        found = iter(torch.autograd.grad(made, wanted, cotangent, create_graph=twice, allow_unused=True))
        return (None, None, *(next(found) if need else None for need in needs))


def _autocast(device: str) -> Callable[[], contextlib.AbstractContextManager[Any]]:
    """Autocast as it is now, for later."""
    enabled, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    return lambda: torch.autocast(device, dtype=dtype, enabled=enabled)
