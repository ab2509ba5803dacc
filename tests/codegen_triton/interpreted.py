"""Kernels run by Triton's interpreter, against float64. `test_interpreted.py` runs this file in a process of its own,
because Triton decides when it is imported whether its functions are interpreted."""
from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from fuse.codegen import compile_region
from fuse.codegen.triton import TARGET
from fuse.codegen.triton.pieces import COLUMN_SLAB, RECOMPUTE
from fuse.ir.expr import Buffer, Expr, cast, const, iota, make, read, size
from fuse.ir.ops import POINTWISE
from fuse.ir.program import Carry, Emit, Kind, Region
from tests.codegen.check import EPS, agrees, reference, strided
from tests.codegen.regions import BY_NAME, i, j
from tests.codegen.regions import CASES as SHARED
from tests.codegen.test_schedule import CAUSAL, masked
from tests.codegen_triton import zoo

SIZES = dict(B=2, T=8, V=77, D=20, Q=21, L=37, H=2, N=19)
TILE = {"row": 16, "col": 16, "deep": 16}
QUICK = ("statistics", "shifted", "attention", "contrast", "triple")


def kernels(region, sizes, tile=TILE, kind=None):
    """The first kernel of every kind of schedule, or of `kind`."""
    assert TARGET.refuses(region) is None, TARGET.refuses(region)
    found = {}
    for s in TARGET.schedules(region, sizes, SimpleNamespace(tile=tile, schedule=None)):
        if kind in (None, s.kind) and s.kind not in found:
            found[s.kind] = TARGET.build(region, s, TARGET.source(region, s))
    assert found, "no schedule"
    return list(found.values())


def inputs(case: zoo.Case, sizes, seed=0):
    """Tensors of a zoo case; statistics that it reads are those of its own scores, so that weights are at most 1."""
    env = case.tensors(sizes, seed)
    if "c.m" in env:
        env["c.m"], env["c.l"] = env["c.m"].abs() + 25, env["c.l"].abs() + 1
    return env


def check(case: zoo.Case, sizes=SIZES, tile=TILE, kind=None, env=None, ulps=64.0):
    env = inputs(case, sizes) if env is None else env
    wanted = reference(case.region, env, sizes)
    for kernel in kernels(case.region, sizes, tile, kind):
        rounded(case.region, kernel(env, sizes), wanted, env, ulps)


def rounded(region, found, wanted, env, ulps=64.0):
    """Half-precision operands of a dot that were computed are rounded as eager rounds them: compare in that type."""
    half = [t.dtype for t in env.values() if t.dtype in (torch.float16, torch.bfloat16)]
    if half and any(c.storage is None and c.kind is Kind.SUM for c in region.carries):
        sums = {c.name for c in region.carries if c.kind is not Kind.LSE}
        found = {k: v.to(half[0]) if v.dtype is torch.float32 and k in sums else v for k, v in found.items()}
        ulps = max(ulps, EPS[half[0]] / EPS[torch.float32])
    agrees(region, found, wanted, ulps)


# ---- the regions that every target holds ----------------------------------------------------------------------------

def marked(names, quick):
    return [n if n in quick else pytest.param(n, marks=pytest.mark.slow) for n in names]


@pytest.mark.parametrize("name", marked([c.name for c in SHARED], QUICK))
def test_shared_regions(name):
    case = BY_NAME[name]
    region, env = case.region(), case.inputs()
    wanted = reference(region, env, case.sizes)
    for kernel in kernels(region, case.sizes):
        agrees(region, kernel(env, case.sizes), wanted)
    if case.strided:
        odd = {n: strided(x, i) for i, (n, x) in enumerate(env.items())}
        agrees(region, kernel(odd, case.sizes), wanted)


@pytest.mark.parametrize("name", marked([c.name for c in SHARED], ("shifted",)))
def test_shared_regions_in_half_precision(name):
    """What is averaged is positive, so that a sum is as large as what its roundings are relative to."""
    case = BY_NAME[name]
    region, env = case.region("float16"), case.inputs("float16")
    env = {n: x.abs() if n.startswith("v") else x for n, x in env.items()}
    wanted = reference(region, env, case.sizes)
    for kernel in kernels(region, case.sizes, TILE | {"splits": 2}):
        rounded(region, kernel(env, case.sizes), wanted, env)


