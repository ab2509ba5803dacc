"""Operands of matrix products: memory that BLAS can read in place, or a packed copy."""
from __future__ import annotations

from typing import Any

from fuse.codegen.cpu.context import Array, Context
from fuse.codegen.cpu.frame import Frame
from fuse.codegen.cpu.nests import Nests
from fuse.codegen.cpu.spell import CTYPE
from fuse.codegen.cpu.values import Values
from fuse.codegen.roles import dim_order
from fuse.codegen.tile import Final, Load, Value

Group = tuple[str, ...]
Pair = tuple[str, str]


class Operands:
    def __init__(self, ctx: Context, values: Values, nests: Nests):
        self.ctx, self.values, self.nests = ctx, values, nests

    def count(self, group: Group) -> str:
        return " * ".join(f"int64_t({self.ctx.count(d)})" for d in group) or "1"

    def view(self, v: Value, first: Group, second: Group, frame: Frame) -> str:
        """A C++ Mat whose element (i, j) is v at position i of the dims `first` and j of the dims `second`."""
        if first and second and dim_order(second[0]) < dim_order(first[0]):
            return f"turned({self.view(v, second, first, frame)})"
        key = ("view", v.id, first, second)
        found = frame.thing(key)
        if found is not None:
            return str(found)
        return self.of_load(v, first, second, frame, key) or self.of_array(self.stored(v, first, second, frame), first, second)

    def stored(self, v: Value, first: Group, second: Group, frame: Frame) -> Array:
        """An array of the value in which both groups are contiguous; made if there is none."""
        for found in (self.ctx.array(v, frame), frame.thing(("array", v.id, first + second))):
            if isinstance(found, Array) and (self.fits(found, first, second) or self.fits(found, second, first)):
                return found
        statement = self.ctx.program.defines[v.id]
        if isinstance(statement, Final):
            state = frame.thing(("state", statement.state.replace(".", "_")))
            if isinstance(state, Array) and state.ctype == self.ctx.ctype(v) and self.fits(state, first, second):
                return state
        array, count = self.ctx.row_major(f"t{v.id}_{'_'.join(first + second)}", self.ctx.ctype(v), first + second)
        self.ctx.task.take(array.name, array.ctype, count)
        home = self.ctx.home(v)
        self.nests.over(home, array.layout, [self.nests.writer(v, array)])
        home.things["array", v.id, first + second] = array
        return array

    def fits(self, array: Array, first: Group, second: Group) -> bool:
        return array.layout == first + second

    def of_array(self, array: Array, first: Group, second: Group) -> str:
        """Rows are the leading group of the layout; the leading dimension is the stride of its last dim."""
        rows, cols = (first, second) if self.fits(array, first, second) else (second, first)
        ld = array.stride(rows[-1]) if rows else array.stride(cols[0]) if cols else "1"
        if rows and not cols and len(rows) == 1:
            ld = array.stride(rows[0])
        flag = "false" if rows == first else "true"
        start = f"{array.name} + {array.start}" if array.start else array.name
        return f"Mat<{array.ctype}>{{{start}, {ld}, {flag}}}"

    def of_load(self, v: Value, first: Group, second: Group, frame: Frame, key: tuple[Any, ...], ctype: str = "") -> str | None:
        """A strided load, read in place where its strides allow (decided at run time) or packed and converted."""
        load = self.ctx.program.source_of(v)
        if not isinstance(load, Load) or self.ctx.joint(load) or len(first) > 1 or len(second) > 1:
            return None
        if self.ctx.array(v, frame) is not None or set(load.out.dims) != set(v.dims):
            return None
        home, ctype = self.ctx.home(v), ctype or self.ctx.ctype(v)
        base = self.values.base(load, frame)
        walks = [self.values.walk(load, g[0], frame) if g else "Walk{0, 0, nullptr}" for g in (first, second)]
        counts = [self.count(g) for g in (first, second)]
        name = f"{'b' if ctype == 'bf16' else 'm'}{v.id}_{'_'.join(first + second)}"
        copy = self.ctx.task.take(f"{name}_copy", ctype, self.spare(load, first, second, ctype))
        home.add(f"const Mat<{ctype}> {name} = matrix<{ctype}>({', '.join([base, *walks, *counts, copy])}, inner);")
        home.things[key] = name
        return name

    def spare(self, load: Load, first: Group, second: Group, ctype: str) -> str:
        """How many elements a packed copy may take: none if the strides are known to need none."""
        sides = [(self.ctx.capacity(g[0]), self.ctx.program.dims[g[0]]) for g in (first, second) if g]
        whole = " * ".join(count for count, _ in sides) or "1"
        computed = any(isinstance(i, Value) and i.dims for i in load.index)
        if computed or CTYPE[load.out.dtype] != ctype or len(sides) != 2 or any(len(axes) != 1 for _, axes in sides):
            return whole
        strides = [f"l{load.number}_{axes[0]}" if axes[0] in self.ctx.affine_axes(load) else "0" for _, axes in sides]
        return f"spare({sides[0][0]}, {sides[1][0]}, {', '.join(strides)})"

    def gemm(self, frame: Frame, a: Value | Array, b: Value, k: Group, m: Group, n: Group, out: Array, beta: str) -> None:
        """out[m, n] = sum_k a[m, k] b[k, n] + beta * out; `a` may be an array that a fold has filled."""
        _, (left, right) = self.sides(frame, a, b, k, m, n, out)
        to, ld = self.target(out, m, n)
        frame.add(f"gemm(blas, {self.count(m)}, {self.count(n)}, {self.count(k)}, {left}, {right}, {beta}, {to}, {ld});")

    def sides(self, frame: Frame, a: Value | Array, b: Value, k: Group, m: Group, n: Group, out: Array) -> tuple[str, Pair]:
        """(C++ element type, (a[m, k], b[k, n])) as the product into `out` takes them."""
        if self.halves(a, b, out):
            return "bf16", (self.half(a, m, k, frame), self.half(b, k, n, frame))
        left = self.of_array(a, m, k) if isinstance(a, Array) else self.view(a, m, k, frame)
        return out.ctype, (left, self.view(b, k, n, frame))

    def target(self, out: Array, m: Group, n: Group) -> Pair:
        """(pointer, leading dimension) of the tile's part of a result."""
        ld = out.stride(m[-1]) if m else f"int64_t({self.count(n)})"
        return f"{out.name} + {out.start}" if out.start else out.name, ld

    # ---- bfloat16 products ------------------------------------------------------------------------------------------

    def halves(self, a: Value | Array, b: Value | None, out: Array) -> bool:
        """Whether to multiply in bfloat16: one operand is stored so, and the other is too or is computed here. A computed
        one is rounded, as it is in eager, which stores it in bfloat16."""
        sides = [self.stored_type(x) for x in (a, b) if x is not None]
        return self.ctx.native and out.ctype == "float" and "bfloat16" in sides and set(sides) <= {"bfloat16", ""}

    def stored_type(self, v: Value | Array) -> str:
        source = None if isinstance(v, Array) else self.ctx.program.source_of(v)
        return source.out.dtype if isinstance(source, Load) else ""

    def half(self, v: Value | Array, first: Group, second: Group, frame: Frame) -> str:
        if not isinstance(v, Array):
            if first and second and dim_order(second[0]) < dim_order(first[0]):
                return f"turned({self.half(v, second, first, frame)})"
            key = ("half", v.id, first, second)
            found = frame.thing(key)
            if found is not None:
                return str(found)
            loaded = self.of_load(v, first, second, frame, key, "bf16")
            if loaded is not None:
                return loaded
            array = self.ctx.array(v, frame)
            if array is not None and array.ctype == "bf16":
                return self.of_array(array, first, second)
        wide = self.of_array(v, first, second) if isinstance(v, Array) else self.view(v, first, second, frame)
        home = frame if isinstance(v, Array) else self.ctx.home(v)
        name = f"b_{v.name}" if isinstance(v, Array) else f"b{v.id}_{'_'.join(first + second)}"
        copy = self.ctx.task.take(f"{name}_copy", "bf16", " * ".join(self.ctx.capacity(d) for d in first + second) or "1")
        home.add(f"const Mat<bf16> {name} = rounded({wide}, {self.count(first)}, {self.count(second)}, {copy}, inner);")
        if not isinstance(v, Array):
            home.things[key] = name
        return name
