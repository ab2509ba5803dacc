"""The meaning of programs: steps run one after the other, regions tile by tile, in plain torch.

Every target is tested against `run` in float64 with the tile size as an argument. The same walk in the program's own
types, with tiles chosen to stay small, is the fallback where no kernel can be built (`run_region`).

Per tile, with the state of a carry before it in `old` and the tile's own part summed over `over`:
    SUM      new = old + part                      MAX, ARGMAX   new = max(old, part), first position, nan wins
    LSE      m' = max(m, max s),  l' = l exp(m - m') + sum exp(s - m')
    SUM relative to an LSE, exponent k, moment n, with T_j the moments up to n and delta = m - m':
             T_n' = exp(k delta) sum_j C(n, j) delta^(n-j) T_j + sum body exp(k (s - m')) (s - m')^n
    AFFINE   h_t = a_t h_{t-1} + b_t
A scan against the direction of the walk is run beforehand, keeping its states at tile boundaries, and again per tile.
"""
from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fuse.ir.access import assemble
from fuse.ir.align import align, expand
from fuse.ir.evaluate import Evaluator, factors, linear_scan, lowest
from fuse.ir.expr import Axis, Expr, IRError, make
from fuse.ir.program import Carry, Define, Kind, Program, Region
from fuse.ir.tiling import Spans, boxes, entered

Tensors = Mapping[str, Tensor]
Sizes = Mapping[str, int]

STREAM_TILE, TILE_ELEMENTS = 1024, 1 << 21


@dataclass
class Trace:
    """What a run did: elements of the largest tile value ever built, walks along a stream, tiles."""

    peak: int = 0
    sweeps: int = 0
    tiles: int = 0


def run(program: Program, env: Tensors, sizes: Sizes, *, tile: int, dtype: str | None = "float64",
        trace: Trace | None = None) -> dict[str, Tensor]:
    """The outputs by name, floats computed in `dtype` (None: as typed), streams cut into tiles of `tile` positions."""
    trace = trace or Trace()
    values = run_steps(program, env, sizes, tile=tile, dtype=dtype, trace=trace)
    ev = Evaluator(values, sizes, dtype=dtype)
    outputs = {o.buffer.name: assemble(o, ev) for o in program.outputs}
    trace.peak = max(trace.peak, ev.peak)
    return outputs


def run_steps(program: Program, env: Tensors, sizes: Sizes, *, tile: int, dtype: str | None = "float64",
              trace: Trace | None = None) -> dict[str, Tensor]:
    """`env` and every stored value of the program, by name."""
    values, trace = dict(env), trace or Trace()
    for step in program.steps:
        if isinstance(step, Define):
            ev = Evaluator(values, sizes, dtype=dtype)
            counts = [ev.count(a) for a in step.axes]
            values[step.name] = expand(ev.value(step.value), step.value.axes, step.axes, counts)
            trace.peak = max(trace.peak, ev.peak)
        else:
            values.update(RegionRun(step, values, sizes, dtype, tile, None, trace).run())
    return values