@pytest.mark.parametrize("dtype", ["float16", *marked(["float32", "bfloat16"], ())])
@pytest.mark.parametrize("name", marked(zoo.CASES, ("entropy", "gradients", "divergence", "flow")))
def test_zoo(name, dtype):
    check(zoo.CASES[name](dtype=dtype))


@pytest.mark.parametrize("tile", [
    {"row": 16, "col": 32, "splits": 3}, {"row": 32, "col": 16, "deep": 32}, {"row": 64, "col": 64}])
def test_tiles_and_splits_change_nothing(tile):
    check(zoo.entropy(), tile=tile)
    check(zoo.accuracy(), tile=tile)


@pytest.mark.parametrize("parts", [1, pytest.param(5000, marks=pytest.mark.slow)])
def test_splits_are_combined_in_rounds(parts):
    for make_case in (zoo.entropy, zoo.accuracy):
        check(make_case(), tile=TILE | {"single": 1, "parts": parts})
    check(zoo.attention(), tile=TILE | {"splits": 3, "parts": parts})


def test_splits_of_moments_are_combined():
    case = BY_NAME["widths"]
    region, env = case.region(), case.inputs()
    (kernel, *_) = kernels(region, case.sizes, TILE | {"splits": 2})
    agrees(region, kernel(env, case.sizes), reference(region, env, case.sizes))


# ---- odd inputs -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("sizes", [dict(T=2, B=1), dict(V=1, B=1), dict(D=1, B=1), dict(T=17, V=16, D=16, B=1), dict(T=1)])
def test_odd_sizes(sizes):
    check(zoo.smoothing(softcap=3.0), SIZES | sizes)
    check(zoo.gradients(), SIZES | sizes)


def with_bias(make_case, **kw):
    case = make_case(bias=True, **kw)
    env = inputs(case, SIZES)
    env["bias"][:] = 0
    return case, env


def test_columns_of_minus_infinity():
    case, env = with_bias(zoo.cross_entropy)
    env["bias"][5:40] = float("-inf")
    check(case, env=env, tile=TILE | {"splits": 2})


def test_rows_without_any_finite_score():
    case, env = with_bias(zoo.cross_entropy)
    env["bias"][:] = float("-inf")
    (kernel, *_) = kernels(case.region, SIZES, TILE | {"splits": 2})
    found = kernel(env, SIZES)
    assert (found["c.m"] == float("-inf")).all() and (found["c.l"] == 0).all()


def test_a_large_offset_costs_no_digits():
    case, env = with_bias(zoo.entropy)
    env["bias"][:] = 1e4
    found = kernels(case.region, SIZES)[0](env, SIZES)
    exact = {k: v.double() for k, v in env.items() if k != "y"}
    rounded_scores = (torch.einsum("btd,vd->btv", exact["h"], exact["W"])[:, :-1] + 1e4).float().double()
    x = rounded_scores - rounded_scores.amax(-1, keepdim=True)
    torch.testing.assert_close(found["c.l"].double(), x.exp().sum(-1), rtol=2e-3, atol=0)   # the scores' own rounding
    torch.testing.assert_close(found["e"].double(), (x.exp() * x).sum(-1), rtol=4e-3, atol=0)


def test_labels_out_of_range_pick_nothing():
    case = zoo.cross_entropy()
    env = inputs(case, SIZES)
    env["y"][0, :4] = torch.tensor([-100, 77, 2 ** 40, -2 ** 40])
    check(case, env=env)
    assert (kernels(case.region, SIZES)[0](env, SIZES)["p"][0, :3] == 0).all()


@pytest.mark.parametrize("splits", [1, 4])
def test_argmax_takes_the_first_index_and_nan_wins(splits):
    case, env = with_bias(zoo.accuracy)
    env["h"][:], env["W"][:] = 0, 1
    env["bias"][[20, 40, 60]] = 2.0
    env["h"][0, 1, 0] = float("nan")
    found = kernels(case.region, SIZES, TILE | {"splits": splits})[0](env, SIZES)
    assert found["a"][0, 1] == 0 and found["x"][0, 1].isnan()
    others = torch.ones(2, 7, dtype=torch.bool)
    others[0, 1] = False
    assert (found["a"][others] == 20).all() and (found["x"][others] == 2).all()


