"""The gradient filter through torch.compile and Triton's interpreter: tiles that are negligible are left out.
`test_gradient_filter.py` runs this file in a process of its own."""
from __future__ import annotations

import pytest
import torch

from tests.filtering import FORMS, data, filtered, gradients, plain, softcapped, uniform, within_bound
from tests.plain import without_inductor  # noqa: F401 (fixture)

pytestmark = pytest.mark.usefixtures("without_inductor")
TILE = {"row": 16, "col": 32, "deep": 16}
SCHEDULES = ("slab", "recompute")
EPS = 2.0 ** -6


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_zero_leaves_nothing_out(schedule):
    h, W, y = data(45, 20, 101, peaked=False)
    exact, found = (gradients(filtered(softcapped, eps, schedule=schedule, tile=TILE, target="triton"), h, W, y)
                    for eps in ("off", 0.0))
    assert all(map(torch.equal, exact, found))


@pytest.mark.parametrize("schedule, form, peaked", [
    ("slab", "plain", False), ("recompute", "plain", True), ("recompute", "softcapped", False), ("slab", "smoothed", False),
    ("recompute", "weighted", False)])
def test_the_error_is_within_the_bound(schedule, form, peaked):
    assert form in FORMS
    h, W, y = data(45, 24, 101, peaked, ignored=0 if form == "weighted" else 5)
    within_bound(form, EPS, h, W, y, schedule=schedule, tile=TILE, target="triton")


@pytest.mark.parametrize("sizes", [(1, 20, 101), (2, 7, 1)])
def test_odd_sizes(sizes):
    within_bound("plain", EPS, *data(*sizes, False), tile=TILE, target="triton")


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_tiles_without_a_label_add_nothing(schedule):
    """All words equally likely: below eps, all but the labels'. Tiles of words that are nobody's label are left out."""
    h, W, y = uniform(48, 16, 128, words=32)
    h = (h.detach() + 1e-4).requires_grad_()
    exact, found = (gradients(filtered(plain, eps, schedule=schedule, tile=TILE, target="triton"), h, W, y)
                    for eps in ("off", EPS))
    assert exact[1][32:].any(1).all() and not found[1][32:].any()
    torch.testing.assert_close(found[1][:32], exact[1][:32], rtol=1e-5, atol=1e-8)
    p = torch.softmax(h.detach().double() @ W.detach().double().T, 1)
    left_out = (p[:, 32:] @ W.detach().double()[32:]) / len(y)
    torch.testing.assert_close(found[0].double(), exact[0].double() - left_out, rtol=1e-4, atol=1e-7)


def test_a_factor_of_the_loss_drops_the_same_tiles():
    h, W, y = uniform(48, 16, 128, words=32)
    for schedule in SCHEDULES:
        f = filtered(plain, EPS, schedule=schedule, tile=TILE, target="triton")
        found = gradients(f, h, W, y)
        for scale in (1e-3, 65536.0):
            scaled = [g / scale for g in gradients(f, h, W, y, scale)]
            torch.testing.assert_close(scaled, found, rtol=2e-5, atol=1e-9)


def test_what_is_not_finite_is_never_left_out():
    h, W, y = data(20, 20, 70, peaked=False)
    f = filtered(plain, EPS, schedule="recompute", tile=TILE, target="triton")
    assert not any(g.isfinite().any() for g in gradients(f, h, W, y, float("nan")))
