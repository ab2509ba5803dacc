"""Selection by data: gather, index, cross entropy. A position that depends on data is of one of two kinds.

    take-along   the index varies only along axes that other dimensions of the same access use (`gather`, `lp[rows, y]`):
                 it becomes `pick`, which rides in the sweep over the dimension
    outer        anything else (`lg[rows]`, index_select): it is pushed into the operands, so that only those are computed
"""
from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import TYPE_CHECKING, Any

from fuse.frontend.index import ZERO, Linear, decided, linear
from fuse.frontend.operands import compute_type, convert, harmonise
from fuse.frontend.tables_reduce import Rule, over
from fuse.frontend.value import Value
from fuse.frontend.views import Index, broadcast, dim, slice_bounds, source, wrap
from fuse.ir.expr import FLOATS, Axis, Expr, cast, const, make, size, sum_, where
from fuse.ir.size import Size, product
from fuse.reasons import Miss, Refused

if TYPE_CHECKING:
    from fuse.frontend.importer import Pull


def pick(pull: Pull, v: Value, src: Value, at: Sequence[Linear | None], label: Expr, *, proved: bool = True) -> Expr:
    """src at `at`, with `label` at the dimension where `at` is None. `proved`: eager raises if the label is out of range."""
    d = list(at).index(None)
    known = tuple(i for i in at if i is not None)
    position = linear(label)
    if position.constant is not None:
        return pull.at_argument(v, src, tuple(position if i is None else i for i in at))
    if proved:
        pull.require("gather" if v.op == "gather" else "index", label, src.shape[d])
    position, axes = pull.bound(v, f"v{d}", src.shape[d], (*known, Linear.of(label)))
    x = pull.at_argument(v, src, tuple(position if i is None else i for i in at))
    if len(axes) == 1:
        index = make("bounded", label, axis=axes[0]) if proved else label
        return make("pick", x, index, axis=axes[0])
    return sum_(where(make("eq", position.expr(), label), x, 0), *axes) if axes else x


def _gather(pull: Pull, v: Value, idx: Index) -> Expr:
    src, index = source(v), v.args["indices" if v.op == "take_along_dim" else "index"]
    if v.args.get("dim") is None:
        raise Refused(Miss("UNSUPPORTED_OP", v.where, "take_along_dim of a flattened tensor"))
    d = dim(v, rank=len(src.shape))
    label = cast(pull.at_argument(v, index, broadcast(index.shape, idx)), "int64")
    at = broadcast(src.shape, idx) if v.op == "take_along_dim" else idx
    return pick(pull, v, src, [None if k == d else i for k, i in enumerate(at)], label)


def _index_select(pull: Pull, v: Value, idx: Index) -> Expr:
    src = source(v)
    d = dim(v, rank=len(src.shape))
    index = v.args["index"]
    row = cast(pull.at_argument(v, index, (idx[d],) if index.shape else ()), "int64")
    pull.require("index", row, src.shape[d])
    return pull.at_argument(v, src, (*idx[:d], linear(row), *idx[d + 1:]))


def _embedding(pull: Pull, v: Value, idx: Index) -> Expr:
    row = cast(pull.at_argument(v, v.args["indices"], idx[:-1]), "int64")
    pull.require("embedding", row, v.args["weight"].shape[0])
    return pull.at_argument(v, v.args["weight"], (linear(row), idx[-1]))


def _wrapped(label: Expr, extent: Size) -> Expr:
    """Negative labels count from the end."""
    position = linear(label)
    if position.constant is not None:
        return Linear.of(wrap(position.constant, extent)).expr()
    found = position.bounds()
    if found is not None and found[0].nonnegative():
        return label
    return where(make("lt", label, const(0, "int64")), make("add", label, size(extent)), label)


