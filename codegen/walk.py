"""Regions with scans as tile programs: h_t = a_t h_{t-1} + b_t, walked in the order of the stream.

The columns are the stream. At most one axis, the lane, is cut into rows of a tile: its positions are walked side by
side. A grid axis can always be the lane. An axis that the scans carry as a width can if nothing mixes its positions but
sums that are emitted: `laned` moves it to the grid, and such a sum becomes a carry over it.

A value one position away (`shift`) is at hand where the walk has just been, and in front of a scan; elsewhere it is
computed again from what is stored there.
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from fuse.codegen.levels import Levels
from fuse.codegen.pairs import Paired
from fuse.codegen.roles import Roles, assigned, refuse
from fuse.codegen.tile import Entry, Imaginary, ImaginaryPart, Level, Load, Scan, Shift, State, Store, TileProgram, Update, Value
from fuse.codegen.updates import Sides
from fuse.ir.expr import Axis, Expr, const, iota, make, rebuild, rewrite, size, sum_, topological, where
from fuse.ir.program import Carry, Emit, Kind, Region
from fuse.reasons import Refused


def walks(region: Region) -> bool:
    """Whether the region has to be walked in order."""
    return any(c.kind is Kind.AFFINE for c in region.carries)


class Walk(Levels):
    def __init__(self, region: Region, lane: str):
        self.lane = lane
        if region.sweeps > 1 or len(region.streams) != 1:
            raise refuse("scans in several sweeps, or along several axes")
        paired = Paired(laned(region, lane))
        super().__init__(paired.region)
        self.rotations = paired.scans
        self.scans = {c.body: self.names[c.name] for c in self.region.carries if c.kind is Kind.AFFINE}

    def parts(self, region: Region) -> Roles:
        return assigned(region, {a.name for a in region.grid} - {self.lane}, innermost(region))

    def program(self, staged: bool) -> TileProgram:
        if staged:
            raise refuse("nothing is staged in a walk")
        plan = self.plan(0)
        scans = [self.value(body) for body in self.scans]
        order = [self.defines[i] for i in self.closure([v for u in plan.updates for v in u.values]
                                                       + [s.value for s in plan.stores] + scans, frozenset())]
        before = tuple(s for s in order if "col" not in s.out.dims)
        body = tuple(s for s in order if "col" in s.out.dims)
        entries = self.entries()
        entered = {e.state for e in entries}
        against = [s for s in body if isinstance(s, Scan) and s.reverse != self.region.reverse and s.state not in entered]
        needed = set(self.closure([s.out for s in against], frozenset()))
        rehearsal = tuple(s for s in body if s.out.id in needed)
        if any(isinstance(s, Scan) and s not in against for s in rehearsal):
            raise refuse("a scan needs another that runs the other way first")
        level = Level(before, body, tuple(plan.updates), tuple(plan.stores))
        return self.finished((level,), reverse=self.region.reverse, rehearsal=rehearsal, entries=entries, counter=self.counter)

    def entries(self) -> tuple[Entry, ...]:
        """Where scans against the walk find the states with which they enter the tiles."""
        found = list[Entry]()
        for carry in self.region.carries:
            if carry.entry is not None:
                load = self.defines[self.value(carry.entry).id]
                assert isinstance(load, Load)
                found.append(Entry(self.names[carry.name], load))
        return tuple(found)

    @property
    def counter(self) -> str:
        """The canonical name of the axis that counts the tiles."""
        counters = {a for c in self.region.carries for a in c.boundary[:1]}
        counters |= {a for c in self.region.carries if c.entry is not None for a in c.entry.axes if a not in c.axes}
        if len(counters) > 1:
            raise refuse("tiles are counted along several axes")
        return self.roles.name[counters.pop().name] if counters else ""

    def updates(self, carry: Carry) -> list[Update]:
        if carry.kind is not Kind.AFFINE:
            return super().updates(carry)
        final = (self.output_name(carry.name),) if carry.name in carry.buffers else ()
        self.state(carry, self.names[carry.name], final)
        if carry.boundary:
            self.states[-1] = replace(self.states[-1], entered=self.output_name(f"at.{carry.name}"))
        return []

    def store(self, emit: Emit) -> Store:
        store = super().store(emit)
        return replace(store, dims=lanes_last(store.dims))

    def state(self, carry: Carry, name: str, stores: tuple[str, ...]) -> State:
        batch = {a.name for a in self.region.grid} - {self.lane}
        if batch & {a.name for a in carry.over}:
            raise refuse(f"{carry.name} sums over points that are walked apart")
        state = replace(super().state(carry, name, stores), dims=lanes_last(self.roles.dims(carry.axes)))
        self.states[-1] = state
        return state

    def product(self, body: Expr, over: tuple[str, ...], weight: tuple[str, ...]) -> Sides:
        """Matrix products along a few columns of a tile do not pay."""
        return Sides(self.value(body))

    def emit(self, node: Expr) -> Value:
        match node.op:
            case "scan":
                return self.scan(node)
            case "carry" if node["part"] == "scan":
                return self.rotation(node)
            case "shift":
                return self.shift(node)
        return super().emit(node)

    def scan(self, node: Expr) -> Value:
        if node not in self.scans:
            raise refuse("a scan without a carry", node.origin)
        a, b = node.args
        one = a.op == "const" and a["value"] == 1
        return self.define(Scan(self.over(node.axes, node.dtype), None if one else self.memo[a], self.memo[b],
                                self.scans[node], bool(node["reverse"])))

    def rotation(self, leaf: Expr) -> Value:
        """Both parts of a complex scan are computed together; the value of the part that `leaf` is."""
        name, _, part = leaf["name"].rpartition(".")
        it = self.rotations[name]
        re, im = (rebuild(leaf, (), name=f"{name}.{p}") for p in ("re", "im"))
        out = {p: self.over(leaf.axes, leaf.dtype) for p in ("re", "im")}
        a_re, a_im = (None, None) if it.a is None else map(self.value, it.a)
        self.define(Scan(out["re"], a_re, self.value(it.b.re), self.scans[re], it.reverse,
                         ImaginaryPart(out["im"], a_im, self.value(it.b.im), self.scans[im])))
        self.define(Imaginary(out["im"], out["re"]))
        self.memo[re], self.memo[im] = out["re"], out["im"]
        return out[part]

    def reverses(self, x: Expr) -> bool | None:
        """Which way a scan goes; None for anything else."""
        if x.op == "scan":
            return bool(x["reverse"])
        return self.rotations[x["name"].rpartition(".")[0]].reverse if x.op == "carry" and x["part"] == "scan" else None

    def shift(self, node: Expr) -> Value:
        x, by, axis = node.args[0], node["by"], node["axis"]
        if abs(by) != 1 or axis not in self.region.streams:
            raise refuse("a shift by more than one position, or not along the stream", node.origin)
        reverse = self.reverses(x)
        at_hand = (by == 1) != (self.region.reverse if reverse is None else reverse)
        if at_hand and x.has(axis):
            return self.define(Shift(self.over(node.axes, node.dtype), self.memo[x], by))
        return self.value(self.elsewhere(x, axis, by))

    def elsewhere(self, x: Expr, axis: Axis, by: int) -> Expr:
        """x at position - by, zero outside, from what is stored there and from scans one position away."""
        def rule(node: Expr) -> Expr | None:
            return node - const(by, "int64") if node is iota(axis) else None
        held = {e: make("shift", e, axis=axis, by=by) for e in topological([x]) if self.reverses(e) is not None}
        if x in held or any(e.op == "shift" for e in topological([x], set(held))):
            raise refuse("a scan one position ahead of itself", x.origin)
        (moved,) = rewrite([x], rule, dict(held))
        at = iota(axis)
        inside = make("le", const(1, "int64"), at) if by == 1 else make("lt", at, size(axis.extent) - 1)
        return where(inside, moved, 0)


def lanes_last(dims: tuple[str, ...]) -> tuple[str, ...]:
    """Columns, then widths, then the lanes: the order in which a walk keeps its values in memory."""
    return (*(d for d in dims if d != "row"), *(d for d in dims if d == "row"))


def innermost(region: Region) -> str:
    """The width of the largest scans that is summed over least often: sums over the others run side by side."""
    most = max((len(c.axes) for c in region.carries if c.kind is Kind.AFFINE), default=0)
    widths = dict.fromkeys(a for c in region.carries if c.kind is Kind.AFFINE and len(c.axes) == most
                           for a in c.axes if a not in region.grid)
    sums = [n for n in topological(region.bodies) if n.op == "sum" and set(widths) <= set(n.args[0].axes)]
    return min(widths, key=lambda a: sum(a in n["axes"] for n in sums)).name if widths else ""


# ---- lanes ----------------------------------------------------------------------------------------------------------

def laned(region: Region, lane: str) -> Region:
    """`region` with the axis `lane`, which scans carry as a width, moved to the grid; as it is if the grid has it.

    Raises Refused where positions of the axis are mixed before they are emitted.
    """
    if not lane or any(a.name == lane for a in region.grid):
        return region
    axis = next((a for c in region.carries for a in c.axes if a.name == lane), None)
    if axis is None:
        raise refuse(f"no scan carries {lane}")
    carries, emits = list(region.carries), list[Emit]()
    for emit in region.emits:
        if emit.value.has(axis):
            emits.append(emit)
        else:
            carries.append(_summed(emit, axis))
    for body in (*(c.body for c in carries), *(e.value for e in emits)):
        if any(e.op in ("sum", "max", "argmax", "lse") and axis in e["axes"] for e in topological([body])):
            raise refuse(f"{lane} is summed within a scan")
    if any(axis not in (*c.axes, *c.over) for c in carries):
        raise refuse(f"a carry lacks {lane}")
    return replace(region, grid=(*region.grid, axis), carries=tuple(carries), emits=tuple(emits))


def _summed(emit: Emit, axis: Axis) -> Carry:
    """The emit of sum_axis(x) as a carry over the axis."""
    total = emit.value
    if total.op != "sum" or axis not in total["axes"]:
        raise refuse(f"the emit {emit.name} is no sum over {axis.name}")
    rest = [a for a in total["axes"] if a != axis]
    return Carry(emit.name, Kind.SUM, sum_(total.args[0], *rest) if rest else total.args[0], (axis,), emit.axes)


def lanes(region: Region, hints: Mapping[str, int]) -> list[Axis]:
    """The axes that can be the lane, the longest first."""
    widths = {a for c in region.carries if c.kind is Kind.AFFINE for a in c.axes}
    return sorted((a for a in widths if _can_be_laned(region, a)), key=lambda a: (-a.extent.evaluate(hints), a.name))


def _can_be_laned(region: Region, axis: Axis) -> bool:
    try:
        return bool(laned(region, axis.name).grid)
    except Refused:
        return False
