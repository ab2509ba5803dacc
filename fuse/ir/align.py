"""Matching the dimensions of tensors to named axes."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

from torch import Tensor

from fuse.ir.expr import Axis

Aligner = Callable[[Tensor], Tensor]


@lru_cache(maxsize=8192)
def aligner(source: tuple[Axis, ...], target: tuple[Axis, ...]) -> Aligner | None:
    """How a tensor with dimensions `source` is viewed to broadcast against `target`; None: it does as it is."""
    if source == target[len(target) - len(source):]:
        return None
    order = [source.index(a) for a in target if a in source]
    first = min(target.index(a) for a in source)
    index = tuple(slice(None) if a in source else None for a in target[first:])
    if order == sorted(order):
        return lambda x: x[index]
    if len(index) == len(source):
        return lambda x: x.permute(order)
    return lambda x: x.permute(order)[index]


def align(x: Tensor, source: tuple[Axis, ...], target: tuple[Axis, ...]) -> Tensor:
    """`x` viewed to broadcast against tensors with dimensions `target`, which must include `source`."""
    view = aligner(source, target)
    return x if view is None else view(x)


def expand(x: Tensor, source: tuple[Axis, ...], target: tuple[Axis, ...], counts: Sequence[int]) -> Tensor:
    """`x` viewed with exactly the dimensions `target`, of `counts` elements."""
    return align(x, source, target).expand(*counts) if target else x
