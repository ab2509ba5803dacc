"""Every form end to end: compiled with backend="fuse", outputs and gradients judged by float64.

The rule: fuse's error against float64 is at most twice eager's in the same dtype, plus a few roundings. Half precision may
also differ by one rounding of the result, since a gradient is stored in the parameter's type.
"""
from __future__ import annotations

import contextlib
import inspect
import warnings

import pytest
import torch
from torch._dynamo.utils import counters

from tests.forms_vocab import FORMS, Form, arguments
from tests.frontend.tracing import Float64
from tests.plain import quick_builds, without_inductor  # noqa: F401 (fixtures)

SLACK = {torch.float32: 2e-6, torch.bfloat16: 2.0 ** -8, torch.float16: 2.0 ** -11, torch.float64: 1e-12,
         torch.complex64: 2e-6}


def fresh(a):
    if not isinstance(a, torch.Tensor):
        return a
    copy = a.detach().clone()
    return torch.nn.Parameter(copy) if isinstance(a, torch.nn.Parameter) else copy.requires_grad_(a.requires_grad)


def outputs_and_gradients(function, args, seeds=None):
    args = list(map(fresh, args))
    out = function(*args)
    outs = [o for o in (out if isinstance(out, (tuple, list)) else [out]) if isinstance(o, torch.Tensor)]
    smooth = [o for o in outs if o.requires_grad]
    if seeds is None:
        g = torch.Generator().manual_seed(3)
        seeds = [torch.randn(o.shape, generator=g, dtype=torch.float64) for o in smooth]
    torch.autograd.backward(smooth, [s.to(o.dtype) for s, o in zip(seeds, smooth, strict=True)])
    grads = [a.grad for a in args if isinstance(a, torch.Tensor) and a.requires_grad]
    return [o.detach() for o in outs] + grads, seeds


def error(x, want):
    """Largest error relative to the largest entry; infinite where one is finite and the other is not."""
    if x is None or want is None:
        return 0.0 if x is want or not (want if x is None else x).any() else float("inf")
    wide = torch.complex128 if want.is_complex() else torch.float64
    x, want = x.to(wide), want.to(wide)
    if not torch.equal(torch.isfinite(x), torch.isfinite(want)):
        return float("inf")
    kept = torch.isfinite(want)
    return float((x - want)[kept].abs().max() / (want[kept].abs().max() + 1e-12)) if kept.any() else 0.0


def judge(form: Form, **options):
    context = torch.autocast("cpu", dtype=torch.bfloat16) if form.autocast else contextlib.nullcontext()
    args = arguments(form)
    with context:
        eager, seeds = outputs_and_gradients(form.function, args)
        torch._dynamo.reset()
        counters.clear()
        compiled = torch.compile(form.function, backend="fuse", options={"min_virtual_bytes": 0, "strict": True, **options})
        got, _ = outputs_and_gradients(compiled, args, seeds)
    wide = [a.detach().double().requires_grad_(a.requires_grad) if isinstance(a, torch.Tensor) and a.is_floating_point() else a
            for a in args]
    with Float64():
        want, _ = outputs_and_gradients(form.function, wide, seeds)
    rounded = form.autocast or any(word in inspect.getsource(form.function) for word in ("bf16", "bfloat16", "half"))
    low = torch.bfloat16 if rounded else form.dtype
    for i, (e, f, w) in enumerate(zip(eager, got, want, strict=True)):
        assert error(f, w) <= 2 * error(e, w) + SLACK[low], f"value {i}: {error(f, w):.1e}, eager {error(e, w):.1e}"
    return counters["fuse"]["fused"]


RIGHT = [n for n, f in FORMS.items() if not f.raises]


@pytest.mark.parametrize("name", RIGHT)
def test_form_is_right_and_fused(name, quick_builds, without_inductor):  # noqa: F811
    assert judge(FORMS[name]) == FORMS[name].regions


@pytest.mark.slow
@pytest.mark.parametrize("name", RIGHT)
def test_form_in_optimised_kernels(name, without_inductor):  # noqa: F811
    assert judge(FORMS[name]) == FORMS[name].regions


@pytest.mark.parametrize("name", [n for n, f in FORMS.items() if f.raises])
def test_what_eager_cannot_differentiate_fuse_cannot_either(name, without_inductor):  # noqa: F811
    form = FORMS[name]
    for function in (form.function, torch.compile(form.function, backend="fuse", options={"min_virtual_bytes": 0})):
        with pytest.raises(RuntimeError, match=form.raises), warnings.catch_warnings():
            warnings.simplefilter("ignore")    # the anomaly mode of AOTAutograd says where
            outputs_and_gradients(function, arguments(form))


@pytest.mark.parametrize("name", [n for n, f in FORMS.items() if f.regions and f.dtype is torch.float32][::4])
def test_recomputed(name, quick_builds, without_inductor):  # noqa: F811
    assert judge(FORMS[name], schedule="recompute", tile={"row": 7, "col": 50}) == FORMS[name].regions