def _index(pull: Pull, v: Value, idx: Index) -> Expr:
    src = source(v)
    indices: list[Value | None] = list(v.args["indices"])
    indices += [None] * (len(src.shape) - len(indices))
    places = [d for d, t in enumerate(indices) if t is not None]
    tensors = [t for t in indices if t is not None]
    if any(t.dtype in ("bool", "uint8") for t in tensors):
        raise Refused(Miss("UNSUPPORTED_OP", v.where, "rows selected by a boolean mask: their number depends on data"))
    rank = max((len(t.shape) for t in tensors), default=0)
    front = places[0] if places and places == list(range(places[0], places[-1] + 1)) else 0
    at: list[Linear] = []
    plain = iter((*idx[:front], *idx[front + rank:]))
    labels: dict[int, Expr] = {}
    for d, t in enumerate(indices):
        if t is None:
            at.append(next(plain))
            continue
        label = cast(pull.at_argument(v, t, broadcast(t.shape, idx[front:front + rank])), "int64")
        labels[d] = _wrapped(label, src.shape[d])
        at.append(linear(labels[d]))
        pull.require("index", labels[d], src.shape[d])
    chosen = _taken_along(at, labels)
    if chosen is None:
        return pull.at_argument(v, src, tuple(at))
    return pick(pull, v, src, [None if d == chosen else i for d, i in enumerate(at)], labels[chosen])


def _taken_along(at: Sequence[Linear], labels: dict[int, Expr]) -> int | None:
    """The dimension whose label varies only along axes of other, affine dimensions; the last one if none is affine."""
    if len(at) > 1 and not any(i.affine for i in at):
        return len(at) - 1
    for d in sorted(labels, reverse=True):
        used = {a for k, i in enumerate(at) if k != d and i.affine for a in i.axes}
        if labels[d].axes and set(labels[d].axes) <= used:
            return d
    return None


def _nll(pull: Pull, v: Value, rows: Index, class_dim: int, logits: bool) -> tuple[Expr, Expr, Expr | None]:
    """(loss of each row, is the row counted, weight of its class or None)."""
    src, target = source(v), v.args["target"]
    y = cast(pull.at_argument(v, target, rows), "int64")
    valid = make("ne", y, pull.scalar(v, v.args["ignore_index"], "int64"))
    at: list[Linear | None] = [*rows[:class_dim], None, *rows[class_dim:]]
    safe = where(valid, y, 0)
    pull.require("target", safe, src.shape[class_dim])
    if logits:
        ell = _statistic(pull, v, rows, class_dim)
        loss = -make("sub_lse", convert(pick(pull, v, src, at, y, proved=False), ell.dtype), ell)
    else:
        loss = -convert(pick(pull, v, src, at, safe), v.dtype)
    weight = v.args.get("weight")
    scale = None if weight is None else convert(pull.at_argument(v, weight, (Linear.of(safe),)), v.dtype)
    return loss, valid, scale


def _class_axis(pull: Pull, v: Value, rows: Index, class_dim: int) -> tuple[Expr, list[Axis], Linear]:
    src = source(v)
    position, axes = pull.bound(v, f"v{class_dim}", src.shape[class_dim], rows)
    x = pull.at_argument(v, src, (*rows[:class_dim], position, *rows[class_dim:]))
    return convert(x, v.dtype), axes, position


def _statistic(pull: Pull, v: Value, rows: Index, class_dim: int) -> Expr:
    x, axes, _ = _class_axis(pull, v, rows, class_dim)
    return over("lse", x, axes)


def _rows(pull: Pull, v: Value, idx: Index, class_dim: int) -> tuple[Index, list[Axis]]:
    """The index of one row: the result's own, or fresh axes if the loss is summed over the rows."""
    shape = [e for d, e in enumerate(source(v).shape) if d != class_dim]
    if not int(v.args["reduction"]):
        return idx, []
    rows, axes = [], []
    for d, extent in enumerate(shape):
        position, new = pull.bound(v, f"n{d}", extent, (), grid=True)
        rows.append(position)
        axes += new
    return tuple(rows), axes


