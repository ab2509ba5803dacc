"""An unrolled loop as one step at a symbolic position: the values of two of its copies, and what differs between them.

    x.select(1, 1), x.select(1, 2)   ->   x.select(1, k)
"""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fuse.frontend.index import Linear
from fuse.frontend.recurrence import made, refused, value
from fuse.frontend.shadow import Shadow
from fuse.frontend.steps import Family, Steps
from fuse.frontend.value import Value
from fuse.frontend.views import dim, source
from fuse.ir.size import Size

PLACES = ("index", "start", "end")      # arguments of views that say which position
PIECES = ("unbind", "split", "chunk")   # views that give all positions at once


@dataclass(eq=False)
class Unrolled:
    """The copies of a step in a graph as one step at a symbolic position."""

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
    def families(self) -> list[Family]:
        return self.steps.families

    @property
    def length(self) -> Size:
        return Size.of(self.steps.length)

    def like(self, f: Family) -> Value:
        return self.pairs[f][0]

    def definition(self, f: Family, k: Linear) -> Value:
        return self._at(*self.pairs[f], k)

    def _at(self, one: Value, two: Value, k: Linear) -> Value:
        """The value at step k, given the values at steps 1 and 2."""
        if (one, k) not in self.built:
            if one.op is None or one.op != two.op:
                raise refused(one, f"{one.node.target} in a step")
            args = {name: self._argument(name, x, two.args[name], one, k) for name, x in one.args.items()}
            if one.output != two.output:
                if one.op not in PIECES:
                    raise refused(one, f"each step takes another result of {one.op}")
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
            return k * (y - x) + (2 * x - y + self._from_the_end(user, name, x, y))
        if x != y:
            raise refused(user, f"{name} of {user.op} changes from step to step")
        return x

    def _from_the_end(self, user: Value, name: str, x: int, y: int) -> Size:
        """What is added to positions that count from the end. Refused if one lies outside: slices are cut off there."""
        extent = source(user).shape[dim(user, rank=len(source(user).shape))]
        added = extent if x < 0 else Size.of(0)
        last = added + (x + (self.steps.length - 2) * (y - x))
        inside = all(p.nonnegative() and (extent - p).nonnegative() for p in (added + x, last))
        if name != "end" and not inside:
            raise refused(user, "a step reads beyond the end of a tensor")
        return added

    def _operand(self, x: Value, y: Value, k: Linear) -> Value:
        if not x.stored:
            return self._at(x, y, k)
        if x.node is y.node:
            return x
        f, step = self.steps.member.get(self.steps.resolve(y.node), (None, 0))
        if f is None:
            raise refused(x, f"{x.node.name} is no part of every step")
        return value(self, f, k) if step == 2 else made(self, "carried", f, k)
