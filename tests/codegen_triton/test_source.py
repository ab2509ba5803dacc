"""What the target says, without running anything: texts, refusals, schedules."""
from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path
from types import SimpleNamespace

import pytest

from fuse.codegen import Schedule, compile_region
from fuse.codegen.triton import TARGET, Triton, text_of
from fuse.codegen.triton.ahead import meta_inputs
from fuse.codegen.triton.chain import Chain
from fuse.codegen.triton.launch import Bound, Machine, reach
from fuse.codegen.triton.pieces import COLUMN_SLAB, RECOMPUTE, pieces
from fuse.codegen.triton.schedule import family, part, relieved
from fuse.codegen.triton.spell import SPELLINGS
from fuse.ir.expr import Axis, Buffer, cast, make, read, rename_axes
from fuse.ir.ops import POINTWISE
from fuse.ir.program import Carry, Kind, Region, carry_part
from fuse.reasons import Miss
from tests.codegen.regions import BY_NAME
from tests.codegen_triton import zoo

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "triton"
HERE = Triton(Machine("sm90", 132))
SMALL = dict(B=2, T=9, V=64, D=64, Q=16, L=32, H=2, N=16)
WIDE = SMALL | dict(D=768)

GOLDEN_CASES = {
    "cross_entropy": ("cross_entropy", dict(dtype="bfloat16"), WIDE),
    "softcap": ("smoothing", dict(dtype="float16", softcap=30.0), WIDE),
    "moments": ("entropy", dict(), SMALL),
    "argmax": ("accuracy", dict(dtype="bfloat16"), WIDE),
    "gradients_by_slab": ("gradients", dict(dtype="bfloat16"), WIDE),
    "gradients_on_chip": ("gradients", dict(dtype="bfloat16"), SMALL),
    "levels": ("two_levels", dict(dtype="bfloat16"), WIDE),
    "attention": ("attention", dict(dtype="bfloat16"), SMALL),
    "no_dot": ("flow", dict(), SMALL),
}


def source(name, sizes=SMALL, kind=None, options=None, **kw):
    region = zoo.CASES[name](**kw).region
    found = [s for s in HERE.schedules(region, sizes, options) if kind in (None, s.kind)]
    return HERE.source(region, found[0])


