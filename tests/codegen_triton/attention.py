"""The forms of attention through torch.compile with the Triton target, their kernels interpreted;
`test_triton_end_to_end.py` runs this file in a process of its own."""
from __future__ import annotations

import pytest

from tests.forms_attention import FORMS
from tests.plain import without_inductor  # noqa: F401 (fixture)
from tests.test_attention import RIGHT, arguments, judge

TILE = {"row": 16, "col": 16, "deep": 16}
QUICK = ("grouped_queries", "softcapped", "learned_bias", "causal_linear_by_products")


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in RIGHT])
def test_form(name, without_inductor):  # noqa: F811
    form = FORMS[name]
    assert judge(form.function, arguments(form), target="triton", tile=TILE) == form.regions


@pytest.mark.slow
@pytest.mark.parametrize("name", ["causal_linear", "causal_linear_by_products", "causal_flow"])
def test_in_stages(name, without_inductor):  # noqa: F811
    """As heads of a real width are walked."""
    form = FORMS[name]
    assert judge(form.function, arguments(form), target="triton", tile=TILE | {"staged": 1}) == form.regions
