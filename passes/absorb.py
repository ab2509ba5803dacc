"""absorb: an output computed point by point from what one walk emits is emitted by that walk.

    emit e[t] = sum_n C[t, n] h[t, n];  out[t] = e[t] * g[t]    ->    emit e'[t] = (sum_n C[t, n] h[t, n]) * g[t];  out = e'

Nothing passes over `e` again, and `e` is not stored unless something else reads it. Only walks of scans absorb: in them an
emit is computed tile by tile anyway. A gradient is no business of a walk of the forward, whose cotangents come later. An
emit that sums over an axis cannot have it shared out among lanes once more is computed from the sum, so enough of another
must be left.
"""
from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from fuse.ir.expr import Axis, Expr, rewrite, topological
from fuse.ir.ops import OPS
from fuse.ir.program import Emit, Kind, Output, Program, Region, Term, stored
from fuse.passes.plan import backward_steps, stores

LANES = 16        # positions that are worth being walked side by side


def absorb(program: Program, backward_regions: Collection[str], hints: Mapping[str, int]) -> Program:
    late = backward_steps(program, backward_regions)
    for k, step in enumerate(program.steps):
        if isinstance(step, Region) and step.emits and step.sweeps == 1 and any(c.kind is Kind.AFFINE for c in step.carries):
            program = _Absorbing(program, k, late, hints).run()
    return program


class _Absorbing:
    def __init__(self, program: Program, number: int, late: Collection[int], hints: Mapping[str, int]):
        self.program, self.number, self.late, self.hints = program, number, late, hints
        region = program.steps[number]
        assert isinstance(region, Region)
        self.region = region
        self.inlined = {stored(e.name, e.value.dtype, e.axes): e.value for e in region.emits}
        self.unknown = {name for step in program.steps[number:] for name in stores(step)}
        self.emits: dict[Expr, Emit] = {}

    def run(self) -> Program:
        outputs = tuple(replace(o, terms=tuple(self.term(o, t) for t in o.terms)) for o in self.program.outputs)
        if not self.emits:
            return self.program
        program = replace(self.program, outputs=outputs)
        read = {n["buffer"].name for n in topological(list(program.roots())) if n.op == "read"}
        kept = tuple(e for e in self.region.emits if e.name in read)
        region = replace(self.region, emits=(*kept, *self.emits.values()))
        steps = self.program.steps
        return replace(program, steps=(*steps[:self.number], region, *steps[self.number + 1:]))

    def term(self, output: Output, term: Term) -> Term:
        if (output.gradient_of is not None) is not (self.number in self.late) or not self.absorbs(term.value):
            return term
        if term.value not in self.emits:
            name = f"{self.region.emits[0].name}.{len(self.emits)}"
            (value,) = rewrite([term.value], lambda _: None, dict(self.inlined))
            placed = [n["axis"] for i in term.index for n in topological([i]) if n.op == "iota"]
            axes = tuple(dict.fromkeys(placed)) if set(placed) == set(value.axes) else value.axes
            self.emits[term.value] = Emit(name, value, axes)
        emit = self.emits[term.value]
        return Term(term.index, stored(emit.name, emit.value.dtype, emit.axes))

    def absorbs(self, value: Expr) -> bool:
        """Pointwise in emits and in what is stored before, at every point of the walk, with lanes to spare?"""
        if value.op == "read" or not {*self.region.streams, *self.region.grid} <= set(value.axes):
            return False
        nodes = topological([value], set(self.inlined))
        found = [n for n in nodes if n in self.inlined]
        if not found or any(set(n.axes) != set(value.axes) for n in found):
            return False
        rest = [n for n in nodes if n not in self.inlined]
        known = all(n["buffer"].name not in self.unknown for n in rest if n.op == "read")
        return known and all(OPS[n.op].pointwise for n in rest) and any(map(self.is_wide, value.axes))

    def is_wide(self, axis: Axis) -> bool:
        return axis not in self.region.streams and axis.extent.evaluate(
            {s: self.hints.get(s, LANES) for s in axis.extent.symbols}) >= LANES
