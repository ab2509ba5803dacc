"""Region -> TileProgram: the lowering that all targets share.

Expressions become SSA values once each (an expression is interned, so sharing is identity). What a level needs is found
from its updates and stores; a value without "col" is computed in the first level that needs it and stays valid, a value
with "col" is recomputed by each level, unless the program is staged.
"""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import count

from fuse.codegen import Capabilities
from fuse.codegen.index import affine_index, clamped
from fuse.codegen.renumber import renumber
from fuse.codegen.roles import (
    Roles,
    Split,
    check_carry,
    dim_order,
    factors,
    group_by_dims,
    multiply,
    refuse,
    roles,
    split_product,
)
from fuse.codegen.skip import skips
from fuse.codegen.tile import (Affine, 
    Const,
    Dot,
    Final,
    Level,
    Load,
    Param,
    Point,
    Position,
    Reduce,
    Slot,
    Staged,
    State,
    Statement,
    Store,
    TileProgram,
    Update,
    Value,
    operands,
)
from fuse.ir.expr import Axis, Expr, const, make, topological, where
from fuse.ir.index import affine
from fuse.ir.ops import OPS
from fuse.ir.program import Carry, Kind, Region, carry_part
from fuse.ir.size import Size, product
from fuse.reasons import Miss, Refused


@lru_cache(maxsize=256)
def lower(region: Region, staged: bool = False) -> TileProgram:
    """The tile program of `region`; `staged`: level 0 keeps the dots that later levels need again (see `Staged`).

    Raises Refused(TARGET_LACKS) for regions no target can walk yet: AFFINE carries, prefix reads, reverse walks, and
    (staged) when there is nothing to stage.
    """
    return _Lowering(region).program(staged)


def refusal(region: Region, capabilities: Capabilities, staged: bool = False) -> Miss | None:
    """Why a target with these capabilities cannot run the region, or None if it can."""
    try:
        program = lower(region, staged)
    except Refused as refused:
        return refused.miss
    if len(program.levels) > capabilities.levels:
        return Miss("TARGET_LACKS", None, f"{len(program.levels)} sweeps in one kernel")
    for state in program.states:
        if state.kind.value not in capabilities.kinds or (state.scope == "grid" and not capabilities.shared):
            return Miss("TARGET_LACKS", None, f"a {state.kind.value} carry over {state.scope}")
    for slot in (*program.inputs, *program.outputs):
        if slot.dtype not in capabilities.dtypes:
            return Miss("UNSUPPORTED_DTYPE", None, f"{slot.source} is {slot.dtype}")
    for s in program.statements():
        if isinstance(s, Point) and s.op not in capabilities.ops:
            return Miss("TARGET_LACKS", None, f"no spelling for {s.op}")
        if isinstance(s, Dot) and s.out.dtype not in capabilities.compute:
            return Miss("UNSUPPORTED_DTYPE", None, f"a product in {s.out.dtype}")
        if s.out.dtype not in capabilities.dtypes:
            return Miss("UNSUPPORTED_DTYPE", None, f"a value of type {s.out.dtype}")
    for u in (u for level in program.levels for u in level.updates):
        state = program.state(u.state)
        if (u.kind is Kind.LSE and state.dtype not in capabilities.compute) or (u.wide and state.dtype not in capabilities.compute):
            return Miss("UNSUPPORTED_DTYPE", None, f"{state.name} is accumulated in {state.dtype}")
    return None


@dataclass(frozen=True)
class _Plan:
    """What one level computes besides values."""

    updates: list[Update]
    stores: list[Store]


