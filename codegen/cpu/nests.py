"""Loop nests over one tile: maps (store what is computed) and the loops that folds are made of."""
from __future__ import annotations

from collections.abc import Callable, Sequence

from fuse.codegen.cpu.context import INDEX, Array, Context
from fuse.codegen.cpu.frame import Frame
from fuse.codegen.cpu.spell import CTYPE, LOWEST
from fuse.codegen.cpu.values import Strip, Values, ctype_of_sum, times
from fuse.codegen.tile import Load, Reduce, Store, Value

Sink = Callable[[Frame], None]
PARALLEL = "#pragma omp parallel for num_threads(inner) if (inner > 1)\n"


def index_of(dim: str) -> str:
    return INDEX.get(dim) or f"f{dim[1:]}"


class Nests:
    def __init__(self, ctx: Context, values: Values):
        self.ctx, self.values = ctx, values

    # ---- loops ------------------------------------------------------------------------------------------------------

    def outer(self, frame: Frame, dims: Sequence[str], parallel: bool = True) -> Frame:
        """Loops over `dims`; the first one is shared out among the inner threads."""
        for k, dim in enumerate(dims):
            i = index_of(dim)
            pragma = PARALLEL if parallel and k == 0 and self.ctx.inside else ""
            frame = frame.open(f"{pragma}for (int {i} = 0; {i} < {self.ctx.count(dim)}; ++{i}) {{", {dim: i})
        return frame

    def close(self, frame: Frame, until: Frame) -> None:
        while frame is not until:
            frame = frame.close()

    def chunk(self, frame: Frame, dim: str, step: str = "CHUNK", parallel: bool = False) -> Frame:
        pragma = PARALLEL if parallel and self.ctx.inside else ""
        count = self.ctx.count(dim)
        chunk = frame.open(f"{pragma}for (int first = 0; first < {count}; first += {step}) {{")
        chunk.add(f"const int n = int({count}) - first < {step} ? int({count}) - first : {step};")
        chunk.things["strip"] = Strip(dim, limit=step)
        return chunk

    def strip(self, chunk: Frame, dim: str, apart: bool = False) -> Frame:
        """The vectorised loop; `k` is the lane, or with `apart` the position in the chunk."""
        return chunk.open(f"{'apart' if apart else 'strips'}(n, [&](int c, int k) EACH {{", {dim: "c"}, footer="});")

    def over(self, frame: Frame, dims: tuple[str, ...], sinks: Sequence[Sink], parallel: bool = True) -> None:
        """A map: every sink adds its lines at every point of `dims`."""
        if not dims:
            for sink in sinks:
                sink(frame)
            return
        loops = self.outer(frame, dims[:-1], parallel)
        chunk = self.chunk(loops, dims[-1], parallel=parallel and len(dims) == 1 and dims[-1] != "row")
        strip = self.strip(chunk, dims[-1])
        for sink in sinks:
            sink(strip)
        self.close(strip, frame)

    # ---- maps -------------------------------------------------------------------------------------------------------

    def materialise(self, value: Value, layout: tuple[str, ...] | None = None) -> Array:
        """Stores a value in an array of its home frame."""
        home = self.ctx.home(value)
        array = self.allocate(value, layout or value.dims)
        self.over(home, array.layout, [self.writer(value, array)])
        home.things["array", value.id] = array
        return array

    def inner(self, home: Frame, sums: Sequence[tuple[Reduce, Array]], fills: Sequence[tuple[Value, Array]] = ()) -> None:
        """Inner sums and maxima, one total per point of the result's dims, and arrays that are filled on the way. All have
        the same loops: those of the result, then those that are reduced."""
        dims, over = sums[0][0].out.dims, sums[0][0].over
        loops = self.outer(home.open("{"), dims)
        for s, _ in sums:
            loops.add(f"{self.total_type(s)} total{s.out.id} = {self.identity(s)};")
        chunk = self.chunk(self.outer(loops, over[:-1], parallel=False), over[-1])
        for s, _ in sums:
            ctype = self.ctx.ctype(s.out)
            chunk.add(f"{ctype} h{s.out.id}[LANES]; fill(h{s.out.id}, {ctype}({self.identity(s)}));")
        body = self.strip(chunk, over[-1])
        for value, array in fills:
            self.writer(value, array)(body)
        for s, _ in sums:
            lane, x = f"h{s.out.id}[k]", self.values.get(s.x, body)
            body.add(f"{lane} += {x};" if s.op == "sum" else f"{lane} = max_({lane}, {x});")
        body.close()
        for s, _ in sums:
            name, lanes = f"total{s.out.id}", f"h{s.out.id}"
            chunk.add(f"{name} += sum_of<{self.total_type(s)}>({lanes});" if s.op == "sum" else
                      f"{name} = max_({name}, max_of({lanes}));")
        self.close(chunk, loops)
        for s, array in sums:
            loops.add(f"{array.at({d: loops.bound[d] for d in array.layout})} = total{s.out.id};")
        self.close(loops, home)

    def identity(self, s: Reduce) -> str:
        return "0" if s.op == "sum" else LOWEST[self.ctx.ctype(s.out)]

    def total_type(self, s: Reduce) -> str:
        return ctype_of_sum(s.out.dtype) if s.op == "sum" else self.ctx.ctype(s.out)

    def allocate(self, value: Value, layout: tuple[str, ...], ctype: str = "") -> Array:
        array, count = self.ctx.row_major(f"t{value.id}", ctype or self.ctx.ctype(value), layout)
        self.ctx.task.take(array.name, array.ctype, count)
        return array

    def writer(self, value: Value, array: Array) -> Sink:
        def sink(frame: Frame) -> None:
            name = self.values.get(value, frame)
            frame.add(f"{self.target(array, frame)} = {name};")
        return sink

    def target(self, array: Array, frame: Frame) -> str:
        """The element of `array` that this point of the nest writes."""
        strip = frame.thing("strip")
        if isinstance(strip, Strip) and strip.dim in array.layout and strip.dim in frame.bound:
            return f"{self.values.pointer(array, frame, mutable=True)}[{strip.index}{times(array.stride(strip.dim))}]"
        return array.at({d: frame.bound[d] for d in array.layout})

    # ---- outputs ----------------------------------------------------------------------------------------------------

    def output_walk(self, buffer: str, dim: str, frame: Frame) -> str:
        """Element offsets of an output along a dim of the tile; declared once in the frame that walks it."""
        name = f"w{buffer}_{dim}"
        if frame.thing(("walk", name)):
            return name
        axes, slot = self.ctx.program.dims[dim], self.ctx.program.slot(buffer)
        home = {"row": self.ctx.row, "col": self.ctx.col}.get(dim, self.ctx.batch)
        assert home is not None
        start = {"row": "row0", "col": "col0"}.get(dim, "0")
        strides = [f"{buffer}_{a}" if a in slot.axes else "0" for a in axes]
        if len(axes) == 1:
            first = f"{start} * {strides[0]}" if start != "0" else "0"
            home.add(f"const Walk {name} = {{{first}, {strides[0]}, nullptr}};")
        elif not axes:
            home.add(f"const Walk {name} = {{0, 0, nullptr}};")
        else:
            table = self.ctx.task.take(f"{name}_t", "int64_t", self.ctx.capacity(dim))
            counts = ', '.join(map(self.ctx.extent, axes))
            home.add(f"const int64_t {name}_n[] = {{{counts}}}, {name}_s[] = {{{', '.join(strides)}}};",
                     f"const Walk {name} = walk({start}, {self.ctx.count(dim)}, {len(axes)}, {name}_n, {name}_s, {table});")
        home.things["walk", name] = True
        return name

    def output_base(self, buffer: str) -> str:
        slot = self.ctx.program.slot(buffer)
        return " + ".join([buffer, *(f"{a} * {buffer}_{a}" for a in self.ctx.program.batch if a in slot.axes)])

    def store(self, buffer: str, dims: tuple[str, ...], text: Callable[[Frame], str], ctype: str) -> Sink:
        """A sink that writes `text` (of type ctype) to an output at every point of `dims`, the last one being the strip."""
        slot = self.ctx.program.slot(buffer)

        def sink(frame: Frame) -> None:
            value = text(frame)
            if not dims:
                frame.add(f"*({self.output_base(buffer)}) = {CTYPE[slot.dtype]}({value});")
                return
            beside, last = frame.parent, dims[-1]
            assert beside is not None
            offsets = [f"{self.output_walk(buffer, d, frame)}({beside.bound[d]})" for d in dims[:-1]]
            walk = self.output_walk(buffer, last, frame)
            start, line, put = " + ".join([self.output_base(buffer), *offsets]), f"{buffer}_line", ""
            beside.add(f"{ctype} {line}[CHUNK];")
            if ctype == CTYPE[slot.dtype]:
                beside.add(f"{ctype}* const {buffer}_to = direct({start}, from({walk}, first), {line});")
                line, put = f"{buffer}_to", f"if ({buffer}_to == {line}) "
            frame.add(f"{line}[c] = {value};")
            frame.after.append(f"{put}put({start}, from({walk}, first), n, {line});")
        return sink

    def claim(self, frame: Frame, dim: str, at: str) -> None:
        """Asks for the lines that the tile will write or multiply some positions later along `dim`: they are on their way
        while something is computed, where a burst of stores, or a product, would wait for them."""
        def dims_of(s: Store | Load) -> tuple[str, ...]:
            return s.dims if isinstance(s, Store) else s.out.dims

        for s in [s for s in self.ctx.awaited if len(dims_of(s)) == 2 and dims_of(s)[0] == dim]:
            self.ctx.awaited.remove(s)
            if isinstance(s, Store):
                call, base = "claim", self.output_base(s.buffer)
                outer, last = (self.output_walk(s.buffer, d, frame) for d in s.dims)
            else:
                call, base = "ahead", self.values.base(s, frame)
                outer, last = (self.values.walk(s, d, frame) for d in s.out.dims)
            frame.add(f"{call}({base}, {outer}, {at}, {last}, {self.ctx.count(dims_of(s)[1])});")

    def copy_out(self, frame: Frame, buffer: str, array: Array, dims: tuple[str, ...]) -> None:
        """Stores an array, one line along its last dim at a time; at this tile's place if it has one for each."""
        counter = self.ctx.program.counter
        tile = (counter,) if counter in self.ctx.program.slot(buffer).axes else ()
        loops = self.outer(frame, array.layout[:-1])
        offsets = [f"{self.output_walk(buffer, d, loops)}({loops.bound[d]})" for d in (*tile, *array.layout[:-1])]
        start = " + ".join([self.output_base(buffer), *offsets])
        if not dims:
            frame.add(f"put({start}, Walk{{0, 1, nullptr}}, 1, {array.name});")
            return
        last = array.layout[-1]
        walk = self.output_walk(buffer, last, loops)
        loops.add(f"put({start}, {walk}, {self.ctx.count(last)}, {array.name} + {array.offset(loops.bound)});")
        self.close(loops, frame)

    def emit(self, store: Store) -> Sink:
        return self.store(store.buffer, store.dims, lambda frame: self.values.get(store.value, frame),
                          self.ctx.ctype(store.value))
