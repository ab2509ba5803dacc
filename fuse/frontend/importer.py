"""From graph values to expressions by pulling: a value at an index is its op applied to its arguments at their indices.

    stored value         -> read(x, index)
    view                 -> its source at another index
    pointwise            -> the op of the operands there; dimensions of size 1 are read at 0
    contraction          -> sum over a fresh axis of a product
    free (arange, tril)  -> computed from the index alone

Axes are whatever is free or bound in the result: no axis is ever inferred. A view that needs an axis in two parts raises
Split, and the import starts over with that axis cut.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from fuse.frontend.bind import bind_sizes
from fuse.frontend.candidates import Candidate
from fuse.frontend.index import Linear, Split
from fuse.frontend.lags import CONVOLUTIONS
from fuse.frontend.operands import WIDTH, Operands, compute_type
from fuse.frontend.pieces import split_pieces
from fuse.frontend.recurrence import RECURRENCES
from fuse.frontend.share import share_axes
from fuse.frontend.symbols import number, shape_of, symbol_hints
from fuse.frontend.tables import kind_of
from fuse.frontend.tables_contract import contract
from fuse.frontend.tables_gather import ARRANGED, GATHERS
from fuse.frontend.tables_pointwise import POINTWISE
from fuse.frontend.tables_reduce import FREE, REDUCTIONS, SHAPED
from fuse.frontend.unify import unify
from fuse.frontend.value import Value, example, where
from fuse.frontend.views import VIEWS, Index, broadcast, source
from fuse.ir.expr import COMPLEXES, FLOATS, INTEGERS, Axis, Buffer, Expr, cast, make, read, topological
from fuse.ir.ops import OPS
from fuse.ir.program import Check, Output, Program, Term
from fuse.ir.size import Size, product
from fuse.reasons import Miss, Refused

MAX_SPLITS = 16
DTYPES = {*FLOATS, *COMPLEXES, *INTEGERS, "bool"}


@dataclass(frozen=True)
class Imported:
    """A candidate as a program of plain expressions.

    `inputs[i]` feeds `program.inputs[i]`, `exits[i]` is replaced by `program.outputs[i]`. Where an input's element type
    differs from its node's, autocast rounded the operand: the value has to be cast before it is handed over.
    """

    program: Program
    inputs: tuple[fx.Node, ...]
    exits: tuple[fx.Node, ...]
    anchors: tuple[fx.Node, ...]
    candidate: Candidate
    where: str | None


def import_candidate(candidate: Candidate) -> Imported | Miss:
    """The candidate's exits as one program, or the reason why not."""
    splits: dict[str, Size] = {}
    for _ in range(MAX_SPLITS):
        try:
            return _Importer(candidate, splits).run()
        except Split as split:
            splits[split.axis.name] = split.inner
        except Refused as refused:
            return refused.miss
    return Miss("UNSUPPORTED_VIEW", candidate.where, f"more than {MAX_SPLITS} splits of axes")