class _Lowering:
    def __init__(self, region: Region):
        if region.reverse or region.boundaries or any(c.kind is Kind.AFFINE for c in region.carries):
            raise refuse("scans are not walked by this target")
        self.region, self.roles = region, roles(region)
        self.defines: dict[int, Statement] = {}
        self.memo: dict[Expr, Value] = {}
        self.params: list[Size] = []
        self.ids, self.loads = count(), count()
        self.names = {c.name: f"c{k}" for k, c in enumerate(region.carries)}
        self.states: list[State] = []
        self.hidden: dict[tuple, str] = {}
        self.compared: dict[int, Affine] = {}      # comparison of positions -> its left side minus its right side

    # ---- values -----------------------------------------------------------------------------------------------------

    def value(self, root: Expr) -> Value:
        for node in topological([root]):
            if node not in self.memo:
                self.memo[node] = self.emit(node)
        return self.memo[root]

    def new(self, axes: Iterable[Axis] | tuple[str, ...], dtype: str) -> Value:
        axes = tuple(axes)
        dims = self.roles.dims(axes) if not axes or isinstance(axes[0], Axis) else axes
        return Value(next(self.ids), dims, dtype)

    def define(self, statement: Statement) -> Value:
        self.defines[statement.out.id] = statement
        return statement.out

    def emit(self, node: Expr) -> Value:
        """The value of `node`, whose arguments have values already."""
        args = [self.memo[a] for a in node.args]
        match node.op:
            case "const":
                return self.define(Const(self.new((), node.dtype), node["value"]))
            case "size":
                return self.param(node["extent"])
            case "iota":
                return self.define(Position(self.new(node.axes, "int64"), self.roles.name[node["axis"].name]))
            case "read":
                return self.load(node)
            case "carry":
                return self.final(node)
            case "sum" | "max":
                return self.reduction(node)
            case "stop" | "bounded":
                return args[0]
        if not OPS[node.op].pointwise:
            raise refuse(f"{node.op} inside a body", node.origin)
        if node.op == "cast" and node.args[0].dtype == node.dtype:
            return args[0]
        out = self.define(Point(self.new(node.axes, node.dtype), node.op, tuple(args)))
        form = affine(node.args[0] - node.args[1]) if node.op in ("le", "lt") and node.args[0].dtype == "int64" else None
        if form is not None:
            for extent in (form.offset, *form.terms.values()):       # a bound on tiles may need them
                if extent.constant is None:
                    self.param(extent)
                    self.param(-extent)
            self.compared[out.id] = Affine(tuple((self.roles.name[a.name], c) for a, c in form.terms.items()), form.offset)
        return out

    def param(self, extent: Size) -> Value:
        if extent not in self.params:
            self.params.append(extent)
        return self.define(Param(self.new((), "int64"), self.params.index(extent)))

    def load(self, node: Expr) -> Value:
        buffer = node["buffer"]
        index = []
        for e, extent in zip(node.args, buffer.shape, strict=True):
            index.append(affine_index(e, extent, self.roles) or self.value(clamped(e, extent)))
        return self.define(Load(self.new(node.axes, node.dtype), buffer.name, tuple(index), next(self.loads)))

    def final(self, node: Expr) -> Value:
        name, _, suffix = node["name"].partition(".")
        if node["part"] != "final":
            raise refuse(f"a body reads the carry {name} as {node['part']}", node.origin)
        if name not in self.names:
            name, suffix = node["name"], ""
        state = self.names.get(name)
        if state is None:
            raise refuse(f"no carry {node['name']} in this region", node.origin)
        carry = self.region.carry(name)
        if not {a.name for a in self.region.grid} <= {a.name for a in carry.axes}:
            raise refuse(f"{name} is complete only when the whole grid is", node.origin)
        if carry.kind is Kind.LSE and not suffix:
            m, total = (make("carry", **{**dict(node.attrs), "name": f"{name}.{part}"}) for part in "ml")
            return self.value(m + make("log", total))
        return self.define(Final(self.new(node.axes, node.dtype), f"{state}.{suffix}" if suffix else state))

    def reduction(self, node: Expr) -> Value:
        x, axes = node.args[0], node["axes"]
        bound = frozenset(self.roles.dim.get(a.name, "row") for a in axes)
        if bound & {"row", "col"}:
            raise refuse(f"an inner {node.op} over a grid or stream axis", node.origin)
        present = frozenset(self.roles.dims(a for a in axes if x.has(a)))
        repeat = product(a.extent for a in axes if not x.has(a))
        out = self.contract(node.op, x, tuple(sorted(present, key=dim_order)), node.dtype)
        if node.op == "sum" and repeat != 1:
            times = self.param(repeat)
            times = self.define(Point(self.new((), node.dtype), "cast", (times,)))
            out = self.define(Point(self.new(out.dims, node.dtype), "mul", (out, times)))
        return out

    def contract(self, op: str, x: Expr, k: tuple[str, ...], dtype: str) -> Value:
        if not k:
            return self.memo[x]
        split = split_product(x, frozenset(k), self.roles) if op == "sum" else None
        if split is None:
            value = self.memo[x]
            return self.define(Reduce(self.new(tuple(d for d in value.dims if d not in k), dtype), op, value, k))
        a, b = self.value(split.left), self.value(split.right)
        dims = tuple(sorted((set(a.dims) | set(b.dims)) - set(k), key=dim_order))
        out = self.define(Dot(self.new(dims, dtype), a, b, k))
        for factor in split.outer:
            scale = self.value(factor)
            dims = tuple(sorted(set(out.dims) | set(scale.dims), key=dim_order))
            out = self.define(Point(self.new(dims, dtype), "mul", (out, scale)))
        return out

    # ---- carries ----------------------------------------------------------------------------------------------------

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
        base = dict(state=state.name, kind=carry.kind, over=over)
        if carry.kind is not Kind.SUM:
            if carry.kind is Kind.ARGMAX and len(carry.over) != 1:
                raise refuse(f"{carry.name} is an argmax over several axes")
            position = self.roles.name[carry.over[0].name] if carry.kind is Kind.ARGMAX else None
            return [Update(value=self.value(carry.body), wide=None, position=position, **base)]
        if carry.relative_to is None:
            return [Update(**self.product(carry.body, over, ()), **base)]
        source = self.region.carry(carry.relative_to)
        if source.level < carry.level:
            plain = replace(carry, body=_weighted(carry, source), relative_to=None, exponent=1, moment=0)
            return self.update(plain, state)
        operand = self.value(source.body)
        extra, lower = self.lower_moments(carry)
        one = carry.body.op == "const" and carry.body["value"] == 1
        sides = dict(value=None, wide=None) if one else self.product(carry.body, over, operand.dims)
        return [*extra, Update(**sides, **base, relative=self.names[source.name], operand=operand,
                               exponent=carry.exponent, moment=carry.moment, lower=lower)]

    def product(self, body: Expr, over: tuple[str, ...], weight: tuple[str, ...]) -> dict[str, Value | None]:
        """body as value * wide when that makes the update a matrix product; `weight`: dims that go with value."""
        contracted = frozenset(over)
        dims = frozenset(self.roles.dims(body.axes))
        if not contracted or not contracted <= dims | set(weight) or dims <= {"row", "col"}:
            return dict(value=self.value(body), wide=None)
        if weight:
            return self.weighted_product(body, contracted, weight)
        split: Split | None = split_product(body, contracted, self.roles)
        if split is None or split.outer:
            groups = _with_outer(body, contracted, self.roles)
            if groups is None:
                return dict(value=self.value(body), wide=None)
            return dict(value=self.value(groups[0]), wide=self.value(groups[1]))
        return dict(value=self.value(split.left), wide=self.value(split.right))

    def weighted_product(self, body: Expr, contracted: frozenset[str], weight: tuple[str, ...]) -> dict:
        """With a weight w(row, col): factors that share a kept dim with w go with value, the others with wide."""
        kept = set(weight) - contracted
        near = [f for f in factors(body) if set(self.roles.dims(f.axes)) - contracted <= kept]
        far = [f for f in factors(body) if f not in near]
        mixed = any(set(self.roles.dims(f.axes)) & kept for f in far)
        if mixed or not far or not contracted <= {d for f in far for d in self.roles.dims(f.axes)}:
            return dict(value=self.value(body), wide=None)
        value, wide = multiply(near), multiply(far)
        return dict(value=self.value(value) if value is not None else None, wide=self.value(wide))

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
                names.append(self.names[carry.relative_to] + ".l")
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

    # ---- levels -----------------------------------------------------------------------------------------------------

    def program(self, staged: bool) -> TileProgram:
        plans = [self.plan(k) for k in range(self.region.sweeps)]
        roots = [[v for u in p.updates for v in u.values] + [s.value for s in p.stores] for p in plans]
        needed = [self.closure(r, frozenset()) for r in roots]
        again = frozenset(i for later in needed[1:] for i in later) & frozenset(needed[0])
        stage = frozenset(i for i in again if isinstance(self.defines[i], Dot) and self.defines[i].out.scope == "tile")
        if staged and not stage:
            raise refuse(f"{self.region.name} has nothing to stage")
        levels, done = [], set[int]()
        for k, (plan, root) in enumerate(zip(plans, roots, strict=True)):
            order = self.closure(root, stage if staged and k else frozenset())
            statements = [Staged(self.defines[i].out, 0) if staged and k and i in stage else self.defines[i] for i in order]
            before = tuple(s for s in statements if "col" not in s.out.dims and s.out.id not in done)
            body = tuple(s for s in statements if "col" in s.out.dims)
            done |= {s.out.id for s in before}
            kept = tuple(s.out for s in body if s.out.id in stage) if staged and not k else ()
            level = Level(before, body, tuple(plan.updates), tuple(plan.stores), (), kept)
            levels.append(replace(level, skips=skips(replace(level, before=tuple(statements)), self.compared)))
        r = self.roles
        dims = {"row": r.row, "col": r.col} | {a.name: (a.name,) for a in r.axes if a.name in r.dim.values()}
        return renumber(TileProgram(self.region, r.axes, r.batch, dims, tuple(self.params), (), self.outputs(),
                                    tuple(self.states), tuple(levels)))

    def plan(self, level: int) -> _Plan:
        groups = [self.updates(c) for c in self.region.carries if c.level == level]
        updates = [u for group in groups for u in group]
        updates.sort(key=lambda u: (u.relative is not None, u.relative or "", -u.moment))
        return _Plan(updates, [self.store(e) for e in self.region.emits if e.level == level])

    def store(self, emit) -> Store:
        walked = {a.name for a in self.region.grid}
        if not walked <= {a.name for a in emit.axes}:
            raise refuse(f"the emit {emit.name} lacks a grid axis")
        value = self.value(emit.value)
        if not set(value.dims) <= set(self.roles.dims(emit.axes)):
            raise refuse(f"the emit {emit.name} lacks an axis of its value")
        return Store(self.output_name(emit.name), value, tuple(self.roles.name[a.name] for a in emit.axes),
                     self.roles.dims(emit.axes))

    def closure(self, roots: list[Value], stop: frozenset[int]) -> list[int]:
        """Ids of everything below `roots`, arguments first; nothing below an id in `stop` is visited."""
        order: list[int] = []
        seen: set[int] = set()
        stack = [(v.id, False) for v in reversed(roots)]
        while stack:
            i, ready = stack.pop()
            if ready:
                order.append(i)
            elif i not in seen:
                seen.add(i)
                stack.append((i, True))
                if i not in stop:
                    stack.extend((v.id, False) for v in reversed(operands(self.defines[i])))
        return order

    def outputs(self) -> tuple[Slot, ...]:
        slots = []
        for carry in self.region.carries:
            wide = "int64" if carry.kind is Kind.ARGMAX else carry.body.dtype
            dtype = wide if carry.kind is Kind.LSE else carry.storage or wide
            slots += [(s, dtype, carry.axes) for s in carry.stores]
        slots += [(e.name, e.value.dtype, e.axes) for e in self.region.emits]
        return tuple(Slot(self.output_name(source), source, dtype, tuple(self.roles.name[a.name] for a in axes))
                     for source, dtype, axes in slots)


def _weighted(carry: Carry, source: Carry) -> Expr:
    """body * exp(k (s - m)) * (s - m)**n with the finished maximum m of a lower level (0 where m = -inf)."""
    m = carry_part(source, "final", ".m")
    gap = source.body - where(make("eq", m, const(float("-inf"), m.dtype)), 0, m)
    out = carry.body
    if carry.exponent:
        out = out * make("exp", gap * const(carry.exponent, gap.dtype) if carry.exponent != 1 else gap)
    for _ in range(carry.moment):
        out = out * gap
    return out


def _with_outer(body: Expr, contracted: frozenset[str], r: Roles) -> tuple[Expr, Expr] | None:
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
    left, right = (multiply(s) for s in sides)
    assert left is not None and right is not None
    return left, right
