"""Carries of a region as states and updates."""
from __future__ import annotations

from dataclasses import dataclass, replace

from fuse.codegen.roles import Roles, Split, check_carry, factors, group_by_dims, multiply, refuse, split_product
from fuse.codegen.ssa import Expressions
from fuse.codegen.tile import State, Update, Value
from fuse.ir.expr import Expr, const, make, where
from fuse.ir.program import Carry, Kind, Region, carry_part


@dataclass(frozen=True)
class Sides:
    """A contribution is value * wide (see `Update`); None stands for 1."""

    value: Value | None = None
    wide: Value | None = None


class Carries(Expressions):
    def __init__(self, region: Region):
        super().__init__(region)
        self.states: list[State] = []
        self.hidden: dict[tuple[object, ...], str] = {}

    def state(self, carry: Carry, name: str, stores: tuple[str, ...]) -> State:
        over = {a.name for a in carry.over}
        dims = self.roles.dims(carry.axes)
        keeps = tuple(self.roles.name[a.name] for a in carry.axes if a.name not in self.roles.dim)
        scope = "grid" if over & {a.name for a in self.region.grid} else "row"
        dtype = "int64" if carry.kind is Kind.ARGMAX else carry.body.dtype
        state = State(name, carry.kind, dtype, dims, keeps, scope, carry.level, stores, carry.body.dtype)
        self.states.append(state)
        return state

    def updates(self, carry: Carry) -> list[Update]:
        """The update of `carry`, after those of the lower moments it needs and the user did not ask for."""
        check_carry(carry, self.region, self.roles)
        stores = tuple(self.output_name(s) for s in carry.stores)
        state = self.state(carry, self.names[carry.name], stores)
        return self.update(carry, state)

    def update(self, carry: Carry, state: State) -> list[Update]:
        over = self.roles.dims(carry.over)
        if carry.kind is not Kind.SUM:
            if carry.kind is Kind.ARGMAX and len(carry.over) != 1:
                raise refuse(f"{carry.name} is an argmax over several axes")
            position = self.roles.name[carry.over[0].name] if carry.kind is Kind.ARGMAX else None
            return [Update(state.name, carry.kind, self.value(carry.body), None, over, position=position)]
        if carry.relative_to is None:
            sides = self.product(carry.body, over, ())
            return [Update(state.name, carry.kind, sides.value, sides.wide, over, limit=self.limit(carry, sides))]
        source = self.region.carry(carry.relative_to)
        if source.level < carry.level:
            plain = replace(carry, body=weighted(carry, source), relative_to=None, exponent=1, moment=0)
            return self.update(plain, state)
        operand = self.value(source.body)
        extra, lower = self.lower_moments(carry)
        one = carry.body.op == "const" and carry.body["value"] == 1
        sides = Sides() if one else self.product(carry.body, over, operand.dims)
        return [*extra, Update(state.name, carry.kind, sides.value, sides.wide, over, self.names[source.name], operand,
                               carry.exponent, carry.moment, lower)]

    def limit(self, carry: Carry, sides: Sides) -> Value | None:
        """eps * scale, if what it is compared with is the tile operand of a matrix product."""
        body = carry.body
        if carry.scale is None or carry.eps is None or sides.wide is None or sides.value is None or body.op != "mul":
            return None
        entries = sides.value.dims == ("row", "col") and self.value(body.args[0]) == sides.value
        return self.value(carry.scale * const(carry.eps, body.dtype)) if entries else None

    def product(self, body: Expr, over: tuple[str, ...], weight: tuple[str, ...]) -> Sides:
        """body as value * wide when that makes the update a matrix product; `weight`: dims that go with value."""
        contracted = frozenset(over)
        dims = frozenset(self.roles.dims(body.axes))
        if not contracted or not contracted <= dims | set(weight) or dims <= {"row", "col"}:
            return Sides(self.value(body))
        if weight:
            return self.weighted_product(body, contracted, weight)
        split: Split | None = split_product(body, contracted, self.roles)
        if split is None or split.outer:
            groups = with_outer(body, contracted, self.roles)
            if groups is None:
                return Sides(self.value(body))
            return Sides(self.value(groups[0]), self.value(groups[1]))
        return Sides(self.value(split.left), self.value(split.right))

    def weighted_product(self, body: Expr, contracted: frozenset[str], weight: tuple[str, ...]) -> Sides:
        """With a weight w(row, col): factors that share a kept dim with w go with value, the others with wide.

        A weight of contracted dims alone goes with either side of a product that is a dot without it.
        """
        kept = set(weight) - contracted
        groups = group_by_dims(factors(body), contracted, self.roles) if not kept else None
        if groups is not None:
            return Sides(self.value(multiply(groups[0])), self.value(multiply(groups[1])))
        near = [f for f in factors(body) if set(self.roles.dims(f.axes)) - contracted <= kept]
        far = [f for f in factors(body) if f not in near]
        mixed = any(set(self.roles.dims(f.axes)) & kept for f in far)
        if mixed or not far or not contracted <= {d for f in far for d in self.roles.dims(f.axes)}:
            return Sides(self.value(body))
        return Sides(self.value(multiply(near)) if near else None, self.value(multiply(far)))

    def lower_moments(self, carry: Carry) -> tuple[list[Update], tuple[str, ...]]:
        """The states of moments 0 .. n-1 of the same sum; made, without a store, where the region has none."""
        extra, names = [], []
        for moment in range(carry.moment):
            same = [c for c in self.region.carries if c.kind is Kind.SUM and c.relative_to == carry.relative_to
                    and (c.body, c.exponent, c.moment, set(c.over), set(c.axes), c.level)
                    == (carry.body, carry.exponent, moment, set(carry.over), set(carry.axes), carry.level)]
            is_l = moment == 0 and carry.exponent == 1 and carry.body.op == "const" and carry.body["value"] == 1
            key = (carry.relative_to, carry.body, carry.exponent, moment)
            if same:
                names.append(self.names[same[0].name])
            elif is_l:
                names.append(f"{self.names[str(carry.relative_to)]}.l")
            elif key in self.hidden:
                names.append(self.hidden[key])
            else:
                name = self.hidden[key] = f"c{len(self.region.carries) + len(self.hidden)}"
                inner = replace(carry, moment=moment, storage=None)
                extra += self.update(inner, self.state(inner, name, ()))
                names.append(name)
        return extra, tuple(names)

    def output_name(self, source: str) -> str:
        return f"y{self.region.stores.index(source)}"


