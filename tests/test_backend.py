"""The backend as a user meets it: gradients, modes of autograd, failures, options."""
from __future__ import annotations

import subprocess
import sys
import threading
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.utils import counters
from torch.utils.checkpoint import checkpoint

from fuse import backend
from fuse.log import FuseWarning
from fuse.reasons import Miss
from tests import stand_in

N, V, D = 37, 101, 16


@pytest.fixture
def kernels(monkeypatch):
    return stand_in.install(monkeypatch)


def step(h, W, y):
    return F.cross_entropy(F.linear(h * 2, W), y)


def data(n=N, dtype=torch.float32, grad=(True, True)):
    g = torch.Generator().manual_seed(0)
    h, W = torch.randn(n, D, generator=g), torch.randn(V, D, generator=g)
    y = torch.randint(0, V, (n,), generator=g)
    y[::5] = -100
    return h.to(dtype).requires_grad_(grad[0]), W.to(dtype).requires_grad_(grad[1]), y


def wide(tensors):
    return [t.detach().double().requires_grad_(t.requires_grad) if t.is_floating_point() else t for t in tensors]


def compiled(fn=step, dynamic=None, **options):
    return torch.compile(fn, backend="fuse", dynamic=dynamic, options={"strict": True, **options})


def check(fn, tensors, got=None, fused=1, tolerance=2e-6, **options):
    """Loss and gradients of the compiled function against float64."""
    counters["fuse"].clear()
    loss = (got or compiled(fn, **options))(*tensors)
    leaves = [t for t in tensors if t.requires_grad]
    if leaves:
        loss.backward()
    exact = wide(tensors)
    want = fn(*exact)
    torch.testing.assert_close(loss.double(), want, rtol=tolerance, atol=tolerance)
    if leaves:
        want.backward()
    for leaf, ideal in zip(tensors, exact, strict=True):
        if leaf.requires_grad:
            torch.testing.assert_close(leaf.grad.double(), ideal.grad, rtol=tolerance, atol=tolerance)
            assert leaf.grad.is_contiguous()
    assert counters["fuse"]["fused"] == fused
    return loss


def widths(kernels):
    """The carries that have the axis a1 (the width of hidden states), over all launches."""
    return sorted(c for launch in kernels.launched for c in launch if "a1" in c)


@pytest.mark.parametrize("schedule", ["recompute", "slab"])
@pytest.mark.parametrize("grad", [(True, True), (True, False), (False, True), (False, False)])
def test_only_the_gradients_that_are_wanted_are_computed(kernels, schedule, grad):
    check(step, data(grad=grad), schedule=schedule)
    assert widths(kernels) == ["sum[a0, a1]"] * grad[0] + ["sum[a1, a2]"] * grad[1]


def test_the_entry_point_makes_the_name_known():
    assert "fuse" in torch._dynamo.list_backends(exclude_tags=None)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_nothing_is_kept_where_no_gradient_is_recorded(kernels, context):
    tensors, f = data(), compiled()
    with context():
        loss = f(*tensors)
    torch.testing.assert_close(loss.double(), step(*wide(tensors)).detach(), rtol=2e-6, atol=2e-6)
    assert not widths(kernels) and not loss.requires_grad
    check(step, tensors, f)


@pytest.mark.parametrize("schedule", ["recompute", "slab"])
def test_dynamic_shapes_compile_once(kernels, schedule):
    f = compiled(dynamic=True, schedule=schedule)
    torch._dynamo.reset()
    counters["stats"].clear()
    check(step, data(), f)
    for n in (53, 20, 400):
        check(step, data(n), f, fused=0)
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("schedule", ["recompute", "slab"])
def test_a_second_backward_gives_the_same_gradients(kernels, schedule):
    h, W, y = data()
    loss = compiled(schedule=schedule)(h, W, y)
    loss.backward(retain_graph=True)
    first = h.grad.clone(), W.grad.clone()
    h.grad = W.grad = None
    (loss * 3).backward()
    torch.testing.assert_close((h.grad, W.grad), (first[0] * 3, first[1] * 3))


