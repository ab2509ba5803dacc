"""The reference interpreter against dense torch in float64, at tiles that do not divide anything."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fuse.ir.expr import IRError, make
from fuse.ir.program import Kind, Program, Region
from fuse.ir.reference import Trace, run, run_region
from fuse.ir.size import Size
from fuse.ir.tiling import boxes
from tests.ir.examples import EXAMPLES, MASKED, SCORES, i, j, n, softmax_region, t

TILES = (1, 7, 64)
D = torch.float64


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=D, generator=torch.Generator().manual_seed(seed + sum(shape)))


def close(got: dict[str, torch.Tensor], want: dict[str, torch.Tensor], tolerance: float = 1e-10) -> None:
    assert got.keys() == want.keys()
    for name, value in want.items():
        torch.testing.assert_close(
            got[name].to(value.dtype), value, rtol=tolerance, atol=tolerance, equal_nan=True, msg=name
        )


@pytest.mark.parametrize("tile", TILES)
def test_softmax_with_moments(tile: int):
    q, k, v = rand(19, 4) * 3, rand(23, 4, seed=1) * 3, rand(23, 3)
    s = (q @ k.T).masked_fill(~torch.ones(19, 23).tril().bool(), -torch.inf)
    p, gap = s.softmax(1), s - s.amax(1, keepdim=True)
    trace = Trace()
    got = run(EXAMPLES["softmax"], {"Q": q, "K": k, "V": v}, {"I": 19, "J": 23}, tile=tile, trace=trace)
    nans = torch.full((19,), torch.nan, dtype=D)  # exp(-inf) * (-inf) in masked positions, as eager has it
    close(
        got,
        {
            "o": p @ v,
            "half": torch.full((19, 3), torch.nan, dtype=D),
            "h1": nans,
            "h2": nans,
            "L": s.logsumexp(1),
            "top": s.amax(1),
            "arg": s.argmax(1),
        },
    )
    assert trace.sweeps == 1
    assert trace.peak <= 19 * max(tile, 4) if tile < 23 else trace.peak == 19 * 23
    free = Program(EXAMPLES["softmax"].inputs, EXAMPLES["softmax"].outputs, (softmax_region(SCORES),))
    got = run(free, {"Q": q, "K": k, "V": v}, {"I": 19, "J": 23}, tile=tile)
    s = q @ k.T
    p, gap = s.softmax(1), s - s.amax(1, keepdim=True)
    close(
        got,
        {
            "o": p @ v,
            "half": ((gap / 2).exp() * gap**2) @ v,
            "h1": (p * gap).sum(1),
            "h2": (p * gap**2).sum(1),
            "L": s.logsumexp(1),
            "top": s.amax(1),
            "arg": s.argmax(1),
        },
    )


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("fill", [float("-inf"), float("nan"), 1e4])
def test_odd_rows(tile: int, fill: float):
    q, k, v = rand(5, 4), rand(23, 4), rand(23, 3)
    q[2] = fill
    region = softmax_region(SCORES)
    program = Program(EXAMPLES["softmax"].inputs, EXAMPLES["softmax"].outputs, (region,))
    got = run(program, {"Q": q, "K": k.abs(), "V": v}, {"I": 5, "J": 23}, tile=tile)
    s = q @ k.abs().T
    close(
        {x: got[x] for x in ("o", "L", "arg", "top")},
        {"o": s.softmax(1) @ v, "L": s.logsumexp(1), "arg": s.argmax(1), "top": s.amax(1)},
    )


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("reverse", [False, True])
def test_argmax_takes_the_first(tile: int, reverse: bool):
    k = torch.tensor([[1.0], [3], [3], [0], [3]] * 4 + [[torch.nan], [9], [torch.nan]], dtype=D).expand(23, 4)
    q = torch.tensor([[0.25] * 4, [0.0] * 4], dtype=D)
    carries = tuple(c for c in softmax_region(SCORES).carries if c.kind is Kind.ARGMAX)
    for count in (23, 20):
        program = Program(
            EXAMPLES["softmax"].inputs,
            EXAMPLES["softmax"].outputs[-1:],
            (Region("r", (j,), (i,), carries, reverse=reverse),),
        )
        got = run(program, {"Q": q, "K": k[:count]}, {"I": 2, "J": count}, tile=tile)
        close(got, {"arg": (q @ k[:count].T).argmax(1)})


@pytest.mark.parametrize("tile", TILES)
def test_levels_grids_and_columns(tile: int):
    q, k = rand(19, 4) * 2, rand(23, 4) * 2
    s = q @ k.T
    trace = Trace()
    got = run(EXAMPLES["slab"], {"Q": q, "K": k}, {"I": 19, "J": 23}, tile=tile, trace=trace)
    columns = torch.exp(s - s.amax(0)).T @ q
    close(got, {"dq": s.softmax(1) @ k, "dk": s.softmax(1).T @ q, "mix": columns, "p": s.softmax(1).T}, 1e-9)
    assert trace.sweeps == 2
    stored = run(EXAMPLES["slab"], {"Q": q.float(), "K": k.float()}, {"I": 19, "J": 23}, tile=tile, dtype=None)
    assert stored["mix"].dtype == torch.bfloat16 and stored["dq"].dtype == torch.float32


@pytest.mark.parametrize("tile", TILES)
def test_streams_may_form_a_product(tile: int):
    x, y = rand(6, 9), rand(5, 6)
    s = (2 * x[:, :, None] + y.T[:, None]).reshape(6, -1)
    got = run(EXAMPLES["product"], {"X": x, "Y": y}, {"I": 6, "A": 9}, tile=tile)
    close(got, {"L": s.logsumexp(1), "sq": (s.softmax(1) ** 2).sum(1)})


@pytest.mark.parametrize("limit", [1, 3, 5, 12, 100, None])
def test_boxes_cover_a_product_in_order(limit: int | None):
    from tests.ir.examples import axis

    axes = [axis("x", 4), axis("y", 5)]
    order = [(x, y) for b in boxes(axes, {}, limit) for x in range(*b[axes[0]]) for y in range(*b[axes[1]])]
    assert order == [(x, y) for x in range(4) for y in range(5)]
    assert boxes([axis("z", "Z")], {"Z": 0}, limit) == [] or limit is None


def scan_by_hand(a, u, c):
    h, states = torch.zeros(3, dtype=D), []
    for x, y in zip(a, u, strict=True):
        h = x * h + y
        states.append(h)
    states = torch.stack(states)
    return (states * c).sum(1), states


@pytest.mark.parametrize("tile", TILES)
def test_scan_forward_and_backward(tile: int):
    a, u, c, g = rand(19, 3), rand(19, 3, seed=1), rand(19, 3, seed=2), rand(19)
    leaves = [x.clone().requires_grad_() for x in (a, u, c)]
    y, states = scan_by_hand(*leaves)
    da, du, dc = torch.autograd.grad(y, leaves, g)
    trace = Trace()
    got = run(EXAMPLES["scan"], {"A": a, "U": u, "C": c, "G": g}, {"T": 19}, tile=tile, trace=trace)
    close(got, {"y": y.detach(), "h": states[-1].detach(), "da": da, "du": du, "dc": dc, "total": du.sum(0)})
    assert trace.sweeps == 2


@pytest.mark.parametrize("tile", (1, 3, 4, 64))
@pytest.mark.parametrize("reverse", [False, True])
def test_states_at_the_boundaries_of_tiles(tile: int, reverse: bool):
    """The state before each four positions, as the scan goes; whatever tiles the interpreter has."""
    a, u, c, g = rand(9, 3), rand(9, 3, seed=1), rand(9, 3, seed=2), rand(9)
    program, env = EXAMPLES["boundaries"], {"A": a, "U": u, "C": c, "G": g}
    zero = torch.zeros(1, 3, dtype=D)
    if not reverse:
        at = torch.cat([zero, scan_by_hand(a, u, c)[1][[3, 7]]])
        got, plain = run(program, env, {}, tile=tile), run(EXAMPLES["scan"], env, {"T": 9}, tile=tile)
        close(got, {**plain, "at": at})
        return
    forward = program.regions[0]
    (h,) = forward.carries
    back = replace(h, body=make("scan", *h.body.args, axis=h.over[0], reverse=True))
    region = replace(forward, carries=(back,), emits=(), reverse=True)
    stored = run_region(region, env, {}, "float64", tile)
    states = scan_by_hand(a.flip(0), u.flip(0), c.flip(0))[1].flip(0)
    close(stored, {"h": states[0], "at.h": torch.cat([states[[4, 8]], zero])})


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("name", ["prefix", "suffix"])
def test_prefixes(tile: int, name: str):
    q, k, v = rand(19, 4).abs(), rand(19, 4, seed=1).abs(), rand(19, 3)
    mask = torch.ones(19, 19, dtype=D).tril() if name == "prefix" else torch.ones(19, 19, dtype=D).triu()
    scores = q @ k.T * mask
    norm = scores.sum(1, keepdim=True)
    values = torch.einsum("ts,sd,se->tde", mask, k, v)
    got = run(EXAMPLES[name], {"q": q, "k": k, "v": v}, {"T": 19}, tile=tile)
    total = (v / norm).sum(0)
    close(got, {"o": scores @ v / norm, "w": mask @ (v / norm), "late": values * total, "weighted": total}, 1e-9)


def test_shifts_reach_one_position_only():
    scan = EXAMPLES["scan"].steps[0].carries[0]
    far = Region(
        "far",
        (t,),
        (),
        (scan,),
        tuple(
            e.__class__("far", make("shift", scan.body, axis=t, by=2), (t, n)) for e in EXAMPLES["scan"].steps[0].emits
        ),
    )
    with pytest.raises(IRError, match="neighbour"):
        run(Program(EXAMPLES["scan"].inputs, (), (far,)), {"A": rand(9, 3), "U": rand(9, 3)}, {"T": 9}, tile=4)


def test_the_fallback_computes_what_regions_store(monkeypatch):
    import fuse.ir.reference as reference

    monkeypatch.setattr(reference, "TILE_ELEMENTS", 40)
    q, k, v = rand(19, 4), rand(23, 4), rand(23, 3)
    env = {"Q": q.float(), "K": k.float(), "V": v.float()}
    stores = run_region(softmax_region(), env, {"I": 19, "J": 23})
    assert set(stores) == set(softmax_region().stores)
    assert stores["o"].dtype == torch.float32 and stores["arg"].dtype == torch.int64
    s = (q @ k.T).masked_fill(~torch.ones(19, 23).tril().bool(), -torch.inf)
    close({"o": stores["o"] / stores["c.l"][:, None]}, {"o": s.softmax(1) @ v}, 1e-5)
    slab = EXAMPLES["slab"].steps[0]
    close({"dk": run_region(slab, env, {"I": 19, "J": 23})["dk"]}, {"dk": (q @ k.T).softmax(1).T @ q}, 1e-5)
    scan = EXAMPLES["scan"].steps[1]
    env = {"A": rand(19, 3), "U": rand(19, 3, seed=1), "C": rand(19, 3, seed=2), "G": rand(19)}
    close(run_region(scan, env, {"T": 19}, dtype="float64", tile=5), run_region(scan, env, {"T": 19}, dtype="float64"))


def test_empty_streams_and_grids():
    env = {"Q": rand(0, 4), "K": rand(0, 4), "V": rand(0, 3)}
    got = run(EXAMPLES["softmax"], env, {"I": 0, "J": 0}, tile=7)
    assert got["o"].shape == (0, 3)
    env = {"Q": rand(2, 4), "K": rand(0, 4), "V": rand(0, 3)}
    assert run(EXAMPLES["softmax"], env, {"I": 2, "J": 0}, tile=7)["L"].tolist() == [-torch.inf] * 2


def test_symbols_are_bound_by_name():
    with pytest.raises(KeyError, match="J"):
        run(EXAMPLES["softmax"], {"Q": rand(2, 4), "K": rand(3, 4), "V": rand(3, 3)}, {"I": 2}, tile=7)
    assert MASKED.axes == (j, i) and Size.of("I") == i.extent