def test_fully_masked_rows_and_masked_keys():
    case = zoo.attention()
    env = inputs(case, SIZES)
    env["mask"][0] = False
    env["mask"][1, :3] = False
    check(case, env=env)


def test_strided_and_transposed_inputs():
    case = zoo.gradients()
    env = inputs(case, SIZES)
    odd = {n: strided(x, i) for i, (n, x) in enumerate(env.items())}
    check(case, env=odd)


def test_each_accumulator_in_its_own_kernel():
    sizes = SIZES | dict(B=1, Q=9)
    check(zoo.attention_gradients(), sizes, tile={"row": 16, "col": 16, "deep": 16, "apart": 1}, kind=RECOMPUTE)


# ---- schedules ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("make_case", [zoo.gradient_x, zoo.gradients, zoo.attention_gradients])
def test_slabs_are_written_block_by_block(make_case):
    sizes = SIZES | dict(B=2, Q=18, L=20, V=40)
    check(make_case(), sizes, tile=TILE | {"slab": 1000}, kind=COLUMN_SLAB)
    check(make_case(dtype="float16"), sizes, tile=TILE | {"slab": 4000}, kind=COLUMN_SLAB)


@pytest.mark.parametrize("make_case", [zoo.computed_factor, zoo.gathered_rows])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_right_factors_are_stored_before_the_slab(make_case, dtype):
    case, sizes = make_case(dtype=dtype), SIZES | dict(B=1, N=19, V=40)
    env = inputs(case, sizes)
    if "rows" in env:
        env["rows"] %= 8
    check(case, sizes, tile=TILE | {"slab": 1500}, kind=COLUMN_SLAB, env=env)


def test_accumulators_in_chunks():
    check(zoo.gradient_x(), tile=TILE | {"chunk": 16}, kind=RECOMPUTE)
    check(zoo.attention(), tile=TILE | {"chunk": 16}, kind=RECOMPUTE)


def test_the_last_of_two_widths_is_cut_into_chunks():
    """Each chunk's program computes the statistics; the splits of the stream are combined."""
    case = BY_NAME["state_of_products"]
    sizes = case.sizes | {"E": 37, "J": 70}
    region = case.region()
    env = case.inputs(sizes=sizes)
    for kernel in kernels(region, sizes, {"chunk": 16, "col": 16, "splits": 3}, kind=RECOMPUTE):
        agrees(region, kernel(env, sizes), reference(region, env, sizes))


def test_one_kernel_serves_all_sizes_and_layouts_and_repeats_its_bits():
    case = zoo.gradients()
    kernel = kernels(case.region, SIZES)[0]
    for sizes in (SIZES | dict(B=1), SIZES | dict(V=50, T=5), SIZES | dict(B=1, D=33)):
        env = inputs(case, sizes)
        first, second = kernel(env, sizes), kernel(env, sizes)
        agrees(case.region, first, reference(case.region, env, sizes))
        assert all(torch.equal(first[n], second[n]) for n in first)


def test_offsets_in_64_bits(monkeypatch):
    monkeypatch.setattr("fuse.codegen.triton.launch.INT32", 100)
    check(zoo.gradients(), SIZES | dict(B=1))
    check(zoo.accuracy(), SIZES | dict(B=1), tile=TILE | {"splits": 2})


def test_compile_region_takes_the_first_schedule():
    case = zoo.cross_entropy()
    kernel = compile_region(case.region, TARGET, SIZES)
    env = inputs(case, SIZES)
    agrees(case.region, kernel(env, SIZES), reference(case.region, env, SIZES))


def test_the_error_is_at_most_eagers():
    """dX and dW of a half-precision head: the rounding of dS is the only one, as in eager."""
    case = zoo.gradients(dtype="float16")
    env = inputs(case, SIZES)
    wanted = reference(case.region, env, SIZES)
    h, w, y, g = (env[n] for n in ("h", "W", "y", "g"))
    scores = (h[:, :-1] @ w.T).float()
    ds = ((scores - env["c.m"][..., None]).exp() / env["c.l"][..., None]
          - torch.nn.functional.one_hot(y[:, 1:], 77)) * g[..., None]
    eager = {"dx": ds.half() @ w, "dw": torch.einsum("btv,btd->vd", ds.half(), h[:, :-1])}
    for kernel in kernels(case.region, SIZES):
        found = kernel(env, SIZES)
        for name, other in eager.items():
            error, theirs = ((x.double() - wanted[name]).abs().max() for x in (found[name], other))
            assert error <= 1.2 * theirs, (name, error, theirs)