def test_a_second_derivative_is_an_error(kernels):
    h, W, y = data()
    compiled()(h, W, y).backward()
    key, = fuse_keys()
    loss, = torch.ops.fuse.forward([h, W, y], key)
    grad, = torch.autograd.grad(loss, h, create_graph=True)
    with pytest.raises(RuntimeError, match="twice"):
        grad.sum().backward()


def fuse_keys():
    from fuse.runtime import ops

    return list(ops._executables)


def test_upstream_gradients_other_than_one(kernels):
    for schedule in ("recompute", "slab"):
        check(lambda h, W, y: step(h, W, y) * -2.5 + h.sum(), data(), schedule=schedule)


@pytest.mark.parametrize("schedule", ["recompute", "slab"])
@pytest.mark.parametrize("dynamic", [None, True])
def test_rows_that_are_cut_off_have_no_gradient(monkeypatch, schedule, dynamic):
    """The gradient of h is a padded box: traced through under the slab schedule, so it must not ask for data."""
    monkeypatch.setattr(backend, "finish", stand_in.quick)

    def shifted(h, W, y):
        return F.cross_entropy(F.linear(h, W)[:, :-1].reshape(-1, V), y[:, 1:].reshape(-1))
    f = compiled(shifted, dynamic, schedule=schedule, min_virtual_bytes=0)
    for i, t in enumerate((7, 9)):
        h = torch.randn(3, t, D, requires_grad=True)
        _, W, _ = data()
        check(shifted, (h, W, torch.randint(0, V, (3, t))), f, fused=0 if dynamic and i else 1)
        assert not h.grad[:, -1].any()


def test_tied_weights(kernels):
    def tied(h, W, y):
        return F.cross_entropy(F.linear(h + F.embedding(y.clamp(min=0), W), W), y)
    check(tied, data())


def test_a_checkpointed_head_is_fused_inside_its_body(kernels):
    def saved(h, W, y):
        return checkpoint(step, h, W, y, use_reentrant=False)
    check(saved, data())
    forwards = [launch for launch in kernels.launched if "lse[a0]" in launch]
    assert len(forwards) == 2    # once more in the backward: that is what checkpointing asks for


@pytest.mark.parametrize("schedule", ["recompute", "slab"])
def test_bfloat16(kernels, schedule):
    check(step, data(dtype=torch.bfloat16), schedule=schedule, tolerance=1.6e-2)


def test_ambient_autocast_does_not_reach_the_region(kernels):
    tensors, f = data(), compiled()
    with torch.autocast("cpu", torch.bfloat16):
        loss = f(*tensors)
    loss.backward()
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), step(*wide(tensors)).detach(), rtol=2e-6, atol=2e-6)


def test_one_region_reads_what_another_gives(kernels):
    def twice(h, W, y):
        first = F.cross_entropy(F.linear(h, W), y)
        return F.cross_entropy(F.linear(h * first, W), y)
    check(twice, data(), fused=2, tolerance=1e-5)


def test_equal_regions_share_one_executable(kernels):
    def two(h, W, y):
        return F.cross_entropy(F.linear(h, W), y) + F.cross_entropy(F.linear(h.tanh(), W), y)
    check(two, data(), fused=2)
    assert len(fuse_keys()) == 1


def test_threads_may_compile_and_run_at_once(kernels):
    functions = [lambda h, W, y, i=i: step(h + i, W, y) for i in range(3)]
    failures = []

    def work(fn):
        try:
            tensors = data()
            compiled(fn)(*tensors).backward()
            exact = wide(tensors)
            fn(*exact).backward()
            torch.testing.assert_close(tensors[0].grad.double(), exact[0].grad, rtol=2e-6, atol=2e-6)
        except BaseException as error:
            failures.append(error)
    threads = [threading.Thread(target=work, args=(fn,)) for fn in functions]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failures


# ---- failures ---------------------------------------------------------------------------------------------------

def break_passes(monkeypatch, error):
    import fuse.runtime.plan

    def fail(*_):
        raise error
    monkeypatch.setattr(fuse.runtime.plan, "compile_program", fail)


