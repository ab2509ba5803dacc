"""Walks as Triton kernels: their text, their memory, numbers (`walks.py`), and registers on devices that are not here.

    python -m pytest tests/codegen_triton/test_walk.py -m slow -s      prints the table of registers
"""
from __future__ import annotations

import os
import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("Triton is interpreted in this process", allow_module_level=True)

from fuse.codegen import Schedule, compile_region
from fuse.codegen.triton import Triton, text_of
from fuse.codegen.triton.ahead import meta_inputs
from fuse.codegen.triton.lanes import lightened
from fuse.codegen.triton.launch import Bound, Machine
from fuse.codegen.triton.passage import run_walk
from fuse.codegen.triton.schedule import part, relieved
from fuse.codegen.triton.stages import staged
from fuse.codegen.triton.walk import BARRIER
from fuse.codegen.walk import lanes
from fuse.ir.expr import make, topological
from fuse.ir.program import Carry, Emit, Kind
from fuse.passes import Context, compile_program
from fuse.reasons import Miss
from tests.codegen.regions import d, t
from tests.codegen.test_walk import NAMES, REFUSED, A, H, X, regions, scanning
from tests.codegen_triton.corpus import launched
from tests.codegen_triton.corpus import regions as traced
from tests.codegen_triton.gated import MIXED, SUMS, gated
from tests.codegen_triton.process import run_interpreted
from tests.codegen_triton.test_corpus import DEVICES, check
from tests.forms_attention import FORMS
from tests.ir.programs import complex_state_space, selective_scan

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "triton"
HERE = Triton(Machine("sm90", 132))


def test_numbers():
    run_interpreted("walks.py", timeout=600)


@pytest.mark.slow
def test_all_numbers():
    run_interpreted("walks.py", "-m", "slow", timeout=1800)


@pytest.mark.parametrize("number, lane", [(0, "d"), (1, "d")])
def test_golden(number, lane, request):
    """Forward: one loop. Backward: three, and parts of sums over the lanes."""
    schedule = Schedule("walk", (("row", 32), ("col", 1)), "grid", (("lane", lane),))
    text, path = HERE.source(regions("selective scan")[number], schedule), GOLDEN / f"walk.{('forward', 'backward')[number]}.py"
    if request.config.getoption("--update-golden"):
        path.write_text(text)
    assert path.read_text() == text


def run(region, sizes, **tile):
    """The tensors that a launch works with, none of them real."""
    (schedule,) = HERE.schedules(region, sizes, SimpleNamespace(tile=tile, schedule=None))
    _, ((piece, kernel),) = text_of(region, schedule)
    bound = Bound(piece, kernel, schedule, Machine("sm90", 132), meta_inputs(region, sizes), sizes)

    class Function:
        def __getitem__(self, grid):
            return lambda *arguments, **constants: None
    run_walk(bound, Function())
    return kernel, bound.tensors


def test_states_take_memory_as_the_root_of_the_length():
    """Of every tile of 64 columns the state that enters it, of one tile all of them: 64 + 65 in place of 4096."""
    region, sizes = regions("selective scan")[-1], {"T": 4096}
    kernel, tensors = run(region, sizes, lane="d")
    assert [name for name, _ in kernel.entries] == ["e_c2"] and [name for name, _ in kernel.kept] == ["h_c2"]
    state = 2 * 4 * 4                    # batch, padded lanes, width
    assert tensors["e_c2"].numel() == 64 * state and tensors["h_c2"].numel() == 65 * state
    assert all(tensors[name].numel() == state for name, _ in kernel.parked)
    kernel, _ = run(regions("selective scan")[0], sizes)
    assert not kernel.entries and not kernel.kept and not kernel.parked


# ---- what threads of one program leave each other in memory ----------------------------------------------------------

def hazards(text):
    """Memory of its own that a walk reads after a store, or stores to after a read, without a barrier in between."""
    lines = [(len(line) - len(line.lstrip()), line.strip()) for line in text.splitlines() if line.strip()]

    def block(at, depth):
        """(what happens in the block that begins at a line, the first line after it); loops happen twice."""
        found = []
        while at < len(lines) and lines[at][0] >= depth:
            if lines[at][1].startswith("for "):
                body, at = block(at + 1, depth + 4)
                found += body * 2
                continue
            if lines[at][1] == BARRIER:
                found.append(("barrier", ""))
            found += re.findall(r"tl\.(load|store)\(([ehw]_\w+)", lines[at][1])
            at += 1
        return found, at
    start = next(k for k, (_, line) in enumerate(lines) if line.startswith("pid ="))
    seen, bad = set(), []
    for what, where in block(start, 4)[0]:
        if what == "barrier":
            seen.clear()
        elif ({"load": "store", "store": "load"}[what], where) in seen:
            bad.append((what, where))
        seen.add((what, where))
    return bad


