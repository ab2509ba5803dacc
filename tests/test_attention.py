"""Attention end to end: compiled with backend="fuse", outputs and gradients judged by float64 as in test_forms."""
from __future__ import annotations

import contextlib

import pytest
import torch
from torch._dynamo.utils import counters

from fuse.backend import fuse_graph
from fuse.options import Options
from tests.forms_attention import FORMS, Form
from tests.frontend.tracing import WIDE, Float64, capture
from tests.plain import plain_kernels, quick_builds, without_aot, without_inductor  # noqa: F401 (fixtures)
from tests.test_forms import SLACK, error, outputs_and_gradients
from tests.traps_attention import TRAPS

SMALL = {"row": 8, "col": 16}      # several tiles each way, the last of them partly filled


def arguments(form: Form, dtype=torch.float32, n=21, m=37, seed=0):
    torch.manual_seed(seed)
    return [a.detach().to(dtype).requires_grad_(a.requires_grad) if a.is_floating_point() else a
            for a in form.make(n, n if form.square else m)]


@contextlib.contextmanager
def float64_by_default():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def judge(function, args, *, autocast=False, **options):
    """Runs the function in eager, fused and in float64. Returns how many regions were fused."""
    context = torch.autocast("cpu", dtype=torch.bfloat16) if autocast else contextlib.nullcontext()
    with context:
        eager, seeds = outputs_and_gradients(function, args)
        torch._dynamo.reset()
        counters.clear()
        compiled = torch.compile(function, backend="fuse",
                                 options={"min_virtual_bytes": 0, "strict": True, "tile": SMALL, **options})
        got, _ = outputs_and_gradients(compiled, args, seeds)
    wide = [a.detach().to(WIDE.get(a.dtype, a.dtype)).requires_grad_(a.requires_grad) for a in args]
    with Float64(), float64_by_default():
        want, _ = outputs_and_gradients(function, wide, seeds)
    slack = SLACK[torch.bfloat16 if autocast else args[0].dtype]
    for i, (e, f, w) in enumerate(zip(eager, got, want, strict=True)):
        assert error(f, w) <= 2 * error(e, w) + slack, f"value {i}: {error(f, w):.1e}, eager {error(e, w):.1e}"
    return counters["fuse"]["fused"]


QUICK = ("grouped_queries", "padded", "learned_bias", "windows_with_a_table", "softcapped", "two_sets_of_keys", "criss_cross",
         "differential", "with_entropy", "causal_linear_by_products", "causal_flow",
         "normalised_over_the_sequence", "fill_of_minus_three", "mask_on_the_other_side", "masked_after_softmax",
         "keys_permuted")
RIGHT = [n for n, f in FORMS.items() if "RANDOM" not in f.misses]


@pytest.mark.parametrize("name", [n for n in RIGHT if n in QUICK or not FORMS[n].regions])
def test_form_is_right_and_fused(name, quick_builds, without_aot):  # noqa: F811
    assert judge(FORMS[name].function, arguments(FORMS[name])) == FORMS[name].regions


@pytest.mark.slow
@pytest.mark.parametrize("name", RIGHT)
def test_form_in_optimised_kernels(name, without_inductor):  # noqa: F811
    assert judge(FORMS[name].function, arguments(FORMS[name])) == FORMS[name].regions


@pytest.mark.parametrize("name", TRAPS)
def test_a_trap_keeps_its_meaning(name, plain_kernels, without_aot):  # noqa: F811
    assert judge(TRAPS[name].function, arguments(TRAPS[name])) == TRAPS[name].regions


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAPS)
def test_a_trap_keeps_its_meaning_in_kernels(name, quick_builds, without_aot):  # noqa: F811
    assert judge(TRAPS[name].function, arguments(TRAPS[name], n=33, m=33)) == TRAPS[name].regions


@pytest.mark.parametrize("form", [f for f in (*FORMS.values(), *TRAPS.values()) if f.misses], ids=lambda form: form.name)
def test_a_refusal_says_why(form):

    def look(gm, inputs):
        return [m.code for m in fuse_graph(gm, Options(min_virtual_bytes=0)).misses]
    assert capture(form.function, arguments(form), look=look) == [list(form.misses)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype, quick_builds, without_aot):  # noqa: F811
    form = FORMS["grouped_queries"]
    assert judge(form.function, arguments(form, dtype)) == 1


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", ["plain", "learned_bias", "bias_by_key", "einsum_minus_largest", "some_rows_see_nothing"])
def test_element_types(name, dtype, quick_builds, without_aot):  # noqa: F811
    form = FORMS[name]
    assert judge(form.function, arguments(form, dtype)) == 1


