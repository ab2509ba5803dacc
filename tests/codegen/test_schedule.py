"""Which schedule is chosen, and which tiles are skipped."""
from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from fuse.codegen import Schedule
from fuse.codegen.cpu import TARGET
from fuse.codegen.cpu import schedule as choice
from fuse.codegen.cpu.kernel import even, modes
from fuse.codegen.lower import lower
from fuse.codegen.tile import Skip
from fuse.ir.expr import Axis, Expr, const, dot, iota, make, where
from fuse.ir.program import Carry, Emit, Kind, Region
from fuse.ir.size import Size
from tests.codegen.regions import BY_NAME, INF, b, d, e, i, j, v, value

LARGE = dict(B=8, T=256, D=768, V=50304, E=64, H=8, G=4, I=2048, J=2048)


def options(**more: object) -> SimpleNamespace:
    return SimpleNamespace(**{"tile": None, "schedule": "auto"} | more)


def chosen(name: str, sizes: dict[str, int] | None = None, **more: object) -> list[Schedule]:
    return list(TARGET.schedules(BY_NAME[name].region(), sizes or LARGE, options(**more)))


# ---- schedules ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("wanted", "kinds"), [("auto", ["slab", "recompute"]), ("slab", ["slab", "recompute"]),
                                               ("fastest", ["slab", "recompute"]), ("recompute", ["recompute"]),
                                               ("least-memory", ["recompute"])])
def test_kinds(wanted: str, kinds: list[str]) -> None:
    assert [s.kind for s in chosen("in_one_go", schedule=wanted)] == kinds
    assert [s.kind for s in chosen("row_gradient", schedule=wanted)] == ["recompute"]


def test_options_force_the_tile() -> None:
    for schedule in chosen("in_one_go", tile={"row": 16, "col": 32, "deep": 8}):
        assert schedule.extent("row") == 16 and schedule.extent("col") == 32 and not schedule.extent("deep")


def test_the_least_memory_has_the_smaller_tiles() -> None:
    tiles = {wanted: chosen("both_gradients", schedule=wanted)[0] for wanted in ("recompute", "least-memory")}
    assert [tiles[w].extent("row") * tiles[w].extent("col") for w in tiles] == [1024 * 3072, 1024 ** 2]
    assert chosen("both_gradients", schedule="least-memory", tile={"row": 3000})[0].extent("row") == 3000


def test_missing_options_and_hints_have_defaults() -> None:
    region = BY_NAME["in_one_go"].region()
    assert TARGET.schedules(region, {}, None) and TARGET.schedules(region, {}, options())


def test_a_slab_stays_within_its_budget() -> None:
    for columns in (1000, 50304, 256000, 10 ** 8):
        schedule = chosen("in_one_go", LARGE | {"V": columns})[0]
        held = 4 * columns * LARGE["D"]
        budget = max(choice.SLAB_BYTES, choice.SLAB_SHARE * held)
        assert schedule.extent("row") == 16 or schedule.extent("row") * columns * 4 <= budget
    assert 256 <= chosen("in_one_go")[0].extent("row") <= 320


def test_threads_go_where_no_sum_crosses_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    parallel = {name: chosen(name)[-1].parallel for name in BY_NAME}
    assert parallel["statistics"] == parallel["row_gradient"] == parallel["attention"] == "grid"
    assert parallel["attention_backward"] == parallel["window"] == "batch"
    assert parallel["both_gradients"] == parallel["shared_bias"] == "inside"
    assert parallel["bias_of_heads"] == "batch" and parallel["bias_of_rows"] == "grid"
    assert chosen("bias_of_heads", LARGE | {"H": 3})[-1].parallel == "inside"      # heads alone are independent
    assert chosen("statistics", LARGE | {"B": 1, "T": 3})[0].parallel == "inside"


def test_a_tile_walks_what_it_loads_as_it_lies_in_memory() -> None:
    def gradients(x: Expr) -> Region:
        return Region("r", (v,), (i,), (Carry("dx", Kind.SUM, x * value("w", "float32", v, d), (v,), (i, d)),
                                        Carry("dw", Kind.SUM, x * value("h", "float32", i, d), (i,), (v, d))))
    along, across = gradients(value("x", "float32", i, v)), gradients(value("x", "float32", v, i))
    for sizes in ({"V": 100}, {"V": 10 ** 5}):
        assert not choice.turned(along, LARGE | sizes) and choice.turned(across, LARGE | sizes)
    computed = gradients(dot(value("h", "float32", i, d), value("w", "float32", v, d), d))
    assert [choice.turned(computed, LARGE | {"V": n}) for n in (100, 10 ** 5)] == [False, True]


@pytest.mark.parametrize(("width", "held"), [(Size.of(64), True), (Size.of(choice.UNROLLED), True), (Size.of(257), False),
                                             (Size.of("K"), False)])
def test_only_short_widths_that_the_region_fixes_are_text(width: Size, held: bool) -> None:
    n, k = Axis("n", Size.of(128)), Axis("k", width)
    x = make("sigmoid", value("x", "float32", n, v, k))
    region = Region("r", (v,), (n,), (Carry("c", Kind.SUM, x, (v,), (n, k)),))
    schedule, = TARGET.schedules(region, LARGE | {"K": 64}, None)
    assert [n for _, n in schedule.knobs] == ([width.constant] if held else [])
    assert (f" = {width.constant}," in TARGET.source(region, schedule)) == held
    assert " = 128," not in TARGET.source(region, schedule)


