"""The gradient filter from torch.compile to C++: what is left out is negligible, and is left out."""
from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import fuse
from tests.filtering import FORMS, data, filtered, gradients, plain, softcapped, uniform, within_bound, without_other_tiles
from tests.plain import quick_builds, without_inductor  # noqa: F401 (fixtures)

pytestmark = pytest.mark.usefixtures("without_inductor", "quick_builds")
TILE = {"row": 32, "col": 32}
SCHEDULES = ("slab", "recompute")
EPS = 2.0 ** -6


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("peaked", [True, False])
def test_zero_leaves_nothing_out(schedule, peaked):
    h, W, y = data(45, 20, 101, peaked)
    exact, found = (gradients(filtered(softcapped, eps, schedule=schedule, tile=TILE), h, W, y) for eps in ("off", 0.0))
    assert all(map(torch.equal, exact, found))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_rows_without_any_gradient_are_left_out_at_no_cost(schedule):
    """Ignored rows have no gradient at all: dropping them changes no sum but in the order of its terms."""
    h, W, y = data(64, 20, 101, peaked=False, ignored=2)
    exact, found = (gradients(filtered(plain, eps, schedule=schedule, tile=TILE), h, W, y) for eps in ("off", 0.0))
    torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-8)
    assert not found[0][::2].any()


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("peaked", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("form", FORMS)
def test_the_error_is_within_the_bound(form, schedule, peaked):
    h, W, y = data(77, 24, 203, peaked, ignored=0 if form == "weighted" else 5)
    within_bound(form, EPS, h, W, y, schedule=schedule, tile=TILE)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("peaked", [True, False])
def test_the_error_is_within_the_bound_in_bfloat16(schedule, peaked):
    h, W, y = data(77, 24, 203, peaked, torch.bfloat16, ignored=5)
    within_bound("plain", EPS, h, W, y, schedule=schedule, tile=TILE)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("sizes", [(1, 20, 101), (33, 1, 65), (2, 7, 1)])
def test_odd_sizes(schedule, sizes):
    for peaked in (True, False):
        within_bound("plain", EPS, *data(*sizes, peaked), schedule=schedule, tile=TILE)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_tiles_of_the_schedule_itself(schedule):
    within_bound("plain", EPS, *data(70, 24, 3001, False), schedule=schedule)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("v, strip, tile", [(128, 32, TILE), (2048, 512, None)])
def test_exactly_the_negligible_rows_of_a_strip_are_left_out(schedule, v, strip, tile):
    """All words equally likely: what counts of a row is the strip of its label. Words of other strips get no gradient."""
    h, W, y = uniform(64, 16, v, words=2 * strip)
    ds = without_other_tiles(W, y, v, strip)
    dx, dw = gradients(filtered(plain, EPS, schedule=schedule, tile=tile), h, W, y)
    torch.testing.assert_close(dx.double(), ds @ W.double(), rtol=1e-5, atol=1e-7)
    h = torch.ones_like(h) * 1e-4                       # now the weight has a gradient, and the words are as likely as before
    _, dw = gradients(filtered(plain, EPS, schedule=schedule, tile=tile), h.requires_grad_(), W, y)
    assert not dw[2 * strip:].any() and dw[:2 * strip].any(1).all()
    torch.testing.assert_close(dw.double(), ds.T @ h.detach().double(), rtol=1e-3, atol=1e-9)
    _, exact = gradients(filtered(plain, "off", schedule=schedule, tile=tile), h, W, y)
    assert exact[2 * strip:].any(1).all()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_random_labels_do_not_keep_what_is_negligible(schedule):
    """Every tile of words holds some label, and still a peaked row counts in two tiles only: its word's and its label's."""
    h, W, y = data(128, 48, 256, peaked=True)
    word = (h.detach() @ W.detach().T).argmax(1)
    dx, _ = within_bound("plain", EPS, h, W, y, schedule=schedule, tile=TILE)
    p = torch.softmax((h.double() @ W.double().T), 1).detach()
    ds = p.clone()
    ds[torch.arange(128), y] -= 1
    tile = torch.arange(256)[None] // 32
    ds[(tile != (word // 32)[:, None]) & (tile != (y // 32)[:, None])] = 0
    assert p.amax(1).median() > 0.99
    torch.testing.assert_close(dx.double(), ds @ W.detach().double() / 128, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("form", FORMS)
def test_a_factor_of_the_loss_drops_the_same_entries(form, schedule):
    h, W, y = data(64, 20, 160, peaked=False)
    f = filtered(FORMS[form], EPS, schedule=schedule, tile=TILE)
    found = gradients(f, h, W, y)
    for scale in (1e-3, 65536.0):
        scaled = [g / scale for g in gradients(f, h, W, y, scale)]
        torch.testing.assert_close(scaled, found, rtol=2e-5, atol=1e-9)
    exact = gradients(FORMS[form], h, W, y)
    assert all((a - b).abs().max() > 1e-3 * b.abs().max() for a, b in zip(found, exact, strict=True))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_repeating_the_batch_drops_the_same_entries(schedule):
    h, W, y = data(64, 20, 160, peaked=False)
    f = filtered(plain, EPS, schedule=schedule, tile=TILE)
    (dx, dw), (dx2, dw2) = (gradients(f, h.detach().repeat(k, 1).requires_grad_(), W, y.repeat(k)) for k in (1, 2))
    torch.testing.assert_close((dx2[:64] * 2, dx2[64:] * 2, dw2), (dx, dx, dw), rtol=2e-5, atol=1e-8)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("frozen", ["h", "W"])
def test_one_gradient_alone(schedule, frozen):
    h, W, y = data(77, 24, 203, peaked=False, ignored=5)
    both = gradients(filtered(plain, EPS, schedule=schedule, tile=TILE), h, W, y)
    (h if frozen == "h" else W).requires_grad_(False)
    (one,) = gradients(filtered(plain, EPS, schedule=schedule, tile=TILE), h, W, y)
    torch.testing.assert_close(one, both[frozen == "h"], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_tied_weights(schedule):
    def tied(W, x, y):
        return F.cross_entropy(F.linear(torch.tanh(F.embedding(x, W)), W), y)
    g = torch.Generator().manual_seed(0)
    W = (torch.randn(160, 24, generator=g) * 0.2).requires_grad_()
    x, y = torch.randint(0, 160, (2, 64), generator=g)
    (found,) = torch.autograd.grad(filtered(tied, EPS, schedule=schedule, tile=TILE)(W, x, y), W)
    wide = W.detach().double().requires_grad_()
    (exact,) = torch.autograd.grad(tied(wide, x, y), wide)
    hidden = torch.tanh(wide.detach()[x])
    bound = EPS * hidden.abs().mean(0).expand_as(exact).clone()           # as the head's weight
    bound.index_add_(0, x, EPS / 64 * wide.detach().abs().sum(0).expand_as(hidden))      # as the embedding
    error = (found.double() - exact).abs()
    assert (error - bound).max() <= 4e-6 * exact.abs().max() and error.max() > 1e-3 * exact.abs().max()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_what_is_not_finite_is_never_left_out(schedule):
    h, W, y = data(64, 20, 160, peaked=False)
    f = filtered(plain, EPS, schedule=schedule, tile=TILE)
    for scale in (float("inf"), float("nan")):
        assert not any(g.isfinite().any() for g in gradients(f, h, W, y, scale))
    with torch.no_grad():
        h[3] = float("nan")
    dx, dw = gradients(f, h, W, y)
    assert dx[3].isnan().all() and dw.isnan().all()


def test_no_counted_row_at_all():
    h, W, y = data(64, 20, 160, peaked=False, ignored=1)
    for schedule in SCHEDULES:
        found = gradients(filtered(plain, EPS, schedule=schedule, tile=TILE), h, W, y)
        assert not any(g.nan_to_num(0).any() for g in found)


def test_symbolic_sizes():
    h, W, y = data(61, 20, 160, peaked=False)
    f = filtered(plain, EPS, schedule="slab", tile=TILE)
    with torch._dynamo.config.patch(assume_static_by_default=False):
        for n in (61, 40, 130):
            h, _, y = data(n, 20, 160, peaked=False)
            static = gradients(filtered(plain, EPS, schedule="slab", tile=TILE), h, W, y)
            torch.testing.assert_close(gradients(f, h, W, y), static, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_source_and_the_report(schedule):
    h, W, y = data(64, 24, 203, peaked=False, dtype=torch.bfloat16)

    def report(eps):
        options = {"min_virtual_bytes": 0, "strict": True, "schedule": schedule, "gradient_filter": eps}
        return fuse.explain(plain, h, W, y, fuse_options=options)
    off, auto, number = map(report, ("off", "auto", 0.5))
    name = "region0" if schedule == "slab" else "region1"
    assert not off.regions[0].filters and "leave out" not in str(off)
    assert auto.regions[0].filters == {name: 2.0 ** -12} and number.regions[0].filters == {name: 0.5}
    assert "may leave out what is below 0.000244 of its row's cotangent" in str(auto)
    sources = [r.regions[0].sources[name] for r in (off, auto, number)]
    assert "significant" not in sources[0] and "fuse_rows" not in sources[0]
    assert "significant" in sources[1] and "gemm_rows" in sources[1]
    others = [{n: s for n, s in r.regions[0].sources.items() if n != name} for r in (off, auto, number)]
    assert others[0] == others[1] == others[2], "the filter leaves a forward walk alone"
