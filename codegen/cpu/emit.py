"""A tile program as one C++ function: tasks, row tiles, levels, column tiles, and what each of them does.

    fuse_workspace(arg, outer)                      bytes of scratch memory
    fuse_kernel(buf, arg, blas, work, outer, inner) buf: inputs, then outputs; arg: `arguments`

`outer` threads share the tasks; a task is a batch point (`spread` = 0) or one row tile of one (`spread` = 1). `inner`
threads share the loops inside a tile, and the GEMM library threads itself; a schedule that shares tiles leaves out the
parallel regions of the loops inside, which cost a call each even for one thread.
"""
from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import NamedTuple

from fuse.codegen.cpu.arguments import arguments
from fuse.codegen.cpu.context import Array, Context, Work
from fuse.codegen.cpu.folds import Fold, Weighted
from fuse.codegen.cpu.frame import Frame, indented
from fuse.codegen.cpu.kernel import independent
from fuse.codegen.cpu.lanes import Lanes
from fuse.codegen.cpu.nests import Nests, Sink
from fuse.codegen.cpu.operands import Operands
from fuse.codegen.cpu.rows import Rows
from fuse.codegen.cpu.spell import CTYPE, EXPENSIVE
from fuse.codegen.cpu.states import States
from fuse.codegen.cpu.values import Values
from fuse.codegen.roles import dim_order
from fuse.codegen.tile import (
    Dot,
    Level,
    Load,
    Point,
    Reduce,
    Skip,
    Staged,
    Statement,
    Store,
    TileProgram,
    Update,
    Value,
    operands,
)

Dims = tuple[str, ...]
Product = tuple[Update, Weighted | None]


class Maps(NamedTuple):
    """What is computed at every point of some dims: values for arrays, and stores."""

    fills: list[tuple[Value, Array]]
    emits: list[Sink]