def test_a_failing_region_is_left_out_with_one_warning(kernels, monkeypatch):
    break_passes(monkeypatch, ValueError("no such thing"))
    with pytest.warns(FuseWarning, match=rf"INTERNAL at {__file__}:\d+.*no such thing") as seen:
        check(step, data(), fused=0, strict=False)
    assert len(seen) == 1 and counters["fuse"]["declined"] == 1 and not kernels.launched
    assert f"{seen[0].filename}:{seen[0].lineno}" in str(seen[0].message), "the warning stands at the user's own line"


def test_strict_raises_instead(kernels, monkeypatch):
    break_passes(monkeypatch, ValueError("no such thing"))
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed, match="INTERNAL"):
        compiled()(*data())


def test_a_graph_that_inductor_refuses_is_compiled_untouched(kernels, monkeypatch):
    def picky(gm, inputs, *_, edited, **__):
        if edited:
            raise RuntimeError("cannot lower")
        return stand_in.quick(gm, inputs)
    monkeypatch.setattr(backend, "finish", picky)
    with pytest.warns(FuseWarning, match="cannot lower.*without fuse"):
        check(step, data(), strict=False, fused=0)
    assert not kernels.launched and counters["fuse"]["declined"] == 1
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed, match="cannot lower"):
        compiled()(*data())


def test_a_graph_that_is_left_half_edited_is_compiled_untouched(kernels, monkeypatch):
    import fuse.frontend.splice as splicing

    splice, calls = splicing.splice, []

    def second_fails(*args, **kwargs):
        calls.append(args)
        if len(calls) == 2:
            raise KeyError("node")
        return splice(*args, **kwargs)
    monkeypatch.setattr(splicing, "splice", second_fails)

    def twice(h, W, y):
        return step(h, W, y) + step(h.cos(), W, y)
    with pytest.warns(FuseWarning, match="whole graph"):
        check(twice, data(), torch.compile(twice, backend="fuse"), fused=0)
    assert counters["fuse"]["declined"] == 1


def test_dynamos_control_flow_passes_through(kernels, monkeypatch):
    calls = []

    def skip(*_, **__):
        calls.append(1)
        raise torch._dynamo.exc.SkipFrame("not this one")
    monkeypatch.setattr(backend, "finish", skip)
    with warnings.catch_warnings():
        warnings.simplefilter("error", FuseWarning)
        check(step, data(), strict=False, fused=0)
    assert calls == [1] and not kernels.launched    # the frame ran as it stands


def test_a_kernel_that_fails_is_replaced_by_plain_torch(kernels):
    kernels.broken = True
    with pytest.warns(FuseWarning, match="LAUNCH_FAILED.*on fire") as seen:
        check(step, data(), strict=False, schedule="slab")
    assert len(seen) == 1


def test_a_kernel_that_fails_under_strict_raises(kernels):
    kernels.broken = True
    with pytest.raises(RuntimeError, match="LAUNCH_FAILED"):
        compiled()(*data())


def test_a_front_end_that_fails_leaves_the_graph_alone(kernels, monkeypatch):
    import fuse.frontend

    def broken(*_):
        raise KeyError("lost")
    monkeypatch.setattr(fuse.frontend, "find", broken)
    with pytest.warns(FuseWarning, match="INTERNAL.*lost") as seen:
        check(step, data(), fused=0, strict=False)
    assert seen[0].filename == __file__, "without a place in the program: where the call came from"


def refuse(monkeypatch, code):
    import fuse.runtime.plan

    monkeypatch.setattr(fuse.runtime.plan, "compile_region", lambda *_: Miss(code, "there.py:1"))


def test_a_refusal_of_the_target_is_no_failure(kernels, monkeypatch):
    refuse(monkeypatch, "TARGET_LACKS")
    with warnings.catch_warnings():
        warnings.simplefilter("error", FuseWarning)
        check(step, data(), fused=0)    # strict does not mind either
    assert counters["fuse"]["declined"] == 1


def test_a_build_that_fails_is_one(kernels, monkeypatch):
    refuse(monkeypatch, "BUILD_FAILED")
    with pytest.warns(FuseWarning, match="BUILD_FAILED at there.py:1"):
        check(step, data(), fused=0, strict=False)


def test_without_a_compiler_the_region_runs_in_plain_torch(kernels, monkeypatch):
    refuse(monkeypatch, "NO_COMPILER")
    with pytest.warns(FuseWarning, match="NO_COMPILER"):
        check(step, data(), strict=False)