@pytest.mark.parametrize("golden", GOLDEN_CASES)
def test_golden(golden, request):
    """The text for a region; `--update-golden` writes what the target says now, for the diff to be read."""
    name, kw, sizes = GOLDEN_CASES[golden]
    text, path = source(name, sizes, **kw), GOLDEN / f"{golden}.py"
    if request.config.getoption("--update-golden"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert text == path.read_text()


# ---- canonical text -------------------------------------------------------------------------------------------------

def test_names_are_not_text():
    """Regions equal up to the names of axes, buffers and carries have the same source."""
    region = zoo.gradients().region
    axes = {a.name: Axis(f"z_{a.name}", a.extent) for c in region.carries for a in (*c.axes, *c.over)}
    new = rename_axes([c.body for c in region.carries], axes)
    swap = lambda group: tuple(axes[a.name] for a in group)  # noqa: E731
    carries = tuple(Carry(f"q{c.name}", c.kind, b, swap(c.over), swap(c.axes), storage=c.storage)
                    for c, b in zip(region.carries, new, strict=True))
    other = Region("other", swap(region.streams), swap(region.grid), carries)
    for schedule in HERE.schedules(region, SMALL):
        assert HERE.source(region, schedule) == HERE.source(other, schedule)


def test_sizes_and_tiles_are_not_text():
    region = zoo.cross_entropy().region
    tiles = [SimpleNamespace(tile={"row": 16 * k, "col": 16, "deep": 16 * k, "warps": k}) for k in (1, 2)]
    texts = {HERE.source(region, HERE.schedules(region, sizes, o)[0]) for sizes in (SMALL, WIDE) for o in tiles}
    assert len(texts) == 1


@pytest.mark.parametrize("name", zoo.CASES)
def test_no_dot_result_is_transposed_in_the_text(name):
    """`tl.trans` stands only around names that come from loads."""
    for kind in (RECOMPUTE, COLUMN_SLAB):
        lines = source(name, kind=kind if name in ("gradients",) else None, dtype="bfloat16").splitlines()
        tainted = set()
        for line in lines:
            found = re.match(r"\s+(\w+) \+?= (.*)", line)
            inherits = found and set(re.findall(r"\w+", found[2])) & tainted and "tl.sum" not in line
            if found and (inherits or re.search(r"\bdot\(", found[2])):
                tainted.add(found[1])
            moved = re.search(r"tl\.(?:trans|permute)\((\w+)", line)
            assert not moved or moved[1] not in tainted, line


def test_importing_the_target_does_not_import_triton():
    program = "import sys, fuse.codegen.triton; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False, cwd=Path(__file__).parents[2]).returncode == 0


# ---- the table of ops -----------------------------------------------------------------------------------------------

def test_what_the_table_lacks():
    """Complex numbers have no kernels here; the rest of what is missing never stands in a body (see the contract)."""
    lacking = set(POINTWISE) - TARGET.capabilities.ops
    assert lacking == {"conj", "real", "imag", "complex", "logaddexp", "exp_sub", "sub_lse", "bounded", "given"}
    assert set(SPELLINGS) <= set(POINTWISE)


# ---- refusals -------------------------------------------------------------------------------------------------------

def test_without_a_device_there_is_no_kernel(monkeypatch):
    triton = pytest.importorskip("triton")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    region = zoo.cross_entropy().region
    found = compile_region(region, TARGET, SMALL)
    assert isinstance(found, Miss) and found.code == "TARGET_LACKS" and "TRITON_INTERPRET" in found.detail
    assert TARGET.schedules(region, SMALL) == ()


def test_refuses_double_precision():
    found = HERE.refuses(zoo.cross_entropy(dtype="float64").region)
    assert found is not None and found.code in ("UNSUPPORTED_DTYPE", "TARGET_LACKS")


def test_takes_scans_and_refuses_complex_numbers_elsewhere():
    t, d = zoo.axis("t", "T"), zoo.axis("d", "D")
    a, x = (cast(read(Buffer(n, "float32", (t.extent, d.extent)), t, d), "float32") for n in "ax")
    scan = make("scan", a, x, axis=t, reverse=False)
    assert HERE.refuses(Region("scan", (t,), (d,), (Carry("h", Kind.AFFINE, scan, (t,), (d,)),))) is None
    z = read(Buffer("z", "complex64", (t.extent, d.extent)), t, d)
    found = HERE.refuses(Region("complex", (t,), (d,), (Carry("s", Kind.SUM, make("real", z), (t,), (d,)),)))
    assert found is not None


def test_refuses_what_no_schedule_can_emit():
    """A tile of four dimensions."""
    axes = i, j, d, e, f = [zoo.axis(n, n.upper()) for n in "ijdef"]
    x = read(Buffer("x", "float32", tuple(a.extent for a in axes)), *axes)
    found = HERE.refuses(Region("four", (j,), (i,), (Carry("s", Kind.SUM, x * x, (j,), (i, d, e, f)),)))
    assert found is not None and found.code == "TARGET_LACKS"


def test_a_right_factor_that_is_computed_is_stored_before_the_slab():
    """dX = dS tanh(W), dW = dS^T h[rows]: both are library GEMMs, of a factor that torch computes once."""
    for make_case in (zoo.computed_factor, zoo.gathered_rows):
        region = make_case(dtype="bfloat16").region
        schedule = HERE.schedules(region, WIDE | dict(N=50))[0]
        (piece,) = pieces(region, schedule.kind)
        assert schedule.kind == COLUMN_SLAB and [r.buffer.dtype for r in piece.before] == ["bfloat16"]
    assert not pieces(zoo.gradient_x().region, COLUMN_SLAB)[0].before


def test_a_product_of_two_widths_is_not_stored():
    """sum_t k[t, d] v[t, e]: a right factor with both widths would be as large as all of the products."""
    region = BY_NAME["state_of_products"].region("bfloat16")
    plain = [replace(c, relative_to=None, exponent=1, moment=0) for c in region.carries if c.kind is Kind.SUM]
    found = [p for p in pieces(replace(region, carries=tuple(plain)), COLUMN_SLAB)]
    assert found and not any(p.slab or p.before for p in found)


def test_a_walk_without_rows_takes_whole_tiles_of_columns():
    """No tile has a row; what float32 factors of products lack in registers they find on matrix units, in three parts."""
    region = BY_NAME["state_of_products"].region("bfloat16")
    sizes = dict(B=2, H=4, J=65536, D=64, E=64)
    (schedule, *_) = HERE.schedules(region, sizes)
    assert schedule.extent("row") == 1 and schedule.extent("col") == 64 and schedule.knob("precision") == "tf32x3"
    assert Triton(Machine("gfx942", 304)).schedules(region, sizes)[0].knob("precision") == "ieee"
    wide = HERE.schedules(region, sizes | dict(D=256, E=256))[0]
    assert {part(wide, k).knob("chunk") for k in range(len(pieces(region, wide.kind, True)))} == {64}
    assert HERE.schedules(zoo.gradients().region, SMALL)[0].knob("precision") == "ieee"


def test_few_heads_fill_the_device():
    """8 heads of 65536 positions: the stream is split over about two programs for each multiprocessor."""
    region, sizes = BY_NAME["state_of_products"].region("bfloat16"), dict(B=1, H=8, J=65536, D=64, E=64)
    schedule = HERE.schedules(region, sizes)[0]
    for k, (piece, kernel) in enumerate(text_of(region, schedule)[1]):
        bound = Bound(piece, kernel, part(schedule, k), Machine("sm90", 132), meta_inputs(region, sizes), sizes)
        (window,) = bound.windows()
        assert bound.batch * window.splits == 256 and window.span * window.splits >= 65536


def test_a_slab_needs_a_product():
    """sum_v tanh(dS[t, v] W[v, d]) is none: wide results are computed in chunks."""
    h = zoo.Head()
    carry = Carry("dx", Kind.SUM, make("tanh", h.ds() * h.read_w), (h.v,), (*h.grid, h.d))
    found = HERE.schedules(h.case("computed", carry).region, WIDE)
    assert {s.kind for s in found} == {RECOMPUTE} and found[0].knob("chunk")
    plain = HERE.schedules(zoo.gradient_x().region, WIDE)
    assert plain[0].kind == COLUMN_SLAB and not plain[0].knob("chunk")


def test_only_accumulators_are_cut_into_chunks():
    """Statistics and a wide sum that is no product: the first piece has no width to cut."""
    h = zoo.Head()
    lse = h.carry("c", Kind.LSE, h.s)
    weight = make("exp", h.s - carry_part(lse, "final", ".m"))
    wide = Carry("dx", Kind.SUM, make("tanh", weight * h.read_w), (h.v,), (*h.grid, h.d), level=1)
    region = h.case("levels", lse, wide).region
    (schedule, *_) = HERE.schedules(region, WIDE)
    assert [part(schedule, k).knob("chunk") for k in range(2)] == [0, 128] and HERE.source(region, schedule)


# ---- schedules ------------------------------------------------------------------------------------------------------

def test_narrow_products_stay_on_chip_and_wide_ones_go_through_a_slab():
    region = zoo.gradients(dtype="bfloat16").region
    assert [HERE.schedules(region, sizes)[0].kind for sizes in (SMALL, WIDE)] == [RECOMPUTE, COLUMN_SLAB]
    assert len(text_of(region, HERE.schedules(region, SMALL)[0])[1]) == 2
    assert len(text_of(region, HERE.schedules(region, WIDE)[0])[1]) == 1


def test_devices_without_a_table_use_a_relatives():
    assert [family(a) for a in ("sm90", "sm89", "sm86", "sm120", "sm103", "gfx90a")] == \
        ["sm90", "sm80", "sm80", "sm80", "sm100", "gfx942"]


def test_options_force_tiles_and_knobs():
    region = zoo.two_levels(dtype="bfloat16").region
    forced = SimpleNamespace(tile={"row": 32, "col": 48, "deep": 16, "warps": 2})
    for schedule in HERE.schedules(region, SMALL, forced):
        assert [part(schedule, k).extent("row") for k in range(3)] == [32] * 3
        assert [part(schedule, k).knob("warps") for k in range(3)] == [2] * 3


def test_four_warps_take_a_large_tile_that_little_is_done_with():
    def warps(name, arch="sm90", **kw):
        region = zoo.CASES[name](dtype="bfloat16", **kw).region
        return part(Triton(Machine(arch, 132)).schedules(region, WIDE)[0], 0).knob("warps")
    assert warps("cross_entropy") == 4
    assert {warps("cross_entropy", softcap=30.0), warps("accuracy"), warps("gradients"), warps("cross_entropy", "sm100")} == {8}


def test_relief_touches_one_piece():
    schedule = Schedule(tile=(("row", 64), ("col", 32), ("col.1", 128)))
    second = relieved(schedule, 1, False, "sm90")
    assert (part(second, 0), part(second, 1).extent("col")) == (part(schedule, 0), 64)
    assert part(relieved(schedule, 0, False, "sm90"), 0).extent("row") == 32
    assert relieved(Schedule(tile=(("row", 16), ("col", 16))), 0, False, "sm90") is None


def test_what_spills_is_given_all_registers_before_its_tile_is_halved():
    schedule = Schedule(tile=(("row", 64), ("col", 32)), knobs=(("warps", 8),))
    more = relieved(schedule, 0, True, "sm90")
    assert part(more, 0).knob("registers") == 255 and part(more, 0).tile == schedule.tile
    assert part(relieved(more, 0, True, "sm90"), 0).extent("row") == 32
    assert part(relieved(replace(schedule, knobs=(("warps", 16),)), 0, True, "sm90"), 0).knob("registers") == 128
    assert part(relieved(schedule, 0, True, "gfx942"), 0).extent("row") == 32


def test_a_tile_that_does_not_fit_is_halved():
    """The launcher's remedy for a device with less room than the schedule thought."""
    region = zoo.smoothing().region
    (schedule, *_) = HERE.schedules(region, SMALL, SimpleNamespace(tile={"row": 64, "col": 32}))
    _, ((piece, kernel),) = text_of(region, schedule)
    seen = []

    class OutOfResources(Exception):
        pass

    class Function:
        def __getitem__(self, grid):
            return self.launch

        def launch(self, *args, R, C, **options):
            seen.append((R, C))
            if R * C > limit:
                raise OutOfResources

    sizes, limit = SMALL | dict(B=8), 1024
    env = meta_inputs(region, sizes)
    chain = Chain(region, schedule, Machine("sm90", 132), [(piece, kernel, Function())])
    assert chain(env, sizes)["t"].shape == (8, 8)
    assert seen == [(64, 32), (32, 32)]
    limit = 1
    with pytest.raises(RuntimeError, match="OutOfResources"):
        chain(env, sizes)


@pytest.mark.parametrize("axes", [
    [(50, 3)], [(4, 7), (7, 1)], [(4, 100), (7, 1)], [(4, 1), (7, 4)], [(3, 35), (5, 7), (7, 1)], [(3, 1), (5, 300), (7, 3)]])
def test_the_reach_of_a_tile_bounds_every_offset_in_it(axes):
    """Against the walk itself; exact where the axes lie behind one another in memory."""
    walk = [sum(i * stride for i, (_, stride) in zip(at, axes, strict=True)) for at in product(*(range(n) for n, _ in axes))]
    dense = all(outer == n * inner for (_, outer), (n, inner) in pairwise(axes))
    for steps in (0, 1, 5, 7, 20):
        far = max(abs(x - first) for k, first in enumerate(walk) for x in walk[k:k + steps + 1])
        assert far == reach(steps, axes) if dense else far <= reach(steps, axes)


def test_precision_follows_what_the_user_allows_eager(monkeypatch):
    region = zoo.cross_entropy().region
    assert '"ieee"' in source("cross_entropy")
    monkeypatch.setattr("torch.get_float32_matmul_precision", lambda: "high")
    assert '"tf32"' in HERE.source(region, HERE.schedules(region, SMALL)[0])
    assert '"ieee"' in HERE.source(region, Triton(Machine("gfx942", 304)).schedules(region, SMALL)[0])
