"""What a walk's points have in common is computed once, where that costs something."""
from __future__ import annotations

import math

import pytest
import torch

from fuse.ir.evaluate import Evaluator
from fuse.ir.expr import Axis, Buffer, Expr, const, iota, make, read, sum_, topological
from fuse.ir.program import Carry, Define, Emit, Kind, Output, Program, Region, Term, stored
from fuse.ir.size import Size
from fuse.passes.hoist import hoist
from fuse.passes.simplify import simplify

B, H, N, T = (Axis(x, Size.of(n)) for x, n in (("b", 2), ("h", 3), ("n", 4), ("t", 8)))
X, A, S = (read(Buffer(name, "float32", tuple(a.extent for a in axes)), *axes)
           for name, axes in (("X", (B, H, T)), ("A", (H, N)), ("S", (B, H, N))))
EACH, MANY = make("exp", A), make("exp", S)


def scanned(a: Expr, grid: tuple[Axis, ...] = (B, H), result: Expr | None = None) -> Program:
    """y = sum_n h with h = a h + x, and a second output that is an expression of a alone."""
    h = make("scan", a, X, axis=T, reverse=False)
    region = Region("r", (T,), grid, (Carry("c", Kind.AFFINE, h, (T,), tuple(x for x in (B, H, N) if h.has(x))),),
                    (Emit("y", sum_(h, N), (B, H, T)),))
    outputs = [(stored("y", "float32", (B, H, T)), (B, H, T)), *([(result, (H, N))] if result is not None else [])]
    return Program((), tuple(Output(Buffer(f"o{k}", "float32", tuple(a.extent for a in axes)), (Term(tuple(map(iota, axes)), x),))
                             for k, (x, axes) in enumerate(outputs)), (region,))


def defined(program: Program, **options: bool) -> list[Expr]:
    return [s.value for s in hoist(program, **options).steps if isinstance(s, Define)]


def test_coefficients_that_a_batch_shares_are_computed_once_for_gradients_too() -> None:
    program = hoist(scanned(EACH, result=EACH * 2.0))
    define, region = program.steps
    assert isinstance(define, Define) and define.value is EACH
    assert isinstance(region, Region) and region.carries[0].body.args[0] is stored("d0", "float32", (H, N))
    assert not any(e.op == "exp" for e in topological([program.outputs[1].terms[0].value]))


@pytest.mark.parametrize("a, grid", [(MANY, (B, H)), (EACH, (H,)), (make("neg", A), (B, H)), (EACH * X, (B, H))],
                         ids=["of every point", "no point shares it", "it costs nothing", "of the stream"])
def test_what_stays_in_the_walk(a: Expr, grid: tuple[Axis, ...]) -> None:
    found = defined(scanned(a, grid))
    assert found == ([EACH] if a.has(T) else [])           # of the last only the factor that has no stream


def test_a_target_may_rather_compute_it_again() -> None:
    assert defined(scanned(EACH), costly=False) == []


@pytest.mark.parametrize("value", [0.3, math.inf, -math.inf, math.nan])
def test_an_exponential_of_nothing(value: float) -> None:
    x = read(Buffer("x", "float32", ()))
    (found,) = simplify([make("exp", x * const(0, "float32"))])
    assert not any(e.op == "exp" for e in topological([found]))
    got = Evaluator({"x": torch.tensor(value)}, {}).value(found)
    torch.testing.assert_close(got, torch.exp(torch.tensor(value) * 0), equal_nan=True, rtol=0, atol=0)
    assert simplify([make("exp", x * const(2, "float32"))])[0].op == "exp"