# ---- tiles of columns that add nothing ------------------------------------------------------------------------------

LATE = make("le", iota(j), iota(i) + size(j.extent) - size(i.extent))
# name: (mask, queries, columns of values that are nan, queries none of whose tiles of 16 x 16 has one of those)
LEFT_OUT = {
    "causal": (CAUSAL, 48, slice(16, 48), slice(0, 16)),
    "anticausal": (make("not", CAUSAL), 48, slice(0, 16), slice(16, 48)),
    "a sliding window": (make("and", CAUSAL, make("lt", iota(i), iota(j) + 5)), 48, slice(0, 16), slice(32, 48)),
    "fewer queries": (LATE, 37, slice(32, 48), slice(0, 16)),
}


def queries_keys_values(sizes):
    return {n: torch.randn(1, sizes[a], sizes[w]) for n, a, w in (("q", "I", "D"), ("k", "J", "D"), ("v", "J", "E"))}


@pytest.mark.parametrize("splits", [1, 2])
@pytest.mark.parametrize("name", LEFT_OUT)
def test_tiles_that_add_nothing_are_left_out(name, splits):
    """0 * nan = nan would be added, were they not."""
    mask, queries, poisoned, spared = LEFT_OUT[name]
    region, sizes = masked(mask), dict(B=1, I=queries, J=48, D=4, E=3)
    env = queries_keys_values(sizes)
    (kernel, *_) = kernels(region, sizes, TILE | {"splits": splits})
    agrees(region, kernel(env, sizes), reference(region, env, sizes))
    env["v"][:, poisoned] = float("nan")
    found = kernel(env, sizes)["o"]
    assert torch.isfinite(found[:, spared]).all() and found.isnan().any()


def test_a_prefix_that_everyone_sees_leaves_no_tile_out():
    region, sizes = masked(make("or", CAUSAL, make("lt", iota(j), const(20, "int64")))), dict(B=1, I=21, J=37, D=4, E=3)
    env = queries_keys_values(sizes)
    agrees(region, kernels(region, sizes)[0](env, sizes), reference(region, env, sizes))


# ---- the spelling of every op ---------------------------------------------------------------------------------------

INF = float("inf")
FLOATS = [0.0, -0.0, 1.0, -1.0, 0.1, -0.1, 0.25, -0.3, 2.5, -7.25, 30.0, -90.0, 1e-6, 3e38, INF, -INF, float("nan")]
INTS = [0, 1, -1, 2, 5, -5, 7, -8, 3, 100, -99, 12, -12, 6, -6, 9, 4]


