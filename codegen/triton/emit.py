"""Values of a tile program as Triton text: each is emitted on demand, once, in the outermost block that knows its dims.

A tile is asked for in an order of its dims. A value with a dot below it is *computed* in that order, by exchanging the
dot's operands: the result of a dot is never transposed (triton miscompiles that on Hopper). Other tiles are loaded in
their natural order and transposed afterwards.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from fuse.codegen.roles import refuse
from fuse.codegen.tile import (
    Affine,
    Const,
    Dot,
    Final,
    Load,
    Param,
    Point,
    Position,
    Reduce,
    Staged,
    TileProgram,
    Value,
    operands,
)
from fuse.codegen.triton.block import Arguments, Block, Order, Range, fit, within
from fuse.codegen.triton.spell import DTYPES, INTEGER_EXTREMA, SPELLINGS, cast, literal, lowest


def dot_dtype(program: TileProgram, *operands_: Value) -> str:
    """The element type of a dot: that of its stored operands, to which a computed one is rounded (as eager does)."""
    stored = {s.out.dtype for s in map(program.source_of, operands_) if isinstance(s, Load)}
    narrow = stored & {"bfloat16", "float16"}
    return narrow.pop() if len(narrow) == 1 and "float32" not in stored else "float32"


class Tiles:
    """Emits values. `ranges` says what each dim stands for at the moment; a contraction rebinds its own dims."""

    def __init__(self, program: TileProgram, split: frozenset[str], precision: str, folded: frozenset[str] | None = None):
        """`split`: the free dims along which dots loop; `folded`: those along which other sums and maxima do, if others."""
        self.program, self.precision = program, precision
        self.split, self.fold = split, split if folded is None else folded
        self.arguments = Arguments()
        self.prologue, self.ranges = Block(1), dict[str, Range]()
        self.axis_dim = {axis: dim for dim, axes in program.dims.items() for axis in axes}
        self.dotted: dict[int, bool] = {}
        self.count = 0

    def name(self, stem: str = "t") -> str:
        self.count += 1
        return f"{stem}{self.count}"

    # ---- ranges and positions ---------------------------------------------------------------------------------------

    def whole(self, dim: str) -> Range:
        """All of a free dim, as one tile."""
        n = dim[1:]
        key, block = ("range", dim), self.prologue
        if key not in block.memo:
            self.extent(dim)
            size = self.arguments.constant(f"F{n}", "whole", dim)
            even = self.arguments.constant(f"EVEN_F{n}", "even", dim, size)
            block.add(f"f{n}_ok = ({self.steps(f'f{n}', size)} < {self.extent(dim)}) | {even}")
            block.memo[key] = f"f{n}"
        return Range(dim, f"f{n}", f"f{n}_ok", f"F{n}", block)

    def steps(self, name: str, size: str) -> str:
        """`name`, which stands for 0 .. size - 1."""
        if ("steps", name) not in self.prologue.memo:
            self.prologue.memo["steps", name] = name
            self.prologue.add(f"{name} = tl.arange(0, {size}).to(INDEX)")
        return name

    def extent(self, dim: str) -> str:
        """The number of positions of a free dim."""
        return self.arguments(f"n{dim[1:]}", "extent", dim)

    @contextmanager
    def bound(self, ranges: dict[str, Range]) -> Iterator[None]:
        before = {d: self.ranges.get(d) for d in ranges}
        self.ranges.update(ranges)
        yield
        for dim, old in before.items():
            if old is None:
                del self.ranges[dim]
            else:
                self.ranges[dim] = old

    def range(self, dim: str) -> Range:
        if dim not in self.ranges:
            self.ranges[dim] = self.whole(dim)
        return self.ranges[dim]

    def position(self, axis: str) -> tuple[str, tuple[str, ...]]:
        """(text, dims) of the position along `axis`: decoded from the flat index if its dim has several axes."""
        if axis in self.program.batch:
            return self.decoded(axis, self.program.batch, "batch", self.prologue), ()
        dim = self.axis_dim[axis]
        r = self.range(dim)
        return self.decoded(axis, self.program.dims[dim], r.var, r.block), (dim,)

    def decoded(self, axis: str, axes: Sequence[str], flat: str, block: Block, name: str = "") -> str:
        """The position along `axis` from the flat position `flat` in `axes`, as a variable `name`."""
        if len(axes) == 1:
            return flat
        key = ("position", axis, flat)
        if key not in block.memo:
            at = axes.index(axis)
            later = [self.arguments(f"n{a[1:]}", "extent", a) for a in axes[at + 1:]]
            text = flat if not later else f"{flat} // {later[0]}" if len(later) == 1 else f"{flat} // ({' * '.join(later)})"
            if at:
                text = f"({text}) % " if later else f"{text} % "
                text += self.arguments(f"n{axis[1:]}", "extent", axis)
            block.memo[key] = name or axis
            block.add(f"{block.memo[key]} = {text}")
        return block.memo[key]

    def place(self, axis: str) -> tuple[str, str, tuple[str, ...]]:
        """(scalar, steps, dims): the position along `axis` is that scalar, if any, plus those steps, if any."""
        position, dims = self.position(axis)
        if not dims:
            return position, "", ()
        r, axes = self.range(*dims), self.program.dims[dims[0]]
        if not r.first:
            return "", position, dims
        first = self.decoded(axis, axes, r.first, r.block, f"{axis}_0")
        if len(axes) == 1:
            return first, r.step, dims
        key = ("steps", axis, r.var)
        if key not in r.block.memo:
            r.block.memo[key] = f"{axis}_d"
            r.block.add(f"{axis}_d = {position} - {first}")
        return first, r.block.memo[key], dims

    def address(self, pointer: Sequence[str], strides: Mapping[str, str], order: Order) -> str:
        """Pointers in `order`: the summands `pointer` + sum of position * stride over axes.

        What a tile has in common is added in 64 bits, once; offsets inside it are of the type INDEX.
        """
        terms, near = [*pointer], dict[tuple[str, ...], list[str]]()
        for axis, stride in strides.items():
            first, steps, dims = self.place(axis)
            if first:
                terms.append(f"far({first}, {stride})")
            if steps:
                near.setdefault(dims, []).append(f"{steps} * {stride}")
        tiles = [fit(f"({' + '.join(found)})", dims, order) for dims, found in near.items()]
        if len(tiles) > 1:
            tiles = [f"({' + '.join(tiles)})"]
        return " + ".join([*terms, *tiles])

    # ---- values -----------------------------------------------------------------------------------------------------

    def has_dot(self, value: Value) -> bool:
        if value.id not in self.dotted:
            s = self.program.defines[value.id]
            self.dotted[value.id] = isinstance(s, Dot) or any(self.has_dot(v) for v in operands(s))
        return self.dotted[value.id]

    def home(self, dims: Order) -> Block:
        """The outermost block in which every one of `dims` has a position."""
        return max((self.range(d).block for d in dims), key=lambda b: b.depth, default=self.prologue)

    def block_of(self, value: Value) -> Block:
        """Where a value is emitted."""
        return self.home(value.dims)

    def emit(self, value: Value, order: Order | None = None) -> str:
        """The text (a name or a literal) of `value` with its dims in `order`."""
        order = within(value.dims, order if order is not None else value.dims)
        statement = self.program.defines[value.id]
        if isinstance(statement, Const):
            return literal(value=statement.value)
        block = self.block_of(value)
        key = (value.id, order, tuple(self.range(d).var for d in order))
        if key not in block.memo:
            if order != value.dims and not self.has_dot(value):
                text = self.transposed(self.emit(value), value.dims, order)
            else:
                text = self.spell(statement, order, block)
            if not text.isidentifier():
                name = self.name()
                block.add(f"{name} = {text}")
                text = name
            block.memo[key] = text
        return block.memo[key]

    def transposed(self, text: str, dims: Order, order: Order) -> str:
        if len(dims) == 2:
            return f"tl.trans({text})"
        return f"tl.permute({text}, ({', '.join(str(tuple(dims).index(d)) for d in order)}))"

    def spell(self, s: object, order: Order, block: Block) -> str:
        match s:
            case Load():
                return self.load(s)
            case Param():
                return f"tl.full([], {self.arguments(f'p{s.index}', 'param', s.index)}, tl.int64)"
            case Position():
                return f"{self.position(s.axis)[0]}.to(tl.int64)"
            case Point():
                return self.point(s, order)
            case Dot():
                return self.dot(s, order, block)
            case Reduce():
                return self.reduce(s, order, block)
            case Final() | Staged():
                raise refuse("levels are separate kernels on this target")
        raise AssertionError(s)

    def load(self, s: Load) -> str:
        dims, strides, computed = s.out.dims, dict[str, str](), list[str]()
        pointer = [self.arguments(s.buffer, "input", s.buffer)]
        for index in s.index:
            if isinstance(index, Affine):
                strides |= {a: self.arguments(f"s{s.number}_{a}", "stride", s.number, a) for a, _ in index.terms}
            else:
                stride = self.arguments(f"g{s.number}_{len(computed)}", "gather", s.number, len(computed))
                text, at = f"{self.emit(index, dims)} * {stride}", within(index.dims, dims)
                computed.append(fit(f"({text})" if at else text, at, dims))
        if any(isinstance(index, Affine) and index.offset != 0 for index in s.index):
            pointer.append(self.arguments(f"b{s.number}", "base", s.number))
        mask = " & ".join(fit(self.range(d).mask, (d,), dims) for d in dims)
        return f"tl.load({self.address([*pointer, *computed], strides, dims)}{f', mask={mask}, other=0' if mask else ''})"

    # ---- pointwise ops ----------------------------------------------------------------------------------------------

    def point(self, s: Point, order: Order) -> str:
        if s.op == "cast":
            return cast(self.boxed(s.args[0], order), s.args[0].dtype, s.out.dtype)
        if s.op not in SPELLINGS:
            raise refuse(f"the op {s.op}")
        if s.op in ("eq", "ne", "lt", "le") and (text := self.compared(s, order)):
            return text
        if s.op == "pow" and (text := self.constant_power(s, order)):
            return text
        if s.op == "div" and set(s.args[1].dims) < set(order) and not self.is_const(s.args[1]):
            return f"{self.operand(s.args[0], order)} * {self.reciprocal(s.args[1], order)}"
        spelling = SPELLINGS[s.op]
        if s.op in INTEGER_EXTREMA and s.out.dtype != "float32":
            spelling = spelling.partition(", propagate_nan")[0] + ")"
        literals = all(map(self.is_const, s.args))
        args = [self.boxed(a, order) if literals else self.operand(a, order) for a in s.args]
        return spelling.format(*args)

    def operand(self, value: Value, order: Order) -> str:
        """`value` so that it broadcasts in `order`."""
        return fit(self.emit(value, order), within(value.dims, order), order)

    def boxed(self, value: Value, order: Order) -> str:
        """As `operand`; a literal becomes a tensor."""
        text = self.operand(value, order)
        return f"tl.full([], {text}, {DTYPES[value.dtype]})" if self.is_const(value) else text

    def is_const(self, value: Value) -> bool:
        return isinstance(self.program.defines[value.id], Const)

    def reciprocal(self, x: Value, order: Order) -> str:
        """1 / x, computed where x is: one division per row or column instead of one per element of the tile."""
        return self.once(x, order, "reciprocal", "1.0 / {}")

    def once(self, x: Value, order: Order, label: str, form: str) -> str:
        """`form` of x as a value of its own, shared by all who ask under the same label, broadcast in `order`."""
        block, inner = self.block_of(x), within(x.dims, order)
        key = (label, x.id, inner, tuple(self.range(d).var for d in inner))
        if key not in block.memo:
            text, name = self.boxed(x, inner), self.name()
            block.add(f"{name} = {form.format(text)}")
            block.memo[key] = name
        return fit(block.memo[key], inner, order)

    def compared(self, s: Point, order: Order) -> str | None:
        """position < x: x is clamped to [-1, extent], which changes no answer, and compared in the index type.

        Applies when x lacks the position's dim, so that the clamp is cheap and the comparison of the tile is narrow.
        """
        for k, at in enumerate(s.args):
            p, other = self.program.defines[at.id], s.args[1 - k]
            if not isinstance(p, Position) or not at.dims or set(at.dims) & set(other.dims):
                continue
            where = fit(self.position(p.axis)[0], at.dims, order)
            x = self.program.defines[other.id]
            if isinstance(x, Position):
                text = fit(*self.position(x.axis), order)
            else:
                n = self.arguments(f"n{p.axis[1:]}", "extent", p.axis)
                text = self.once(other, order, f"clamped {p.axis}", f"tl.minimum(tl.maximum({{}}, -1), {n}).to(INDEX)")
            return SPELLINGS[s.op].format(*((where, text) if k == 0 else (text, where)))
        return None

    def constant_power(self, s: Point, order: Order) -> str | None:
        exponent = self.program.defines[s.args[1].id]
        if not isinstance(exponent, Const):
            return None
        x = self.boxed(s.args[0], order)
        forms = {1.0: "{0}", 2.0: "{0} * {0}", 3.0: "{0} * {0} * {0}", 4.0: "({0} * {0}) * ({0} * {0})",
                 -1.0: "1.0 / {0}", -2.0: "1.0 / ({0} * {0})", 0.5: "tl.sqrt_rn({0})", -0.5: "1.0 / tl.sqrt_rn({0})"}
        form = forms.get(float(exponent.value))
        return form.format(x) if form else None

    # ---- contractions -----------------------------------------------------------------------------------------------

    @contextmanager
    def contraction(self, k: Order, split: frozenset[str], outer: Block) -> Iterator[tuple[Block, list[Range]]]:
        """Ranges for the dims `k`: a loop for each in `split`, all of it otherwise."""
        block, ranges, loops = outer, list[Range](), list[tuple[Block, str, Block]]()
        for dim in k:
            if dim not in split:
                ranges.append(self.whole(dim))
                continue
            n, extent = dim[1:], self.extent(dim)
            size = self.arguments.constant(f"K{n}", "tile", dim)
            even = self.arguments.constant(f"EVEN_K{n}", "even", dim, size)
            var = self.name(f"k{n}_")
            inner = block.inner()
            loops.append((block, f"for {var}_0 in range(0, {extent}, {size}):", inner))
            block = inner
            block.add(f"{var} = {var}_0 + {self.steps(f'd{n}', size)}")
            block.add(f"{var}_ok = ({var} < {extent}) | {even}")
            ranges.append(Range(dim, var, f"{var}_ok", size, block, f"{var}_0", f"d{n}"))
        with self.bound({r.dim: r for r in ranges}):
            yield block, ranges
        for parent, head, body in reversed(loops):
            parent.add(head)
            parent.lines += body.lines

    def dot(self, s: Dot, order: Order, outer: Block) -> str:
        m, n, a, b = s.m, s.n, s.a, s.b
        if set(order[:len(m)]) != set(m):
            m, n, a, b = n, m, b, a
        if len(s.k) != 1 or len(m) != 1 or len(n) != 1:
            return self.narrow_dot(s, order, outer)
        kind = dot_dtype(self.program, s.a, s.b)
        sizes = f"[{self.range(m[0]).size}, {self.range(n[0]).size}]"
        start = f"tl.zeros({sizes}, tl.float32)"
        with self.contraction(s.k, self.split, outer) as (block, ranges):
            left = self.dot_operand(a, (*m, *s.k), kind, ranges)
            right = self.dot_operand(b, (*s.k, *n), kind, ranges)
            if block is outer:
                return self.dot_call(left, right, start, kind)
            acc = self.name("s")
            outer.add(f"{acc} = {start}")
            block.add(f"{acc} = {self.dot_call(left, right, acc, kind)}")
        return acc

    def dot_call(self, left: str, right: str, acc: str, kind: str) -> str:
        self.arguments.constant("WIDEN", "widen")
        precision = self.precision if kind == "float32" else "ieee"
        return f'dot({left}, {right}, {acc}, "{precision}", WIDEN)'

    def dot_operand(self, value: Value, order: Order, kind: str, ranges: Sequence[Range]) -> str:
        """`value` as an operand of element type `kind`: the stored tile itself, or computed, masked along k, rounded."""
        source = self.program.source_of(value)
        if isinstance(source, Load) and source.out.dtype == kind:
            return self.shaped(self.emit(source.out, order), within(value.dims, order), order)
        text = self.operand(value, order)
        masked = [fit(r.mask, (r.dim,), order) for r in ranges]
        text = f"tl.where({' & '.join(masked)}, {text}, 0.0)"
        return f"{text}.to({DTYPES[kind]})" if kind != "float32" else text

    def shaped(self, text: str, dims: Order, order: Order) -> str:
        """A tile of every dim in `order`, broadcast if `dims` lacks some."""
        if tuple(dims) == tuple(order):
            return text
        sizes = ", ".join(self.range(d).size for d in order)
        return f"tl.broadcast_to({fit(text, dims, order)}, [{sizes}])"

    def narrow_dot(self, s: Dot, order: Order, outer: Block) -> str:
        """A dot with a vector, or of higher rank: multiply and sum."""
        inner = (*order, *s.k)
        return self.folded("sum", lambda: f"{self.operand(s.a, inner)} * {self.operand(s.b, inner)}", s.k, order, outer)

    def reduce(self, s: Reduce, order: Order, outer: Block) -> str:
        inner = (*order, *s.over)
        return self.folded(s.op, lambda: self.operand(s.x, inner), s.over, order, outer, s.out.dtype)

    def folded(self, op: str, body: Callable[[], str], over: Order, order: Order, outer: Block, dtype: str = "float32") -> str:
        """`op` over the trailing dims `over` of the tile that `body` gives once their ranges are bound."""
        inner = (*order, *over)
        rest = literal(0.0) if op == "sum" and dtype == "float32" else "0" if op == "sum" else lowest(dtype)
        if len(inner) > 3:
            raise refuse(f"a tile of {len(inner)} dimensions")
        acc = self.name("r")
        with self.contraction(over, self.fold, outer) as (block, ranges):
            mask = " & ".join(fit(r.mask, (r.dim,), inner) for r in ranges)
            part = f"tl.where({mask}, {body()}, {rest})"
            for axis in reversed(range(len(order), len(inner))):
                part = f"tl.sum({part}, {axis})" if op == "sum" else f"tl.reduce({part}, {axis}, nanmax)"
            if block is outer:
                return part
            block.add(f"{acc} = {acc} + {part}" if op == "sum" else f"{acc} = nanmax({acc}, {part})")
            sizes = ", ".join(self.range(d).size for d in order)
            outer.add(f"{acc} = tl.full([{sizes}], {rest}, {DTYPES[dtype]})")
        return acc
