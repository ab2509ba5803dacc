"""lower: groups of leaves become regions; every other expression reads what they store.

    L                ->  m + log l          of the stored pair (m, l)
    exp_sub(x, L)    ->  exp(x - m) * (1 / l)         exp(m' - m) * (l' / l) for a statistic x = (m', l')
    sub_lse(x, L)    ->  (x - m) - log l
    logaddexp(A, B)  ->  the pair (max(m), l_A exp(m_A - m) + l_B exp(m_B - m))
    a separated sum  ->  sum_i c_i * (stored moment i)

Inside its own region a statistic is the `final` part of the carry; everywhere else it is a read.
"""
from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from fuse.ir.access import box
from fuse.ir.expr import Axis, Expr, cast, const, make, rebuild, topological, where
from fuse.ir.program import Carry, Emit, Kind, Output, Program, Region, Step, Term, carry_part, stored
from fuse.passes.merge import Group, Member
from fuse.passes.negligible import negligible, scale_of
from fuse.passes.products import product_of, times
from fuse.passes.regions import Leaf
from fuse.passes.regions import inside as evaluated_inside
from fuse.passes.scale import scaled, scales
from fuse.passes.separate import Moment, is_normaliser

Pair = tuple[Expr, Expr]


class Lowering:
    """Names the carries of every group and resolves leaves to what is stored."""

    def __init__(self, program: Program, groups: list[Group], eps: float | str | None = None):
        self.program, self.groups = program, groups
        self.home: dict[Expr, tuple[Group, Member]] = {m.leaf.value: (g, m) for g in groups for m in g.members}
        self.scales = scales(program, groups, self.home)
        self.negligible = negligible(program, groups, self.home, eps)
        self.storage = _storage(program, self.home) | {
            v: s.dtype for v, s in self.scales.items() if s.complete and s.dtype != v.dtype}
        self.carries: dict[Group, list[Carry]] = {g: [] for g in groups}
        self.moments: dict[tuple[Group, Moment], Carry] = {}
        self.names: dict[Expr, Carry] = {}
        emitted = [m.leaf.value for g in groups for m in g.members if m.leaf.kind is None]
        self.emitted = {value: f"e{i}" for i, value in enumerate(emitted)}
        self.layout = _layouts(program)
        self._count = 0

    def laid_out(self, value: Expr) -> tuple[Axis, ...]:
        """The axes of a value in the order of the output that it is, else its own."""
        return self.layout.get(value, value.axes)

    def run(self) -> Program:
        steps: list[Step] = [self._region(i, g) for i, g in enumerate(self.groups)]
        outside = Resolver(self, None)
        outputs = tuple(replace(o, terms=tuple(Term(tuple(map(outside.lower, t.index)), self._result(o, t.value, outside))
                                               for t in o.terms)) for o in self.program.outputs)
        return replace(self.program, steps=tuple(steps), outputs=outputs, anchors=())

    def _result(self, output: Output, value: Expr, outside: Resolver) -> Expr:
        """The value of an output's term; a gradient whose sweep has applied its factor lacks only what is left of it."""
        leaf = next((f for f in product_of(value).factors if f in self.scales), None) if output.gradient_of else None
        if leaf is not None and self.scales[leaf].complete:
            carry = self.names[leaf]
            return stored(carry.name, carry.storage or carry.body.dtype, carry.axes)
        value = value if leaf is None else times(self.scales[leaf].outside, leaf)
        return _scaled(output, outside.lower(value))

    def _body(self, leaf: Leaf) -> Expr:
        scale = self.scales.get(leaf.value)
        return leaf.body if scale is None else scaled(leaf.body, scale.inside.build(leaf.body.dtype))

    def _accumulated(self, member: Member, group: Group, inside: Resolver) -> Carry:
        leaf, body, allowed = member.leaf, self._body(member.leaf), self.negligible.get(member.leaf.value)
        scale = None
        if allowed is not None:
            width = set(leaf.value.axes) - {*group.grid, *group.streams}
            scale = scale_of(body, width, allowed.rows, self.program.cotangents)
        assert leaf.kind is not None
        return Carry(self._name(), leaf.kind, inside.lower(body), member.over, self.laid_out(leaf.value), level=member.level,
                     storage=self.storage.get(leaf.value), eps=None if scale is None or allowed is None else allowed.eps,
                     scale=None if scale is None else inside.lower(scale))

    def _region(self, number: int, group: Group) -> Region:
        inside = Resolver(self, group)
        emits: list[Emit] = []
        for member in group.members:
            leaf = member.leaf
            if leaf.kind is None:
                emits.append(Emit(self.emitted[leaf.value], inside.lower(leaf.body, own=True), self.laid_out(leaf.value),
                                  member.level))
            elif member.separated is None:
                carry = self.names[leaf.value] = self._accumulated(member, group, inside)
                self.carries[group].append(carry)
            else:
                for moment in filter(None, member.separated.moments):
                    self._moment(group, leaf, moment, inside)
        carries = (*self._states(group, inside), *self.carries[group])
        return Region(f"region{number}", group.streams, group.grid, carries, tuple(emits), group.reverse)

    def _states(self, group: Group, inside: Resolver) -> list[Carry]:
        """One AFFINE carry for every scan evaluated in the group's sweep; one that another sweep emits is read."""
        scans = dict.fromkeys(e for m in group.members for e in evaluated_inside(m.leaf, self.home)
                              if e.op == "scan" and (e not in self.home or self.home[e][0] is group))
        bodies = dict.fromkeys(inside.lower(s) for s in scans)
        return [Carry(self._name(), Kind.AFFINE, body, (body["axis"],), tuple(a for a in body.axes if a != body["axis"]))
                for body in bodies]

    def _name(self) -> str:
        self._count += 1
        return f"c{self._count - 1}"

    def _moment(self, group: Group, leaf: Leaf, moment: Moment, inside: Resolver) -> None:
        """A carry for the moment, and for the lower ones its rescaling needs; the zeroth may be l itself."""
        for n in range(moment.moment + 1):
            lower = replace(moment, moment=n)
            if (group, lower) in self.moments or is_normaliser(lower):
                continue
            lse = None if moment.lse is None else self.names[moment.lse].name
            carry = Carry(self._name(), Kind.SUM, inside.lower(moment.body), leaf.streams, leaf.value.axes, lse,
                          moment.exponent if lse else 1, n)
            self.moments[group, lower] = carry
            self.carries[group].append(carry)


