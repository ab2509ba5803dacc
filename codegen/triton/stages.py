"""A region with scans as several that run one after the other, so that large states can be shared out over programs.

A width is the lane only if nothing needs all of its positions at once (`fuse.codegen.walk`), which two things prevent: a sum
over it that is read again, and a scan without it. So what lies between is stored, at every column:

    h[d, m] = sum_s k[s, d] v[s, m] c[s]        c comes from narrow scans: stored
    y[d]    = sum_m h[d, m] g[m]                stored where it meets sum_d y[d], or anything else that no lane can have
    z       = y[d] + f(other scans)

Scans of the most widths are wide, the others narrow. A value belongs to a stage, even for wide values, odd for all others: the
first one at which everything is stored that it reads of others. `lanes` of a wide value are the widths over which nothing
below it is summed. What has fewer widths than the wide scans is at most as large as what goes in.

A stage is walked once for each direction of its scans, unless a result needs both, and for each lane that its results share:
then no state is kept in memory, and no result is left in parts.
"""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from fuse.codegen.roles import refuse
from fuse.ir.expr import COMPLEXES, FLOATS, Axis, Buffer, Expr, make, rewrite, topological
from fuse.ir.program import Carry, Emit, Kind, Region
from fuse.reasons import Refused

Axes = frozenset[Axis]
Result = Emit | Carry


def staged(region: Region) -> tuple[Region, ...]:
    """In execution order: what one stores the next may read. The region itself where it cannot be cut."""
    plain = not any(x.dtype in COMPLEXES for x in topological(region.bodies))
    if not plain or region.sweeps > 1 or len(region.streams) != 1:
        return (region,)
    try:
        found = tuple(_Stages(region).regions())
    except Refused:
        return (region,)
    return found if len(found) > 1 else (region,)


def value_of(result: Result) -> Expr:
    return result.value if isinstance(result, Emit) else result.body


@dataclass
class _Group:
    """Results of one region: scans go in `ways`, every result has each of `lanes`."""

    ways: frozenset[bool]
    lanes: Axes
    results: list[Result] = field(default_factory=list)


