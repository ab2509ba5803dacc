"""Hand-written programs, differentiated and run by the reference interpreter, against autograd of plain torch."""

from __future__ import annotations

import pytest
import torch

from fuse.ir.evaluate import evaluate_output
from fuse.ir.reference import Trace, run, run_steps
from fuse.ir.text import parse_program, print_program
from fuse.ir.verify import verify
from fuse.passes import Context, Plan, compile_program
from tests.ir.programs import CASES, Case

TILES = (1, 7, 64)


def compiled(case: Case) -> Plan:
    return compile_program(case.program, Context(hints=case.sizes, wrt=case.wrt, **dict(case.options)))


def close(got: torch.Tensor, want: torch.Tensor, name: str) -> None:
    assert got.shape == want.shape, name
    torch.testing.assert_close(got.to(want.dtype), want.detach(), rtol=1e-8, atol=1e-10, msg=lambda m: f"{name}: {m}")


@pytest.mark.parametrize("name", CASES)
def test_the_program_means_the_function(name: str):
    case = CASES[name]
    inputs = case.inputs()
    verify(case.program)
    assert parse_program(print_program(case.program)) == case.program
    for output, want in zip(case.program.outputs, case.expected(inputs), strict=True):
        close(evaluate_output(output, inputs, case.sizes, dtype="float64").detach(), want, output.buffer.name)


@pytest.mark.parametrize("name", CASES)
def test_forward_and_backward_tile_by_tile(name: str):
    case = CASES[name]
    inputs = case.inputs()
    expected = case.expected(inputs)
    g = torch.Generator().manual_seed(1)
    seeds = [torch.randn(w.shape, generator=g, dtype=torch.float64) for w in expected]
    gradients = torch.autograd.grad(expected, [inputs[n] for n in case.wrt], seeds)
    fixed, plan = {n: x.detach() for n, x in inputs.items()}, compiled(case)
    for program in filter(None, (plan.forward, plan.backward)):
        assert parse_program(print_program(program)) == program
    for tile in TILES:
        trace = Trace()
        outputs = run(plan.forward, fixed, case.sizes, tile=tile, trace=trace)
        for output, want in zip(case.program.outputs, expected, strict=True):
            close(outputs[output.buffer.name], want, output.buffer.name)
        stored = run_steps(plan.forward, fixed, case.sizes, tile=tile)
        cotangents = {f"ct.{o.buffer.name}": s for o, s in zip(case.program.outputs, seeds, strict=True)}
        env = {**fixed, **cotangents, **{n: stored[n] for n in plan.saved}}
        back = run(plan.backward, env, case.sizes, tile=tile, trace=trace)
        for n, gradient in zip(case.wrt, gradients, strict=True):
            close(back[f"grad.{n}"], gradient, f"grad.{n} at tile {tile}")
        if tile == 1 and case.virtual:
            assert trace.peak < case.virtual


@pytest.mark.parametrize("name", CASES)
def test_the_number_of_sweeps(name: str):
    case, plan = CASES[name], compiled(CASES[name])
    assert [r.sweeps for r in plan.forward.regions] == case.forward
    assert [r.sweeps for r in plan.backward.regions] == case.backward