def _scaled(output: Output, value: Expr) -> Expr:
    """s * x with a common factor s of a gradient: 0 where x is 0, even if s is not finite.

    Zeros of masked rows stay zeros where the mean was over no row at all: s = g / 0 was pulled out of where(mask, s * x, 0).
    """
    if output.gradient_of is None or value.op != "mul" or value.args[1].axes or not value.args[0].axes:
        return value
    x, s = value.args
    return where(make("eq", x, const(0, x.dtype)), 0, value) if any(e.op == "div" for e in topological([s])) else value


class Resolver:
    """Rewrites expressions of the unpartitioned program, seen from inside `group` (or from outside all: None)."""

    def __init__(self, lowering: Lowering, group: Group | None):
        self.lowering, self.group, self.memo = lowering, group, dict[Expr, Expr]()

    def lower(self, x: Expr, own: bool = False) -> Expr:
        """`x` over stored values; `own`: x is a leaf whose own definition is wanted, not its stored value."""
        if own:
            return rebuild(x, [self.lower(a) for a in x.args])
        for node in topological([x], self.lowering.home.keys() | self.memo.keys()):
            if node not in self.memo:
                self.memo[node] = self._node(node)
        return self.memo[x]

    def _node(self, node: Expr) -> Expr:
        if node in self.lowering.home:
            return self._leaf(node)
        if node.op == "exp_sub":
            (m, ell), x = self.pair(node.args[1]), node.args[0]
            if x.op in ("lse", "logaddexp"):
                n, part = self.pair(x)
                return make("exp", n - m) * (part / ell)
            return make("exp", self.lower(x) - m) * (const(1, node.dtype) / ell)
        if node.op == "sub_lse":
            m, ell = self.pair(node.args[1])
            return (self.lower(node.args[0]) - m) - make("log", ell)
        return rebuild(node, [self.memo[a] for a in node.args])

    def _leaf(self, node: Expr) -> Expr:
        group, member = self.lowering.home[node]
        if member.leaf.kind is None:
            if group is self.group:                        # seen again in its own sweep: computed, not read
                return self.lower(node, own=True)
            return stored(self.lowering.emitted[node], node.dtype, self.lowering.laid_out(node))
        if member.separated is not None:
            return member.separated.value(lambda moment: self._moment(group, moment), self, node.dtype)
        if node.op == "lse":
            m, ell = self.pair(node)
            return m + make("log", ell)
        return self._part(group, self.lowering.names[node])

    def _moment(self, group: Group, moment: Moment) -> Expr:
        return self._part(group, self.lowering.moments[group, moment])

    def _part(self, group: Group, carry: Carry, suffix: str = "") -> Expr:
        if group is self.group:
            return carry_part(carry, "final", suffix)
        dtype = "int64" if carry.kind is Kind.ARGMAX else carry.storage or carry.body.dtype
        return cast(stored(carry.name + suffix, dtype, carry.axes), "int64" if dtype == "int64" else carry.body.dtype)

    def pair(self, ell: Expr) -> Pair:
        """The pair (m, l) with ell = m + log l."""
        if ell in self.lowering.home:
            group, _ = self.lowering.home[ell]
            carry = self.lowering.names[ell]
            return self._part(group, carry, ".m"), self._part(group, carry, ".l")
        if ell.op == "logaddexp":
            (m, a), (n, b) = map(self.pair, ell.args)
            top = make("maximum", m, n)
            safe = where(make("eq", top, const(-math.inf, top.dtype)), 0, top)     # both sides masked everywhere
            return top, a * make("exp", m - safe) + b * make("exp", n - safe)
        return self.lower(ell), const(1, ell.dtype)


def _storage(program: Program, home: Mapping[Expr, object]) -> dict[Expr, str]:
    """A bfloat16 gradient that is a scalar times one accumulated value is rounded when that value is stored.

    Not so float16: the common factor (1/N, a loss scale) is applied afterwards and the bare sum may overflow.
    """
    found: dict[Expr, str] = {}
    for output in program.outputs:
        if output.gradient_of is None or len(output.terms) != 1 or output.buffer.dtype != "bfloat16":
            continue
        wide = [f for f in product_of(output.terms[0].value).factors if f.axes]
        if len(wide) == 1 and wide[0] in home:
            found[wide[0]] = output.buffer.dtype
    return found


def _layouts(program: Program) -> dict[Expr, tuple[Axis, ...]]:
    """For values that are an output but for a factor, or a box of it: their axes in its order: storing them places them."""
    found: dict[Expr, tuple[Axis, ...]] = {}
    for output, term in ((o, t) for o in program.outputs for t in o.terms):
        place = box(term.index, output.buffer.shape)
        axes = tuple(a for digits, _ in place for a in digits) if place is not None else ()
        for value in (term.value, *product_of(term.value).factors):
            if sorted(a.name for a in axes) == sorted(a.name for a in value.axes):
                found.setdefault(value, axes)
    return found
