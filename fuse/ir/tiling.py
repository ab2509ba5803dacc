"""Windows over a product of axes."""
from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

from fuse.ir.expr import Axis

Spans = dict[Axis, tuple[int, int]]


def boxes(axes: Sequence[Axis], sizes: Mapping[str, int], limit: int | None) -> list[Spans]:
    """Windows of about `limit` positions that cover the product of `axes` in row-major order (None: one window)."""
    steps, left = [], limit
    counts = [a.extent.evaluate(sizes) for a in axes]
    for n in reversed(counts):
        step = max(1, n if left is None else min(n, left))
        left = None if left is None else left // step if step >= n else 1
        steps.append(step)
    spans = [[(i, min(i + step, n)) for i in range(0, n, step)]
             for n, step in zip(counts, reversed(steps), strict=True)]
    return [dict(zip(axes, box, strict=True)) for box in itertools.product(*spans)]


def entered(length: int, step: int, span: tuple[int, int], reverse: bool) -> Iterator[tuple[int, int]]:
    """(tile, position of the state with which it is entered) of the tiles of `step` positions that a scan enters in `span`."""
    for k in range(-(-length // step)):
        first = min((k + 1) * step, length) - 1 if reverse else k * step
        if span[0] <= first < span[1]:
            yield k, first + 1 if reverse else first - 1