def _averaged(v: Value, loss: Expr, valid: Expr, scale: Expr | None, axes: list[Axis]) -> Expr:
    """Rows that are not counted are 0; the mean divides by the counted rows' weights, which may be none (nan)."""
    weighted = loss if scale is None else loss * scale
    total = sum_(where(valid, weighted, 0), *axes)
    if int(v.args["reduction"]) != 1:
        return total
    return total / sum_(_counted(valid, scale, loss.dtype), *axes)


def _counted(valid: Expr, scale: Expr | None, dtype: str) -> Expr:
    return cast(valid, dtype) if scale is None else where(valid, scale, 0)


def _cross_entropy(pull: Pull, v: Value, idx: Index) -> Expr:
    src, target = source(v), v.args["target"]
    class_dim = min(len(src.shape) - 1, 1)
    rows, axes = _rows(pull, v, idx, class_dim)
    smoothed = isinstance(v.args["label_smoothing"], Value) or v.args["label_smoothing"] != 0
    if target.dtype in FLOATS:
        return _soft_cross_entropy(pull, v, rows, axes, class_dim, smoothed)
    loss, valid, scale = _nll(pull, v, rows, class_dim, logits=True)
    hard = _averaged(v, loss, valid, scale, axes)
    if not smoothed:
        return hard
    x, classes, position = _class_axis(pull, v, rows, class_dim)
    each = -make("sub_lse", x, over("lse", x, classes))
    if scale is not None:
        each = each * convert(pull.at_argument(v, v.args["weight"], (position,)), v.dtype)
    smooth = sum_(where(valid, sum_(each, *classes), 0), *axes)
    if int(v.args["reduction"]) == 1:
        smooth = smooth / sum_(_counted(valid, scale, loss.dtype), *axes)
    part = pull.scalar(v, v.args["label_smoothing"], smooth.dtype)
    return hard * (1 - part) + smooth * (part / cast(size(src.shape[class_dim]), smooth.dtype))


def _soft_cross_entropy(pull: Pull, v: Value, rows: Index, axes: list[Axis], class_dim: int, smoothed: bool) -> Expr:
    """Targets are probabilities: - sum_v t_v w_v (x_v - L), and the mean is over rows."""
    x, classes, position = _class_axis(pull, v, rows, class_dim)
    t = pull.at_argument(v, v.args["target"], (*rows[:class_dim], position, *rows[class_dim:]))
    x, t = harmonise(x, t)
    if smoothed:
        part = pull.scalar(v, v.args["label_smoothing"], t.dtype)
        t = t * (1 - part) + part / cast(size(source(v).shape[class_dim]), t.dtype)
    each = make("sub_lse", x, over("lse", x, classes)) * t
    if v.args.get("weight") is not None:
        each = each * convert(pull.at_argument(v, v.args["weight"], (position,)), v.dtype)
    total = -sum_(each, *classes, *axes)
    if int(v.args["reduction"]) != 1:
        return total
    count = product(e for d, e in enumerate(source(v).shape) if d != class_dim)
    return total / cast(size(count), total.dtype)


def _nll_loss(pull: Pull, v: Value, idx: Index) -> Expr:
    class_dim = min(len(source(v).shape) - 1, 1)
    rows, axes = _rows(pull, v, idx, class_dim)
    return _averaged(v, *_nll(pull, v, rows, class_dim, logits=False), axes)


