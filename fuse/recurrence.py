"""`fuse.scan`: the diagonal linear recurrence that fuse's passes produce, for direct use."""
from __future__ import annotations

import torch
from torch import Tensor

from fuse.runtime.scan import STAMP, types

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64, torch.complex128)


def scan(a: Tensor, b: Tensor, initial: Tensor | None = None, *, dim: int, reverse: bool = False) -> tuple[Tensor, Tensor]:
    """h[t] = a[t] h[t - 1] + b[t] along `dim`, elementwise; from the last position to the first if `reverse`.

    a         the coefficients; broadcastable to b, without enlarging it
    b         what is added; any shape with at least one dimension
    initial   the state before the first step, shaped as b without `dim`; zero if None

    Returns (states, final): all states, shaped as b, and the one after the last step, shaped as b without `dim`. Both are
    differentiable, once, with respect to a, b and initial.

    a and b are of float32, float64, bfloat16, float16, complex64 or complex128, and states are of the type to which torch
    promotes them. In half precision the state is kept in float32 and rounded where it is returned as one of `states`;
    `initial` and `final` are float32 then, so that a sequence may be continued. Otherwise `initial` is of the type of the
    states or narrower.

    Forward and backward are one walk each. Where there is no kernel for a device
    the walk runs tile by tile in plain torch. Inside torch.compile the call is one op that any backend takes.

    Raises TypeError for element types, ValueError for shapes and devices, IndexError for `dim`.
    """
    dim, like = _checked(a, b, initial, dim)
    out, state = types(a.dtype, b.dtype)
    if initial is not None:
        initial = initial.to(state)
    if b.shape[dim] == 0:
        return (a * b).to(out), like.new_zeros(like.shape, dtype=state) if initial is None else initial.clone()
    if a.dim() < b.dim():
        a = a.reshape((1,) * (b.dim() - a.dim()) + a.shape)
    states, final = torch.ops.fuse.scan(a, b, initial, dim, reverse, STAMP)
    return states, final


def _checked(a: Tensor, b: Tensor, initial: Tensor | None, dim: int) -> tuple[int, Tensor]:
    """`dim`, counted from the front."""
    given = {"a": a, "b": b} if initial is None else {"a": a, "b": b, "initial": initial}
    for name, x in given.items():
        if not isinstance(x, Tensor):
            raise TypeError(f"fuse.scan: {name} must be a tensor, not {type(x).__name__}")
        if x.dtype not in DTYPES:
            raise TypeError(f"fuse.scan: {name} is of {x.dtype}; it must be floating or complex")
        if x.device != b.device:
            raise ValueError(f"fuse.scan: {name} is on {x.device} and b on {b.device}")
    if not -b.dim() <= dim < b.dim():
        raise IndexError(f"fuse.scan: dim={dim} is no dimension of b, whose shape is {tuple(b.shape)}")
    dim %= b.dim()
    if a.dim() > b.dim() or any(m not in (1, n) for m, n in zip(a.shape[::-1], b.shape[::-1], strict=False)):
        raise ValueError(f"fuse.scan: a of shape {tuple(a.shape)} cannot be broadcast to b, whose shape is {tuple(b.shape)}")
    like = b.select(dim, 0) if b.shape[dim] else b.sum(dim)
    if initial is not None:
        if initial.shape != like.shape:
            raise ValueError(f"fuse.scan: initial is of shape {tuple(initial.shape)}, but a state is of {tuple(like.shape)}")
        state = types(a.dtype, b.dtype)[1]
        if torch.promote_types(initial.dtype, state) != state:
            raise TypeError(f"fuse.scan: initial is of {initial.dtype}, but a state is of {state}")
    return dim, like
