"""The values of a loop at a symbolic position, and the scan that its states are.

    h[k] = a[k] * h[k - 1] + b[k],  h[-1] = s   ->   scan(a[t], b[t] + where(t == 0, a[t] s, 0); t)          k = t
    the same, read from its end                 ->   the scan that runs backwards                      k = T - 1 - t
    h[0] given as s                             ->   scan(where(t == 0, 0, a[t]), where(t == 0, s, b[t]); t)
    h[c] for a number c                         ->   pick of the scan at c
    h[k - 1] beside h[k]                        ->   where(k == 0, s, shift(h)[k])

(a, b) is derived from the step's own expression (affine.py), whatever that is made of. Where the coefficient is no number
for each element of the state - it mixes elements, or reads the state - the loop is no scan.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import fx

from fuse.frontend.affine import affine_in
from fuse.frontend.index import Linear
from fuse.frontend.operands import compute_type, convert
from fuse.frontend.shadow import Shadow
from fuse.frontend.steps import Family
from fuse.frontend.symbols import number, shape_of
from fuse.frontend.value import Value, example
from fuse.frontend.views import Index, broadcast
from fuse.ir.expr import COMPLEXES, FLOATS, Axis, Buffer, Expr, cast, const, make, read, size, substitute, topological
from fuse.ir.expr import where as where_
from fuse.ir.size import Size
from fuse.reasons import Miss, Refused

if TYPE_CHECKING:
    from fuse.frontend.importer import Pull

class Loop(Protocol):
    """A step repeated `length` times, as values at a symbolic position. `flipped`: its results stand last step first."""

    @property
    def name(self) -> str: ...

    @property
    def shadow(self) -> Shadow: ...

    @property
    def flipped(self) -> bool: ...

    @property
    def families(self) -> Sequence[Family]: ...

    @property
    def length(self) -> Size: ...

    def like(self, f: Family) -> Value:
        """A value of the family's type and shape."""

    def definition(self, f: Family, k: Linear) -> Value:
        """The family at step k as the step computes it."""


def value(loop: Loop, f: Family, k: Linear) -> Value:
    """The family at step k; a state is what the scan gives."""
    return made(loop, "state", f, k) if f.is_state else loop.definition(f, k)


def made(loop: Loop, op: str, f: Family, k: Linear) -> Value:
    """`state`, or `carried`: the state before step k."""
    v = loop.like(f)
    return Value(op, {"loop": loop, "family": f, "at": k}, v.dtype, v.shape, v.node, grad=v.grad)


def refused(v: Value, why: str) -> Refused:
    return Refused(Miss("NOT_A_SCAN", v.where, why))


def along(k: Linear, length: Size) -> tuple[Axis, bool] | None:
    """The axis that step k walks along and whether it does so backwards; None if it is another function."""
    axis = next((a for a in k.axes if a.extent == length), None)
    if axis is None or len(k.axes) > 1:
        return None
    if k == Linear.of(axis):
        return axis, False
    return (axis, True) if k == Linear.of(length - 1) - axis else None


def rolled(loop: Loop, f: Family, d: int, node: fx.Node, *, tensor: torch.Tensor | None = None, kept: bool = False,
           flipped: bool = False, since: int = -1) -> Value:
    """What `node` gives (or, of several results, `tensor`): the family at all steps, side by side along dimension d.

    `kept`: each has that dimension, of size 1.
    """
    tensor = example(node) if tensor is None else tensor
    args = {"loop": loop, "family": f, "dim": d, "kept": kept, "flipped": flipped}
    return Value("rolled", args, str(tensor.dtype)[6:], shape_of(tensor), node, stored=True, grad=loop.like(f).grad, since=since)


def one_step(loop: Loop, f: Family, k: Linear, node: fx.Node) -> Value:
    """What `node` gives: the family at step k."""
    v = loop.like(f)
    return Value("step", {"loop": loop, "family": f, "at": k}, v.dtype, v.shape, node, stored=True, grad=v.grad)