@pytest.mark.parametrize("n, m", [(1, 37), (37, 1)])
def test_one_query_or_one_key(n, m, quick_builds, without_aot):  # noqa: F811
    judge(FORMS["grouped_queries"].function, arguments(FORMS["grouped_queries"], n=n, m=m))


@pytest.mark.slow
@pytest.mark.parametrize("n, m", [(1, 1), (1, 37), (37, 1), (16, 16), (65, 17)])
@pytest.mark.parametrize("name", ["learned_bias", "two_sets_of_keys", "einsum_minus_largest", "with_logsumexp"])
def test_lengths(name, n, m, quick_builds, without_aot):  # noqa: F811
    judge(FORMS[name].function, arguments(FORMS[name], n=n, m=m))


def test_masked_rows_are_what_eager_makes_of_them(quick_builds, without_aot):  # noqa: F811
    def hidden(fill):
        def f(q, k, v):
            rows = (torch.arange(q.shape[2]) % 4 == 3)[:, None]
            return torch.softmax((q @ k.transpose(-2, -1)).masked_fill(rows, fill), -1) @ v
        return f
    args = [a.detach() for a in arguments(FORMS["plain"])]
    for fill in (float("-inf"), torch.finfo(torch.float32).min, -1e4):
        torch._dynamo.reset()
        got = torch.compile(hidden(fill), backend="fuse", options={"min_virtual_bytes": 0, "tile": SMALL})(*args)
        want = hidden(fill)(*args)
        assert torch.equal(got.isnan(), want.isnan()) and want.isnan().any() == (fill == float("-inf"))
        torch.testing.assert_close(got, want, equal_nan=True)


def test_dynamic_lengths_compile_once(quick_builds, without_aot):  # noqa: F811
    form = FORMS["divided_heads_last"]
    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(form.function, backend="fuse", dynamic=True, options={"min_virtual_bytes": 0, "strict": True})
    for n, m in ((21, 37), (40, 9), (5, 64)):
        args = arguments(form, n=n, m=m)
        want, seeds = outputs_and_gradients(form.function, args)
        got, _ = outputs_and_gradients(compiled, args, seeds)
        torch.testing.assert_close(got, want)
    assert counters["fuse"]["fused"] == 1 and counters["stats"]["unique_graphs"] == 1


def test_without_gradient_nothing_is_kept(quick_builds, without_aot):  # noqa: F811
    form = FORMS["grouped_queries"]
    args = [a.detach() for a in arguments(form)]
    got = torch.compile(form.function, backend="fuse", options={"min_virtual_bytes": 0, "strict": True})(*args)
    torch.testing.assert_close(got, form.function(*args))


def test_no_batch_at_all(quick_builds, without_aot):  # noqa: F811
    args = [a.detach()[:0].requires_grad_() for a in arguments(FORMS["plain"])]
    compiled = torch.compile(FORMS["plain"].function, backend="fuse", options={"min_virtual_bytes": 0, "strict": True})
    out = compiled(*args)
    out.sum().backward()
    assert out.shape == args[0].shape and all(a.grad.shape == a.shape for a in args)


def test_under_autocast(quick_builds, without_aot):  # noqa: F811
    form = FORMS["divided_heads_last"]
    assert judge(form.function, arguments(form), autocast=True) == 1


def test_strided_operands(quick_builds, without_aot):  # noqa: F811
    def f(x, y):
        q, k = x.unflatten(-1, (2, -1)).unbind(-2)
        return torch.softmax(q @ k.mT, -1) @ y.mT[:, ::2]
    torch.manual_seed(0)
    assert judge(f, [torch.randn(2, 33, 10, requires_grad=True), torch.randn(2, 6, 66, requires_grad=True)]) == 1


def test_kernels_of_the_library_are_left_alone():
    def f(q, k, v):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v)

    def look(gm, inputs):
        report = fuse_graph(gm, Options(min_virtual_bytes=0))
        return report.regions, report.misses
    assert capture(f, arguments(FORMS["plain"]), look=look) == [([], [])]
