"""Views and copies: each maps an index of the result to a value and an index of it. There are no views in the IR."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fuse.frontend.index import ZERO, Linear, divide, reshape
from fuse.frontend.value import Value
from fuse.ir.size import Size
from fuse.reasons import Miss, Refused

Index = tuple[Linear, ...]
View = Callable[[Value, Index], Sequence[Linear]]
LAST = (1 << 63) - 1


def source(v: Value) -> Value:
    """The value that v is a view, a copy or a reduction of."""
    found = v.args["tensors"][v.output] if v.op == "broadcast_tensors" else v.args.get("self", v.args.get("input"))
    assert isinstance(found, Value), v
    return found


def dim(v: Value, name: str = "dim", rank: int | None = None) -> int:
    n = len(v.shape) if rank is None else rank
    d = int(v.args[name])
    return d + n if d < 0 else d


def _as_size(x: Any) -> Size:
    if isinstance(x, (int, Size)):
        return Size.of(x)
    raise Refused(Miss("UNBOUND_SIZE", None, lambda: f"the index {x} is not an integer"))


def wrap(position: Any, extent: Size) -> Size | Linear:
    """A position counted from the end if negative; in a re-rolled loop it may be a function of the step."""
    if isinstance(position, Linear):
        return position
    p = _as_size(position)
    return p + extent if p.constant is not None and p.constant < 0 else p


def _reshape(v: Value, idx: Index) -> Sequence[Linear]:
    return reshape(idx, source(v).shape, v.shape)


def _identity(v: Value, idx: Index) -> Sequence[Linear]:
    return idx


def _permute(v: Value, idx: Index) -> Sequence[Linear]:
    out: list[Linear] = [Linear()] * len(idx)
    for i, d in enumerate(v.args["dims"]):
        out[d % len(idx)] = idx[i]
    return out


def _transpose(v: Value, idx: Index) -> Sequence[Linear]:
    a, b = (dim(v, k) for k in (("axis0", "axis1") if v.op == "swapaxes" else ("dim0", "dim1")))
    out = list(idx)
    out[a], out[b] = out[b], out[a]
    return out


def _reverse(v: Value, idx: Index) -> Sequence[Linear]:
    return idx[::-1]


def _mt(v: Value, idx: Index) -> Sequence[Linear]:
    return (*idx[:-2], idx[-1], idx[-2])


def _movedim(v: Value, idx: Index) -> Sequence[Linear]:
    n = len(idx)
    given = ([v.args[k]] if isinstance(v.args[k], int) else list(v.args[k]) for k in ("source", "destination"))
    src, dst = ([d % n for d in dims] for dims in given)
    rest = [d for d in range(n) if d not in src]
    order = {to: frm for frm, to in zip(src, dst, strict=True)}
    free = iter(rest)
    perm = [order[i] if i in order else next(free) for i in range(n)]
    out: list[Linear] = [Linear()] * n
    for i, d in enumerate(perm):
        out[d] = idx[i]
    return out


def _unsqueeze(v: Value, idx: Index) -> Sequence[Linear]:
    d = dim(v)
    return (*idx[:d], *idx[d + 1:])


def _expand(v: Value, idx: Index) -> Sequence[Linear]:
    return broadcast(source(v).shape, idx)


def broadcast(shape: Sequence[Size], idx: Sequence[Linear]) -> tuple[Linear, ...]:
    """The index of an operand of this shape under trailing-dimension broadcasting; size-1 dimensions read 0."""
    tail = idx[len(idx) - len(shape):]
    return tuple(Linear() if extent == 1 else i for i, extent in zip(tail, shape, strict=True))


def _repeat(v: Value, idx: Index) -> Sequence[Linear]:
    src = source(v).shape
    tail = idx[len(idx) - len(src):]
    out = v.shape[len(idx) - len(src):]
    return [i if e == o else divide(i, e)[1] if e != 1 else Linear() for i, e, o in zip(tail, src, out, strict=True)]


def slice_bounds(args: dict[str, Any], extent: Size) -> tuple[Size | Linear, Size]:
    """(start, step) of a slice. A symbolic start counts from the front: the shadow has seen to that."""
    step = _as_size(args.get("step") or 1)
    start = args.get("start")
    first = wrap(start, extent) if start is not None else ZERO
    if isinstance(first, Linear):
        return first, step
    if first.constant is not None and extent.constant is not None:
        first = Size.of(min(max(first.constant, 0), extent.constant))
    return first, step


def _slice(v: Value, idx: Index) -> Sequence[Linear]:
    d = dim(v)
    start, step = slice_bounds(v.args, source(v).shape[d])
    return (*idx[:d], idx[d] * step + start, *idx[d + 1:])


def _narrow(v: Value, idx: Index) -> Sequence[Linear]:
    d = dim(v)
    return (*idx[:d], idx[d] + wrap(v.args["start"], source(v).shape[d]), *idx[d + 1:])


def _select(v: Value, idx: Index) -> Sequence[Linear]:
    src = source(v)
    d = dim(v, rank=len(src.shape))
    return (*idx[:d], Linear.of(wrap(v.args["index"], src.shape[d])), *idx[d:])


def _piece(v: Value, idx: Index) -> Sequence[Linear]:
    """chunk, split, unbind: result `v.output` of several."""
    src = source(v)
    d = dim(v, rank=len(src.shape))
    number = Linear.of(v.args.get("position", v.output))
    if v.op == "unbind":
        return (*idx[:d], number, *idx[d:])
    if v.op == "split_with_sizes" or (v.op == "split" and isinstance(v.args.get("split_size"), (list, tuple))):
        sizes: Sequence[Any] = v.args["split_sizes" if v.op == "split_with_sizes" else "split_size"]
        if number.terms:
            raise Refused(Miss("UNSUPPORTED_VIEW", v.where, "pieces of several sizes, one a step"))
        start = Linear.of(sum((_as_size(s) for s in sizes[:v.output]), ZERO))
    elif v.op == "split":
        start = number * _as_size(v.args["split_size"])
    elif (whole := src.shape[d].constant) is not None:
        start = number * Size.of(-(-whole // int(v.args["chunks"])))
    else:
        each = src.shape[d].divided_by(int(v.args["chunks"]))
        if each is None:
            raise Refused(Miss("UNSUPPORTED_VIEW", v.where, lambda: f"chunk of a dimension of size {src.shape[d]}"))
        start = number * each
    return (*idx[:d], idx[d] + start, *idx[d + 1:])


def _unfold(v: Value, idx: Index) -> Sequence[Linear]:
    d = dim(v, "dimension", len(source(v).shape))
    return (*idx[:d], idx[d] * _as_size(v.args["step"]) + idx[-1], *idx[d + 1:-1])


def _diagonal(v: Value, idx: Index) -> Sequence[Linear]:
    n = len(source(v).shape)
    a, b, offset = dim(v, "dim1", n), dim(v, "dim2", n), int(v.args.get("offset") or 0)
    rest = iter(idx[:-1])
    return [idx[-1] + max(-offset, 0) if d == a else idx[-1] + max(offset, 0) if d == b else next(rest)
            for d in range(n)]


def _roll(v: Value, idx: Index) -> Sequence[Linear]:
    src, out = source(v), list(idx)
    dims = v.args.get("dims") or []
    if not dims:
        raise Refused(Miss("UNSUPPORTED_VIEW", v.where, "roll of a flattened tensor"))
    for shift, d in zip(v.args["shifts"], dims, strict=True):
        d %= len(idx)
        out[d] = divide(out[d] - _as_size(shift) + src.shape[d], src.shape[d])[1]
    return out


def _flip(v: Value, idx: Index) -> Sequence[Linear]:
    out = list(idx)
    for d in v.args["dims"]:
        d %= len(idx)
        out[d] = Linear.of(v.shape[d] - 1) - out[d]
    return out


VIEWS: dict[str, View] = {
    **dict.fromkeys(("view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "_reshape_alias", "view_as",
                     "reshape_as", "ravel"), _reshape),
    **dict.fromkeys(("alias", "contiguous", "clone", "detach", "lift_fresh_copy", "lift_fresh"),
                    _identity),
    "permute": _permute, "transpose": _transpose, "swapaxes": _transpose, "swapdims": _transpose, "t": _reverse,
    "numpy_T": _reverse,
    "mT": _mt, "matrix_H": _mt, "adjoint": _mt, "movedim": _movedim, "moveaxis": _movedim, "unsqueeze": _unsqueeze,
    "expand": _expand, "expand_as": _expand, "broadcast_to": _expand, "broadcast_tensors": _expand, "repeat": _repeat,
    "slice": _slice, "narrow": _narrow, "select": _select,
    "chunk": _piece, "split": _piece, "split_with_sizes": _piece, "unbind": _piece,
    "unfold": _unfold, "diagonal": _diagonal, "roll": _roll, "flip": _flip,
}
