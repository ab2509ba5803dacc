"""The compiler on one page: an expression program goes in, a plan of streamed regions comes out.

Every pass is one file whose docstring is its equation. The order matters where a comment says so; the program is
verified after every pass.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from time import perf_counter

from fuse.ir.program import Program, Region, Slab, on_values
from fuse.ir.verify import verify
from fuse.passes.absorb import absorb
from fuse.passes.boundaries import Tile, boundaries
from fuse.passes.differentiate import differentiate
from fuse.passes.hoist import hoist, orient, regroup
from fuse.passes.lower import Lowering
from fuse.passes.masks import masks
from fuse.passes.merge import Group, fits_beside, merge
from fuse.passes.nest import nest
from fuse.passes.plan import Plan, cut, restrict
from fuse.passes.reassociate import reassociate
from fuse.passes.recognise import recognise
from fuse.passes.recurrent import recurrent
from fuse.passes.regions import expand_picks, frontier, split_sums
from fuse.passes.simplify import drop_marks, simplify
from fuse.passes.virtualize import virtual_of, virtualize
from fuse.reasons import Miss

__all__ = ["PIPELINE", "Context", "Plan", "compile_program", "restrict"]


@dataclass
class Context:
    """What the passes may know: sizes to expect, which inputs need gradients, what the target and the user allow."""

    hints: Mapping[str, int] = field(default_factory=dict)
    wrt: tuple[str, ...] = ()
    slab: bool = True                # gradients may be computed in the forward where that is legal
    beside: Slab = field(default_factory=Slab)     # and no larger than this
    shared_sweep: bool = True        # the target accumulates over a grid axis
    eps: float | str | None = None   # gradients may leave out what is smaller beside the row's cotangent; "auto" by type
    recomputes: bool = False         # the target rather computes an exponential again than reads it
    walk_tile: Tile = lambda region: None     # see boundaries
    notes: list[Miss] = field(default_factory=list)
    backward_regions: set[str] = field(default_factory=set)


Pass = Callable[[Program, Context], Program]


def _regions(program: Program, context: Context) -> Program:
    virtual = virtual_of(program, context.hints)
    program = on_values(program, lambda roots: split_sums(expand_picks(roots), virtual, context.hints))
    leaves = frontier(program, virtual)
    slab = context.slab and fits_beside(context.beside, leaves, context.hints)
    groups: list[Group] = merge(leaves, slab=slab, shared_sweep=context.shared_sweep, note=context.notes.append)
    context.backward_regions = {f"region{i}" for i, g in enumerate(groups) if g.backward}
    # Only with its row values hoisted is a region's body free of sums over the axes it walks.
    return hoist(Lowering(program, groups, context.eps).run(), costly=not context.recomputes)


PIPELINE: tuple[tuple[str, Pass], ...] = (
    ("recognise", lambda p, _: on_values(p, recognise)),
    # Pushing a pick below log(softmax) uncovers the idiom again.
    ("simplify", lambda p, _: on_values(p, lambda roots: simplify(recognise(simplify(roots))))),
    ("masks", lambda p, _: on_values(p, masks)),
    ("recurrent", lambda p, c: recurrent(p, c.hints)),
    # Autodiff meets the primitives, so that every derivative is bounded; the backward has no rules of its own.
    ("differentiate", lambda p, c: differentiate(p, c.wrt)),
    # Again: only now do gradients and forward share their statistics.
    ("share", lambda p, _: on_values(p, lambda roots: drop_marks(simplify(roots)))),
    ("reassociate", lambda p, _: on_values(p, reassociate)),
    ("virtualize", lambda p, c: virtualize(p, c.hints)),
    ("regions", _regions),
    ("absorb", lambda p, c: absorb(p, c.backward_regions, c.hints)),
    # Before the order of operands depends on the region, so that the same scan is the same expression.
    ("boundaries", lambda p, c: boundaries(p, c.backward_regions, c.walk_tile, c.hints)),
    ("canonical", lambda p, _: orient(regroup(nest(p)))),
)


def compile_program(program: Program, context: Context) -> Plan:
    """Runs the pipeline. Refused carries the Miss if the program cannot be streamed."""
    snapshots, seconds = {"import": program}, dict[str, float]()
    for name, step in PIPELINE:
        begun = perf_counter()
        program = step(program, context)
        verify(program)
        snapshots[name], seconds[name] = program, perf_counter() - begun
    forward, backward, saved = cut(program, context.backward_regions)
    for part in filter(None, (forward, backward)):
        verify(part)
    return Plan(forward, backward, saved, _handed_over(forward, saved), tuple(context.notes), snapshots,
                seconds)


def _handed_over(forward: Program, saved: tuple[str, ...]) -> tuple[str, ...]:
    """The gradients a region with a second sweep leaves behind."""
    return tuple(n for s in forward.steps if isinstance(s, Region) for c in s.carries if c.level for n in c.stores
                 if n in saved)
