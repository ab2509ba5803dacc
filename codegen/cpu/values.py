"""One value at one place: the C++ name of a value in a frame, computed in the outermost loop that can."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fuse.codegen.cpu.context import Array, Context
from fuse.codegen.cpu.frame import Frame
from fuse.codegen.cpu.spell import CTYPE, literal, point
from fuse.codegen.tile import Affine, Const, Final, Load, Param, Point, Position, Value


@dataclass(frozen=True)
class Strip:
    """The vectorised loop: `index` runs over positions base .. base + count - 1 of `dim`, relative to base."""

    dim: str
    base: str = "first"
    index: str = "c"
    count: str = "n"
    limit: str = "CHUNK"


class Values:
    """Set by the emitter: `materialise(value)` stores a value in an array of its home frame, `claim(frame, dim, position)`
    asks for memory that is written later."""

    def __init__(self, ctx: Context):
        self.ctx = ctx
        self.materialise: Callable[[Value], None] = lambda value: None
        self.claim: Callable[[Frame, str, str], None] = lambda frame, dim, position: None

    def get(self, v: Value, frame: Frame) -> str:
        """The name of `v` in `frame`; declares it, and what it needs, where it is missing."""
        known = frame.name(v.id)
        if known is not None:
            return known
        statement = self.ctx.program.defines[v.id]
        if isinstance(statement, Const):
            return literal(statement.value, v.dtype)
        if isinstance(statement, Param):
            return f"p{statement.index}"
        array = self.ctx.array(v, frame)
        if array is None and (self.ctx.is_stored(v) or self.wants_array(v, frame)):
            self.materialise(v)
            array = self.ctx.array(v, frame)
        if array is not None:
            return self.element(v, array, frame)
        match statement:
            case Final():
                return self.state_value(v, statement, frame)
            case Position():
                return self.declare(v, frame, self.position(statement.axis, frame), self.ctx.batch)
            case Load():
                return self.load(v, statement, frame)
            case Point():
                return self.point(v, statement, frame)
        raise AssertionError(statement)

    def wants_array(self, v: Value, frame: Frame) -> bool:
        """An expensive value inside a loop over dims it does not have would be computed over and over, and one that does
        not vary along the strip would be computed alone."""
        if not v.dims or not self.ctx.expensive(v) or set(v.dims) == set(frame.bound):
            return False
        strip = frame.thing("strip")
        along = strip.dim if isinstance(strip, Strip) and strip.dim in frame.bound else ""
        if along not in v.dims if along else self.ctx.walking:
            return True
        outer = next(f for f in frame.chain if set(v.dims) <= set(f.bound))
        return set(outer.bound) != set(v.dims)

    def place(self, v: Value, frame: Frame, least: Frame | None = None) -> Frame:
        """The outermost frame that binds all dims of v, not outside `least` and the frames of its arguments."""
        chain = frame.chain
        first = chain.index(least) if least in chain else 0
        return next(f for f in chain[first:] if set(v.dims) <= set(f.bound))

    def declare(self, v: Value, frame: Frame, text: str, least: Frame | None = None) -> str:
        home = self.place(v, frame, least)
        home.add(f"const {self.ctx.ctype(v)} v{v.id} = {text};")
        home.names[v.id] = f"v{v.id}"
        return f"v{v.id}"

    def deepest(self, args: tuple[Value, ...], frame: Frame) -> Frame | None:
        """The innermost frame in which one of `args` (already named) is declared."""
        chain = frame.chain
        depth = [k for k, f in enumerate(chain) if any(a.id in f.names for a in args)]
        return chain[depth[-1]] if depth else None

    # ---- leaves -----------------------------------------------------------------------------------------------------

    def relative(self, dim: str, frame: Frame) -> str:
        """The position along `dim`, relative to the tile."""
        strip = frame.thing("strip")
        if isinstance(strip, Strip) and strip.dim == dim and dim in frame.bound:
            return f"({strip.base} + {strip.index})"
        return frame.bound[dim]

    def position(self, axis: str, frame: Frame) -> str:
        program = self.ctx.program
        if axis in program.batch:
            return axis
        dim = next(d for d, axes in program.dims.items() if axis in axes)
        start = {"row": "row0 + ", "col": "col0 + "}.get(dim, "")
        flat = f"int64_t({start}{self.relative(dim, frame)})"
        axes = program.dims[dim]
        if len(axes) == 1:
            return flat
        later = " * ".join(self.ctx.extent(a) for a in axes[axes.index(axis) + 1:]) or "1"
        return f"digit({flat}, {later}, {self.ctx.extent(axis)})"

    def element(self, v: Value, array: Array, frame: Frame) -> str:
        return self.declare(v, frame, self.read(array, frame), self._frame_of(("array", v.id), frame))

    def read(self, array: Array, frame: Frame) -> str:
        """An element of `array` at the indices of `frame`."""
        strip = frame.thing("strip")
        if isinstance(strip, Strip) and strip.dim in array.layout and strip.dim in frame.bound:
            return f"{self.pointer(array, frame)}[{strip.index}{times(array.stride(strip.dim))}]"
        return array.at({d: frame.bound[d] for d in array.layout})

    def pointer(self, array: Array, frame: Frame, mutable: bool = False) -> str:
        """A pointer to the strip's first element, declared beside the strip."""
        strip, beside = frame.thing("strip"), frame.parent
        assert isinstance(strip, Strip) and beside is not None
        key = ("pointer", array.name, array.start, mutable)
        if key not in beside.things:
            index = {d: beside.bound[d] for d in array.layout if d != strip.dim} | {strip.dim: strip.base}
            name = f"{'o' if mutable else 'q'}_{array.name}"
            here = [k for k in beside.things if isinstance(k, tuple) and (*k[:2], k[-1]) == (*key[:2], mutable)]
            name += "s" * len(here)        # the same memory, shifted
            beside.add(f"{'' if mutable else 'const '}{array.ctype}* {name} = {array.name} + {array.offset(index)};")
            beside.things[key] = name
        return str(beside.things[key])

    def state_value(self, v: Value, statement: Final, frame: Frame) -> str:
        name = statement.state.replace(".", "_")
        array = frame.thing(("state", name))
        assert isinstance(array, Array)
        text = self.read(array, frame)
        wide = array.ctype != self.ctx.ctype(v)
        return self.declare(v, frame, f"{self.ctx.ctype(v)}({text})" if wide else text, self.ctx.level)

    # ---- loads ------------------------------------------------------------------------------------------------------

    def base(self, load: Load, frame: Frame) -> str:
        """A pointer to the load's element at position 0 of every dim, for this batch point."""
        name, batch = f"l{load.number}", self.ctx.batch
        assert batch is not None
        scalars = [i for i in load.index if isinstance(i, Value) and not i.dims]
        if frame.thing(("base", name)):
            return name
        terms = [self.ctx.program.slot(load.buffer).name, f"{name}_b"]
        terms += [f"{a} * {name}_{a}" for a in self.ctx.program.batch if a in self.ctx.affine_axes(load)]
        computed = [i for i in load.index if isinstance(i, Value)]
        terms += [f"{self.get(i, frame)} * {name}_d{computed.index(i)}" for i in scalars]
        chain = frame.chain
        at = max([chain.index(batch), *(k for k, f in enumerate(chain) if any(s.id in f.names for s in scalars))])
        chain[at].add(f"const {self.ctx.ctype(load.out)}* {name} = {' + '.join(terms)};")
        chain[at].things["base", name] = True
        return name

    def walk(self, load: Load, dim: str, frame: Frame) -> str:
        """The Walk of the load along one dim; declared once per tile."""
        name = f"w{load.number}_{dim}"
        if frame.thing(("walk", name)):
            return name
        computed = [i for i in load.index if isinstance(i, Value)]
        along = [i for i in computed if i.dims == (dim,) and dim in ("row", "col")]
        axes = self.ctx.program.dims[dim]
        varies = [a for a in axes if a in self.ctx.affine_axes(load)]
        home = self.ctx.col if dim == "col" else self.ctx.row if dim == "row" else self.ctx.batch
        if any(self.ctx.final(i) for i in along) and dim == "row":
            home = self.ctx.level
        assert home is not None
        start = {"row": "row0", "col": "col0"}.get(dim, "0")
        affine = name + ("_a" if along else "")
        table = f"{name}_t"
        if along or (len(axes) > 1 and varies):
            self.ctx.task.take(table, "int64_t", self.ctx.capacity(dim))
        strides = [f"l{load.number}_{a}" if a in varies else "0" for a in axes]
        if not varies:
            home.add(f"const Walk {affine} = {{0, 0, nullptr}};")
        elif len(axes) == 1:
            first = f"{start} * {strides[0]}" if start != "0" else "0"
            home.add(f"const Walk {affine} = {{{first}, {strides[0]}, nullptr}};")
        else:
            home.add(f"const int64_t {affine}_n[] = {{{', '.join(map(self.ctx.extent, axes))}}}, "
                     f"{affine}_s[] = {{{', '.join(strides)}}};",
                     f"const Walk {affine} = walk({start}, {self.ctx.count(dim)}, {len(axes)}, {affine}_n, {affine}_s, {table});")
        if along:
            self.tabulate(load, dim, along, [f"l{load.number}_d{computed.index(i)}" for i in along], home)
        home.things["walk", name] = True
        return name

    def tabulate(self, load: Load, dim: str, along: list[Value], strides: list[str], home: Frame) -> None:
        """Offsets that need a computed index, one per position."""
        name = f"w{load.number}_{dim}"
        i = {"row": "r", "col": "j"}[dim]
        loop = home.open(f"for (int {i} = 0; {i} < {self.ctx.count(dim)}; ++{i}) {{", {dim: i})
        terms = [f"{name}_a({i})", *(f"{self.get(v, loop)} * {s}" for v, s in zip(along, strides, strict=True))]
        loop.add(f"{name}_t[{i}] = {' + '.join(terms)};")
        loop.close()
        home.add(f"const Walk {name} = {{0, 0, {name}_t}};")

    def dims_of(self, load: Load) -> list[str]:
        """Dims along which the load's address moves by a walk."""
        joint = {d for i in self.ctx.joint(load) for d in i.dims}
        affine = self.ctx.affine_axes(load)
        out = []
        for dim in load.out.dims:
            axes = self.ctx.program.dims[dim]
            computed = any(isinstance(i, Value) and i.dims == (dim,) and dim in ("row", "col") for i in load.index)
            if computed or any(a in affine for a in axes) or dim not in joint:
                out.append(dim)
        return out

    def load(self, v: Value, load: Load, frame: Frame) -> str:
        base, strip = self.base(load, frame), frame.thing("strip")
        joint = self.ctx.joint(load)
        tile = self.tile(load, frame)
        computed = [i for i in load.index if isinstance(i, Value)]
        extra = [f"{self.get(i, frame)} * l{load.number}_d{computed.index(i)}" for i in joint]
        dims = self.dims_of(load)
        along = strip.dim if isinstance(strip, Strip) and strip.dim in frame.bound and strip.dim in dims and not joint else ""
        others = [d for d in dims if d != along]
        walks = {d: f"{tile}.{d}" if tile else self.walk(load, d, frame) for d in dims}
        offsets = [f"{walks[d]}({self.relative(d, frame)})" for d in others]
        if not along:
            text = f"{base}[{' + '.join(offsets + extra) or '0'}]"
            return self.declare(v, frame, text, self.deepest(tuple(joint), frame) or self._frame_of(("base", base), frame))
        ahead = (others[-1], walks[others[-1]], self.relative(others[-1], frame)) if others else None
        return self.line(v, load, f"{tile}.p" if tile else base, walks[along], offsets, ahead, frame)

    def tile(self, load: Load, frame: Frame) -> str:
        """The Tile of a load by rows and columns, read along the columns: a copy where its memory runs along the rows."""
        strip, col = frame.thing("strip"), self.ctx.col
        affine = all(isinstance(i, Affine) for i in load.index)
        axes = [self.ctx.program.dims[d] for d in ("row", "col")]
        if not affine or load.out.dims != ("row", "col") or not isinstance(strip, Strip) or strip.dim != "col" or col is None \
                or [len(a) for a in axes] != [1, 1] or not {a for (a,) in axes} <= self.ctx.affine_axes(load):
            return ""
        name = f"l{load.number}"
        if not frame.thing(("tile", name)):
            walks = [self.walk(load, d, frame) for d in ("row", "col")]
            count = f"({name}_{axes[1][0]} == 1 ? 0 : R * (C + 16))"
            copy = self.ctx.task.take(f"{name}_tile_copy", self.ctx.ctype(load.out), count)
            col.add(f"const auto {name}_tile = upright({name}, {walks[0]}, {walks[1]}, nr, nc, {copy}, inner);")
            col.things["tile", name] = True
        return f"{name}_tile"

    def _frame_of(self, key: object, frame: Frame) -> Frame | None:
        return next((f for f in frame.chain if key in f.things), None)

    def line(self, v: Value, load: Load, base: str, walk: str, offsets: list[str], ahead: tuple[str, str, str] | None,
             frame: Frame) -> str:
        """An element through a contiguous line along the strip: the memory itself, or a copy of it. `ahead`: the dim, the
        walk and the position of the loop around the strip, whose later lines are fetched meanwhile."""
        strip, beside = frame.thing("strip"), frame.parent
        assert isinstance(strip, Strip) and beside is not None
        name, ctype = f"l{load.number}", self.ctx.ctype(v)
        if strip.dim == "col" and v.dims == ("col",) and self.ctx.col is not None:
            if not frame.thing(("line", name)):
                copy = self.ctx.task.take(f"{name}_copy", ctype, "C")
                self.ctx.col.add(f"const {ctype}* {name}_line = line({name}, {walk}, nc, {copy});")
                self.ctx.col.things["line", name] = True
            return self.declare(v, frame, f"{name}_line[{strip.base} + {strip.index}]", None)
        home = self.ctx.row if strip.dim == "row" else self._frame_of(("base", base), frame)
        if v.dims == (strip.dim,) and home is not None and not self.ctx.walking:
            if not frame.thing(("line", name)):
                copy = self.ctx.task.take(f"{name}_copy", ctype, self.ctx.capacity(strip.dim))
                home.add(f"const {ctype}* {name}_line = line({base}, {walk}, {self.ctx.count(strip.dim)}, {copy});")
                home.things["line", name] = True
            return self.declare(v, frame, f"{name}_line[{strip.base} + {strip.index}]", None)
        if ("line", name) not in beside.things:
            start = " + ".join([base, *offsets])
            if ahead is not None:
                near = " + ".join([base, *offsets[:-1]])
                beside.add(f"ahead({near}, {ahead[1]}, {ahead[2]}, from({walk}, {strip.base}), {strip.count});")
                self.claim(beside, ahead[0], ahead[2])
            beside.add(f"{ctype} {name}_copy[{strip.limit}];",
                       f"const {ctype}* {name}_line = line({start}, from({walk}, {strip.base}), {strip.count}, {name}_copy);")
            beside.things["line", name] = True
        return self.declare(v, frame, f"{name}_line[{strip.index}]", None)

    # ---- points -----------------------------------------------------------------------------------------------------

    def point(self, v: Value, statement: Point, frame: Frame) -> str:
        near = self.near(v, statement, frame)
        if near is not None:
            return self.declare(v, frame, near)
        program, exponent = self.ctx.program, None
        args = [self.get(a, frame) for a in statement.args]
        if statement.op == "div" and self.repeats(statement, frame):
            return self.declare(v, frame, f"over({args[0]}, {self.inverse(statement.args[1], frame)})",
                                self.deepest(statement.args, frame))
        if statement.op == "pow":
            second = program.defines[statement.args[1].id]
            exponent = float(second.value) if isinstance(second, Const) else None
        text = point(statement.op, args, v.dtype, statement.args[-1].dtype, exponent)
        return self.declare(v, frame, text, self.deepest(statement.args, frame))

    def repeats(self, division: Point, frame: Frame) -> bool:
        """Is one divisor that of every position of the strip?"""
        strip, (x, d) = frame.thing("strip"), division.args
        return isinstance(strip, Strip) and strip.dim in frame.bound and strip.dim in x.dims and strip.dim not in d.dims \
            and d.dtype in ("float32", "float64")

    def inverse(self, d: Value, frame: Frame) -> str:
        """The name of `Inverse(d)`, declared where d is."""
        key = ("inverse", d.id)
        if frame.thing(key) is None:
            home = self.place(d, frame, self.deepest((d,), frame))
            home.add(f"const auto i{d.id} = inverse({self.get(d, frame)});")
            home.things[key] = f"i{d.id}"
        return str(frame.thing(key))

    def near(self, v: Value, statement: Point, frame: Frame) -> str | None:
        """position(strip) <compare> x with x constant along the strip, in 32-bit integers relative to the strip."""
        strip, beside = frame.thing("strip"), frame.parent
        if statement.op not in ("eq", "ne", "lt", "le") or not isinstance(strip, Strip) or strip.dim not in frame.bound:
            return None
        program = self.ctx.program
        here = [isinstance(s := program.defines[a.id], Position) and program.dims[strip.dim] == (s.axis,) for a in statement.args]
        other = next((a for a, yes in zip(statement.args, here, strict=True) if not yes), None)
        if sum(here) != 1 or other is None or strip.dim in other.dims:
            return None
        assert beside is not None
        key = ("near", other.id)
        if key not in beside.things:
            start = {"row": "row0 + ", "col": "col0 + "}.get(strip.dim, "")
            beside.add(f"const int32_t d{other.id} = near_({self.get(other, beside)} - ({start}{strip.base}));")
            beside.things[key] = f"d{other.id}"
        names = [strip.index if yes else f"d{other.id}" for yes in here]
        return point(statement.op, names, v.dtype, "int32")


def times(stride: str) -> str:
    return "" if stride == "1" else f" * {stride}"


def ctype_of_sum(dtype: str) -> str:
    """Sums of float32 are kept in double between tiles: 50k columns lose no digits."""
    return {"float32": "double"}.get(dtype, CTYPE[dtype])


def is_affine(load: Load) -> bool:
    return all(isinstance(i, Affine) for i in load.index)
