"""Regions with scans, their kernels run by Triton's interpreter, against float64; `test_walk.py` runs this file in a process
of its own. At interpreted speed a few columns have to do: of tiles that do not divide them, in either direction."""
from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from fuse.codegen.pairs import ComplexKernel, complex_names
from fuse.codegen.triton import TARGET
from fuse.codegen.walk import lanes
from tests.codegen.check import agrees, reference, strided
from tests.codegen.test_walk import NAMES, inputs, regions
from tests.codegen_triton.gated import SUMS, gated


def kernel(region, sizes, **tile):
    assert TARGET.refuses(region) is None, TARGET.refuses(region)
    schedule, *_ = TARGET.schedules(region, sizes, SimpleNamespace(tile=tile, schedule=None))
    built = TARGET.build(region, schedule, TARGET.source(region, schedule))
    return ComplexKernel(built, *complex_names(region))


@pytest.mark.parametrize("name", NAMES)
def test_lengths(name):
    """One position, several tiles of columns with a rest; one kernel serves all of them, and no positions at all."""
    for region in regions(name):
        run = kernel(region, {"T": 11}, span=4)
        for length in (1, 11):
            env = inputs(region, {"T": length})
            agrees(region, run(env, {"T": length}), reference(region, env, {"T": length}))
        empty = run(inputs(region, {"T": 0}), {"T": 0})
        assert all(x.numel() == 0 or not x.any() for x in empty.values())


@pytest.mark.slow
@pytest.mark.parametrize("length", [2, 16, 37, 64])
@pytest.mark.parametrize("name", NAMES)
def test_more_lengths(name, length):
    """Tiles of the size that the launcher chooses."""
    for region in regions(name):
        env = inputs(region, {"T": length})
        agrees(region, kernel(region, {"T": length})(env, {"T": length}), reference(region, env, {"T": length}))


@pytest.mark.parametrize("name", NAMES)
def test_every_lane(name):
    """Whatever axis is walked side by side, in tiles that do not divide it, or none; on memory of any layout."""
    sizes = {"T": 4}
    for region in regions(name):
        env = inputs(region, sizes)
        wanted = reference(region, env, sizes)
        spread = {n: strided(x, seed=k) for k, (n, x) in enumerate(env.items())}
        for lane in ("", *(a.name for a in lanes(region, sizes))):
            agrees(region, kernel(region, sizes, lane=lane, row=2, span=3)(spread, sizes), wanted)


@pytest.mark.parametrize("found, length", [
    pytest.param(gated()[1:], 3, id="gated"),
    pytest.param(regions("causal flow attention"), 7, id="flow", marks=pytest.mark.slow)])
def test_stages(found, length):
    """What is stored between them, the lanes that this leaves, and parts of sums over those."""
    sizes = {"T": length}
    for region in found:
        env = inputs(region, sizes)
        spread = {n: strided(x, seed=k) for k, (n, x) in enumerate(env.items())}
        run = kernel(region, sizes, staged=1, row=2, span=2)
        assert len(run.kernel.kernels) > 1
        agrees(region, run(spread, sizes), reference(region, env, sizes))


def test_a_stage_without_scans():
    """Both sums of a matrix, over its rows and over its columns, and then their product, which needs no walk."""
    region, sizes = SUMS, {"T": 5, "D": 3, "M": 2}
    env = inputs(region, sizes)
    run = kernel(region, sizes, staged=1, row=16, col=16)
    assert [k.name for _, k, _ in run.kernel.kernels] == ["walk0", "walk1", "sweep2"]
    agrees(region, run(env, sizes), reference(region, env, sizes))


def test_sums_over_lanes_repeat_their_bits():
    """Parts of them are added up in order."""
    region, sizes = regions("selective scan")[-1], {"T": 3}
    run, env = kernel(region, sizes, lane="d", row=1), inputs(regions("selective scan")[-1], sizes)
    first, second = run(env, sizes), run(env, sizes)
    assert all(torch.equal(first[n], second[n]) for n in first)


def test_offsets_in_64_bits(monkeypatch):
    monkeypatch.setattr("fuse.codegen.triton.launch.INT32", 2)
    region, sizes = regions("selective scan")[-1], {"T": 3}
    env = inputs(region, sizes)
    agrees(region, kernel(region, sizes, span=2)(env, sizes), reference(region, env, sizes))
