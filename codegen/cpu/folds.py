"""Reductions of a tile into states, in two shapes.

`along`: the vectorised strip is the reduced dim (sum over the vocabulary for each row); lanes are combined at the end.
`across`: the strip is a dim the state keeps (a column's sum over rows, a width); each lane is a sum of its own.

An LSE takes two passes, the maximum first. Along a strip both run chunk by chunk, unless something outside the nest
(a matrix product, another nest) needs weights relative to the whole tile's maximum.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

from fuse.codegen.cpu.context import Array, Context
from fuse.codegen.cpu.frame import Frame
from fuse.codegen.cpu.nests import Nests, Sink
from fuse.codegen.cpu.spell import CTYPE, LOWEST
from fuse.codegen.cpu.values import Strip, Values, ctype_of_sum
from fuse.codegen.roles import refuse
from fuse.codegen.tile import State, Update, Value
from fuse.ir.program import Kind


@dataclass(frozen=True)
class Weighted:
    """weight * value of a relative update with a matrix product: an array that the fold fills."""

    update: Update
    array: Array


@dataclass(frozen=True)
class Fold:
    """What one nest reduces: `updates` without a matrix product, all with the same state dims and the same `over`."""

    updates: tuple[Update, ...]
    weighted: tuple[Weighted, ...] = ()
    fills: tuple[tuple[Value, Array], ...] = ()    # values (over outer + strip) stored on the way, for matrix products
    emits: tuple[Sink, ...] = ()                   # stores (over outer + strip)
    shared: frozenset[str] = frozenset()   # LSE states whose tile maximum others need


class Folds:
    def __init__(self, ctx: Context, values: Values, nests: Nests):
        self.ctx, self.values, self.nests = ctx, values, nests

    # ---- states -----------------------------------------------------------------------------------------------------

    def array(self, name: str, frame: Frame) -> Array:
        found = frame.thing(("state", name))
        assert isinstance(found, Array), name
        return found

    def lane_type(self, state: State) -> str:
        return CTYPE[state.compare]

    def at(self, array: Array, frame: Frame, lane: Strip | None = None) -> str:
        """The state's element at the indices of `frame`; with `lane`, that of lane k of the strip."""
        index = {d: frame.bound[d] for d in array.layout if d in frame.bound}
        if lane is not None and lane.dim in array.layout:
            index[lane.dim] = f"({lane.base} + k)"
        return array.at(index)

    def moved(self, u: Update, frame: Frame, rho: str, delta: str, lane: Strip | None = None) -> str:
        """rho * sum_j C(n, j) delta**(n - j) T_j, with T_n the state of `u` and rho, delta names in scope."""
        own = self.at(self.array(u.state, frame), frame, lane)
        terms = [own]
        for j, name in enumerate(u.lower):
            lower = self.at(self.array(name.replace(".", "_"), frame), frame, lane)
            terms.append(" * ".join([f"{comb(u.moment, j)}", *[delta] * (u.moment - j), lower]))
        return f"{rho} * ({' + '.join(terms)})"

    def weight(self, u: Update, gap: str, unit: str) -> str:
        """exp(exponent * gap) * gap**moment, where unit = exp(gap)."""
        k = u.exponent
        if k == 0:
            factors = []
        elif k in (1, 2, 3, 4):
            factors = [unit] * int(k)
        else:
            factors = [f"exp_({self.exponent(u)} * {gap})"]
        return " * ".join(factors + [gap] * u.moment) or "1"

    def exponent(self, u: Update) -> str:
        ctype = CTYPE[self.ctx.program.state(u.state).compare]
        return f"{ctype}({float(u.exponent)!r})"

    def rho(self, u: Update, delta: str) -> str:
        if u.exponent == 0:
            return "1"
        return f"exp_({delta})" if u.exponent == 1 else f"exp_({self.exponent(u)} * {delta})"

    def sinks(self, fold: Fold) -> list[Sink]:
        return [self.nests.writer(value, array) for value, array in fold.fills] + list(fold.emits)

    def accumulator(self, u: Update) -> Sink:
        """A sink for a state that has every dim of the tile (it reduces batch axes alone)."""
        def sink(frame: Frame) -> None:
            assert u.value is not None
            if u.kind not in (Kind.SUM, Kind.MAX) or u.relative is not None:
                raise refuse(f"a {u.kind.value} over batch axes alone")
            name, array = self.values.get(u.value, frame), self.array(u.state, frame)
            target = self.nests.target(array, frame)
            frame.add(f"{target} += {name};" if u.kind is Kind.SUM else f"{target} = max_({target}, {name});")
        return sink

    # ---- along ------------------------------------------------------------------------------------------------------

    def along(self, frame: Frame, fold: Fold, outer: tuple[str, ...], reduce: tuple[str, ...], strip: str) -> None:
        loops = self.nests.outer(frame, outer)
        inner = self.nests.outer(loops, reduce, parallel=False)
        lses = [u for u in fold.updates if u.kind is Kind.LSE]
        names = {u.state for u in lses}
        second = [u for u in fold.updates if u.relative in names]
        first = [u for u in fold.updates if u.kind is not Kind.LSE and u not in second]
        if not lses:
            self.first_pass(inner, fold, [], first, strip)
        elif not (names & fold.shared):
            chunk = self.nests.chunk(inner, strip)
            kept = self.first_pass(inner, fold, lses, first, strip, chunk, keep=True)
            for u in lses:
                self.raise_maximum(u, chunk)
            self.second_pass(chunk, fold, lses, second, kept)
            self.settle(lses, second, chunk, "sum_of<{total}>(g_{state})")
            self.nests.close(chunk, inner)
        else:
            if reduce:
                raise refuse("a product relative to a maximum over rows and columns")
            self.whole_tile(inner, fold, lses, first, second, strip)
        self.nests.close(inner, frame)

    def first_pass(self, inner: Frame, fold: Fold, lses: list[Update], first: list[Update], strip: str,
                   chunk: Frame | None = None, keep: bool = False) -> dict[int, str]:
        """Maxima, plain folds and maps. Returns what was kept for the second pass: value id -> line of the chunk."""
        own = chunk is None
        chunk = chunk or self.nests.chunk(inner, strip)
        for u in (*lses, *first):
            ctype = self.lane_type(self.ctx.program.state(u.state))
            identity = LOWEST[ctype] if u.kind is not Kind.SUM else f"{ctype}(0)"
            chunk.add(f"{ctype} h_{u.state}[LANES]; fill(h_{u.state}, {identity});")
            if u.kind is Kind.ARGMAX:
                chunk.add(f"int w_{u.state}[LANES]; fill(w_{u.state}, 0);")
        body = self.nests.strip(chunk, strip)
        kept: dict[int, str] = {}
        for u in lses:
            assert u.value is not None
            name = self.values.get(u.value, body)
            body.add(f"h_{u.state}[k] = {name} > h_{u.state}[k] ? {name} : h_{u.state}[k];")
            if keep and self.ctx.expensive(u.value) and not self.ctx.array(u.value, body):
                chunk.add(f"{self.ctx.ctype(u.value)} s{u.value.id}[CHUNK];")
                body.add(f"s{u.value.id}[c] = {name};")
                kept[u.value.id] = f"s{u.value.id}[c]"
        for u in first:
            self.accumulate(u, body)
        for sink in self.sinks(fold):
            sink(body)
        body.close()
        for u in first:
            self.flush(u, chunk)
        if own:
            self.nests.close(chunk, inner)
        return kept

    def accumulate(self, u: Update, body: Frame) -> None:
        """lane op= value, for a fold that needs no maximum of this nest."""
        lane = f"h_{u.state}[k]"
        name = self.values.get(u.value, body) if u.value is not None else "1"
        if u.kind is Kind.SUM:
            if u.relative is not None:
                name = f"{self.outside_weight(u, body)} * {name}"
            body.add(f"{lane} += {name};")
        elif u.kind is Kind.MAX:
            body.add(f"{lane} = max_({lane}, {name});")
        else:
            body.add(f"const bool b_{u.state} = beats({name}, {lane});",
                     f"{lane} = b_{u.state} ? {name} : {lane};",
                     f"w_{u.state}[k] = b_{u.state} ? c : w_{u.state}[k];")

    def outside_weight(self, u: Update, body: Frame) -> str:
        """The weight relative to a maximum that an earlier nest has settled for this tile."""
        assert u.operand is not None and u.relative is not None
        key, ctype = ("gap", u.relative), self.ctx.ctype(u.operand)
        if key not in body.things:
            m = self.values.read(self.array(f"{u.relative}_m", body), body)
            body.add(f"const {ctype} z_{u.relative} = {self.values.get(u.operand, body)} - origin({m});",
                     f"const {ctype} e_{u.relative} = exp_(z_{u.relative});")
            body.things[key] = True
        return self.weight(u, f"z_{u.relative}", f"e_{u.relative}")

    def flush(self, u: Update, chunk: Frame) -> None:
        """state op= lanes, after the strips of one chunk."""
        state = self.ctx.program.state(u.state)
        if u.kind is Kind.ARGMAX:
            best, where = (self.at(self.array(f"{u.state}{s}", chunk), chunk) for s in ("_v", ""))
            first = {"row": "row0 + first", "col": "col0 + first"}[u.over[0]]
            chunk.add(f"take_first(h_{u.state}, w_{u.state}, {first}, {best}, {where});")
            return
        target = self.at(self.array(u.state, chunk), chunk)
        if u.kind is Kind.MAX:
            chunk.add(f"{target} = max_({target}, max_of(h_{u.state}));")
        else:
            chunk.add(f"{target} += sum_of<{ctype_of_sum(state.dtype)}>(h_{u.state});")

    def move(self, frame: Frame, updates: Sequence[Update]) -> None:
        """Rescales states relative to an LSE of an earlier nest, before this tile is added: T_n = rho sum_j ..."""
        for u in updates:
            array, gaps = self.array(u.state, frame), self.array(f"{u.relative}_m", frame)
            last = max((k + 1 for k, d in enumerate(array.layout) if d in gaps.layout), default=0)
            loops = self.nests.outer(frame, array.layout[:last])
            old, now = (self.at(self.array(f"{u.relative}{s}", loops), loops) for s in ("_o", "_m"))
            ctype = CTYPE[self.ctx.program.state(u.state).compare]
            block = loops.open("{")
            block.add(f"const {ctype} delta = drop({old}, {now}), rho = {self.rho(u, 'delta')};")
            inner = self.nests.outer(block, array.layout[last:], parallel=False)
            inner.add(f"{self.at(array, inner)} = {self.moved(u, inner, 'rho', 'delta')};")
            self.nests.close(inner, frame)

    def raise_maximum(self, u: Update, frame: Frame, top: str | None = None) -> None:
        """m' = max(m, top of the lanes): o_ the old one, m_ the new one as an origin, delta_ their difference."""
        ctype, m = self.lane_type(self.ctx.program.state(u.state)), self.array(f"{u.state}_m", frame)
        at = self.at(m, frame)
        top = top or f"top_of(h_{u.state})"
        frame.add(f"const {ctype} o_{u.state} = {at}, x_{u.state} = {top};",
                  f"const {ctype} y_{u.state} = x_{u.state} > o_{u.state} ? x_{u.state} : o_{u.state};",
                  f"const {ctype} m_{u.state} = origin(y_{u.state});",
                  f"const {ctype} delta_{u.state} = drop(o_{u.state}, y_{u.state});",
                  f"{at} = y_{u.state};")

    def second_pass(self, chunk: Frame, fold: Fold, lses: list[Update], second: list[Update],
                    kept: dict[int, str]) -> None:
        """Sums of weights, relative to the maxima that were just raised."""
        strip = chunk.thing("strip")
        assert isinstance(strip, Strip)
        for u in (*lses, *second):
            ctype = self.lane_type(self.ctx.program.state(u.state))
            chunk.add(f"{ctype} g_{u.state}[LANES]; fill(g_{u.state}, {ctype}(0));")
        body = self.nests.strip(chunk, strip.dim)
        for u in lses:
            assert u.value is not None
            if u.value.id in kept:
                body.names[u.value.id] = kept[u.value.id]
            ctype = self.ctx.ctype(u.value)
            body.add(f"const {ctype} z_{u.state} = {self.values.get(u.value, body)} - m_{u.state};",
                     f"const {ctype} e_{u.state} = exp_(z_{u.state});",
                     f"g_{u.state}[k] += e_{u.state};")
        for u in second:
            body.add(f"g_{u.state}[k] += {self.contribution(u, body)};")
        for w in fold.weighted:
            if w.update.relative in {u.state for u in lses}:
                body.add(f"{self.nests.target(w.array, body)} = {self.contribution(w.update, body)};")
        body.close()

    def contribution(self, u: Update, body: Frame) -> str:
        weight = self.weight(u, f"z_{u.relative}", f"e_{u.relative}")
        return weight if u.value is None else f"{weight} * {self.values.get(u.value, body)}"

    def settle(self, lses: list[Update], second: list[Update], frame: Frame, total: str) -> None:
        """New states from old ones and this tile's (or chunk's) totals; higher moments come first, l last."""
        for u in (*second, *lses):
            state = self.ctx.program.state(u.state)
            source = u.relative or u.state
            delta = f"delta_{source}"
            added = total.format(total=ctype_of_sum(state.dtype), state=u.state)
            if u.kind is Kind.LSE:
                target = self.at(self.array(f"{u.state}_l", frame), frame)
                frame.add(f"{target} = exp_({delta}) * {target} + {added};")
            else:
                target = self.at(self.array(u.state, frame), frame)
                frame.add(f"{target} = {self.moved(u, frame, self.rho(u, delta), delta)} + {added};")

    def whole_tile(self, inner: Frame, fold: Fold, lses: list[Update], first: list[Update], second: list[Update],
                   strip: str) -> None:
        """Both passes over the whole tile, so that one maximum per tile is shared with matrix products."""
        for u in lses:
            ctype = self.lane_type(self.ctx.program.state(u.state))
            inner.add(f"{ctype} top_{u.state} = {LOWEST[ctype]};")
        chunk = self.nests.chunk(inner, strip)
        self.first_pass(inner, fold, lses, first, strip, chunk)
        for u in lses:
            top = f"top_{u.state}"
            chunk.add(f"const auto t_{u.state} = top_of(h_{u.state});", f"{top} = t_{u.state} > {top} ? t_{u.state} : {top};")
        self.nests.close(chunk, inner)
        for u in lses:
            self.raise_maximum(u, inner, f"top_{u.state}")
            if u.state in fold.shared:
                inner.add(f"{self.at(self.array(f'{u.state}_o', inner), inner)} = o_{u.state};")
        for u in (*second, *lses):
            inner.add(f"{ctype_of_sum(self.ctx.program.state(u.state).dtype)} total_{u.state} = 0;")
        chunk = self.nests.chunk(inner, strip)
        self.second_pass(chunk, fold, lses, second, {})
        for u in (*second, *lses):
            chunk.add(f"total_{u.state} += sum_of<{ctype_of_sum(self.ctx.program.state(u.state).dtype)}>(g_{u.state});")
        self.nests.close(chunk, inner)
        self.settle(lses, second, inner, "total_{state}")
