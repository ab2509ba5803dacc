"""Templates that outlive their graph: what is remembered, and everything that makes it another call."""
from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from fuse.frontend import recall, shadow
from tests.frontend.tracing import capture


@pytest.fixture
def traced(monkeypatch):
    """Names of the nodes that were traced."""
    names: list[str] = []
    original = shadow.trace
    monkeypatch.setattr(recall, "_templates", {})
    monkeypatch.setattr(shadow, "trace", lambda node, *rest: names.append(node.name) or original(node, *rest))
    return names


def last(function, *args, dynamic=False):
    """The value that `function` returns, with what it was made from."""
    def look(gm, inputs):
        node = next(n for n in gm.graph.nodes if n.op == "output").args[0][0]
        value = shadow.Shadow(gm.graph).value(node)
        value.force()
        return value
    (found,) = capture(function, list(args), dynamic=dynamic, look=look)
    return found


def head(h, w):
    return F.linear(h, w)


H, W = torch.randn(4, 3), torch.randn(7, 3)


def test_a_call_is_traced_once_in_a_process(traced) -> None:
    first, second = last(head, H, W), last(lambda a, b: F.linear(a, b), H * 2, W)
    assert len(traced) == 1 and first.op == second.op == "linear"
    assert first.node is not second.node and first.args["input"].node is not second.args["input"].node


@pytest.mark.parametrize("args", [
    (torch.randn(5, 3), W), (H.double(), W.double()), (torch.randn(3, 4).T, W), (H, torch.randn(1, 3)),
], ids=["size", "dtype", "strides", "width"])
def test_another_operand_is_another_call(traced, args) -> None:
    last(head, H, W)
    last(head, *args)
    assert len(traced) == 2


def test_another_argument_is_another_call(traced) -> None:
    for dim in (0, 1):
        assert last(lambda x, dim=dim: x.sum(dim), H).args["dim"] == [dim]
    assert len(traced) == 2


def test_sizes_that_may_change_are_known_by_name_and_by_what_was_seen(traced) -> None:
    for rows in (4, 4, 5):
        last(head, torch.randn(rows, 3), W, dynamic=True)
    assert len(traced) == 2
    assert all(s.isidentifier() for s in last(head, H, W, dynamic=True).shape[0].symbols)


def test_autocast_around_the_call_counts(traced) -> None:
    plain = last(head, H, W)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = last(head, H, W)
    assert (plain.dtype, rounded.dtype, len(traced)) == ("float32", "bfloat16", 2)


def test_the_default_type_counts(traced) -> None:
    counts = torch.arange(4)
    assert last(lambda x: x / 2, counts).dtype == "float32"
    torch.set_default_dtype(torch.float64)
    try:
        assert last(lambda x: x / 2, counts).dtype == "float64" and len(traced) == 2
    finally:
        torch.set_default_dtype(torch.float32)


def test_what_may_depend_on_more_is_not_kept(traced) -> None:
    @torch._dynamo.allow_in_graph
    def mine(x):
        return x.exp()

    def chosen(x, keep):
        return x[keep].exp()
    last(lambda x: mine(x), H)
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        last(chosen, H, H[:, 0] > 0)       # a size known only from the data
    assert len(traced) == 2 and not recall._templates

    class Mode(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            return function(*args, **(kwargs or {}))

    def look(gm, inputs):
        node = next(n for n in gm.graph.nodes if n.op == "call_function")
        with Mode():
            shadow.Shadow(gm.graph).value(node).force()
    capture(head, [H, W], look=look)
    assert not recall._templates


def test_the_memory_is_bounded(traced, monkeypatch) -> None:
    monkeypatch.setattr(recall, "MOST", 2)
    for rows in range(2, 7):
        last(head, torch.randn(rows, 3), W)
    assert len(recall._templates) <= 2