def _pad(pull: Pull, v: Value, idx: Index) -> Expr:
    src, pad = source(v), list(v.args["pad"])
    if v.args.get("mode", "constant") != "constant":
        raise Refused(Miss("UNSUPPORTED_OP", v.where, f"padding mode {v.args['mode']}"))
    at = list(idx)
    inside: Expr | None = None
    for k in range(len(pad) // 2):
        d = len(at) - 1 - k
        before, after = Size.of(pad[2 * k]), Size.of(pad[2 * k + 1])
        if before != 0 or after != 0:
            at[d] = at[d] - before
            hit = _between(at[d], src.shape[d], before != 0, after != 0)
            inside = hit if inside is None else make("and", inside, hit)
    fill = v.args.get("value") or 0
    x = pull.at_argument(v, src, tuple(at))
    if inside is None:
        return x
    return where(inside, x, bool(fill)) if x.dtype == "bool" else where(inside, x, fill)


def _between(i: Linear, extent: Size, low: bool, high: bool) -> Expr:
    below = make("lt", i.expr(), size(extent))
    above = make("le", const(0, "int64"), i.expr())
    return make("and", above, below) if low and high else above if low else below


def _cat(pull: Pull, v: Value, idx: Index) -> Expr:
    """The pieces one behind the other; a piece read outside itself gives some element, which is not chosen."""
    tensors = [t for t in v.args["tensors"] if not (len(t.shape) == 1 and t.shape[0] == 0 and len(v.shape) > 1)]
    d = dim(v, rank=len(v.shape))
    start = ZERO
    pieces: list[tuple[Expr, Size]] = []
    for t in tensors:
        at = (*idx[:d], *idx[d + 1:]) if v.op == "stack" else (*idx[:d], idx[d] - start, *idx[d + 1:])
        if v.op != "stack" and t.shape[d] == 1:
            at = (*idx[:d], Linear(), *idx[d + 1:])
        end = start + (1 if v.op == "stack" else t.shape[d])
        outside = decided(idx[d] - start, strict=True) is True or decided(idx[d] - end, strict=True) is False
        if not outside or not (pieces or t is not tensors[-1]):
            pieces.append((convert(pull.at_argument(v, t, at), v.dtype), end))
        start = end
    if v.op != "stack":
        pull.join(idx[d], [end for _, end in pieces[:-1]])
    total = pieces[-1][0]
    for x, end in reversed(pieces[:-1]):
        x, total = harmonise(x, total)
        total = where(make("lt", idx[d].expr(), size(end)), x, total)
    return total


def _scatter(pull: Pull, v: Value, idx: Index) -> Expr:
    """One position a row: where(v == y, value, x)."""
    src, index = source(v), v.args["index"]
    d = dim(v, rank=len(src.shape))
    if index.shape[d] != 1 or any(a != b for k, (a, b) in enumerate(zip(index.shape, src.shape, strict=True)) if k != d) \
            or v.args.get("reduce") is not None:
        raise Refused(Miss("UNSUPPORTED_OP", v.where, "a scatter to several positions a row"))
    row = tuple(Linear() if k == d else i for k, i in enumerate(idx))
    label = cast(pull.at_argument(v, index, row), "int64")
    fill: Any = v.args["value" if "value" in v.args else "src"]
    x = pull.at_argument(v, src, idx)
    value = convert(pull.at_argument(v, fill, row if fill.shape else ()), v.dtype) if isinstance(fill, Value) \
        else const(fill, x.dtype)
    value, x = harmonise(value, x)
    hit = make("eq", idx[d].expr(), label)
    return where(hit, x + value if v.op == "scatter_add" else value, x)


def _index_put(pull: Pull, v: Value, idx: Index) -> Expr:
    """x[mask] = value with one boolean mask over leading or trailing dimensions, or x[i, i] = value; a scalar value."""
    src, indices, value = source(v), list(v.args["indices"]), v.args["values"]
    while indices and indices[-1] is None:
        indices.pop()
    lead = next((k for k, t in enumerate(indices) if t is not None), 0)
    masked = len(indices) == lead + 1 and indices[lead].dtype == "bool"
    hit = _masked(pull, v, indices[lead], idx[lead:]) if masked else _on_diagonal(pull, v, indices, idx)
    if hit is None or product(value.shape) != 1 or v.args.get("accumulate"):
        raise Refused(Miss("MUTATION", v.where, "an indexed assignment of several numbers, or not under a mask or on a diagonal"))
    fill, x = harmonise(pull.at_argument(v, value, (Linear(),) * len(value.shape)), pull.at_argument(v, src, idx),
                        dtype=compute_type(v.dtype))
    return where(hit, fill, x)


def _masked(pull: Pull, v: Value, mask: Value, idx: Index) -> Expr:
    return pull.at_argument(v, mask, broadcast(mask.shape, idx[:len(mask.shape)]))


def _on_diagonal(pull: Pull, v: Value, indices: Sequence[Value | None], idx: Index) -> Expr | None:
    """Is the element written by x[i + a, i + b, ...] = value? None unless every index is such an i + a, of one length."""
    places = [(t, i) for t, i in zip(indices, idx, strict=False) if t is not None]
    if len(places) < 2 or len(places) < len(indices) or any(len(t.shape) != 1 for t, _ in places) \
            or len({t.shape for t, _ in places}) > 1:
        return None
    steps = list[Linear]()
    (length,), extents = places[0][0].shape, source(v).shape
    for (t, i), extent in zip(places, extents, strict=False):
        first = linear(pull.at_argument(v, t, (Linear(),)))
        start = first.constant
        if start is None or linear(pull.at_argument(v, t, (i,))) != i + first \
                or not (start.nonnegative() and (extent - start - length).nonnegative()):
            return None
        steps.append(i - first)
    whole = all(i == step and extent == length for (_, i), step, extent in zip(places, steps, extents, strict=False))
    hits = [make("eq", steps[0].expr(), step.expr()) for step in steps[1:]]
    return reduce(lambda a, b: make("and", a, b), hits if whole else [*hits, _between(steps[0], length, True, True)])


def _fill_diagonal(pull: Pull, v: Value, idx: Index) -> Expr:
    src = source(v)
    if len(src.shape) != 2 or (v.args.get("wrap") and src.shape[0] != src.shape[1]):
        raise Refused(Miss("UNSUPPORTED_OP", v.where, "the diagonal of more than two dimensions, or of one that wraps"))
    x = pull.at_argument(v, src, idx)
    return where(make("eq", idx[0].expr(), idx[1].expr()), const(v.args["fill_value"], x.dtype), x)


def _write(pull: Pull, v: Value, idx: Index) -> Expr:
    """A slice of a tensor assigned: where(the position lies in the slice, the new part there, the old value)."""
    at: list[Linear] = list(idx)
    shape = list(source(v).shape)
    inside: Expr | None = None
    for link in v.args["links"]:
        if link.op not in ("slice", "select"):
            continue
        d = int(link.args["dim"]) % len(shape)
        if link.op == "select":
            hit: Expr | None = make("eq", at[d].expr(), Linear.of(wrap(link.args["index"], shape[d])).expr())
            del at[d], shape[d]
        else:
            start, step = slice_bounds(link.args, shape[d])
            if step != 1:
                raise Refused(Miss("MUTATION", v.where, "an assignment to a slice with a step"))
            at[d] = at[d] - start
            hit = None if start == 0 and link.shape[d] == shape[d] else \
                _between(at[d], link.shape[d], start != 0, start + link.shape[d] != shape[d])
            shape[d] = link.shape[d]
        if hit is not None:
            inside = hit if inside is None else make("and", inside, hit)
    part = pull.at_argument(v, v.args["part"], tuple(at))
    if inside is None:
        return part
    part, old = harmonise(part, pull.at_argument(v, source(v), idx))
    return where(inside, part, old)


GATHERS: dict[str, Rule] = {
    "gather": _gather, "take_along_dim": _gather, "index_select": _index_select, "embedding": _embedding, "index": _index,
    "cross_entropy_loss": _cross_entropy, "nll_loss": _nll_loss, "nll_loss_nd": _nll_loss, "nll_loss2d": _nll_loss,
}
ARRANGED: dict[str, Rule] = {
    "pad": _pad, "constant_pad_nd": _pad, "cat": _cat, "concat": _cat, "stack": _cat, "scatter": _scatter,
    "scatter_add": _scatter, "index_put": _index_put, "fill_diagonal": _fill_diagonal, "write": _write,
}
