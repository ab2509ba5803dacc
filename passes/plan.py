"""plan: the joint program is cut into what runs in the forward and what runs in the backward."""
from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace

from fuse.ir.expr import Buffer, Expr, topological
from fuse.ir.program import Carry, Define, Kind, Output, Program, Region, Step
from fuse.reasons import Miss


@dataclass(frozen=True)
class Plan:
    """`forward` computes the outputs and the buffers `saved`; `backward` reads those, the inputs and the cotangents.

    `handed_over` are saved gradients of the slab schedule: computed in the forward, up to a factor, for one use.
    `snapshots` is the program after every pass, `seconds` what each pass took with the verifier after it.
    """

    forward: Program
    backward: Program | None
    saved: tuple[str, ...]
    handed_over: tuple[str, ...] = ()
    notes: tuple[Miss, ...] = ()
    snapshots: dict[str, Program] = field(default_factory=dict, compare=False)
    seconds: dict[str, float] = field(default_factory=dict, compare=False)


def names_read(step: Step) -> set[str]:
    roots = (step.value,) if isinstance(step, Define) else step.bodies
    return _buffers(roots)


def _buffers(roots: Iterable[Expr]) -> set[str]:
    return {e["buffer"].name for e in topological(roots) if e.op == "read"}


def stores(step: Step) -> tuple[str, ...]:
    return (step.name,) if isinstance(step, Define) else step.stores


def restrict(program: Program, outputs: Collection[str], stored: Collection[str] = ()) -> Program:
    """The program that computes only the named outputs and stored values: unneeded steps, carries and inputs are gone."""
    kept = tuple(o for o in program.outputs if o.buffer.name in outputs)
    return _needed(program, kept, extra=stored)


def _needed(program: Program, outputs: tuple[Output, ...], extra: Collection[str]) -> Program:
    wanted = set(extra) | _buffers([e for o in outputs for t in o.terms for e in (*t.index, t.value)])
    wanted |= _buffers([check.index for check in program.checks])
    steps: list[Step] = []
    for step in reversed(program.steps):
        if isinstance(step, Region):
            step = _trim(step, wanted)
            if not step.carries and not step.emits:
                continue
        elif step.name not in wanted:
            continue
        wanted |= names_read(step)
        steps.append(step)
    inputs = tuple(b for b in program.inputs if b.name in wanted)
    names = {b.name for b in inputs}
    return replace(program, inputs=inputs, outputs=outputs, steps=tuple(reversed(steps)),
                   cotangents=tuple(c for c in program.cotangents if c in names))


def _trim(region: Region, wanted: set[str]) -> Region:
    """Keeps the carries whose stores are wanted, and all that their bodies are computed from."""
    keep: set[str] = set()
    emits = tuple(e for e in region.emits if e.name in wanted)
    todo = [c for c in region.carries if not wanted.isdisjoint(c.stores)]
    for emit in emits:
        todo += _needed_by(emit.value, region)
    while todo:
        carry = todo.pop()
        if carry.name in keep:
            continue
        keep.add(carry.name)
        todo += _needed_by(carry.body, region)
        if carry.relative_to:
            todo.append(region.carry(carry.relative_to))
            todo += [c for c in region.carries if _lower_moment(c, carry)]
    kept = [_storing(c, wanted) for c in region.carries if c.name in keep]
    tile = region.tile if any(c.boundary or c.entry for c in kept) else 0
    return replace(region, carries=tuple(kept), emits=emits, tile=tile)


def _storing(carry: Carry, wanted: set[str]) -> Carry:
    """A scan's carry that stores only what is wanted of it."""
    if carry.kind is not Kind.AFFINE:
        return carry
    return replace(carry, final=carry.name in wanted, boundary=carry.boundary if f"at.{carry.name}" in wanted else ())


def _needed_by(body: Expr, region: Region) -> list[Carry]:
    """The carries that `body` reads by name, and the scans in it."""
    below = topological([body])
    parts = {e["name"].removesuffix(".m").removesuffix(".l") for e in below if e.op == "carry"}
    return [c for c in region.carries if c.name in parts or (c.kind is Kind.AFFINE and c.body in below)]


def _lower_moment(c: Carry, of: Carry) -> bool:
    return (c.relative_to, c.body, c.exponent) == (of.relative_to, of.body, of.exponent) and c.moment < of.moment


def backward_steps(program: Program, backward_regions: Collection[str]) -> set[int]:
    """The steps that are named so, that read a cotangent, or that read what one of these stores."""
    late, late_names = set[int](), set(program.cotangents)
    for i, step in enumerate(program.steps):
        named = isinstance(step, Region) and step.name in backward_regions
        if named or names_read(step) & late_names:
            late.add(i)
            late_names |= set(stores(step))
    return late


def cut(program: Program, backward_regions: Collection[str]) -> tuple[Program, Program | None, tuple[str, ...]]:
    """(forward, backward, saved) from the joint program; a step is backward if it is named so or reads one that is."""
    reads = [names_read(step) for step in program.steps]
    late = backward_steps(program, backward_regions)
    late |= _only_for_backward(program, late, reads)
    results = tuple(o for o in program.outputs if o.gradient_of is None)
    gradients = tuple(o for o in program.outputs if o.gradient_of is not None)
    early_steps = tuple(s for i, s in enumerate(program.steps) if i not in late)
    late_steps = tuple(s for i, s in enumerate(program.steps) if i in late)
    if not gradients:
        return _needed(replace(program, steps=early_steps), results, ()), None, ()
    back = _needed(replace(program, steps=late_steps, checks=()), gradients, ())
    read = set().union(*(reads[i] for i in late),
                       _buffers([e for o in gradients for t in o.terms for e in (*t.index, t.value)]))
    saved = tuple(n for s in early_steps for n in stores(s) if n in read)
    ahead = _needed(replace(program, steps=early_steps), results, saved)
    return ahead, replace(back, inputs=back.inputs + _saved_buffers(back, saved)), saved


def _only_for_backward(program: Program, late: set[int], reads: list[set[str]]) -> set[int]:
    """Defines that only backward steps read move there, so that nothing is kept alive for them."""
    moved: set[int] = set()
    outputs = _buffers([e for o in program.outputs if o.gradient_of is None for t in o.terms for e in (*t.index, t.value)])
    for i in reversed(range(len(program.steps))):
        step = program.steps[i]
        if i in late or not isinstance(step, Define):
            continue
        readers = [j for j, names in enumerate(reads) if step.name in names]
        if step.name not in outputs and all(j in late or j in moved for j in readers):
            moved.add(i)
    return moved


def _saved_buffers(back: Program, saved: tuple[str, ...]) -> tuple[Buffer, ...]:
    found = {e["buffer"].name: e["buffer"] for e in topological(back.roots()) if e.op == "read"}
    return tuple(found[n] for n in saved if n in found)
