"""Scans on the CPU target: derived forward and backward walks against the float64 interpreter."""
from __future__ import annotations

from functools import cache
from importlib import import_module
from pathlib import Path

import pytest
import torch

from fuse.codegen import Schedule, compile_region
from fuse.codegen.cpu import TARGET
from fuse.codegen.lower import lower
from fuse.codegen.pairs import ComplexKernel, complex_names
from fuse.codegen.tile import Scan, Shift
from fuse.codegen.walk import lanes
from fuse.ir.expr import Expr, const, make, sum_, topological
from fuse.ir.program import Carry, Emit, Kind, Region
from fuse.ir.reference import run_steps
from fuse.passes import Context, compile_program
from fuse.reasons import Miss, Refused
from tests.codegen.check import agrees, reference, strided
from tests.codegen.regions import d, t, value
from tests.ir.examples import fixed
from tests.ir.programs import CASES
from tests.plain import quick_builds  # noqa: F401 (fixture)

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "cpu"
NAMES = ("selective scan", "causal flow attention", "complex state space")


@cache
def regions(name: str) -> tuple[Region, ...]:
    case = CASES[name]
    plan = compile_program(case.program, Context(hints=case.sizes, wrt=case.wrt, **dict(case.options)))
    return (*plan.forward.regions, *plan.backward.regions)


def inputs(region: Region, sizes: dict[str, int]) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    buffers = {e["buffer"] for e in topological(region.bodies) if e.op == "read"}
    return {b.name: torch.rand([x.evaluate(sizes) for x in b.shape], generator=g, dtype=getattr(torch, b.dtype)) * 0.7
            for b in sorted(buffers, key=lambda b: b.name)}


def run(region: Region, schedule: Schedule, env: dict[str, torch.Tensor], sizes: dict[str, int]) -> dict[str, torch.Tensor]:
    kernel = TARGET.build(region, schedule, TARGET.source(region, schedule))
    return ComplexKernel(kernel, *complex_names(region))(env, sizes)


@pytest.mark.parametrize("name", NAMES)
def test_lengths_and_tiles(name: str, quick_builds: None) -> None:  # noqa: F811
    """One position, fewer than a tile, several tiles with a rest, an exact number of tiles; no positions at all."""
    for region in regions(name):
        assert TARGET.refuses(region) is None
        for length in (1, 5, 16, 37):
            sizes = {"T": length}
            env = inputs(region, sizes)
            wanted = reference(region, env, sizes)
            for tile in ((64, 8), (2, 16), (1, 1), (3, 64)):
                schedule = Schedule("recompute", (("row", tile[0]), ("col", tile[1])), "grid")
                agrees(region, run(region, schedule, env, sizes), wanted)
        empty = run(region, schedule, inputs(region, {"T": 0}), {"T": 0})
        assert all(x.numel() == 0 or not x.any() for x in empty.values())


@pytest.mark.parametrize("name", NAMES)
def test_every_lane(name: str, quick_builds: None) -> None:  # noqa: F811
    """Whatever axis is walked side by side, in tiles that do not divide it, on memory of any layout."""
    sizes = {"T": 21}
    for region in regions(name):
        env = inputs(region, sizes)
        wanted = reference(region, env, sizes)
        spread = {n: strided(x, seed=k) for k, (n, x) in enumerate(env.items())}
        found = lanes(region, sizes)
        assert found
        for axis in found:
            schedule = Schedule("recompute", (("row", 2), ("col", 8)), "grid", (("lane", axis.name),))
            agrees(region, run(region, schedule, spread, sizes), wanted)


def test_a_sum_over_the_lane_becomes_a_carry() -> None:
    backward = regions("selective scan")[-1]
    by_name = {a.name: a for c in backward.carries for a in c.axes}
    program = lower(backward, False, by_name["d"].name)
    assert sorted(s.scope for s in program.states if s.kind is Kind.SUM) == ["grid", "grid", "row"]
    assert not lower(backward).dims["row"] and program.dims["row"]


def test_what_is_read_one_step_away() -> None:
    """A scan against the walk is rehearsed; its value one step back and a coefficient one step ahead are at hand."""
    program = lower(regions("selective scan")[-1])
    assert program.reverse and [s.reverse for s in program.rehearsal if isinstance(s, Scan)] == [False]
    assert sorted(s.by for s in program.statements() if isinstance(s, Shift)) == [-1, 1]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("tile", (15, 16, 64))
