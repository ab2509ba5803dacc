"""Scans end to end: compiled with backend="fuse", outputs and gradients judged by float64 as in test_attention."""
from __future__ import annotations

import pytest
import torch
from torch._dynamo.utils import counters
from torch._higher_order_ops.scan import scan
from torch.utils.checkpoint import checkpoint

from fuse.backend import fuse_graph
from fuse.options import Options
from tests.frontend import test_convolutions
from tests.frontend.idioms import IDIOMS
from tests.frontend.test_loops import FORMS, REFUSED
from tests.frontend.tracing import capture
from tests.plain import quick_builds, without_aot  # noqa: F401 (fixtures)
from tests.test_attention import judge as judged
from tests.test_forms import outputs_and_gradients

SMALL = {"row": 2, "col": 4}      # several tiles, the last of them partly filled
STRICT = {"min_virtual_bytes": 0, "strict": True}


def judge(function, args, **options):
    return judged(function, args, **{"tile": SMALL, **options})


def given(length=9, *, width=3, dtype=torch.float32, grad=True):
    """What is added, coefficients between 0 and 1, and a first state."""
    torch.manual_seed(0)
    made = torch.randn(2, length, width), torch.rand(2, length, width), torch.randn(2, width)
    return [x.to(dtype).requires_grad_(grad) for x in made]


def recurrence(x, a, h):
    out = torch.zeros_like(x)
    for t in range(x.shape[1]):
        h = a[:, t] * h + x[:, t]
        out[:, t] = h
    return out, h


def reversed_recurrence(x, a, h):
    out = []
    for t in reversed(range(x.shape[1])):
        h = a[:, t] * h + x[:, t]
        out.append(h)
    return torch.stack(out[::-1], 1), h


SAMPLE = {name: IDIOMS[name] for name in ("setitem", "final_state_and_initial_state", "advantages", "logarithms", "convolution",
                                          "tree", "scan")} | {"complex_state": FORMS["complex_state"]}


@pytest.mark.parametrize("name", SAMPLE)
def test_an_idiom_is_right_and_fused(name, quick_builds, without_aot):  # noqa: F811
    function, maker = SAMPLE[name]
    torch.manual_seed(0)
    assert judge(function, maker()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in FORMS if n not in SAMPLE])
def test_every_loop(name, quick_builds, without_aot):  # noqa: F811
    function, maker = FORMS[name]
    torch.manual_seed(0)
    assert judge(function, maker()) == 1


TRAPS = ("dense_transition", "nonlinear", "gate_reads_the_state", "delta_rule", "permuted_in_time", "last_step_differs",
         "truncated_gradient", "truncated_complex_gradient")


@pytest.mark.parametrize("name", TRAPS)
def test_a_trap_keeps_its_meaning(name, quick_builds, without_aot):  # noqa: F811
    function, maker = REFUSED[name]
    torch.manual_seed(0)
    assert judge(function, maker()) == 0


def test_a_circular_convolution_keeps_its_meaning(quick_builds, without_aot):  # noqa: F811
    assert judge(test_convolutions.circular, test_convolutions.given()) == 0


# ---- lengths and values ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize("length", [1, 2, 4, 13])
def test_lengths(length, quick_builds, without_aot):  # noqa: F811
    """Too few copies of a step are no loop; a tile is 4 long."""
    assert judge(recurrence, given(length)) == (length > 2)


def test_decays(quick_builds, without_aot):  # noqa: F811
    """Nothing kept, everything kept, signs that alternate, states that grow."""
    def function(x, decay, h):
        return recurrence(x, decay.expand_as(x), h)
    x, _, h = given(13, width=6)
    decay = torch.tensor([0.0, 1.0, -1.0, -1.5, 1.3, 1e-30], requires_grad=True)
    assert judge(function, [x, decay, h]) == 1


def test_half_precision_with_a_state_in_float32(quick_builds, without_aot):  # noqa: F811
    def function(x, a):
        h, out = torch.zeros(2, 3), []
        for t in range(9):
            h = a[:, t].float() * h + x[:, t].float()
            out.append(h.to(x.dtype))
        return torch.stack(out, 1), h
    assert judge(function, given(dtype=torch.bfloat16)[:2]) == 1


