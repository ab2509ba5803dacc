"""The whole path, Inductor and its caches included. Few compiles: each takes seconds."""
from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.utils import counters
from torch._inductor.custom_graph_pass import CustomGraphPass
from torch._inductor.utils import run_and_get_code

from fuse.options import Options
from fuse.runtime import inductor, ops

N, V, D = 37, 101, 16
OPTIONS = {"min_virtual_bytes": 0, "strict": True}


def step(h, W, y):
    return F.cross_entropy(F.linear(h.tanh(), W), y)


def data():
    g = torch.Generator().manual_seed(0)
    h, W = torch.randn(N, D, generator=g), torch.randn(V, D, generator=g)
    return h.requires_grad_(), W.requires_grad_(), torch.randint(0, V, (N,), generator=g)


def exact(*tensors):
    h, W = (t.detach().double().requires_grad_() for t in tensors[:2])
    loss = step(h, W, tensors[2])
    loss.backward()
    return loss, h.grad, W.grad


def gradients(fn):
    h, W, y = data()
    loss = fn(h, W, y)
    loss.backward()
    return loss, h.grad, W.grad


def assert_near(got, want, tolerance=2e-6):
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=tolerance, atol=tolerance)


@pytest.fixture
def fresh_caches(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch._dynamo.reset()


def test_gradients_made_in_the_forward_are_scaled_in_place():
    """One buffer for each gradient, from the slab sweep to .grad: the backward is one pointwise kernel on donated memory."""
    compiled = torch.compile(step, backend="fuse", options={**OPTIONS, "schedule": "slab"})
    results = []
    _, (forward, backward) = run_and_get_code(lambda: results.extend(gradients(compiled)))
    assert_near(results, exact(*data()))
    assert "fuse.forward_saving" in forward and "fuse.backward" not in backward
    assert backward.count("in_out_ptr") >= 2
    assert counters["fuse"]["declined"] == 0


def test_a_cache_entry_does_not_outlive_the_backward_it_was_made_with(fresh_caches, monkeypatch):
    def run():
        torch._dynamo.reset()
        counters["aot_autograd"].clear()
        return gradients(torch.compile(step, backend="fuse", options=OPTIONS))
    original = ops._gradients
    first = run()
    assert_near(first, exact(*data()))
    monkeypatch.setattr(ops, "_gradients", lambda *a: tuple(None if g is None else g * 2 for g in original(*a)))
    assert_near(run(), exact(*data()))    # the danger: AOTAutograd does not see a library op's backward
    assert counters["aot_autograd"]["autograd_cache_hit"] == 1
    monkeypatch.setattr(inductor, "sources_digest", lambda: "other sources")
    loss, dh, dw = run()
    assert counters["aot_autograd"]["autograd_cache_hit"] == 0
    assert_near((loss, dh / 2, dw / 2), exact(*data()))


def test_a_softmax_over_another_axis_keeps_its_meaning():
    """Inductor before 2.15 takes it for scaled_dot_product_attention."""
    def attention(q, k, v):
        return torch.softmax(q @ k.transpose(-2, -1) / 8.0, dim=-2) @ v
    q, k, v = (torch.randn(2, 4, 16, 32) for _ in range(3))
    # A float64 dot with a huge threshold: fuse looks at it, refuses, and leaves it to Inductor.
    got = torch.compile(attention, backend="fuse", options={"min_virtual_bytes": 1 << 40})(q, k, v)
    assert counters["fuse"]["declined"] >= 1
    torch.testing.assert_close(got, attention(q, k, v))


class Mine(CustomGraphPass):
    def __init__(self, uuid):
        self.id, self.seen = uuid, 0

    def __call__(self, graph):
        self.seen += 1

    def uuid(self):
        return self.id


def test_the_users_own_passes_run_as_well():
    mine = Mine("mine")
    stamp = inductor.Stamp(Options())
    both = inductor.after(mine, stamp)
    both(torch.fx.Graph())
    assert mine.seen == 1 and both.uuid() == ("mine", stamp.uuid())
    assert inductor.after(None, stamp) is stamp and inductor.after([mine], stamp) == [mine, stamp]
    assert inductor.after(lambda graph: None, stamp).uuid() is None    # not cacheable, as it was before


def test_what_inductor_is_told():
    plain = inductor.patches(Options(), edited=False)
    assert plain.keys() <= {"joint_custom_pre_pass"}
    assert isinstance(plain.get("joint_custom_pre_pass"), inductor.SoftmaxGuard) is inductor.needs_softmax_guard()
    told = inductor.patches(Options.parse({"mode": "max-autotune-no-cudagraphs"}), edited=True)
    assert told["max_autotune"] is True and isinstance(told["post_grad_custom_post_pass"], inductor.Stamp)


def test_the_stamp_depends_on_sources_and_options(monkeypatch):
    one = inductor.Stamp(Options()).uuid()
    assert one == inductor.Stamp(Options(strict=True)).uuid() != inductor.Stamp(Options(schedule="slab")).uuid()
    monkeypatch.setattr(inductor, "sources_digest", lambda: "other")
    assert inductor.Stamp(Options()).uuid() != one


def test_the_library_op_keeps_torchs_rules():
    torch.compile(step, backend="fuse", options=OPTIONS)(*data()).backward()
    key = list(ops._executables)[-1]
    h, W, y = data()
    order = {b.dtype + str(len(b.shape)) + str(b.shape[0]): b for b in ops.lookup(key).inputs}
    tensors = [next(t for t in (h, W, y) if list(t.shape) == [s.constant for s in b.shape]) for b in order.values()]
    torch.library.opcheck(torch.ops.fuse.forward.default, (tensors, key), test_utils=(
        "test_schema", "test_faketensor", "test_autograd_registration", "test_aot_dispatch_static"))
    needs = tuple(t.requires_grad for t in tensors)
    detached = [t.detach() for t in tensors]
    torch.library.opcheck(torch.ops.fuse.forward_saving.default, (detached, needs, key),
                          test_utils=("test_schema", "test_faketensor"))
