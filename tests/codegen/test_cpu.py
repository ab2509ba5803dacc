"""Every hand-written region on the CPU target, against the float64 interpreter."""
from __future__ import annotations

import pytest
import torch

from fuse.codegen import Schedule
from fuse.codegen.cpu import TARGET
from fuse.codegen.cpu.kernel import modes
from fuse.codegen.lower import lower
from fuse.reasons import Refused
from tests.codegen.check import agrees, reference, strided
from tests.codegen.regions import BY_NAME, CASES, Case
from tests.plain import quick_builds  # noqa: F401 (fixture)

TILES = ((4, 8), (5, 37), (64, 64), (1, 1))


def kernel(case: Case, dtype: str = "float32", kind: str = "recompute", tile=(4, 8), parallel: str = "inside"):
    region = case.region(dtype)
    schedule = Schedule(kind, (("row", tile[0]), ("col", tile[1])), parallel)
    return TARGET.build(region, schedule, TARGET.source(region, schedule))


def kinds(case: Case) -> list[str]:
    try:
        lower(case.region(), staged=True)
    except Refused:
        return ["recompute"]
    return ["recompute", "slab"]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_region_is_accepted(case: Case) -> None:
    for dtype in ("float32", "bfloat16", "float64"):
        assert TARGET.refuses(case.region(dtype)) is None


@pytest.mark.parametrize("kind", ["recompute", "slab"])
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_tiles_and_threads(case: Case, kind: str) -> None:
    if kind not in kinds(case):
        pytest.skip("nothing to stage")
    region, env = case.region(), case.inputs()
    wanted = reference(region, env, case.sizes)
    for tile in TILES:
        for parallel in modes(lower(region)):
            agrees(region, kernel(case, kind=kind, tile=tile, parallel=parallel)(env, case.sizes), wanted)


@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "float16"])
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_dtypes(case: Case, dtype: str, quick_builds: None) -> None:  # noqa: F811
    check_dtype(case, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "float16"])
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_dtypes_in_optimised_kernels(case: Case, dtype: str) -> None:
    check_dtype(case, dtype)


def check_dtype(case: Case, dtype: str) -> None:
    region, env = case.region(dtype), case.inputs(dtype)
    wanted = reference(region, env, case.sizes)
    for kind in kinds(case):
        agrees(region, kernel(case, dtype, kind, (5, 11))(env, case.sizes), wanted)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_strides(case: Case, dtype: str, request: pytest.FixtureRequest) -> None:
    if dtype != "float32":
        request.getfixturevalue("quick_builds")      # as test_dtypes builds it
    region, env = case.region(dtype), case.inputs(dtype)
    wanted = reference(region, env, case.sizes)
    for seed in range(2):
        moved = {name: strided(x, seed) for name, x in env.items()}
        agrees(region, kernel(case, dtype, tile=(4, 8))(moved, case.sizes), wanted)


@pytest.mark.parametrize("small", [0, 1])
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_empty_and_single(case: Case, small: int) -> None:
    """Each axis in turn has no position, or one."""
    region = case.region()
    for symbol in sorted(case.sizes):
        sizes = case.sizes | {symbol: small}
        if case.name in ("attention", "shifted", "window") and symbol in ("B", "G", "H", "J", "I", "T", "V", "U"):
            continue          # its inputs are filled, gathered or shifted along these, or every row is masked
        over = [a.extent.evaluate(sizes) for c in region.carries if c.kind.value == "argmax" for a in c.over]
        if 0 in over:
            continue          # an argmax over nothing has no value
        env = case.inputs(sizes=sizes)
        for kind in kinds(case):
            found = kernel(case, kind=kind)(env, sizes)
            agrees(region, found, reference(region, env, sizes))


@pytest.mark.parametrize("name", ["in_one_go", "both_gradients", "attention", "attention_backward", "contrast", "cascade"])
def test_bfloat16_products(name: str) -> None:
    """On CPUs that multiply bfloat16 natively a computed operand is rounded first, as eager stores it."""
    case = BY_NAME[name]
    region, env = case.region("bfloat16"), case.inputs("bfloat16")
    schedule = Schedule("recompute", (("row", 5), ("col", 11)), "inside", (("native", 1),))
    text = TARGET.source(region, schedule)
    assert "Mat<bf16>" in text
    assert name != "in_one_go" or "rounded(Mat<float>" not in text       # written in bfloat16, not copied
    found = TARGET.build(region, schedule, text)(env, case.sizes)
    agrees(region, found, reference(region, env, case.sizes), ulps=2.0 ** 17)


@pytest.mark.parametrize("name", ["cascade", "widths"])
def test_widths_in_the_text(name: str, quick_builds: None) -> None:  # noqa: F811
    case = BY_NAME[name]
    region, env, program = case.region(), case.inputs(), lower(case.region())
    fixed = tuple((dim, program.extent(dim).evaluate(case.sizes)) for dim, axes in program.dims.items() if axes == (dim,))
    schedule = Schedule("recompute", (("row", 4), ("col", 8)), "batch", fixed)
    text = TARGET.source(region, schedule)
    assert fixed and all(f"n{dim[1:]} = {n}," in text or f"n{dim[1:]} = {n};" in text for dim, n in fixed)
    agrees(region, TARGET.build(region, schedule, text)(env, case.sizes), reference(region, env, case.sizes))


def test_infinite_and_nan_scores() -> None:
    """-inf columns, rows of -inf, +inf and nan: what eager gives for the LSE, the maximum and its place."""
    case = BY_NAME["statistics"]
    region, env = case.region(), case.inputs()
    h, w = env["h"], env["W"]
    h[..., 0], w[:, 0] = 0.0, 0.0
    h[:, :, 0] = 1.0
    w[3, 0], w[11, 0] = -float("inf"), -float("inf")
    h[0, 1, 1] = float("nan")
    run = kernel(case)
    found, wanted = run(env, case.sizes), reference(region, env, case.sizes)
    for name in ("top", "best", "picked", "total"):
        assert torch.equal(found[name].double().nan_to_num(7, 8, 9), wanted[name].double().nan_to_num(7, 8, 9)) or \
            torch.allclose(found[name].double(), wanted[name].double(), equal_nan=True, rtol=1e-5)
    pair = [x["L.m"].double() + x["L.l"].double().log() for x in (found, wanted)]
    assert torch.allclose(*pair, equal_nan=True, rtol=1e-6)
