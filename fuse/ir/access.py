"""How stored tensors are read at index expressions, and how the terms of an output are added into one.

An index that is affine becomes a slice of the tensor, also where it addresses several axes packed into one dimension
(`64*h + d + 128`); any other index gathers.
"""
from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fuse.ir.align import align, aligner, expand
from fuse.ir.expr import Axis, Expr
from fuse.ir.index import ZERO, Affine, affine
from fuse.ir.ops import union
from fuse.ir.program import Output, Term
from fuse.ir.size import Size, product

if TYPE_CHECKING:
    from fuse.ir.evaluate import Code, Evaluator


def _slice(x: Tensor, dim: int, start: int, stop: int, step: int = 1) -> Tensor | None:
    if stop <= start:
        return x.narrow(dim, 0, 0)
    if start < 0 or stop > x.shape[dim]:
        return None
    if step > 1:
        return x[(slice(None),) * dim + (slice(start, stop, step),)]
    return x if start == 0 and stop == x.shape[dim] else x.narrow(dim, start, stop - start)


def _take(x: Tensor, dim: int, form: Affine, ev: Evaluator) -> tuple[Tensor, list[Axis]] | None:
    """`x` with dimension `dim` replaced by one dimension per axis of the form, or None if no slice does that."""
    offset = ev.extent(form.offset)
    terms = sorted(((ev.extent(c), a) for a, c in form.terms.items()), key=lambda term: -term[0])
    if not terms:
        return (x.select(dim, offset), []) if 0 <= offset < x.shape[dim] else None
    steps = [c for c, _ in terms]
    if steps[-1] < 1:
        return None
    if len(terms) == 1:
        step, (low, high) = steps[0], ev.span(terms[0][1])
        out = _slice(x, dim, offset + step * low, offset + step * (high - 1) + 1 if high > low else 0, step)
        return None if out is None else (out, [terms[0][1]])
    # Several axes in one dimension are the digits of the position in a mixed radix: x[offset + 12 i + 4 j + k].
    n, radix = x.shape[dim], [*steps[1:], 1]
    if n % steps[0] or any(s % r for s, r in zip(steps, radix, strict=True)):
        return None
    digits = [n // steps[0], *(s // r for s, r in zip(steps, radix, strict=True))]
    x = x.reshape(*x.shape[:dim], *digits, *x.shape[dim + 1:])            # splitting a dimension copies nothing
    for i, (step, axis) in enumerate(terms):
        digit, offset = divmod(offset, step)
        low, high = ev.span(axis)
        part = _slice(x, dim + i, low + digit, high + digit)
        if part is None:
            return None
        x = part
    return x.select(dim + len(terms), offset), [a for _, a in terms]


def _gather(x: Tensor, gathered: list[int], sliced: list[Axis], node: Expr, ev: Evaluator) -> tuple[Tensor, list[Axis]]:
    """Advanced indexing of the dimensions that follow one unit in `gathered` per index; indices are clamped."""
    axes = union(tuple(node.args[k] for k in gathered))
    index = []
    for dim, k in enumerate(gathered):
        at = align(ev.value(node.args[k]), node.args[k].axes, axes)
        if x.shape[dim] == 0:
            counts = [ev.count(a) for a in axes]
            return x.new_zeros([*counts, *x.shape[len(gathered):]]), [*axes, *sliced]
        index.append(at.clamp(0, x.shape[dim] - 1))
    return x[tuple(index)], [*axes, *sliced]


def _whole_code(name: str, axes: tuple[Axis, ...], target: tuple[Axis, ...], dtype: str) -> Code:
    """A read of all of a buffer, or of a window of it."""
    view = aligner(axes, target)

    def run(ev: Evaluator) -> Tensor:
        x = ev.env[name]
        for dim, axis in enumerate(axes if ev.window else ()):
            low, high = ev.span(axis)
            x = x.narrow(dim, low, high - low)
        x = x if view is None else view(x)
        to = ev.dtypes[dtype]
        return x if x.dtype == to else x.to(to)
    return run


def read_code(node: Expr) -> Code:
    """A function that evaluates one read. Indices out of range read some element of the tensor, never outside."""
    forms = [affine(i) for i in node.args]
    name, target, dtype = node["buffer"].name, node.axes, node["buffer"].dtype
    users = Counter(a for i in node.args for a in i.axes)
    gathering = {a for i, f in zip(node.args, forms, strict=True) if f is None for a in i.axes}
    clash = gathering | {a for a, n in users.items() if n > 1}        # an axis addresses one sliced dimension
    forms = [None if f is None or clash & f.terms.keys() else f for f in forms]

    whole = tuple(f.single for f in forms if f is not None and f.single is not None and f.offset == 0)
    if tuple(a.extent for a in whole) == node["buffer"].shape and len(set(whole)) == len(whole):
        return _whole_code(name, whole, target, dtype)

    def run(ev: Evaluator) -> Tensor:
        x, axes, gathered = ev.env[name], list[Axis](), list[int]()
        dim = 0                               # dimensions before `dim` belong to `axes`, gathered ones go to the front
        for k, form in enumerate(forms):
            taken = None if form is None else _take(x, dim, form, ev)
            if taken is None:
                x = x.movedim(dim, len(gathered))
                gathered.append(k)
                dim += 1
            else:
                x = taken[0]
                axes += taken[1]
                dim += len(taken[1])
        found = axes
        if gathered:
            x, found = _gather(x, gathered, axes, node, ev)
        return align(x, tuple(found), target).to(ev.dtype(dtype))
    return run


Box = tuple[tuple[tuple[Axis, ...], Size], ...]


@lru_cache(maxsize=4096)
def box(index: tuple[Expr, ...], shape: tuple[Size, ...]) -> Box | None:
    """(axes, offset) of every dimension, if the index walks once through a box that provably lies inside `shape`.

    No axis: the dimension is addressed at the offset alone. Several: the digits of the position, outermost first.
    """
    found: list[tuple[tuple[Axis, ...], Size]] = []
    for at, extent in zip(index, shape, strict=True):
        form = affine(at)
        axes = None if form is None else _digits(form)
        if form is None or axes is None:
            return None
        if not form.offset.nonnegative() or not (extent - form.offset - product(a.extent for a in axes)).nonnegative():
            return None
        found.append((axes, form.offset))
    every = [axis for axes, _ in found for axis in axes]
    return tuple(found) if len(set(every)) == len(every) else None


def _digits(form: Affine) -> tuple[Axis, ...] | None:
    """The axes of `12 i + 4 j + k`, outermost first, if each coefficient is the product of the extents inside it."""
    rest, inside, found = dict(form.terms), Size.of(1), list[Axis]()
    while rest:
        axis = next((a for a, c in rest.items() if c == inside), None)
        if axis is None:
            return None
        del rest[axis]
        found.insert(0, axis)
        inside = inside * axis.extent
    return tuple(found)


def _content(term: Term, found: Box, ev: Evaluator) -> Tensor | None:
    """The term's value with one dimension for each of the box, or None if it varies along an axis that the box lacks."""
    axes = tuple(axis for inside, _ in found for axis in inside)
    if not set(term.value.axes) <= set(axes):
        return None
    x = expand(ev.value(term.value), term.value.axes, axes, [ev.count(a) for a in axes])
    if any(len(inside) != 1 for inside, _ in found):
        x = x.reshape([ev.extent(extent) for extent in _extents(found)])
    return x


def _extents(found: Box) -> list[Size]:
    return [product(a.extent for a in inside) for inside, _ in found]


def _boxed(term: Term, shape: tuple[Size, ...], ev: Evaluator) -> Tensor | None:
    """The term alone, zero elsewhere, if its index walks through a box: plain torch operations on any kind of tensor."""
    found = box(term.index, shape)
    x = _content(term, found, ev) if found is not None else None
    if found is None or x is None:
        return None
    around: list[int] = []
    for (_, offset), inside, extent in zip(found, _extents(found), shape, strict=True):
        around[:0] = [ev.extent(offset), ev.extent(extent - offset - inside)]    # torch's pad takes the last dimension first
    return torch.nn.functional.pad(x, around) if any(type(n) is not int or n for n in around) else x


@lru_cache(maxsize=4096)
def side_by_side(indices: tuple[tuple[Expr, ...], ...], shape: tuple[Size, ...]) -> tuple[int, tuple[int, ...]] | None:
    """(dimension, order) in which boxes follow one another along one dimension and fill the shape together."""
    boxes = [found for index in indices if (found := box(index, shape)) is not None]
    if len(boxes) < max(len(indices), 2):
        return None
    split = [d for d, extent in enumerate(shape) if any(_extents(found)[d] != extent for found in boxes)]
    if len(split) != 1:
        return None
    (dim,), order, end = split, list[int](), ZERO
    while len(order) < len(boxes):
        following = [k for k, found in enumerate(boxes) if k not in order and found[dim][1] == end]
        if len(following) != 1:
            return None
        order += following
        end = end + _extents(boxes[following[0]])[dim]
    return (dim, tuple(order)) if end == shape[dim] else None


def _joined(output: Output, ev: Evaluator) -> Tensor | None:
    """Terms that lie side by side: nothing is added, nor padded with zeros."""
    shape = output.buffer.shape
    found = side_by_side(tuple(t.index for t in output.terms), shape)
    if found is None:
        return None
    parts = []
    for k in found[1]:
        place = box(output.terms[k].index, shape)
        part = _content(output.terms[k], place, ev) if place is not None else None
        if part is None:
            return None
        parts.append(part.to(ev.dtype(output.buffer.dtype)))
    return torch.cat(parts, dim=found[0])


def assemble(output: Output, ev: Evaluator) -> Tensor:
    """An output: `out[index] += value` for each term, from zero. Out-of-range positions contribute nothing."""
    joined = _joined(output, ev)
    if joined is not None:
        return joined
    shape, dtype = [ev.extent(s) for s in output.buffer.shape], ev.dtype(output.buffer.dtype)
    wide = {torch.bfloat16: torch.float32, torch.float16: torch.float32}.get(dtype, dtype)
    out: Tensor | None = None
    for term in output.terms:
        alone = _boxed(term, output.buffer.shape, ev)
        if alone is not None and len(output.terms) == 1:
            return alone.to(dtype)
        if alone is not None:
            out = alone.to(wide) if out is None else out + alone
            continue
        out = torch.zeros(shape, dtype=wide, device=ev.device) if out is None else out.clone()
        axes = union((*term.index, term.value))
        counts = [ev.count(a) for a in axes]
        value = expand(ev.value(term.value), term.value.axes, axes, counts).to(wide)
        if not shape:
            out += value.sum()
            continue
        at = [expand(ev.value(i), i.axes, axes, counts) for i in term.index]
        inside = torch.stack([(i >= 0) & (i < n) for i, n in zip(at, shape, strict=True)]).all(0)
        out.index_put_(tuple(i[inside] for i in at), value[inside], accumulate=True)
    return torch.zeros(shape, dtype=dtype, device=ev.device) if out is None else out.to(dtype)


def evaluate_output(output: Output, env: Mapping[str, Tensor], sizes: Mapping[str, int], *,
                    dtype: str | None = None) -> Tensor:
    """The tensor of an output, given the buffers its terms read. May alias a tensor of `env`."""
    from fuse.ir.evaluate import Evaluator
    return assemble(output, Evaluator(env, sizes, dtype=dtype))