class Pull:
    """Evaluates values at symbolic indices. One instance serves all exits of a candidate, for one set of splits."""

    def __init__(self, candidate: Candidate, splits: dict[str, Size]):
        self.candidate, self.splits = candidate, splits
        self.memo: dict[tuple[Value, Index, str | None], Expr] = {}
        self.inputs: dict[tuple[fx.Node, str], Buffer] = {}
        self.anchors: list[Expr] = []
        self.checks: dict[Check, None] = {}
        self.extents: dict[str, Size] = {}
        self.joints: dict[str, list[Size]] = {}
        self.bound_names: set[str] = set()
        self.carried: dict[Expr, Any] = {}      # leaves that stand for a state before its step (recurrence.py)
        self.free: dict[Value, bool] = {}
        self.last = max(candidate.shadow.position[n] for n in candidate.exits)

    # ---- axes --------------------------------------------------------------------------------------------------

    def fresh(self, name: str, extent: Size) -> tuple[Linear, list[Axis]]:
        """A new index over 0..extent-1 and its axes: none for extent 1, several if the axis was split."""
        if extent == 1:
            return Linear(), []
        if name not in self.splits:
            axis = Axis(name, extent)
            return Linear.of(axis), [axis]
        inner = self.splits[name]
        outer_extent = extent.divided_by(inner)
        assert outer_extent is not None
        outer, axes = self.fresh(name + "o", outer_extent)
        rest, more = self.fresh(name + "i", inner)
        return outer * inner + rest, axes + more

    def bound(self, v: Value, tag: str, extent: Size, index: Index, *, grid: bool = False) -> tuple[Linear, list[Axis]]:
        """A fresh index for a reduction of v: named after node and dimension, so that equal statistics are equal.

        `grid`: the rows of a loss, which may be split as freely as those of a result.
        """
        taken = {a.name for i in index for a in i.axes}
        name = f"{v.node.name}.{tag}" if v.stored else f"{v.node.name}.{v.op}.{tag}"
        while any(t == name or (t.startswith(name) and t[len(name):].strip("oi") == "") for t in taken) \
                or self.extents.get(name, extent) != extent:
            name += "'"
        self.extents[name] = extent
        position, axes = self.fresh(name, extent)
        self.bound_names.update(a.name for a in axes if not grid)
        return position, axes

    def join(self, position: Linear, ends: list[Size]) -> None:
        """Notes that a bound axis walks through tensors that were joined, each but the last up to one of `ends`."""
        axis = next(iter(position.axes), None)
        if axis is not None and axis.name in self.bound_names and position == Linear.of(axis) and ends:
            self.joints[axis.name] = ends

    def rebound(self, v: Value, tag: str, position: Linear, extent: Size, others: Index) -> tuple[Linear, list[Axis]]:
        """The index itself, bound anew, if it walks through the whole dimension and nothing else uses its axes."""
        axes = [a for a, _ in position.terms if isinstance(a, Axis)]
        used = {a for i in others for a in i.axes}
        if position.affine and position.offset == 0 and not used & set(axes) and _enumerates(position, extent):
            return position, axes
        return self.bound(v, tag, extent, (position, *others))

    def require(self, op: str, index: Expr, extent: Size) -> None:
        """Remembers that `op` demands 0 <= index < extent, unless no data decides it or fuse itself made the index."""
        below = topological([index])
        if any(e.op == "read" for e in below) and all(OPS[e.op].pointwise for e in below):
            self.checks[Check(op, index, extent)] = None

    # ---- values ------------------------------------------------------------------------------------------------

    def at_argument(self, user: Value, v: Value, idx: Index, rounded: str | None = None) -> Expr:
        """v at idx, as `user` sees it: what was computed without gradients carries none."""
        found = self.at(v, tuple(idx), rounded)
        return make("stop", found) if user.grad and not v.grad and found.dtype in FLOATS + COMPLEXES else found

    def scalar(self, user: Value, x: Any, dtype: str) -> Expr:
        """A number among the arguments, which Dynamo may pass as a tensor."""
        return cast(self.at_argument(user, x, ()), dtype) if isinstance(x, Value) else number(x, dtype)

    def at(self, v: Value, idx: Index, rounded: str | None = None) -> Expr:
        """v at idx. `rounded`: the type to which an operand read from storage is rounded first (autocast)."""
        idx = tuple(Linear() if extent == 1 else i for i, extent in zip(idx, v.shape, strict=True))
        key = (v, idx, rounded)
        found = self.memo.get(key)
        if found is None:
            found = self._at(v, idx, rounded)
            if found.origin is None and found.args:
                found.origin = v.where
            self.memo[key] = found
        return found

    def _at(self, v: Value, idx: Index, rounded: str | None) -> Expr:
        if v.node in self.candidate.dependent:
            return self._rule(v, idx, rounded)
        if v.op is None:
            return self.read(v, idx, rounded)
        if self._inlined(v):
            try:
                return self._rule(v, idx, rounded)
            except Refused:
                if not v.stored:
                    raise
            except Split as split:
                # A stored value's own reshape may not cut a reduction's axis in two: read the reshaped value.
                if not v.stored or split.axis.name not in self.bound_names:
                    raise
        elif not v.stored:
            return self._rule(v, idx, rounded)
        return self.read(v, idx, rounded)

    def _inlined(self, v: Value) -> bool:
        """Is a value that depends on no virtual one recomputed where it is used rather than read?"""
        kind = kind_of(v)
        if kind == "view" or self.is_free(v):
            return True
        if v.op in ("to", "_to_copy", "type_as"):
            return WIDTH[v.dtype] >= WIDTH[source(v).dtype] or v.dtype not in FLOATS
        return kind == "pointwise" and self._amplifies(v)

    def _amplifies(self, v: Value) -> bool:
        """A pointwise value made from much smaller ones (a mask, one-hot labels): never worth storing."""
        whole, total, stack, seen = self.numel(v.shape), 0, [v], {v}
        while stack:
            for s in stack.pop().sources():
                if s in seen or self.is_free(s):
                    continue
                seen.add(s)
                if 2 * self.numel(s.shape) > whole or not s.stored:
                    if kind_of(s) not in ("pointwise", "view"):
                        return False
                    stack.append(s)
                else:
                    total += self.numel(s.shape)
        return 0 < 2 * total <= whole

    def numel(self, shape: tuple[Size, ...]) -> int:
        hints = self.candidate.hints
        total = product(shape)
        return int(total.evaluate({s: hints.get(s, 1) for s in total.symbols}))

    def is_free(self, v: Value) -> bool:
        """Does v depend on no tensor's elements?"""
        if v not in self.free:
            if v.stored and v.node in self.candidate.shadow.data:
                return False
            self.free[v] = (v.op in FREE and v.op not in ("full_like",) and not any(s for s in _fills(v))) or (
                v.op is not None and kind_of(v) in ("view", "pointwise", "shaped") and v.node not in self.candidate.dependent
                and any(True for _ in v.sources()) and all(map(self.is_free, v.sources())))
        return self.free[v]

    def is_anchor(self, v: Value) -> bool:
        return v.node in self.candidate.anchors

    def wide_anchors(self) -> tuple[Expr, ...]:
        """The anchors at their different indices; one at a few positions only (a diagonal) is an ordinary value."""
        sizes = {a: self.numel(tuple(x.extent for x in a.axes)) for a in self.anchors}
        widest = max(sizes.values(), default=0)
        return tuple(a for a, n in sizes.items() if 4 * n >= widest)

    def read(self, v: Value, idx: Index, rounded: str | None = None) -> Expr:
        """v at idx as memory holds it."""
        if not v.stored:
            raise Refused(Miss(v.opaque or "UNSUPPORTED_OP", v.where, lambda: f"{v.node.name} ({v.node.target})"))
        if v.dtype not in DTYPES:
            raise Refused(Miss("UNSUPPORTED_DTYPE", v.where, v.dtype))
        if self.candidate.shadow.mutated_between(v.node, v.since, self.last):
            raise Refused(Miss("MUTATION", v.where, lambda: f"{v.node.name} changes while it is in use"))
        dtype = rounded if rounded and v.dtype in FLOATS and WIDTH[v.dtype] > WIDTH[rounded] else v.dtype
        key = (v.node, dtype)
        if key not in self.inputs:
            self.inputs[key] = Buffer(f"x{len(self.inputs)}", dtype, v.shape)
        return cast(read(self.inputs[key], *(i.expr() for i in idx)), compute_type(dtype))

    def _rule(self, v: Value, idx: Index, rounded: str | None) -> Expr:
        if v.op is None:
            raise Refused(Miss(v.opaque or "UNSUPPORTED_OP", v.where, lambda: f"{v.node.target}"))
        kind = kind_of(v)
        if kind == "view":
            found = self.at_argument(v, source(v), tuple(VIEWS[v.op](v, idx)), rounded)
            return make("stop", found) if v.op == "detach" and found.dtype in FLOATS + COMPLEXES else found
        if kind == "contraction":
            return contract(self, v, idx)
        if kind == "pointwise" and v.op in POINTWISE:
            return self._pointwise(v, idx, rounded)
        rule = RULES.get(v.op)
        if rule is None:
            raise Refused(Miss("UNSUPPORTED_OP", v.where, lambda: f"aten.{v.op}.{v.overload}"))
        return rule(self, v, idx)

    def _pointwise(self, v: Value, idx: Index, rounded: str | None) -> Expr:
        cached: dict[str, Expr] = {}

        def fetch(name: str) -> Expr:
            if name not in cached:
                arg = v.args[name]
                cached[name] = self.at_argument(v, arg, broadcast(arg.shape, idx), rounded if v.op == "to" else None)
            return cached[name]
        return POINTWISE[v.op or ""](Operands(v, fetch))


