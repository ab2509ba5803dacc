"""The values of a re-rolled loop at a symbolic position, and the scan that its states are.

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
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fuse.frontend.affine import affine_in
from fuse.frontend.index import Linear
from fuse.frontend.operands import compute_type, convert
from fuse.frontend.shadow import Shadow
from fuse.frontend.steps import Family, Steps
from fuse.frontend.symbols import number
from fuse.frontend.value import Value
from fuse.frontend.views import Index, dim, source
from fuse.ir.expr import Axis, Buffer, Expr, cast, const, make, read, size, substitute, topological
from fuse.ir.expr import where as where_
from fuse.ir.size import Size
from fuse.reasons import Miss, Refused

if TYPE_CHECKING:
    from fuse.frontend.importer import Pull

PLACES = ("index", "start", "end")      # arguments of views that say which position


@dataclass(eq=False)
class Loop:
    """The steps of a loop as functions of their position. `flipped`: its results stand last step first."""

    name: str
    steps: Steps
    shadow: Shadow
    flipped: bool
    pairs: dict[Family, tuple[Value, Value]] = field(default_factory=dict)
    built: dict[tuple[Value, Linear], Value] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for f in self.steps.families:
            self.pairs[f] = (self.shadow.value(f.rest[0]), self.shadow.value(f.rest[1]))

    @property
    def length(self) -> int:
        return self.steps.length

    # ---- values ------------------------------------------------------------------------------------------------

    def value(self, f: Family, k: Linear) -> Value:
        """The family at step k; a state is what the scan gives."""
        return self._made("state", f, k) if f.is_state else self.definition(f, k)

    def definition(self, f: Family, k: Linear) -> Value:
        """The family at step k as the step computes it."""
        return self._at(*self.pairs[f], k)

    def _made(self, op: str, f: Family, k: Linear) -> Value:
        v = self.pairs[f][0]
        return Value(op, {"loop": self, "family": f, "at": k}, v.dtype, v.shape, v.node, grad=v.grad)

    def _at(self, one: Value, two: Value, k: Linear) -> Value:
        """The value at step k, given the values at steps 1 and 2."""
        if (one, k) not in self.built:
            if one.op is None or one.op != two.op:
                raise self.refused(one, f"{one.node.target} in a step")
            args = {name: self._argument(name, x, two.args[name], one, k) for name, x in one.args.items()}
            if one.output != two.output:
                args["position"] = k * (two.output - one.output) + (2 * one.output - two.output)
            self.built[one, k] = Value(one.op, args, one.dtype, one.shape, one.node, output=one.output, grad=one.grad,
                                       opaque=one.opaque, overload=one.overload)
        return self.built[one, k]

    def _argument(self, name: str, x: Any, y: Any, user: Value, k: Linear) -> Any:
        if isinstance(x, Value) and isinstance(y, Value):
            return self._operand(x, y, k)
        if isinstance(x, (list, tuple)):
            return type(x)(self._argument(name, a, b, user, k) for a, b in zip(x, y, strict=True))
        if type(x) is int and type(y) is int and x != y and name in PLACES:
            return k * (y - x) + (2 * x - y + self._from_the_end(user, x))
        if x != y:
            raise self.refused(user, f"{name} of {user.op} changes from step to step")
        return x

    def _from_the_end(self, user: Value, position: int) -> Size:
        extent = source(user).shape[dim(user, rank=len(source(user).shape))]
        return extent if position < 0 else Size.of(0)

    def _operand(self, x: Value, y: Value, k: Linear) -> Value:
        if not x.stored:
            return self._at(x, y, k)
        if x.node is y.node:
            return x
        f, step = self.steps.member.get(self.steps.resolve(y.node), (None, 0))
        if f is None:
            raise self.refused(x, f"{x.node.name} is no part of every step")
        return self.value(f, k) if step == 2 else self._made("carried", f, k)

    def refused(self, v: Value, why: str) -> Refused:
        return Refused(Miss("NOT_A_SCAN", v.where, why))

    # ---- the recurrence ----------------------------------------------------------------------------------------

    def along(self, k: Linear) -> tuple[Axis, bool] | None:
        """The axis that step k walks along and whether it does so backwards; None if it is another function."""
        axis = next((a for a in k.axes if a.extent == self.length), None)
        if axis is None or len(k.axes) > 1:
            return None
        if k == Linear.of(axis):
            return axis, False
        return (axis, True) if k == Linear.of(self.length - 1) - axis else None


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
    return _resolved(pull, pull.at_argument(user, loop.value(f, k), idx))


def _carried(pull: Pull, v: Value, idx: Index) -> Expr:
    """The state before a step, as a leaf by which the step's expression may be divided."""
    loop, f, k = v.args["loop"], v.args["family"], v.args["at"]
    name = f"carry {loop.name} {loop.steps.families.index(f)}"
    leaf = read(Buffer(name, compute_type(v.dtype), (Size.of(loop.length), *v.shape)), k.expr(), *(i.expr() for i in idx))
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
        return _resolved(pull, pull.at(loop.value(f, k - 1), idx))
    found = loop.along(k)
    if found is None:
        raise loop.refused(loop.pairs[f][0], "the loop is read in another order")
    axis, backwards = found
    h = pull.at(loop.value(f, k), idx)
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
    return cast(pull.at_argument(loop.pairs[f][0], loop.shadow.value(given), tuple(idx)), dtype)