def test_tiles_are_entered_with_what_the_forward_stored(name: str, tile: int, quick_builds: None,  # noqa: F811
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    """A forward kernel stores the states between tiles, complex ones too; the backward's, which reads them, has no rehearsal."""
    monkeypatch.setattr(import_module("fuse.passes.boundaries"), "SHARE", 1)
    case = CASES[name]
    context = Context(case.sizes, case.wrt, **dict(case.options), walk_tile=lambda region: (tile, region.grid[0].name))
    plan = compile_program(fixed(case.program, T=37), context)
    g = torch.Generator().manual_seed(0)
    env = {b.name: torch.rand([x.evaluate(case.sizes) for x in b.shape], generator=g, dtype=getattr(torch, b.dtype)) * 0.7
           for p in (plan.forward, plan.backward) for b in p.inputs if b.name not in plan.saved}
    for program in (plan.forward, plan.backward):
        values = run_steps(program, env, case.sizes, tile=16)
        for region in program.regions:
            for lane in ("", *(a.name for a in lanes(region, case.sizes))):
                schedule = Schedule("recompute", (("row", 2), ("col", tile)), "grid", (("lane", lane),) if lane else ())
                assert not lower(region, False, lane).rehearsal
                given = {n: x.to(getattr(torch, kind)) for n, kind in types(region).items() for x in [values[n]]}
                agrees(region, run(region, schedule, given, case.sizes), {n: values[n] for n in region.stores})
        env = values
    assert any(c.boundary for r in plan.forward.regions for c in r.carries)
    assert any(c.entry for r in plan.backward.regions for c in r.carries)


def types(region: Region) -> dict[str, str]:
    return {e["buffer"].name: e["buffer"].dtype for e in topological(region.bodies) if e.op == "read"}


def test_golden(request: pytest.FixtureRequest) -> None:
    region = regions("selective scan")[0]
    text, path = TARGET.source(region, Schedule("recompute", (), "grid")), GOLDEN / "scan.recompute.float32.cpp"
    if request.config.getoption("--update-golden"):
        path.write_text(text)
    assert path.read_text() == text


# ---- refusals -------------------------------------------------------------------------------------------------------

A, X = value("a", "float32", t, d), value("x", "float32", t, d)
H = make("scan", A, X, axis=t, reverse=False)


def scanning(body: Expr, *emits: Emit, **more) -> Region:
    return Region("r", (t,), (), (Carry("h", Kind.AFFINE, body, (t,), (d,)),), emits, **more)


LATER = make("scan", A, make("scan", A, X, axis=t, reverse=True), axis=t, reverse=False)
REFUSED = {
    "a later sweep": scanning(H, Emit("e", H, (t, d), level=1)),
    "a scan nobody carries": scanning(H, Emit("e", LATER, (t, d))),
    "far away": scanning(H, Emit("e", make("shift", X, axis=t, by=2), (t, d))),
    "ahead of itself": scanning(H, Emit("e", make("shift", H, axis=t, by=-1), (t, d))),
    "other way first": Region("r", (t,), (), (Carry("h", Kind.AFFINE, LATER, (t,), (d,)),
                                             Carry("g", Kind.AFFINE, LATER.args[1], (t,), (d,))), reverse=True),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str) -> None:
    miss = compile_region(REFUSED[name], TARGET, {})
    assert isinstance(miss, Miss) and miss.code == "TARGET_LACKS", miss


def test_an_axis_that_a_scan_mixes_is_no_lane() -> None:
    mixed = make("scan", A, sum_(X, d) * X, axis=t, reverse=False)
    region = scanning(mixed, Emit("e", sum_(mixed, d), (t,)))
    assert lanes(region, {"T": 4, "D": 8}) == []
    with pytest.raises(Refused, match="summed within a scan"):
        lower(region, False, d.name)
    normalised = scanning(H, Emit("e", H * sum_(H, d), (t, d)))
    assert lanes(normalised, {"T": 4, "D": 8}) == []


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("lane", ["", "d"])
def test_a_long_running_sum_forgets_no_rounding_errors(reverse: bool, lane: str, quick_builds: None) -> None:  # noqa: F811
    """Those of the 64 steps of one tile are left, about 8 halves of a unit; rounded at every step it would err by hundreds."""
    total = make("scan", const(1, "float32"), X, axis=t, reverse=reverse)
    region = Region("r", (t,), (), (Carry("h", Kind.AFFINE, total, (t,), (d,)),), (Emit("e", total, (t, d)),), reverse)
    sizes, x = {"T": 40000, "D": 5}, torch.rand(40000, 5, generator=torch.Generator().manual_seed(0))
    schedule = Schedule("recompute", (("row", 64), ("col", 64)), "grid", (("lane", lane),) if lane else ())
    found = run(region, schedule, {"x": x}, sizes)
    flip = (lambda y: y.flip(0)) if reverse else (lambda y: y)
    exact = flip(flip(x.double()).cumsum(0))
    assert ((found["e"] - exact).abs() / exact).max() < 4 * torch.finfo(torch.float32).eps
    assert ((found["h"] - exact[0 if reverse else -1]).abs() / x.double().sum(0)).max() < torch.finfo(torch.float32).eps