def _rolled(pull: Pull, v: Value, idx: Index) -> Expr:
    """All steps' results side by side: stacked, joined, or written into one tensor."""
    loop, d = v.args["loop"], v.args["dim"]
    k = Linear.of(loop.length - 1) - idx[d] if v.args["flipped"] else idx[d]
    rest = (*idx[:d], *((Linear(),) if v.args["kept"] else ()), *idx[d + 1:])
    return convert(result(pull, loop, v, v.args["family"], k, rest), v.dtype)


def _step(pull: Pull, v: Value, idx: Index) -> Expr:
    """The result of one step."""
    return result(pull, v.args["loop"], v, v.args["family"], v.args["at"], idx)


def result(pull: Pull, loop: Loop, user: Value, f: Family, k: Linear, idx: Index) -> Expr:
    return _resolved(pull, pull.at_argument(user, value(loop, f, k), idx))


def _carried(pull: Pull, v: Value, idx: Index) -> Expr:
    """The state before a step, as a leaf by which the step's expression may be divided."""
    loop, f, k = v.args["loop"], v.args["family"], v.args["at"]
    name = f"carry {loop.name} {loop.families.index(f)}"
    leaf = read(Buffer(name, compute_type(v.dtype), (loop.length, *v.shape)), k.expr(), *(i.expr() for i in idx))
    pull.carried[leaf] = (loop, f, k, tuple(idx))
    return leaf


def _resolved(pull: Pull, x: Expr, own: Expr | None = None) -> Expr:
    """x with every state before a step (but `own`) as the scan, one step earlier."""
    leaves = [e for e in topological([x]) if e in pull.carried and e is not own]
    return substitute(x, {leaf: _before(pull, leaf) for leaf in leaves}) if leaves else x


def _before(pull: Pull, leaf: Expr) -> Expr:
    loop, f, k, idx = pull.carried[leaf]
    if k.constant is not None:
        if k.constant == 0:
            return _start(pull, loop, f, leaf.dtype, idx)
        return _resolved(pull, pull.at(value(loop, f, k - 1), idx))
    found = along(k, loop.length)
    if found is None:
        raise refused(loop.like(f), "the loop is read in another order")
    axis, backwards = found
    h = pull.at(value(loop, f, k), idx)
    before = make("shift", h, axis=axis, by=-1 if backwards else 1)
    if f.given or _is_zero(f.start):
        return before                                  # nothing reads the state before one that is given
    return where_(make("eq", k.expr(), const(0, "int64")), _start(pull, loop, f, h.dtype, idx), before)


def _is_zero(start: Any) -> bool:
    return isinstance(start, (int, float)) and start == 0


def _start(pull: Pull, loop: Loop, f: Family, dtype: str, idx: Sequence[Linear]) -> Expr:
    """The state before the loop or, where that is given instead, the one after step 0."""
    given = f.first if f.given else f.start
    if isinstance(given, (int, float)):
        return number(given, dtype)
    return cast(pull.at_argument(loop.like(f), loop.shadow.value(given), tuple(idx)), dtype)


def _state(pull: Pull, v: Value, idx: Index) -> Expr:
    loop, f, k = v.args["loop"], v.args["family"], v.args["at"]
    if k.constant is not None:
        return _picked(pull, v, idx)
    found = along(k, loop.length)
    if found is None or any(found[0] in i.axes for i in idx):
        raise refused(v, "the states are read in another order than that of the loop")
    if v.dtype not in FLOATS + COMPLEXES:
        raise refused(v, f"a state of type {v.dtype}")
    axis, backwards = found
    body = pull.at(loop.definition(f, k), idx)
    own = next((e for e in topological([body]) if e in pull.carried and pull.carried[e][1:] == (f, k, tuple(idx))), None)
    if own is None:
        raise refused(v, "the new state reads other elements of the old one")
    if body.dtype != own.dtype:
        raise refused(v, f"the state is {own.dtype} before a step and {body.dtype} after it")
    body = _resolved(pull, body, own) if not _reads(pull, body, f, own) else body
    form = None if _reads(pull, body, f, own) else affine_in(body, own)
    if form is None:
        raise refused(v, f"{v.node.name} is not a * state + b with a number a for each element")
    return _scan(pull, loop, f, k, idx, form, axis, backwards)