def _state(pull: Pull, v: Value, idx: Index) -> Expr:
    loop, f, k = v.args["loop"], v.args["family"], v.args["at"]
    if k.constant is not None:
        return _picked(pull, v, idx)
    found = loop.along(k)
    if found is None or any(found[0] in i.axes for i in idx):
        raise loop.refused(v, "the states are read in another order than that of the loop")
    axis, backwards = found
    body = pull.at(loop.definition(f, k), idx)
    own = next((e for e in topological([body]) if e in pull.carried and pull.carried[e][1:] == (f, k, tuple(idx))), None)
    if own is None:
        raise loop.refused(v, "the new state reads other elements of the old one")
    if body.dtype != own.dtype:
        raise loop.refused(v, f"the state is {own.dtype} before a step and {body.dtype} after it")
    body = _resolved(pull, body, own) if not _reads(pull, body, f, own) else body
    form = None if _reads(pull, body, f, own) else affine_in(body, own)
    if form is None:
        raise loop.refused(v, f"{v.node.name} is not a * state + b with a number a for each element")
    return _scan(pull, loop, f, k, idx, form, axis, backwards)


def _reads(pull: Pull, x: Expr, f: Family, own: Expr) -> bool:
    """Does x read the state at other elements than its own?"""
    return any(pull.carried[e][1] is f for e in topological([x]) if e in pull.carried and e is not own)


def _scan(pull: Pull, loop: Loop, f: Family, k: Linear, idx: Index, form: tuple[Expr | None, Expr | None], axis: Axis,
          backwards: bool) -> Expr:
    dtype = compute_type(loop.pairs[f][0].dtype)
    a, b = (const(0, dtype) if x is None else x for x in form)
    first = make("eq", k.expr(), const(0, "int64"))
    start = _start(pull, loop, f, dtype, idx)
    if f.given:
        a, b = where_(first, 0, a), where_(first, start, b)
    elif not (start.op == "const" and start["value"] == 0):
        b = b + where_(first, a * start, 0)
    if not a.has(axis) and not b.has(axis):
        raise loop.refused(loop.pairs[f][0], "nothing changes from step to step")
    return make("scan", a, b, axis=axis, reverse=backwards)


def _picked(pull: Pull, v: Value, idx: Index) -> Expr:
    """The state after one step: the scan, walked in the direction in which its results are read, at that position."""
    loop, f = v.args["loop"], v.args["family"]
    position, axes = pull.bound(v, "t", Size.of(loop.length), idx)
    if len(axes) != 1:
        raise loop.refused(v, "a view cuts the loop in parts")
    end = Linear.of(loop.length - 1)
    k, at = (end - position, end - v.args["at"]) if loop.flipped else (position, v.args["at"])
    return make("pick", pull.at(loop.value(f, k), idx), size(at.offset), axis=axes[0])


RECURRENCES: dict[str, Callable[[Pull, Value, Index], Expr]] = {
    "rolled": _rolled, "step": _step, "state": _state, "carried": _carried,
}