def test_complex_states_are_differentiable(quick_builds, without_aot):  # noqa: F811
    assert judge(recurrence, given(dtype=torch.complex64)) == 1


# ---- what surrounds a loop ------------------------------------------------------------------------------------------

def test_the_state_and_the_position_are_used_after_the_loop(quick_builds, without_aot):  # noqa: F811
    def function(x, a, h):
        out = torch.zeros_like(x)
        for t in range(x.shape[1]):
            h = a[:, t] * h + x[:, t]
            out[:, t] = h
        return out, h * t, x[:, t] * h, out[:, t // 2].exp()
    assert judge(function, given()) == 1


def test_results_are_changed_in_place(quick_builds, without_aot):  # noqa: F811
    def changed(out, last):
        early = out[:, 2]
        out.mul_(2)
        early.add_(1)
        return out, early * 3, last
    assert judge(lambda *args: changed(*reversed_recurrence(*args)), given()) == 1
    assert judge(lambda *args: changed(*recurrence(*args)), given()) == 0     # the loop itself fills what is changed


def test_operands_are_changed_afterwards(quick_builds, without_aot):  # noqa: F811
    def function(x, a, h):
        x, a = x * 1, a * 1
        out, last = recurrence(x, a, h)
        x.add_(1)
        a[:, 0] = 0
        return out, last, x + a
    assert judge(function, given(grad=False)) == 1


def test_several_scans_in_one_layer(quick_builds, without_aot):  # noqa: F811
    """Both directions over packed sequences, whose first positions keep nothing, then a scan of what they give."""
    def function(x, a, h, first):
        forth, _ = recurrence(x, a.masked_fill(first[..., None], 0.0), h)
        back, _ = reversed_recurrence(x, a * (~first).to(a.dtype)[..., None], h)
        return recurrence(torch.tanh(forth * back), a, h)[0]
    first = torch.zeros(2, 9, dtype=torch.bool)
    first[0, [0, 4]] = first[1, [0, 1, 8]] = True
    assert judge(function, [*given(), first]) >= 1


# ---- how it is called -----------------------------------------------------------------------------------------------

def test_dynamic_lengths_compile_once(quick_builds, without_aot):  # noqa: F811
    def function(a, b, c):
        def step(carry, x):
            new = x[0] * carry + x[1]
            return new, new.clone()
        return scan(step, c, (a, b), dim=1)[1]
    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(function, backend="fuse", dynamic=True, options=STRICT)
    for length in (9, 30, 70):
        args = given(length)
        want, seeds = outputs_and_gradients(lambda a, b, c: recurrence(b, a, c)[0], args)
        got, _ = outputs_and_gradients(compiled, args, seeds)
        torch.testing.assert_close(got, want)
    assert counters["fuse"]["fused"] == 1 and counters["stats"]["unique_graphs"] == 1


def test_two_lengths_share_a_forward_kernel():
    """That of a backward holds the last position as a number."""
    def look(gm, inputs):
        return [region.sources for region in fuse_graph(gm, Options(min_virtual_bytes=0)).regions]
    ((short,),), ((longer,),) = (capture(lambda *args: recurrence(*args)[0], given(length, grad=False), look=look)
                                 for length in (9, 14))
    assert len(short) == 1 and short == longer


def test_without_gradient(quick_builds, without_aot):  # noqa: F811
    args = given()
    with torch.no_grad():
        got = torch.compile(recurrence, backend="fuse", options=STRICT)(*args)
    torch.testing.assert_close(got, recurrence(*args))
    assert not any(x.requires_grad for x in got)


def test_under_autocast(quick_builds, without_aot):  # noqa: F811
    function, maker = FORMS["projected_gate"]
    torch.manual_seed(0)
    assert judge(function, maker(), autocast=True) == 1


def test_in_a_checkpoint(quick_builds, without_aot):  # noqa: F811
    def function(x, a, h):
        return checkpoint(lambda *args: recurrence(*args)[0].sin(), x, a, h, use_reentrant=False)
    assert judge(function, given()) == 1


def test_a_second_derivative_is_an_error(quick_builds, without_aot):  # noqa: F811
    args = given()
    out, _ = torch.compile(recurrence, backend="fuse", options=STRICT)(*args)
    (gradient,) = torch.autograd.grad(out.sum(), args[1], create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        gradient.sum().backward()
