"""Which scans a walk backwards finds stored, and which it has to rehearse."""
from __future__ import annotations

from dataclasses import replace

import pytest

from fuse.ir.program import Kind, Program
from fuse.passes import Context, Plan, compile_program
from fuse.passes.plan import restrict
from tests.ir.examples import fixed
from tests.ir.programs import CASES

CASE = CASES["selective scan"]


def planned(program: Program, tile: int | None = 16) -> Plan:
    return compile_program(program, Context(CASE.sizes, CASE.wrt, walk_tile=lambda _: tile and (tile, "b")))


def entered(plan: Plan) -> list[bool]:
    """For every scan against a walk: does it find its states?"""
    assert plan.backward is not None
    return [c.entry is not None for r in plan.backward.regions for c in r.carries
            if c.kind is Kind.AFFINE and c.body["reverse"] != r.reverse]


def test_the_states_between_tiles_are_handed_over() -> None:
    plan = planned(fixed(CASE.program, T=37))
    (stored,) = [n for n in plan.saved if n.startswith("at.")]
    (forward,), (backward,) = plan.forward.regions, plan.backward.regions
    assert forward.tile == backward.tile == 16 and stored in forward.stores and entered(plan) == [True]
    (carry,) = [c for c in forward.carries if c.boundary]
    assert forward.carries and carry.buffers[stored] == carry.boundary
    assert carry.boundary[0].extent == 3 and [a.name for a in carry.boundary[1:]] == ["d", "n", "b"]


@pytest.mark.parametrize("length, tile", [(None, 16), (37, None), (37, 4)],
                         ids=["unknown length", "a target that cannot", "more than is emitted"])
def test_what_is_rehearsed(length: int | None, tile: int | None) -> None:
    plan = planned(CASE.program if length is None else fixed(CASE.program, T=length), tile)
    assert entered(plan) == [False] and not any(n.startswith("at.") for n in plan.saved)
    assert all(r.tile == 0 for p in (plan.forward, plan.backward) for r in p.regions)


def test_a_forward_alone_stores_nothing_for_a_backward() -> None:
    plan = planned(fixed(CASE.program, T=37))
    alone = restrict(plan.forward, [o.buffer.name for o in plan.forward.outputs])
    (region,) = alone.regions
    assert region == replace(plan.forward.regions[0], tile=0, carries=region.carries)
    assert not any(c.boundary for c in region.carries) and not any(s.startswith("at.") for s in region.stores)