class _Stages:
    """`stage`: of every value; `lanes`: of wide values; `cover`: of wide and narrow values, the cheapest to store so that
    the value can be computed from them without a scan; `stored`: those that are."""

    def __init__(self, region: Region):
        self.region, self.walked = region, {*region.grid, *region.streams}
        self.carries = {c.body: c for c in region.carries if c.kind is Kind.AFFINE}
        self.most = max(len(self.widths(body)) for body in self.carries)
        self.stage: dict[Expr, int] = {}
        self.lanes: dict[Expr, Axes] = {}
        self.cover: dict[Expr, tuple[Expr, ...]] = {}
        self.stored: dict[Expr, None] = {}
        for x in topological(region.bodies):
            self.visit(x)

    def widths(self, x: Expr) -> Axes:
        return frozenset(x.axes) - self.walked

    # ---- values -----------------------------------------------------------------------------------------------------

    def visit(self, x: Expr) -> None:
        """Wide arguments of fewer widths are stored where x cannot be computed beside them."""
        begins = x in self.carries and len(self.widths(x)) == self.most
        wide = [a for a in x.args if a in self.lanes]
        stage = 0
        while wide or begins:
            stage = even(max((self.needs(a, a not in wide) for a in x.args), default=0))
            meet = self.widths(x) if begins else self.lanes[wide[0]]
            meet = meet.intersection(*(self.lanes[a] for a in wide))
            inside = [a for a in wide if len(self.widths(a)) == self.most or (self.stage[a] == stage and meet)]
            if inside == wide:
                self.lanes[x] = self.remaining(x, meet)
                break
            wide = inside
        if x not in self.lanes:
            narrow = x in self.carries or any(a in self.cover and a not in self.lanes for a in x.args)
            stage = max((self.needs(a, a in self.lanes) for a in x.args), default=0)
            stage = odd(stage) if narrow else stage
        self.stage[x] = stage
        for a in x.args:
            if a in self.cover and a not in wide and (x in self.lanes or a in self.lanes):
                self.stored.update(dict.fromkeys(self.cover[a]))
        if x in self.lanes or narrow:
            self.cover[x] = self.covered(x, [a for a in x.args if a in self.cover and (a in self.lanes) == (x in self.lanes)])

    def needs(self, a: Expr, elsewhere: bool) -> int:
        """The first stage at which `a` can be read, from memory if it was computed elsewhere."""
        return self.stage[a] + (elsewhere and a in self.cover)

    def remaining(self, x: Expr, lanes: Axes) -> Axes:
        """The lanes of x, its wide arguments having `lanes` in common. None are left to a sum over all widths: each lane's
        program leaves a part of it."""
        left = lanes - frozenset(x["axes"]) if x.op == "sum" else lanes & self.widths(x)
        if not lanes or (not left and self.widths(x)):
            raise refuse("a wide scan without a lane", x.origin)
        return left

    def covered(self, x: Expr, args: list[Expr]) -> tuple[Expr, ...]:
        def cost(values: Iterable[Expr]) -> int:
            return sum(64 ** len(self.widths(v)) for v in values)
        below = tuple(dict.fromkeys(y for a in args for y in self.cover[a]))
        whole = x in self.carries or any(len(self.widths(a)) == self.most for a in args if a in self.lanes)
        cheaper = cost(below) < cost([x]) or x.dtype not in FLOATS
        return below if args and not whole and cheaper else (x,)

    # ---- regions ----------------------------------------------------------------------------------------------------

    def regions(self) -> Iterable[Region]:
        stages: dict[int, list[Result]] = {}
        for result in self.results():
            value = value_of(result)
            stage = self.stage[value]
            stages.setdefault(stage if value in self.lanes else odd(stage), []).append(result)
        for stage in sorted(stages):
            memo = {x: self.read(x) for x in self.stored if self.stage[x] < stage}
            yield from (self.rebuilt(g, memo, f"{self.region.name}.{stage}.{k}")
                        for k, g in enumerate(self.groups(stages[stage], memo)))

    def results(self) -> list[Result]:
        """What the region stores and what is stored between stages. A scan is stored by whoever computes it."""
        r = self.region
        found: list[Result] = [*r.emits, *(c for c in r.carries if c.kind is not Kind.AFFINE)]
        seen = set(topological(map(value_of, found)))
        own = {e.value for e in r.emits}
        return [*found, *(c for c in self.carries.values() if c.body not in seen),
                *(self.between(x) for x in self.stored if x not in own)]

    def between(self, x: Expr) -> Emit:
        """What stores x; the emit of the region if it has one."""
        own = next((e for e in self.region.emits if e.value is x), None)
        widths = (a for a in x.axes if a not in self.walked)
        name = f"{self.region.name}.{list(self.stored).index(x)}"
        return own or Emit(name, x, (*self.region.grid, *self.region.streams, *widths))

    def read(self, x: Expr) -> Expr:
        emit = self.between(x)
        buffer = Buffer(emit.name, x.dtype, tuple(a.extent for a in emit.axes))
        return make("read", *(make("iota", axis=a) for a in emit.axes), buffer=buffer)

    def groups(self, results: list[Result], memo: dict[Expr, Expr]) -> list[_Group]:
        """Results that are computed together; those of scans both ways, and with the fewest lanes, choose first."""
        ways = {r.name: self.ways(value_of(r), memo) for r in results}
        groups: list[_Group] = []

        def order(r: Result) -> tuple[int, int]:
            return -len(ways[r.name]), len(self.lanes.get(value_of(r), ())) or self.most

        def home(r: Result) -> _Group:
            value, mine = value_of(r), ways[r.name]
            for g in groups:
                if mine <= g.ways and (value not in self.lanes or g.lanes & self.allowed(value, g)):
                    return g
            groups.append(_Group(mine, frozenset(a for body in self.carries for a in self.widths(body))))
            return groups[-1]

        for r in sorted(results, key=order):
            group = home(r)
            group.lanes &= self.allowed(value_of(r), group)
            group.results.append(r)
        return groups

    def allowed(self, x: Expr, group: _Group) -> Axes:
        """The lanes with which the group can compute x. To leave a sum over the lane in parts is better than to rehearse its
        scans once more."""
        lanes = self.lanes.get(x, frozenset[Axis]())
        if x.op == "sum" and x in self.lanes and (not lanes or len(group.ways) > 1):
            lanes |= self.lanes.get(x.args[0], frozenset[Axis]()) & frozenset(x["axes"])
        return lanes

    def ways(self, x: Expr, memo: dict[Expr, Expr]) -> frozenset[bool]:
        (new,) = rewrite([x], lambda _: None, dict(memo))
        return frozenset(bool(e["reverse"]) for e in topological([new]) if e.op == "scan")

    def rebuilt(self, group: _Group, memo: dict[Expr, Expr], name: str) -> Region:
        r, results = self.region, group.results
        scans = list(self.carries)
        new = rewrite([*map(value_of, results), *scans], lambda _: None, dict(memo))
        values, bodies = new[:len(results)], new[len(results):]
        seen = set(topological(values))
        carries = [replace(self.carries[old], body=body) for old, body in zip(scans, bodies, strict=True)
                   if body.op == "scan" and body in seen]
        carries += [replace(x, body=v) for x, v in zip(results, values, strict=True)
                    if isinstance(x, Carry) and x.kind is not Kind.AFFINE]
        emits = [replace(x, value=v) for x, v in zip(results, values, strict=True) if isinstance(x, Emit)]
        return Region(name, r.streams, r.grid, tuple(carries), tuple(emits), min(group.ways, default=False)
                      if len(group.ways) < 2 else r.reverse)


def even(n: int) -> int:
    return n + n % 2


def odd(n: int) -> int:
    return n + 1 - n % 2
