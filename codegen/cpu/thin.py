"""Products of a matrix and a vector become sums: a loop over what makes the matrix needs no copy of it and no GEMM.

    sum_k a[m, k] b[k]             Dot    -> Reduce of a * b
    state[n] += sum_j a[j] b[j, n] Update -> the same without `wide`

Not where a value has rows and columns at once: those tiles are stored for products anyway. Equal products become one.
"""
from __future__ import annotations

from dataclasses import replace
from itertools import count

from fuse.codegen.roles import dim_order
from fuse.codegen.tile import Dot, Level, Load, Point, Reduce, Statement, TileProgram, Update, Value, operands
from fuse.ir.program import Kind


def thin(program: TileProgram) -> TileProgram:
    """An equal program in which every Dot has two matrices, and no two are the same."""
    work = _Thin(program)
    levels = tuple(work.level(level) for level in program.levels)
    defines: dict[int, Statement] = {}
    for level in levels:
        for s in (*level.before, *level.body):
            defines.setdefault(s.out.id, s)
    return replace(program, levels=levels, defines=defines)


class _Thin:
    def __init__(self, program: TileProgram):
        self.fresh = count(max(program.defines, default=-1) + 1)
        self.staged = {v.id for level in program.levels for v in level.stage}
        self.products: dict[tuple[frozenset[int], tuple[str, ...]], Value] = {}
        self.same: dict[int, Value] = {}

    def level(self, level: Level) -> Level:
        self.products.clear()
        self.same.clear()
        before = [t for s in level.before for t in self.statement(s)]
        body = [t for s in level.body for t in self.statement(s)]
        updates = [self.update(u, body) for u in level.updates]
        stores = tuple(replace(s, value=self.known(s.value)) for s in level.stores)
        return replace(level, before=tuple(before), body=tuple(body), updates=tuple(updates), stores=stores)

    def known(self, v: Value) -> Value:
        return self.same.get(v.id, v)

    def statement(self, s: Statement) -> list[Statement]:
        s = self.renamed(s)
        if not isinstance(s, Dot) or s.out.id in self.staged:
            return [s]
        key = (frozenset((s.a.id, s.b.id)), s.k)
        if self.products.setdefault(key, s.out) != s.out:
            self.same[s.out.id] = self.products[key]
            return []
        if (s.m and s.n) or crowded(s.a, s.b):
            return [s]
        product = self.product(s.a, s.b, s.out.dtype)
        return [product, Reduce(s.out, "sum", product.out, s.k)]

    def renamed(self, s: Statement) -> Statement:
        if not any(v.id in self.same for v in operands(s)):
            return s
        match s:
            case Point():
                return replace(s, args=tuple(self.known(v) for v in s.args))
            case Dot():
                return replace(s, a=self.known(s.a), b=self.known(s.b))
            case Reduce():
                return replace(s, x=self.known(s.x))
            case Load():
                return replace(s, index=tuple(self.known(i) if isinstance(i, Value) else i for i in s.index))
        return s

    def product(self, a: Value, b: Value, dtype: str) -> Point:
        dims = tuple(sorted({*a.dims, *b.dims}, key=dim_order))
        return Point(Value(next(self.fresh), dims, dtype), "mul", (a, b))

    def update(self, u: Update, body: list[Statement]) -> Update:
        value, wide, operand, limit = (None if v is None else self.known(v) for v in (u.value, u.wide, u.operand, u.limit))
        u = replace(u, value=value, wide=wide, operand=operand, limit=limit)
        if u.kind is not Kind.SUM or u.value is None or u.wide is None or u.relative or u.limit or crowded(u.value, u.wide):
            return u
        if set(u.value.dims) - set(u.over) and set(u.wide.dims) - set(u.over):
            return u
        product = self.product(u.value, u.wide, u.value.dtype)
        body.append(product)
        return replace(u, value=product.out, wide=None)


def crowded(*values: Value) -> bool:
    return any(v.scope == "tile" for v in values)