def test_a_kernel_that_is_not_deterministic_steps_aside(kernels, monkeypatch):
    import fuse.runtime.plan

    def compile_region(region, *_):
        kernel = kernels.compile_region(region)
        kernel.deterministic = False
        return kernel
    monkeypatch.setattr(fuse.runtime.plan, "compile_region", compile_region)
    torch.use_deterministic_algorithms(True)
    try:
        check(step, data())
        assert not kernels.launched
    finally:
        torch.use_deterministic_algorithms(False)
    check(step, data())
    assert kernels.launched


def test_reset_keeps_what_a_pending_backward_needs(kernels, monkeypatch):
    from fuse.runtime import ops

    h, W, y = data()
    pending = compiled()(h, W, y)
    torch._dynamo.reset()
    pending.backward()
    monkeypatch.setattr(ops, "KEPT_AFTER_RESET", 1)
    compiled(schedule="recompute")(h, W, y)
    assert len(fuse_keys()) == 2
    torch._dynamo.reset()
    assert len(fuse_keys()) == 1


def test_nothing_is_copied_where_nothing_is_found(kernels, monkeypatch):
    from fuse import private

    monkeypatch.setattr(private, "untouched_copy", lambda gm: pytest.fail("copied"))
    x = torch.randn(5)
    torch.testing.assert_close(compiled(lambda x: x.sin() + 1)(x), x.sin() + 1)
    assert not counters["fuse"]


# ---- options ----------------------------------------------------------------------------------------------------

def test_require_is_met_or_raises(kernels):
    check(step, data(), require=["softmax-over-vocabulary"])
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed, match="required but not fused: attention"):
        compiled(require=["attention"])(*data())


def test_require_names_what_was_declined(kernels):
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed, match="NOT_A_REDUCTION"):
        compiled(lambda h, W, y: F.cross_entropy(h @ W.T, y), require=["softmax-over-vocabulary"])(*data())


def test_fuel_counts_regions(kernels):
    def two(h, W, y):
        return F.cross_entropy(F.linear(h, W), y) + F.cross_entropy(F.linear(h.tanh(), W), y)
    check(two, data(), fuel=1, fused=1)
    assert counters["fuse"]["declined"] == 1
    torch._dynamo.reset()
    check(two, data(), fuel=0, fused=0)


@pytest.mark.parametrize("mode", ["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"])
def test_the_modes_of_torch_compile_are_inductors(kernels, monkeypatch, mode):
    asked = []

    def finish(gm, inputs, options, **_):
        asked.append(options.mode)
        return stand_in.quick(gm, inputs)
    monkeypatch.setattr(backend, "finish", finish)
    tensors = data()
    loss = torch.compile(step, backend="fuse", mode=mode)(*tensors)
    torch.testing.assert_close(loss, step(*tensors))
    assert counters["fuse"]["fused"] == 1 and asked == [None if mode == "default" else mode]


def test_an_unknown_mode_is_an_error_that_names_the_known(kernels):
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed, match=r"'mode' must be one of default, .*max-autotune"):
        torch.compile(step, backend="fuse", mode="fast")(*data())


def test_an_unknown_option_is_an_error_that_names_the_known(kernels):
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed, match="no option 'max_autotune'; the options are target,"):
        compiled(max_autotune=True)(*data())


def test_a_graph_from_elsewhere_says_what_is_missing():
    import fuse.runtime.ops  # noqa: F401

    with pytest.raises(RuntimeError, match="has not built"):
        torch.ops.fuse.forward([torch.ones(2)], "0123")


@pytest.mark.slow
def test_a_graph_in_which_nothing_amplifies_loads_neither_passes_nor_targets():
    script = """
import sys, torch
torch.compile(lambda x: (x @ x).relu().sum(), backend="fuse")(torch.randn(4, 4))
loaded = [m for m in sys.modules if m.startswith(("fuse.passes", "fuse.codegen", "fuse.runtime.ops", "fuse.runtime.plan"))]
assert not loaded, loaded
"""
    done = subprocess.run([sys.executable, "-c", f"import fuse\n{script}"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
