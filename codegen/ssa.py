"""Expressions of a region as SSA values: the part of the lowering that looks at one expression at a time."""
from __future__ import annotations

from collections.abc import Iterable
from itertools import count

from fuse.codegen.index import affine_index, clamped
from fuse.codegen.roles import Roles, dim_order, refuse, roles, split_product
from fuse.codegen.tile import Affine, Const, Dot, Final, Load, Param, Point, Position, Reduce, Statement, Value
from fuse.ir.expr import Axis, Expr, make, topological
from fuse.ir.index import affine
from fuse.ir.ops import OPS
from fuse.ir.program import Kind, Region
from fuse.ir.size import Size, product


class Expressions:
    """Expressions are interned, so sharing is identity: each becomes one value."""

    def __init__(self, region: Region):
        self.region, self.roles = region, self.parts(region)
        self.defines: dict[int, Statement] = {}
        self.memo: dict[Expr, Value] = {}
        self.params: list[Size] = []
        self.ids, self.loads = count(), count()
        self.names = {c.name: f"c{k}" for k, c in enumerate(region.carries)}
        self.compared: dict[int, Affine] = {}      # comparison of positions -> its left side minus its right side

    def parts(self, region: Region) -> Roles:
        return roles(region)

    def value(self, root: Expr) -> Value:
        for node in topological([root]):
            if node not in self.memo:
                self.memo[node] = self.emit(node)
        return self.memo[root]

    def over(self, axes: Iterable[Axis], dtype: str) -> Value:
        """A new value that varies along `axes`."""
        return Value(next(self.ids), self.roles.dims(axes), dtype)

    def new(self, dims: Iterable[str], dtype: str) -> Value:
        return Value(next(self.ids), tuple(sorted(set(dims), key=dim_order)), dtype)

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
                return self.define(Position(self.over(node.axes, "int64"), self.roles.name[node["axis"].name]))
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
        out = self.define(Point(self.over(node.axes, node.dtype), node.op, tuple(args)))
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
        return self.define(Load(self.over(node.axes, node.dtype), buffer.name, tuple(index), next(self.loads)))

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
        return self.define(Final(self.over(node.axes, node.dtype), f"{state}.{suffix}" if suffix else state))

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
            return self.define(Reduce(self.new({*value.dims} - {*k}, dtype), op, value, k))
        a, b = self.value(split.left), self.value(split.right)
        out = self.define(Dot(self.new({*a.dims, *b.dims} - {*k}, dtype), a, b, k))
        for factor in split.outer:
            scale = self.value(factor)
            out = self.define(Point(self.new((*out.dims, *scale.dims), dtype), "mul", (out, scale)))
        return out