def _reads(pull: Pull, x: Expr, f: Family, own: Expr) -> bool:
    """Does x read the state at other elements than its own?"""
    return any(pull.carried[e][1] is f for e in topological([x]) if e in pull.carried and e is not own)


def _scan(pull: Pull, loop: Loop, f: Family, k: Linear, idx: Index, form: tuple[Expr | None, Expr | None], axis: Axis,
          backwards: bool) -> Expr:
    dtype = compute_type(loop.like(f).dtype)
    a, b = (const(0, dtype) if x is None else x for x in form)
    first = make("eq", k.expr(), const(0, "int64"))
    start = _start(pull, loop, f, dtype, idx)
    if f.given:
        a, b = where_(first, 0, a), where_(first, start, b)
    elif not (start.op == "const" and start["value"] == 0):
        b = b + where_(first, a * start, 0)
    if not a.has(axis) and not b.has(axis):
        raise refused(loop.like(f), "nothing changes from step to step")
    return make("scan", a, b, axis=axis, reverse=backwards)


def _picked(pull: Pull, v: Value, idx: Index) -> Expr:
    """The state after one step: the scan, walked in the direction in which its results are read, at that position."""
    loop, f = v.args["loop"], v.args["family"]
    position, axes = pull.bound(v, "t", loop.length, idx)
    if len(axes) != 1:
        raise refused(v, "a view cuts the loop in parts")
    end = Linear.of(loop.length - 1)
    k, at = (end - position, end - v.args["at"]) if loop.flipped else (position, v.args["at"])
    return make("pick", pull.at(value(loop, f, k), idx), size(at.offset), axis=axes[0])


def scanned(a: Value, b: Value | None, d: int, node: fx.Node, *, reverse: bool = False, start: Value | None = None,
            dtype: str | None = None) -> Value:
    """What `node` gives: scan(a, b) along dimension d from the state `start`, or the running product of a."""
    like = a if b is None else b
    args = {"a": a, "d": d, "reverse": reverse} | {n: x for n, x in (("b", b), ("start", start)) if x is not None}
    return Value("scanned", args, dtype or like.dtype, like.shape, node, stored=True, grad=like.grad)


def _scanned(pull: Pull, v: Value, idx: Index) -> Expr:
    d, length = v.args["d"], v.shape[v.args["d"]]
    if idx[d].constant is not None:
        position, axes = pull.bound(v, "t", length, idx)
        if len(axes) != 1:
            raise refused(v, "a view cuts the scan in parts")
        whole = _scanned(pull, v, (*idx[:d], position, *idx[d + 1:]))
        return make("pick", whole, size(idx[d].offset), axis=axes[0])
    found = along(idx[d], length)
    if found is None or any(found[0] in x.axes for i, x in enumerate(idx) if i != d):
        raise refused(v, "the states are read in another order than that of the scan")
    axis, backwards = found
    a, b = (convert(pull.at_argument(v, x, broadcast(x.shape, idx)), v.dtype) if x is not None else None
            for x in (v.args["a"], v.args.get("b")))
    assert a is not None
    first = make("eq", idx[d].expr(), (Linear.of(length - 1) if v.args["reverse"] else Linear()).expr())
    if b is None:
        b = where_(first, a, 0)
    if (start := v.args.get("start")) is not None:
        b = b + where_(first, a * convert(pull.at_argument(v, start, (*idx[:d], *idx[d + 1:])), v.dtype), 0)
    return make("scan", a, b, axis=axis, reverse=backwards is not v.args["reverse"])


def _leaf(pull: Pull, v: Value, idx: Index) -> Expr:
    """A value of which nothing is known but its name."""
    return read(Buffer(v.args["name"], compute_type(v.dtype), v.shape), *(i.expr() for i in idx))


RECURRENCES: dict[str, Callable[[Pull, Value, Index], Expr]] = {
    "rolled": _rolled, "step": _step, "state": _state, "carried": _carried, "scanned": _scanned, "leaf": _leaf,
}