@pytest.mark.parametrize("name", NAMES)
def test_barriers_order_what_threads_share(name):
    """Each of them is needed."""
    region = regions(name)[-1]
    (schedule,) = HERE.schedules(region, {"T": 4096})
    text = HERE.source(region, schedule)
    assert text.count(BARRIER) == 4 and not hazards(text)
    first, *pieces = text.split(BARRIER)
    for k in range(len(pieces)):
        kept = [BARRIER] * k + [""] + [BARRIER] * (len(pieces) - k - 1)
        assert hazards(first + "".join(b + piece for b, piece in zip(kept, pieces, strict=True))), k


# ---- schedules ------------------------------------------------------------------------------------------------------

def test_the_lane_is_a_long_grid_axis_or_a_width_of_a_large_state():
    def chosen(case):
        plan = compile_program(case.program, Context(hints=case.sizes, wrt=case.wrt))
        (schedule,) = HERE.schedules(plan.forward.regions[0], {"T": 1024})
        return schedule.knob("lane"), schedule.extent("row"), schedule.knob("warps")
    assert chosen(selective_scan(8, 1024, 16)) == ("d", 32, 1)
    assert chosen(selective_scan(8, 1024, 64)) == ("d", 16, 2)
    assert chosen(selective_scan(2, 4, 1024)) == ("n", 512, 1)
    assert chosen(selective_scan(2, 4, 64))[0] == ""


def test_what_does_not_fit_is_lightened_step_by_step():
    schedule, seen = Schedule("walk", (("row", 4), ("col", 1)), "grid", (("lane", "d"), ("warps", 4), ("stages", 3))), []
    while (schedule := lightened(schedule)) is not None:
        seen.append((schedule.knob("warps"), schedule.knob("stages"), schedule.extent("row")))
    assert seen == [(8, 3, 4), (8, 1, 4), (8, 1, 2), (8, 1, 1), (16, 1, 1)]


# ---- stages -----------------------------------------------------------------------------------------------------------

def widths(region):
    return [len(set(c.axes) - set(region.grid)) for c in region.carries]


def test_stages_separate_large_states_from_what_mixes_their_lanes():
    """Prefix sums both ways, of up to two widths: no stage has sums of different widths, or of both ways without need."""
    forward, backward = (staged(r) for r in regions("causal flow attention"))
    assert [widths(r) for r in forward] == [[0, 1, 1, 1, 1], [2]] and not any(r.reverse for r in forward)
    assert [set(widths(r)) for r in backward] == [{0, 1}, {2}, {2}, {2}, {0, 1}]
    assert [r.reverse for r in backward] == [False, True, False, True, True]
    for found in (forward, backward):
        names = [n for r in found for n in r.stores]
        for r in found:      # what a stage reads of others they have stored, at every position; no matrix among it
            read = {e["buffer"] for e in topological(r.bodies) if e.op == "read" and e["buffer"].name in names}
            assert all(len(b.shape) <= 3 for b in read)
            assert all(names.index(b.name) < names.index(r.stores[0]) for b in read)


def test_a_gate_for_each_row_keeps_rows_as_lanes():
    """Its gradient needs the state of both ways at once, so one stage has both, and the gradients of columns are parts."""
    (wide, narrow) = staged(gated()[-1])
    assert widths(wide) == [2, 2] and widths(narrow) == [1, 1] and [a.name for a in lanes(wide, {"T": 9})] == ["d", "b"]


def test_large_states_are_cut_into_stages_and_small_ones_are_not():
    """In one piece only if stages are refused."""
    for size, count in ((128, 2), (16, 1)):
        schedules = HERE.schedules(gated(size, size)[-1], {"T": 1024})
        assert [len(text_of(gated(size, size)[-1], s)[1]) for s in schedules] == list(range(count, 0, -1))
    (schedule,) = HERE.schedules(regions("selective scan")[-1], {"T": 1024})
    assert not schedule.knob("staged")