def emit_all(bodies: dict[str, Expr], env: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    region = Region("ops", (J,), (I,), (), tuple(Emit(n, e, (I, J)) for n, e in bodies.items()))
    return kernels(region, {})[0](env, {})


I, J = zoo.axis("i", len(FLOATS)), zoo.axis("j", len(FLOATS))


@pytest.mark.parametrize("op", sorted(TARGET.capabilities.ops - {"cast", "stop"}))
def test_spelling(op):
    x, y = (read(Buffer(n, "float32", (a.extent,)), a) for n, a in (("x", I), ("y", J)))
    k, l = (read(Buffer(n, "int64", (a.extent,)), a) for n, a in (("k", I), ("l", J)))
    env = {"x": torch.tensor(FLOATS), "y": torch.tensor(FLOATS), "k": torch.tensor(INTS), "l": torch.tensor(INTS)}
    if op == "pow":
        env["x"][1] = 0.0      # (-0.0) ** -1 is inf here, not -inf
    some, flag = make("lt", k, l), make("lt", const(0.0, "float32"), x)
    if op in ("floordiv", "mod"):
        env["l"] = env["l"].masked_fill(env["l"] == 0, 1)
    args = {"not": (some,), "and": (some, flag), "or": (some, flag), "where": (some, x, y)}.get(op)
    if args is None:
        args = (k, l) if op in ("floordiv", "mod") else (x, y)[:POINTWISE[op].arity]
    body = make(op, *args)
    value = {"x": env["x"][:, None], "y": env["y"][None], "k": env["k"][:, None], "l": env["l"][None]}
    value |= {n: v.double() for n, v in value.items() if n in "xy"}

    def meaning(e):
        return value[e["buffer"].name] if e.op == "read" else torch.tensor(0.0) if e.op == "const" else \
            POINTWISE[e.op].meaning(*map(meaning, e.args))
    found = emit_all({"out": body}, {n: env[n] for n in ("x", "y", "k", "l")})["out"].double()
    wanted = meaning(body).double().expand(len(FLOATS), len(FLOATS))
    wanted = torch.where(wanted.abs() > 3.4028236e38, wanted.sign() * float("inf"), wanted)
    tiny = 2e-38 if op not in ("sin", "cos") else 1e-6
    ok = torch.isfinite(wanted)
    if op in ("sin", "cos"):
        ok = ok & (value["x"].abs() < 1e6)
    torch.testing.assert_close(found[ok], wanted[ok], rtol=2e-6 if op != "pow" else 2e-5, atol=tiny)
    if op not in ("sin", "cos"):
        assert torch.equal(found[~ok].nan_to_num(7.5), wanted[~ok].nan_to_num(7.5))


def test_constant_powers():
    x = read(Buffer("x", "float32", (I.extent,)), I)
    for k in (1.0, 2.0, 3.0, 4.0, -1.0, -2.0, 0.5, -0.5, 0.7, 0.0):
        body = make("pow", x, const(k, "float32"))
        data = torch.tensor(FLOATS).abs()
        found = emit_all({"out": body}, {"x": data})["out"][:, 0].double()
        wanted = (data.double() ** k).float().double()
        torch.testing.assert_close(found, wanted, rtol=2e-5, atol=2e-38, equal_nan=True)


@pytest.mark.parametrize("target", ["float32", "float16", "bfloat16", "int64", "int32", "bool"])
def test_casts(target):
    x = read(Buffer("x", "float32", (I.extent,)), I)
    data = torch.cat([torch.tensor(FLOATS[:-4]), torch.ones(4)])
    if target == "bfloat16":
        data = data.bfloat16().float()     # the interpreter truncates where devices round
    found = emit_all({"out": cast(x, target)}, {"x": data})["out"][:, 0]
    if target == "int64":
        assert torch.equal(found[:13], data.to(torch.int64)[:13])
    else:
        assert torch.equal(found, data.to(getattr(torch, target)))


def test_positions_compare_with_any_integer():
    """j < x and its like, x far outside the index type; and positions in arithmetic."""
    x = read(Buffer("k", "int64", (I.extent,)), I)
    data = torch.tensor([0, 1, -1, 2 ** 40, -2 ** 40, 16, 17, 18, 5, 6, 7, 8, 9, 10, 11, 12, 13])
    j = torch.arange(17)[None]
    bodies = {op: make(op, iota(J), x) for op in ("lt", "le", "eq", "ne")} | {"gt": make("lt", x, iota(J))}
    bodies["band"] = make("lt", iota(J) - iota(I), const(3, "int64"))
    found = emit_all(bodies, {"k": data})
    k = data[:, None]
    wanted = {"lt": j < k, "le": j <= k, "eq": j == k, "ne": j != k, "gt": k < j, "band": j - torch.arange(17)[:, None] < 3}
    for name, value in wanted.items():
        assert torch.equal(found[name], value), name


def test_integer_sums_and_boolean_reads():
    keep = Buffer("keep", "bool", (I.extent, J.extent))
    total = Carry("n", Kind.SUM, cast(read(keep, I, J), "int64"), (J,), (I,))
    top = Carry("t", Kind.MAX, cast(read(keep, I, J), "int64"), (J,), (I,))
    data = torch.rand(17, 17) < 0.5
    found = kernels(Region("count", (J,), (I,), (total, top)), {})[0]({"keep": data}, {})
    assert torch.equal(found["n"], data.sum(1)) and torch.equal(found["t"], data.any(1).long())