def weighted(carry: Carry, source: Carry) -> Expr:
    """body * exp(k (s - m)) * (s - m)**n with the finished maximum m of a lower level (0 where m = -inf)."""
    m = carry_part(source, "final", ".m")
    gap = source.body - where(make("eq", m, const(float("-inf"), m.dtype)), 0, m)
    out = carry.body
    if carry.exponent:
        out = out * make("exp", gap * const(carry.exponent, gap.dtype) if carry.exponent != 1 else gap)
    for _ in range(carry.moment):
        out = out * gap
    return out


def with_outer(body: Expr, contracted: frozenset[str], r: Roles) -> tuple[Expr, Expr] | None:
    """As split_product, but factors without a contracted dim go with the side whose dims they share."""
    inner = [f for f in factors(body) if contracted & set(r.dims(f.axes))]
    groups = group_by_dims(inner, contracted, r)
    if groups is None:
        return None
    free = [{d for f in g for d in r.dims(f.axes)} - contracted for g in groups]
    sides = [list(g) for g in groups]
    for factor in (f for f in factors(body) if f not in inner):
        dims = set(r.dims(factor.axes))
        home = next((k for k in (0, 1) if dims <= free[k]), None)
        if home is None:
            return None
        sides[home].append(factor)
    return multiply(sides[0]), multiply(sides[1])