RULES: dict[str, Callable[[Pull, Value, Index], Expr]] = {
    **FREE, **SHAPED, **REDUCTIONS, **GATHERS, **ARRANGED, **RECURRENCES, **CONVOLUTIONS}


def _fills(v: Value) -> list[Value]:
    fill = v.args.get("fill_value")
    return [fill] if isinstance(fill, Value) else []


def _enumerates(position: Linear, extent: Size) -> bool:
    """Does the index take every value of 0..extent-1 once? True for mixed-radix sums such as `a*m + b`."""
    running = Size.of(1)
    rest = [(a, c) for a, c in position.terms if isinstance(a, Axis)]
    while rest:
        found = next((t for t in rest if t[1] == running), None)
        if found is None:
            return False
        rest.remove(found)
        running = running * found[0].extent
    return running == extent


class _Importer:
    """One attempt, for one set of splits."""

    def __init__(self, candidate: Candidate, splits: dict[str, Size]):
        self.candidate = candidate
        self.pull = Pull(candidate, splits)

    def run(self) -> Imported:
        candidate, pull = self.candidate, self.pull
        outputs = tuple(self._exit(k, node) for k, node in enumerate(candidate.exits))
        outputs, anchors = unify(*split_pieces(outputs, pull.wide_anchors(), pull.joints))
        if not candidate.anchors or candidate.chained:
            outputs = share_axes(outputs)
        nodes = tuple(node for node, _ in pull.inputs)
        buffers = tuple(pull.inputs.values())
        hints = symbol_hints(example(n) for n in (*nodes, *candidate.exits))
        program = Program(buffers, outputs, anchors=anchors, checks=tuple(pull.checks), hints=tuple(sorted(hints.items())))
        program = bind_sizes(program, candidate.where)
        return Imported(program, nodes, candidate.exits, candidate.anchors, candidate, candidate.where)

    def _exit(self, k: int, node: fx.Node) -> Output:
        shadow = self.candidate.shadow
        v = shadow.given.get(node, shadow.value(node))
        if not isinstance(v, Value):
            raise Refused(Miss("OTHER_USER", where(node), lambda: f"{node.target}"))
        if v.dtype not in DTYPES:
            raise Refused(Miss("UNSUPPORTED_DTYPE", v.where, v.dtype))
        index = tuple(self.pull.fresh(f"g{k}.{d}", extent)[0] for d, extent in enumerate(v.shape))
        found = cast(self.pull.at(v, index), v.dtype)
        if found.dtype in FLOATS + COMPLEXES and not _differentiable(node):
            found = make("stop", found)
        return Output(Buffer(f"out{k}", v.dtype, shape_of(example(node))), (Term(tuple(i.expr() for i in index), found),))


def _differentiable(node: fx.Node) -> bool:
    tensor = example(node)
    return isinstance(tensor, torch.Tensor) and tensor.requires_grad