def test_threads_that_share_tiles_open_no_parallel_regions() -> None:
    region = BY_NAME["cascade"].region()
    assert "#pragma omp" in TARGET.source(region, Schedule("recompute", (), "inside"))
    assert "#pragma omp" not in TARGET.source(region, Schedule("recompute", (), "batch"))


def test_an_unsafe_mode_is_not_run() -> None:
    case = BY_NAME["both_gradients"]
    assert modes(lower(case.region())) == ("batch", "inside")
    schedule = Schedule("recompute", (), "grid")
    kernel = TARGET.build(case.region(), schedule, TARGET.source(case.region(), schedule))
    with pytest.raises(RuntimeError, match="overlap"):
        kernel(case.inputs(), case.sizes)


def test_a_kernel_checks_what_it_is_given() -> None:
    case = BY_NAME["row_gradient"]
    schedule = Schedule("recompute")
    kernel = TARGET.build(case.region(), schedule, TARGET.source(case.region(), schedule))
    with pytest.raises(RuntimeError, match="float64"):
        kernel({k: x.double() if x.is_floating_point() else x for k, x in case.inputs().items()}, case.sizes)
    with pytest.raises(KeyError):
        kernel({}, case.sizes)


def test_bfloat16_is_multiplied_natively_only_where_that_is_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    region = BY_NAME["both_gradients"].region("bfloat16")
    for fast in (True, False):
        monkeypatch.setattr(choice, "native_bfloat16", lambda fast=fast: fast)
        assert bool(TARGET.schedules(region, LARGE, None)[0].knob("native")) == fast
        assert not TARGET.schedules(BY_NAME["both_gradients"].region(), LARGE, None)[0].knob("native")


@pytest.mark.parametrize(("n", "most"), [(0, 4), (1, 4), (21, 4), (300, 256), (7, 0), (257, 128)])
def test_tiles_are_even(n: int, most: int) -> None:
    tile = even(n, most)
    assert 1 <= tile <= max(most or n, 1) and -(-n // tile) == (-(-n // most) if most else min(n, 1))


# ---- skipped tiles --------------------------------------------------------------------------------------------------

def scores() -> Expr:
    return dot(value("q", "float32", b, i, d), value("k", "float32", b, j, d), d)


def masked(condition: Expr, fill: float = -INF) -> Region:
    s = where(condition, scores(), fill)
    return Region("r", (j,), (b, i), (
        Carry("L", Kind.LSE, s, (j,), (b, i)),
        Carry("o", Kind.SUM, value("v", "float32", b, j, e), (j,), (b, i, e), relative_to="L")))


def skips(region: Region) -> list[tuple[Skip, ...]]:
    return [level.skips for level in lower(region).levels]


CAUSAL = make("le", iota(j), iota(i))


def test_a_causal_mask_bounds_the_columns() -> None:
    ((skip,),) = skips(masked(CAUSAL))
    assert skip.bound == 1 and sorted(int(str(c)) for _, c in skip.form.terms) == [-1, 1]
    ((skip,),) = skips(masked(make("lt", iota(j), iota(i))))
    assert skip.bound == 0
    ((skip,),) = skips(masked(make("not", CAUSAL)))
    assert skip.bound == 0
    ((one, other),) = skips(masked(make("and", CAUSAL, make("lt", iota(i), iota(j) + 5))))
    assert (one.bound, other.bound) == (1, 0) and str(other.form.offset) == "-5"


def test_a_second_level_follows_from_zero_weights() -> None:
    first, second = skips(BY_NAME["window"].region())
    assert len(first) == 2 and len(second) == 1


def test_a_comparison_decides_its_opposite() -> None:
    """A gradient holds the mask and its negation: one bound follows from both."""
    region = masked(CAUSAL)
    ((one,),) = skips(region)
    kept = where(make("lt", iota(i), iota(j)), 0, scores())
    both = replace(region.carries[0], name="again", kind=Kind.SUM, body=kept)
    assert skips(replace(region, carries=(*region.carries, both))) == [(one,)]
    nearer = replace(both, body=where(make("lt", iota(i) + 3, iota(j)), 0, scores()))
    ((farther,),) = skips(replace(region, carries=(*region.carries, nearer)))
    assert (str(farther.form.offset), farther.form.terms, farther.bound) == ("-3", one.form.terms, one.bound)
    other = replace(both, body=where(make("lt", iota(j), iota(i)), 0, scores()))
    assert skips(replace(region, carries=(*region.carries, other))) == [()]


def test_what_is_not_skipped() -> None:
    seen = make("lt", value("a", "int64", b, i), value("c", "int64", b, j))
    assert skips(masked(CAUSAL, 0.0)) == [()], "the mask leaves a score of 0"
    assert skips(masked(CAUSAL, -1e9)) == [()], "a finite fill counts where every score has it"
    assert skips(masked(make("or", CAUSAL, seen))) == [()] and skips(masked(seen)) == [()], "the mask is data"
    region = masked(CAUSAL)
    moment = Carry("m", Kind.SUM, const(1.0, "float32"), (j,), (b, i), relative_to="L", moment=1)
    plain = Carry("s", Kind.SUM, scores(), (j,), (b, i))
    for carry in (moment, plain):
        assert skips(Region("r", (j,), (b, i), (*region.carries, carry))) == [()], "not every sum is masked"
    assert skips(Region("r", (j,), (b, i), region.carries, (Emit("s", scores(), (b, i, j)),))) == [()], "every tile is stored"