class Emitter:
    """`inside` and `fixed`: see `Context`."""

    def __init__(self, program: TileProgram, native: bool, inside: bool = True, fixed: Mapping[str, int] | None = None):
        self.program, self.ctx = program, Context(program, native, inside, fixed)
        self.values = Values(self.ctx)
        self.nests = Nests(self.ctx, self.values)
        self.folds = Lanes(self.ctx, self.values, self.nests)
        self.operands = Operands(self.ctx, self.values, self.nests)
        self.states = States(self.ctx, self.nests)
        self.rows = Rows(self.ctx, self.nests, self.operands, self.states)
        self.values.materialise, self.values.claim = self.ensure, self.nests.claim
        self.done: set[tuple[str, int]] = set()

    # ---- the function -----------------------------------------------------------------------------------------------

    def text(self) -> str:
        body = self.kernel_body()
        names = [name for group, _ in arguments(self.program) for name in group]
        known = {self.ctx.extent(axis): str(n) for axis, n in self.ctx.fixed.items()}
        unpack = [f"const int64_t {', '.join(f'{n} = ' + known.get(n, f'arg[{k + i}]') for i, n in enumerate(names[k:k + 8]))};"
                  for k in range(0, len(names), 8)]
        for dim in ("row", "col"):
            unpack.append(f"const int64_t {dim}s = {' * '.join(map(self.ctx.extent, self.program.dims[dim])) or '1'};")
        filtered = any(u.limit is not None for level in self.program.levels for u in level.updates)
        lines = [f'#include "fuse_{"rows" if filtered else "cpu"}.h"', "", "// arguments, in order", "#define UNPACK \\"]
        lines += [f"  {u} \\" for u in unpack] + ["  (void)0", ""]
        lines += [*struct("Shared", self.ctx.shared, unpack), *struct("Task", self.ctx.task, unpack)]
        lines += ['extern "C" int64_t fuse_workspace(const int64_t* arg, int outer) {',
                  "  return Shared(nullptr, arg).bytes + outer * Task(nullptr, arg).bytes;", "}", "",
                  'extern "C" void fuse_kernel(void* const* buf, const int64_t* arg, const Blas& blas, char* work, int outer,',
                  "                            int inner) {", "  UNPACK;", *indented(body), "}", ""]
        return "\n".join(lines)

    def kernel_body(self) -> list[str]:
        top, program = self.ctx.top, self.program
        for k, slot in enumerate((*program.inputs, *program.outputs)):
            const = "const " if k < len(program.inputs) else ""
            top.add(f"{const}{CTYPE[slot.dtype]}* const {slot.name} = ({const}{CTYPE[slot.dtype]}*)buf[{k}];")
        top.add("const Shared shared(work, arg);", "large_pages(work, fuse_workspace(arg, outer));")
        for slot in program.outputs:
            size = " * ".join([*map(self.ctx.extent, slot.axes), f"int64_t(sizeof({CTYPE[slot.dtype]}))"])
            top.add(f"large_pages({slot.name}, {size});")
        self.states.open_grid(top)
        batches = " * ".join(map(self.ctx.extent, independent(program))) or "1"
        top.add("const int64_t tiles = (rows + R - 1) / R, groups = spread ? tiles : 1, each = spread ? 1 : tiles;",
                f"const int64_t tasks = {batches} * groups;")
        body = self.task()
        top.add("share_out(tasks, outer, [&](int64_t task, int64_t thread) {",
                "  const Task mine(work + shared.bytes + thread * Task(nullptr, arg).bytes, arg);")
        top.lines += indented(self.whole_task(body))
        top.add("});")
        self.states.close_grid(top)
        prologue = [f"{ctype}* const {name} = shared.{name};" for name, ctype, _ in self.ctx.shared.pieces]
        at = top.lines.index("const Shared shared(work, arg);") + 1
        top.lines[at:at] = prologue
        return top.lines

    def whole_task(self, body: list[str]) -> list[str]:
        """The task, from its body: what it works with, its batch point, and a loop over those it has for itself."""
        lines = [f"{ctype}* const {name} = mine.{name};" for name, ctype, _ in self.ctx.task.pieces]
        shared = independent(self.program)
        rest = tuple(a for a in self.program.batch if a not in shared)
        lines += self.point(shared, "(task / groups)")
        if not rest:
            return lines + body
        count = " * ".join(map(self.ctx.extent, rest))
        inside = self.point(rest, "point") + body
        return [*lines, f"for (int64_t point = 0; point < {count}; ++point) {{", *indented(inside), "}"]

    def point(self, axes: tuple[str, ...], number: str) -> list[str]:
        later = [" * ".join(map(self.ctx.extent, axes[k + 1:])) or "1" for k in range(len(axes))]
        return [f"const int64_t {a} = digit({number}, {n}, {self.ctx.extent(a)});" for a, n in zip(axes, later, strict=True)]

    def task(self) -> list[str]:
        """The body of one task, without its first lines (they name what the body turns out to need)."""
        self.ctx.batch = batch = self.ctx.top.open("")
        row = batch.open("for (int64_t tile = task % groups * each; tile < (task % groups + 1) * each && tile < tiles; ++tile) {")
        self.ctx.row = row
        row.add("const int64_t row0 = tile * R;", "const int nr = int(rows - row0 < R ? rows - row0 : R);")
        self.states.open_slab(row)
        for number, level in enumerate(self.program.levels):
            self.level(number, level, row)
        row.close()
        return batch.lines

    def level(self, number: int, level: Level, row: Frame) -> None:
        """One sweep of the stream for a tile of rows. States of lower levels stay where they are: later levels read them."""
        frame = row.open("{")
        self.ctx.level = frame
        states = [s for s in self.program.states if s.level == number]
        self.states.open_rows(row, frame, states)
        early = [s for s in level.stores if "col" not in s.value.dims and "col" not in s.dims]
        for store in early:
            self.nests.over(frame, store.dims, [self.nests.emit(store)])
        late = [s for s in level.stores if s not in early]
        if level.updates or late:
            col = frame.open("for (int64_t col0 = 0; col0 < cols; col0 += C) {")
            self.ctx.col = col
            col.add("const int nc = int(cols - col0 < C ? cols - col0 : C);")
            for skip in level.skips:
                self.skip(skip, col)
            self.tile(level, late, col)
            col.close()
            self.ctx.col = None
        self.states.close_rows(frame, states)
        frame.close()
        self.ctx.level = None

    # ---- one tile ---------------------------------------------------------------------------------------------------

    def tile(self, level: Level, stores: list[Store], col: Frame) -> None:
        self.ctx.awaited = [*stores, *self.multiplied(level)]
        repeated = self.repeated(level)
        stored = [s for s in level.body if self.ctx.is_stored(s.out) or s.out in repeated]
        while stored:
            for statement in self.together(stored):
                stored.remove(statement)
        folds, products = self.plan(level, stores, col)
        for dims, over, fold in folds:
            self.fold(dims, over, fold, col)
            col.things.update({("array", value.id): array for value, array in fold.fills})
        some: dict[tuple[Value | None, Value], list[Update]] = {}
        for u, weighted in products:
            if u.limit is None:
                self.product(u, weighted, col)
            else:
                some.setdefault((u.value, u.limit), []).append(u)
        for updates in some.values():
            self.rows.products(updates, col, lambda u, frame: self.product(u, None, frame))

    def together(self, todo: list[Statement]) -> list[Statement]:
        """Stores the first value of the list, and with it those that can be computed in the same loops: sums of one shape,
        and values of all points that they read."""
        first = todo[0]
        if not isinstance(first, Reduce) and (isinstance(first, Dot) or len(first.out.dims) < 2):
            self.ensure(first.out)
            return [first]
        missing, dims = {s.out.id for s in todo}, points_of(first)
        group: list[Statement] = []
        for s in todo:
            fits = not isinstance(s, Dot) and points_of(s) == dims and self.ctx.home(s.out) is self.ctx.home(first.out)
            if fits and not missing & self.below(list(operands(s))):
                group.append(s)
                missing -= set() if isinstance(s, Reduce) else {s.out.id}
        sums = [(s, self.nests.allocate(s.out, s.out.dims)) for s in group if isinstance(s, Reduce)]
        if not sums or any(self.ctx.array(s.out, self.ctx.home(s.out)) is not None for s in group):
            self.ensure(first.out)
            return [first]
        fills = [(s.out, self.nests.allocate(s.out, s.out.dims)) for s in group if not isinstance(s, Reduce)]
        home = self.ctx.home(first.out)
        self.nests.inner(home, sums, fills)
        home.things.update({("array", value.id): array for value, array in fills})
        home.things.update({("array", s.out.id): array for s, array in sums})
        return group

    def repeated(self, level: Level) -> set[Value]:
        """Expensive operands (of stream and width alone) that several values read: computed once for the tile."""
        reads = Counter(v for s in level.body for v in set(operands(s)))
        reads.update(v for u in level.updates for v in set(u.values))
        return {s.out for s in level.body if isinstance(s, Point) and s.op in EXPENSIVE and reads[s.out] > 1
                and "col" in s.out.dims and "row" not in s.out.dims and len(s.out.dims) > 1}

    def multiplied(self, level: Level) -> list[Load]:
        """Loads that products of the tile read, maybe in place, and that are others in the next tile."""
        sides = [v for s in level.body if isinstance(s, Dot) for v in (s.a, s.b)]
        sides += [v for u in level.updates if u.wide is not None for v in u.values]
        found = {v.id: self.program.source_of(v) for v in sides}.values()
        return [s for s in found if isinstance(s, Load) and s.out.dims[:1] == ("col",) and not operands(s)]

    def skip(self, skip: Skip, col: Frame) -> None:
        """Leaves a column tile out if the least value of the form over the tile reaches the bound."""
        terms = [self.ctx.size(skip.form.offset)]
        for axis, c in skip.form.terms:
            low, high = self.ctx.range_of(axis)
            terms.append(f"least({self.ctx.size(c)}, {low}, {high})")
        col.add(f"if ({' + '.join(terms)} >= {skip.bound}) continue;")

    def ensure(self, value: Value) -> None:
        """Stores a value in an array of its home frame, unless it has one."""
        statement, home = self.program.defines[value.id], self.ctx.home(value)
        slab = self.states.slab.get(value.id)
        if isinstance(statement, Dot):
            if slab is None and self.ctx.array(value, home) is None:
                self.dot(statement, home, None)
            elif slab is not None and ("filled", value.id) not in self.done:
                self.done.add(("filled", value.id))
                self.dot(statement, home, slab)
        elif self.ctx.array(value, home) is None:
            if isinstance(statement, Reduce):
                array = self.nests.allocate(value, value.dims)
                self.nests.inner(home, [(statement, array)])
                home.things["array", value.id] = array
            else:
                self.nests.materialise(value)

    def dot(self, s: Dot, home: Frame, array: Array | None) -> None:
        a, b, m, n = s.a, s.b, s.m, s.n
        if n and m and dim_order(n[0]) < dim_order(m[0]):
            a, b, m, n = b, a, n, m
        if array is None:
            array = self.nests.allocate(s.out, m + n)
        self.operands.gemm(home, a, b, s.k, m, n, array, "0")
        home.things["array", s.out.id] = array

    # ---- updates ----------------------------------------------------------------------------------------------------

    def plan(self, level: Level, stores: list[Store], col: Frame) -> tuple[list[tuple[Dims, Dims, Fold]], list[Product]]:
        """Folds in order, one per (state dims, over), then the matrix products. Values of the tile that products need,
        and stores, ride in the fold over rows and columns if there is one."""
        products = [u for u in level.updates if u.wide is not None]
        groups: dict[tuple[Dims, Dims], list[Update]] = {}
        for u in (u for u in level.updates if u.wide is None):
            groups.setdefault((self.program.state(u.state).dims, u.over), []).append(u)
        shared = {u.relative for u in products if u.relative}
        for members in groups.values():
            inside = {u.state for u in members}
            shared |= {u.relative for u in members if u.relative and u.relative not in inside}
        weighted = {u.state: self.weights(u) for u in products if u.relative}
        maps = self.maps(level, products, stores, col)
        folds: list[tuple[Dims, Dims, Fold]] = []
        for (dims, over), members in groups.items():
            fills, emits = maps.pop((*dims, *over), Maps([], [])) if self.rides(dims, over) else Maps([], [])
            mine = tuple(w for w in weighted.values() if w.update.relative in {u.state for u in members})
            folds.append((dims, over, Fold(tuple(members), mine, tuple(fills), tuple(emits), frozenset(shared))))
        apart = [(dims, (), Fold((), (), tuple(fills), tuple(emits))) for dims, (fills, emits) in maps.items()]
        return [*apart, *folds], [(u, weighted.get(u.state)) for u in products]

    def rides(self, dims: Dims, over: Dims) -> bool:
        """Whether maps may share the nest of a fold."""
        return over == ("col",) and dims in ((), ("row",))

    def maps(self, level: Level, products: list[Update], stores: list[Store], col: Frame) -> dict[Dims, Maps]:
        """By dims: values to store in arrays for matrix products, and stores."""
        out: dict[Dims, Maps] = {}
        for value in {u.value.id: u.value for u in products if u.relative is None and u.value is not None}.values():
            loaded = isinstance(self.program.source_of(value), Load)
            if "col" in value.dims and not loaded and self.ctx.array(value, col) is None:
                array = self.rounded(value, level, products) or self.spent(value, level, col) \
                    or self.nests.allocate(value, value.dims)
                out.setdefault(value.dims, Maps([], [])).fills.append((value, array))
        for s in stores:
            out.setdefault(s.dims, Maps([], [])).emits.append(self.nests.emit(s))
        return out

    def rounded(self, value: Value, level: Level, products: list[Update]) -> Array | None:
        """An array of bfloat16, if nothing but products in bfloat16 reads the value."""
        mine = [u for u in products if u.value == value]
        if not all(self.operands.halves(value, u.wide, self.states.array(u.state)) for u in mine):
            return None
        roots = [v for u in level.updates for v in u.values] + [s.value for s in level.stores]
        read = value.id in self.below([v for v in roots if v != value])
        return None if read else self.nests.allocate(value, value.dims, "bf16")

    def spent(self, value: Value, level: Level, col: Frame) -> Array | None:
        """The array of a product that nothing but `value` still reads, element by element: value may be written over it."""
        later = self.program.levels[self.program.levels.index(level) + 1:]
        kept = {v.id for v in level.stage} | {s.out.id for after in later for s in after.body if isinstance(s, Staged)}
        roots = [v for u in level.updates for v in u.values] + [s.value for s in level.stores]
        others = self.below([v for v in roots if v.id != value.id])
        for i in self.below([value]) - others - kept:
            source = self.program.defines[i].out
            array = self.ctx.array(source, col) if self.ctx.is_stored(source) else None
            if array is not None and (array.layout, array.ctype) == (value.dims, self.ctx.ctype(value)):
                return array
        return None

    def below(self, roots: list[Value]) -> set[int]:
        """Ids of the values that `roots` are computed from, down to those that are stored."""
        seen: set[int] = set()
        todo = list(roots)
        while todo:
            v = todo.pop()
            if v.id not in seen:
                seen.add(v.id)
                todo += () if self.ctx.is_stored(v) else operands(self.program.defines[v.id])
        return seen

    def weights(self, u: Update) -> Weighted:
        """The array for weight * value of a product relative to a maximum; for the weight alone if value is wider."""
        assert u.operand is not None
        array = self.scratch(f"w_{u.state}", u.operand, {*u.operand.dims, *u.over})
        wider = u.value is not None and not set(u.value.dims) <= set(array.layout)
        return Weighted(replace(u, value=None) if wider else u, array)

    def scratch(self, name: str, like: Value, dims: Iterable[str]) -> Array:
        array, count = self.ctx.row_major(name, CTYPE[like.dtype], tuple(sorted(dims, key=dim_order)))
        self.ctx.task.take(name, array.ctype, count)
        return array

    def applied(self, u: Update, weighted: Weighted, col: Frame) -> Array:
        """weight * value, with the widths of value."""
        if weighted.update.value == u.value:
            return weighted.array
        value = u.value
        assert value is not None
        array = self.scratch(f"v_{u.state}", value, {*weighted.array.layout, *value.dims})

        def sink(frame: Frame) -> None:
            weight = self.values.read(weighted.array, frame)
            frame.add(f"{self.nests.target(array, frame)} = {weight} * {self.values.get(value, frame)};")
        self.nests.over(col, array.layout, [sink])
        return array

    def fold(self, dims: Dims, over: Dims, fold: Fold, col: Frame) -> None:
        inside = {u.state for u in fold.updates}
        self.folds.move(col, [u for u in fold.updates if u.relative is not None and u.relative not in inside])
        if not over:
            sinks = [*self.folds.sinks(fold), *(self.folds.accumulator(u) for u in fold.updates)]
            self.nests.over(col, dims, sinks)
        elif dims in ((), ("row",)) and over == ("col",):
            self.folds.along(col, fold, dims, (), "col")
        elif not dims:
            self.folds.along(col, fold, (), over[:-1], over[-1])
        else:
            self.folds.across(col, fold, dims[:-1], over, dims[-1])

    def product(self, u: Update, weighted: Weighted | None, col: Frame) -> None:
        """state += sum_over (weight * value) wide, by GEMM."""
        assert u.wide is not None
        if u.relative is not None:
            self.folds.move(col, [u])
        a = self.applied(u, weighted, col) if weighted is not None else u.value
        assert a is not None
        dims = a.layout if isinstance(a, Array) else a.dims
        m = tuple(d for d in dims if d not in u.over)
        n = tuple(d for d in u.wide.dims if d not in u.over)
        state = self.program.state(u.state)
        self.operands.gemm(col, a, u.wide, u.over, m, n, self.states.array(u.state), self.states.beta(state, u))


def points_of(s: Statement) -> Dims:
    """The loops that compute a statement: its dims, then those it reduces."""
    return (*s.out.dims, *s.over) if isinstance(s, Reduce) else s.out.dims


def struct(name: str, work: Work, unpack: list[str]) -> list[str]:
    """A struct of pointers into one block of memory; with a null base it only counts bytes."""
    fields = [f"  {ctype}* {piece};" for piece, ctype, _ in work.pieces]
    takes = [f"    {piece} = arena.take<{ctype}>({count});" for piece, ctype, count in work.pieces]
    return [f"struct {name} {{", *fields, "  int64_t bytes;", f"  {name}(char* base, const int64_t* arg) {{", "    UNPACK;",
            "    Arena arena{base};", *takes, "    bytes = arena.used;", "  }", "};", ""]