def test_a_stage_that_does_not_fit_is_lightened_by_itself():
    schedule, _ = HERE.schedules(gated(128, 128)[-1], {"T": 1024})
    lighter = relieved(schedule, 1, True, "sm90")
    assert part(lighter, 0) != part(lighter, 1) and part(lighter, 0).tile == part(schedule, 0).tile
    assert part(lighter, 1).knob("warps") == 2 * part(schedule, 1).knob("warps")
    assert part(lighter, 0).knob("warps") == part(schedule, 0).knob("warps")


def test_what_cannot_be_cut_is_left_in_one_piece():
    """Sums over one width that are multiplied with the state and then summed over the other: no width is a lane of that."""
    assert staged(MIXED) == (MIXED,) and len(staged(SUMS)) == 3
    (complex_region, _) = regions("complex state space")
    assert staged(complex_region) == (complex_region,)


# ---- refusals -------------------------------------------------------------------------------------------------------

TOP = Carry("m", Kind.MAX, H, (t,), (d,))
AHEAD = make("scan", make("shift", A, axis=t, by=-1), X, axis=t, reverse=False)
UNFIT = {
    "a maximum beside": replace(scanning(H), carries=(*scanning(H).carries, TOP)),
    "a rehearsal that looks ahead": scanning(AHEAD, Emit("e", AHEAD, (t, d)), reverse=True),
}


@pytest.mark.parametrize("region", [*REFUSED.values(), *UNFIT.values()], ids=[*REFUSED, *UNFIT])
def test_refusals(region):
    miss = compile_region(region, HERE, {})
    assert isinstance(miss, Miss) and miss.code == "TARGET_LACKS", miss


# ---- ahead of time --------------------------------------------------------------------------------------------------

@cache
def planned(make_case, *shape):
    case = make_case(*shape)
    plan = compile_program(case.program, Context(hints=case.sizes, wrt=case.wrt))
    return tuple((region, {"T": 4096}) for region in (*plan.forward.regions, *plan.backward.regions))


def compiles(name, found, archs):
    rows = {}
    launched(name, found, archs, rows)
    check(rows.values())
    assert rows
    for row in rows.values():      # a barrier of the text is one of the device, where a program is more than one wave
        usage, wanted = row.launch.usage, row.launch.text.count(BARRIER)
        assembly = usage.assembly["ptx" if usage.arch.startswith("sm") else "amdgcn"]
        if part(row.schedule, row.number).knob("warps") > 1:
            assert len(re.findall(r"\bbar\.sync|\bs_barrier", assembly)) >= wanted, usage


def heads(name, width, dtype, patch):
    def make_inputs():
        shape = (2, 4096, 8, width) if name == "causal_linear_by_products" else (2, 8, 4096, width)
        return [torch.randn(*shape, dtype=dtype, requires_grad=True) for _ in range(3)]
    return traced(FORMS[name].function, make_inputs, "recompute", patch)


@pytest.mark.parametrize("make_case, shape, arch", [
    (selective_scan, (8, 1024, 16), "sm90"), (complex_state_space, (8, 1024, 32), "gfx942")])
def test_some_scans_compile(make_case, shape, arch):
    compiles(make_case.__name__, planned(make_case, *shape), [arch])


@pytest.mark.slow
@pytest.mark.parametrize("width", [16, 64])
@pytest.mark.parametrize("channels", [256, 1024, 2048])
@pytest.mark.parametrize("make_case", [selective_scan, complex_state_space])
def test_scans_compile(make_case, channels, width):
    compiles(f"{make_case.__name__} {channels} {width}", planned(make_case, 8, channels, width), DEVICES)


def test_some_gated_heads_compile():
    """The hardest of stages: states of 128 x 128 numbers both ways at once."""
    compiles("gated 128", [(gated(128, 128, 16)[-1], {"T": 4096})], ["sm90"])


@pytest.mark.slow
@pytest.mark.parametrize("width", [32, 64, 96, 128])
def test_gated_heads_compile(width):
    compiles(f"gated {width}", [(region, {"T": 4096}) for region in gated(width, width, 16)], DEVICES)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("width", [32, 64, 96, 128, 256])
@pytest.mark.parametrize("name", ["causal_linear", "causal_linear_by_products", "causal_flow"])
def test_causal_heads_compile(name, width, dtype, monkeypatch):
    compiles(f"{name} {width}", heads(name, width, getattr(torch, dtype), monkeypatch), DEVICES)
