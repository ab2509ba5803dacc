"""Every form through torch.compile with the Triton target, its kernels interpreted; `test_triton_end_to_end.py` runs this
file in a process of its own. Judged as on the CPU: outputs and gradients against float64, beside eager."""
from __future__ import annotations

import pytest
import torch

from tests.forms_vocab import FORMS, Form
from tests.plain import without_inductor  # noqa: F401 (fixture)
from tests.test_forms import judge

TILE = {"row": 16, "col": 32, "deep": 16}
# How gradients are computed: in the forward, or from tiles computed again; by accumulators on chip, or through a slab of
# which 4000 bytes are there at a time; at sizes that are constants, or symbols.
VARIANTS = {
    "slab": {"tile": TILE},
    "recompute": {"schedule": "recompute", "tile": TILE | {"splits": 3}},
    "columns": {"schedule": "recompute", "tile": TILE | {"slab": 4000}},
    "symbols": {"tile": TILE | {"col": 64, "deep": 32}},
}
FUSED = [name for name, form in FORMS.items() if form.regions]
QUICK = {
    "slab": ("nanogpt", "hf_padded_labels", "with_accuracy", "hinge"),
    "recompute": ("gemma_softcap", "tsallis", "index_rows_after_head"),
    "columns": ("z_loss", "everything_at_once"),
    "symbols": ("padded_vocabulary", "weighted_by_confidence", "smoothed_weighted"),
}


def check(form: Form, variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if variant == "columns":
        monkeypatch.setattr("fuse.codegen.triton.schedule.ON_CHIP", 0)
    with torch._dynamo.config.patch(assume_static_by_default=variant != "symbols"):
        assert judge(form, target="triton", **VARIANTS[variant]) == form.regions


@pytest.mark.parametrize("variant, name", [(v, n) for v, names in QUICK.items() for n in names])
def test_form(variant, name, monkeypatch, without_inductor):  # noqa: F811
    check(FORMS[name], variant, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("name", FUSED)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_form(variant, name, monkeypatch, without_inductor):  # noqa: F811
    if variant == "symbols" and not FORMS[name].dynamic:
        pytest.skip("the form makes its sizes constants")
    check(FORMS[name], variant, monkeypatch)