def run_region(region: Region, env: Tensors, sizes: Sizes, dtype: str | None = None,
               tile: int | None = None) -> dict[str, Tensor]:
    """What the region stores, by name. No intermediate tensor is much larger than `TILE_ELEMENTS`, if rows are not."""
    rows = None
    if tile is None:
        sequential = any(c.kind is Kind.AFFINE for c in region.carries)
        room = max(1, TILE_ELEMENTS // _width(region, sizes))
        tile = min(room, 64 if sequential else STREAM_TILE)
        rows = max(1, room // tile)
    return RegionRun(region, env, sizes, dtype, tile, rows, Trace()).run()


def _width(region: Region, sizes: Sizes) -> int:
    """The largest number of elements that a value of the bodies has per point of the walk; dots build no product."""
    walked, seen, width = {*region.streams, *region.grid}, set[Expr](), 1
    todo = [f for c in region.carries for f in (factors(c.body) if c.kind is Kind.SUM else [c.body])]
    todo += [e.value for e in region.emits]
    while todo:
        e = todo.pop()
        if e not in seen:
            seen.add(e)
            width = max(width, math.prod(a.extent.evaluate(sizes) for a in e.axes if a not in walked))
            todo += factors(e.args[0]) if e.op == "sum" else e.args
    return width


class RegionRun:
    """One region being walked. `state` holds what the carries have accumulated, in full."""

    def __init__(self, region: Region, env: Tensors, sizes: Sizes, dtype: str | None, tile: int, rows: int | None,
                 trace: Trace):
        self.region, self.env, self.sizes, self.dtype, self.trace = region, env, sizes, dtype, trace
        self.tiles, self.blocks = boxes(region.streams, sizes, tile), boxes(region.grid, sizes, rows)
        self.carries = {c.name: c for c in region.carries}
        self.affine = {c.body: c.name for c in region.carries if c.kind is Kind.AFFINE}
        self.level = 0
        self.ev = Evaluator(env, sizes, None, dtype)
        self.state: dict[str, Tensor] = {}
        self.emitted = {e.name: self._empty(e.axes, e.value.dtype, 0) for e in region.emits}
        for carry in region.carries:
            self._start(carry)

    def _empty(self, axes: Sequence[Axis], dtype: str, fill: float) -> Tensor:
        return torch.full([self.ev.count(a) for a in axes], fill, dtype=self.ev.dtype(dtype), device=self.ev.device)

    def _start(self, carry: Carry) -> None:
        dtype = carry.body.dtype
        if carry.kind is Kind.LSE:
            self.state[f"{carry.name}.m"] = self._empty(carry.axes, dtype, -math.inf)
            self.state[f"{carry.name}.l"] = self._empty(carry.axes, dtype, 0)
        elif carry.kind in (Kind.MAX, Kind.ARGMAX):
            self.state[carry.name] = self._empty(carry.axes, dtype, lowest(self.ev.dtype(dtype)))
            if carry.kind is Kind.ARGMAX:
                self.state[f"{carry.name}.at"] = self._empty(carry.axes, "int64", torch.iinfo(torch.int64).max)
        else:
            for j in range(carry.moment + 1):
                self.state[moment(carry, j)] = self._empty(carry.axes, dtype, 0)
            self.state |= {n: self._empty(axes, dtype, 0) for n, axes in carry.buffers.items() if n not in self.state}

    def run(self) -> dict[str, Tensor]:
        for level in range(self.region.sweeps):
            self.level = level
            for block in self.blocks:
                self.walk(block)
            self.trace.sweeps += 1
        out = dict(self.emitted)
        for carry in self.region.carries:
            for name in carry.stores:
                value = self.state[f"{name}.at" if carry.kind is Kind.ARGMAX else name]
                out[name] = value.to(self.ev.dtype(carry.storage)) if carry.storage else value
        return out

    def walk(self, block: Spans) -> None:
        """All tiles of the stream for one block of the grid."""
        against = [c for c in self.region.carries if c.kind is Kind.AFFINE and c.body["reverse"] != self.region.reverse]
        starts: dict[tuple[str, int], Tensor] = {}
        if against:
            self.rehearse(block, against, starts)
        flow: dict[str, Tensor] = {}
        for i in self.order(self.region.reverse):
            tile = Tile(self, {**block, **self.tiles[i]}, flow, {n: s for (n, k), s in starts.items() if k == i})
            tile.accumulate()
            tile.store_boundaries()
            flow = tile.flow()
            self.trace.tiles += 1
            self.trace.peak = max(self.trace.peak, tile.ev.peak)
        for carry in self.region.carries:
            if carry.kind is Kind.AFFINE and carry.name in flow:
                self.view(carry.name, carry.axes, block).copy_(flow[carry.name])

    def rehearse(self, block: Spans, against: Sequence[Carry], starts: dict[tuple[str, int], Tensor]) -> None:
        """Runs the scans that go the other way, and keeps the state with which each enters each tile."""
        flow: dict[str, Tensor] = {}
        for i in self.order(not self.region.reverse):
            tile = Tile(self, {**block, **self.tiles[i]}, flow, {})
            for carry in against:
                tile.positions(carry)
                starts[carry.name, i] = tile.before[carry.name]
            flow = tile.flow()
            self.trace.peak = max(self.trace.peak, tile.ev.peak)
        for carry in against:
            if carry.name in flow:
                self.view(carry.name, carry.axes, block).copy_(flow[carry.name])

    def order(self, reverse: bool) -> Iterator[int]:
        return iter(range(len(self.tiles))[::-1] if reverse else range(len(self.tiles)))

    def view(self, name: str, axes: Sequence[Axis], window: Spans) -> Tensor:
        """The part of a state that lies in the window."""
        return self.state[name][tuple(slice(*window.get(a, (None, None))) for a in axes)]

    def carry_of(self, node: Expr) -> tuple[Carry, str]:
        name = node["name"]
        return (self.carries[name], "") if name in self.carries else (self.carries[name[:-2]], name[-2:])


def moment(carry: Carry, j: int) -> str:
    """The name of the state that keeps the j-th moment of a relative SUM; the highest is what it stores."""
    return carry.name if j == carry.moment else f"{carry.name}.moment{j}"


class Tile:
    """One tile: the values of bodies on it, and what the carries add. States change at the end of `accumulate`."""

    def __init__(self, walk: RegionRun, window: Spans, flow: dict[str, Tensor], starts: dict[str, Tensor]):
        self.walk, self.window, self.entering, self.starts = walk, window, flow, starts
        self.ev = Evaluator(walk.env, walk.sizes, window, walk.dtype, self.given)
        self.before: dict[str, Tensor] = {}                # the state with which a scan or prefix enters the tile
        self.extended: dict[str, tuple[Tensor, int]] = {}  # its values on the tile and one position before; their start
        self.after: dict[str, Tensor] = {}
        self.stepped: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        self.weights: dict[Expr, Tensor] = {}
        self.new: dict[str, Tensor] = {}

    def flow(self) -> dict[str, Tensor]:
        """The states of scans and prefixes after the tile."""
        return {n: s for n, s in self.after.items() if n not in self.starts}

    # ---- what bodies read -----------------------------------------------------------------------------------------

    def given(self, node: Expr, ev: Evaluator) -> Tensor | None:
        if node.op == "scan":
            name = self.walk.affine.get(node)
            return None if name is None else self.read_positions(self.walk.carries[name], node, ev)
        if node in self.weights:
            return self.weights[node]
        carry, suffix = self.walk.carry_of(node)
        if node["part"] == "prefix":
            return self.read_positions(carry, node, ev)
        states = self.current(carry) if node["part"] == "running" else self.stored(carry)
        value = states[suffix] if suffix or carry.kind is not Kind.LSE else states[".m"] + states[".l"].log()
        return align(value, carry.axes, node.axes)

    def stored(self, carry: Carry) -> dict[str, Tensor]:
        """The state of a carry (by suffix) as it stands."""
        names = {".m": f"{carry.name}.m", ".l": f"{carry.name}.l"} if carry.kind is Kind.LSE else \
            {"": f"{carry.name}.at" if carry.kind is Kind.ARGMAX else carry.name}
        return {s: self.walk.view(n, carry.axes, self.window) for s, n in names.items()}

    def current(self, carry: Carry) -> dict[str, Tensor]:
        """The state after this tile, for a carry of this sweep."""
        if carry.level < self.walk.level:
            return self.stored(carry)
        if carry.kind is Kind.LSE:
            _, m, total = self.step_lse(carry)
            return {".m": m, ".l": total}
        if carry.kind is Kind.AFFINE:
            self.positions(carry)
            return {"": self.after[carry.name]}
        self.add(carry)
        return {"": self.new[f"{carry.name}.at" if carry.kind is Kind.ARGMAX else carry.name]}

    def store_boundaries(self) -> None:
        """The states with which those tiles of `Region.tile` positions are entered that begin in this one."""
        for carry in (c for c in self.walk.region.carries if c.boundary):
            (stream,), (values, start) = carry.over, self.positions(carry)
            out = self.walk.view(f"at.{carry.name}", carry.boundary, self.window)
            at = self.walk.ev.count(stream), self.walk.region.tile, self.ev.span(stream), carry.body["reverse"]
            for k, position in entered(*at):
                out[k] = align(values[position - start], carry.axes, carry.boundary[1:])

    def read_positions(self, carry: Carry, node: Expr, ev: Evaluator) -> Tensor:
        (stream,) = carry.over
        values, start = self.positions(carry)
        low, high = ev.span(stream)
        if low < start or high - start > len(values):
            tile = self.window[stream]
            raise IRError(f"{carry.name} is needed at {low}:{high}, beyond the neighbour of the tile {tile}")
        return align(values[low - start:high - start], (stream, *carry.axes), node.axes)

    def positions(self, carry: Carry) -> tuple[Tensor, int]:
        """The states of a scan or a prefix sum, stream first, with the one before the tile; and where they start."""
        if carry.name in self.extended:
            return self.extended[carry.name]
        (stream,), name, body = carry.over, carry.name, carry.body
        reverse = body["reverse"] if carry.kind is Kind.AFFINE else self.walk.region.reverse
        axes = (stream, *carry.axes)
        counts = [self.ev.count(a) for a in axes]
        before = self.starts.get(name, self.entering.get(name))
        if before is None:
            before = torch.zeros(counts[1:], dtype=self.ev.dtype(body.dtype), device=self.ev.device)
        if carry.kind is Kind.AFFINE:
            a, b = (expand(self.ev.value(e), e.axes, axes, counts) for e in body.args)
            inside = linear_scan(a, b, before, reverse)
        else:
            part = expand(self.ev.value(body), body.axes, axes, counts)
            inside = before + (part.flip(0).cumsum(0).flip(0) if reverse else part.cumsum(0))
        self.before[name], self.after[name] = before, inside[0] if reverse else inside[-1]
        low = self.ev.span(stream)[0]
        joined = torch.cat([inside, before[None]] if reverse else [before[None], inside])
        self.ev.own_peak = max(self.ev.own_peak, inside.numel())
        self.extended[name] = (joined, low if reverse else low - 1)
        return self.extended[name]

    # ---- what carries add -----------------------------------------------------------------------------------------

    def accumulate(self) -> None:
        """Everything this sweep computes on the tile."""
        region, level = self.walk.region, self.walk.level
        for carry in region.carries:
            if carry.level == level:
                if carry.kind is Kind.AFFINE:
                    self.positions(carry)
                else:
                    self.add(carry)
        for emit in region.emits:
            if emit.level == level:
                counts = [self.ev.count(a) for a in emit.axes]
                value = expand(self.ev.value(emit.value), emit.value.axes, emit.axes, counts)
                self.walk.emitted[emit.name][tuple(slice(*self.window.get(a, (None, None))) for a in emit.axes)] = value
        for name, value in self.new.items():
            carry = self.walk.carries[name] if name in self.walk.carries else self.walk.carries[name.rpartition(".")[0]]
            self.walk.view(name, carry.axes, self.window).copy_(value)

    def add(self, carry: Carry) -> None:
        """Puts the state after the tile into `new`."""
        if carry.name in self.new or f"{carry.name}.m" in self.new:
            return
        if carry.kind is Kind.LSE:
            self.step_lse(carry)
        elif carry.kind is Kind.SUM and carry.relative_to is not None:
            self.add_relative(carry)
        elif carry.kind is Kind.SUM:
            self.new[carry.name] = self.old(carry) + self.summed(carry, carry.body)
        else:
            self.add_extremum(carry)

    def old(self, carry: Carry, suffix: str = "") -> Tensor:
        return self.walk.view(carry.name + suffix, carry.axes, self.window)

    def summed(self, carry: Carry, body: Expr) -> Tensor:
        """The sum of `body` over the tile's part of `over`, with the dimensions of the carry."""
        value = self.ev.partial(body, carry.over)
        kept = tuple(a for a in body.axes if a not in carry.over)
        return expand(value, kept, carry.axes, [self.ev.count(a) for a in carry.axes])

    def operand(self, carry: Carry) -> tuple[Tensor, tuple[Axis, ...], list[int]]:
        """The body on the tile with every axis of the carry, which dimensions it has, and which of them are `over`."""
        axes = (*(a for a in (*carry.axes, *carry.over) if not carry.body.has(a)), *carry.body.axes)
        value = expand(self.ev.value(carry.body), carry.body.axes, axes, [self.ev.count(a) for a in axes])
        return value, axes, [axes.index(a) for a in carry.over]

    def step_lse(self, carry: Carry) -> tuple[Tensor, Tensor, Tensor]:
        """(m before, m after, l after)."""
        if carry.name not in self.stepped:
            s, axes, dims = self.operand(carry)
            kept = tuple(a for a in axes if a not in carry.over)
            old, total = self.old(carry, ".m"), self.old(carry, ".l")
            m = torch.maximum(old, align(s.amax(dims), kept, carry.axes))
            part = torch.exp(s - align(finite(m), carry.axes, axes)).sum(dims)
            total = total * torch.exp(old - finite(m)) + align(part, kept, carry.axes)
            self.stepped[carry.name] = (old, m, total)
            self.new[f"{carry.name}.m"], self.new[f"{carry.name}.l"] = m, total
        return self.stepped[carry.name]

    def add_relative(self, carry: Carry) -> None:
        assert carry.relative_to is not None
        lse, k = self.walk.carries[carry.relative_to], carry.exponent
        if lse.level < self.walk.level:
            old = m = self.old(lse, ".m")
        else:
            old, m, _ = self.step_lse(lse)
        s = lse.body
        distance = self.ev.value(s) - align(finite(m), lse.axes, s.axes) if set(lse.axes) <= set(s.axes) else None
        if distance is None:
            axes = (*lse.over, *lse.axes)
            s = make("carry", name=f"{lse.name}.operand", part="operand", dtype=s.dtype, axes=axes)
            counts = [self.ev.count(a) for a in axes]
            distance = expand(self.ev.value(lse.body), lse.body.axes, axes, counts) - finite(m)
        weight = torch.exp(k * distance) if k else torch.ones_like(distance)
        for n in range(carry.moment + 1):
            leaf = make("carry", name=f"{lse.name}.weight", part=f"{k}.{n}", dtype=s.dtype, axes=s.axes)
            self.weights[leaf] = weight * distance ** n if n else weight
            moved = self.old_moment(carry, n)
            if old is not m:
                moved = self.rescaled(carry, n, align(delta_of(old, m), lse.axes, carry.axes))
            self.new[moment(carry, n)] = moved + self.summed(carry, carry.body * leaf)

    def rescaled(self, carry: Carry, n: int, delta: Tensor) -> Tensor:
        """The n-th moment relative to the new maximum, which is `-delta` above the old one."""
        terms = [math.comb(n, j) * delta ** (n - j) * self.old_moment(carry, j) for j in range(n + 1)]
        return torch.exp(carry.exponent * delta) * sum(terms[1:], terms[0])

    def old_moment(self, carry: Carry, j: int) -> Tensor:
        return self.walk.view(moment(carry, j), carry.axes, self.window)

    def add_extremum(self, carry: Carry) -> None:
        x, axes, dims = self.operand(carry)
        kept = tuple(a for a in axes if a not in carry.over)
        old, best = self.old(carry), align(x.amax(dims), kept, carry.axes)
        if carry.kind is Kind.MAX:
            self.new[carry.name] = torch.maximum(old, best)
            return
        at = align(x.argmax(dims[0]), kept, carry.axes) + self.ev.span(carry.over[0])[0]
        old_at = self.old(carry, ".at")
        ties = (best == old) | (best.isnan() & old.isnan())
        wins = (best > old) | (best.isnan() & ~old.isnan()) | (ties & (at < old_at))
        self.new[carry.name] = torch.where(wins, best, old)
        self.new[f"{carry.name}.at"] = torch.where(wins, at, old_at)


def delta_of(old: Tensor, m: Tensor) -> Tensor:
    """old - m; 0 before anything finite was seen, when there is nothing to rescale."""
    return torch.where(torch.isneginf(old), torch.zeros_like(old), old - finite(m))


def finite(m: Tensor) -> Tensor:
    """`m`, or 0 where no finite operand was seen: exp(-inf - 0) is 0, exp(-inf - -inf) is not."""
    return torch.where(torch.isneginf(m), torch.zeros_like(m), m)
