"""The ATen view of Dynamo's graph: lazy, memoised, without guards, and aware of what is written in place."""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from fuse.frontend import find
from fuse.frontend.context import mutated_arguments
from fuse.frontend.shadow import Shadow, called, where
from fuse.options import Options
from tests.frontend.tracing import capture

ALL = Options(min_virtual_bytes=0)


def nodes(function, *args, dynamic=False, look=lambda gm, inputs: gm):
    (found,) = capture(function, list(args), dynamic=dynamic, look=look)
    return found


def value(function, *args, name, dynamic=False):
    def look(gm, inputs):
        shadow = Shadow(gm.graph)
        return shadow.value(next(n for n in gm.graph.nodes if n.name == name))
    return nodes(function, *args, dynamic=dynamic, look=look)


def test_composite_ops_stay_whole() -> None:
    h, w, y = torch.randn(4, 3), torch.randn(7, 3), torch.randint(0, 7, (4,))
    ce = value(lambda h, w, y: F.cross_entropy(F.linear(h, w), y), h, w, y, name="cross_entropy")
    assert ce.op == "cross_entropy_loss" and ce.args["label_smoothing"] == 0.0
    assert ce.args["self"].op == "linear" and ce.args["self"].args["weight"].op is None


def test_spellings_of_one_op_are_one_op() -> None:
    x, y = torch.randn(4, 5), torch.randn(5, 6)
    for f in (lambda x, y: x @ y, lambda x, y: torch.matmul(x, y), lambda x, y: x.matmul(y)):
        assert value(f, x, y, name="matmul").op == "matmul"


def test_sizes_are_polynomials() -> None:
    v = value(lambda x: x.view(-1, x.shape[-1])[1:].exp(), torch.randn(4, 3, 5), name="exp", dynamic=True)
    names = [str(e) for e in v.shape]
    assert "-1" in names[0] and "*" in names[0] and len(v.shape[0].symbols) == 2


def test_nothing_is_traced_until_somebody_asks() -> None:
    def look(gm, inputs):
        shadow = Shadow(gm.graph)
        last = next(n for n in gm.graph.nodes if n.name == "tanh")
        v = shadow.value(last)
        before = len(shadow.templates)
        assert v.shape and v.dtype == "float32" and before == 0
        assert v.op == "tanh" and len(shadow.templates) == 1
        assert v.args["self"].op == "cos" and len(shadow.templates) == 2
        return True
    assert nodes(lambda x: x.sin().cos().tanh(), torch.randn(4), look=look)


def test_equal_calls_are_traced_once() -> None:
    def look(gm, inputs):
        shadow = Shadow(gm.graph)
        for n in gm.graph.nodes:
            if n.op == "call_method":
                assert shadow.value(n).op == "exp"
        return len(shadow.templates)
    assert nodes(lambda x: x.exp().exp().exp().exp(), torch.randn(4), look=look) == 1


def test_tracing_adds_no_guard() -> None:
    def look(gm, inputs):
        mode = next(n.meta["example_value"].fake_mode for n in gm.graph.nodes
                    if hasattr(n.meta.get("example_value"), "fake_mode"))
        before = len(mode.shape_env.guards)
        find(gm, ALL)
        return len(mode.shape_env.guards) - before

    def f(h, w, y):
        return F.cross_entropy(F.linear(h, w).view(-1, w.shape[0]), y.view(-1))
    h, w, y = torch.randn(4, 3, 5, requires_grad=True), torch.randn(70, 5, requires_grad=True), torch.randint(0, 7, (4, 3))
    assert nodes(f, h, w, y, dynamic=True, look=look) == 0


def test_the_user_s_own_line_is_named() -> None:
    gm = nodes(lambda x: F.normalize(x, dim=-1).sum(), torch.randn(3, 4))
    lines = {where(n) for n in gm.graph.nodes if n.op == "call_function"}
    assert len(lines) == 1 and "test_shadow.py:" in lines.pop()


def test_what_is_mutated() -> None:
    def f(x, y):
        a = x * 1
        a.add_(1)
        a[0] = 2
        a *= 3
        torch.sigmoid_(a)
        F.relu(a, inplace=True)
        torch.exp(y, out=a)
        return a, x.__abs__(), x.requires_grad_(False)
    gm = nodes(f, torch.randn(3, 4), torch.randn(3, 4))
    assert {called(n) for n in gm.graph.nodes if mutated_arguments(n)} >= {"add_", "setitem", "imul", "sigmoid_", "relu"}
    assert not {called(n) for n in gm.graph.nodes if mutated_arguments(n)} & {"mul", "abs", "__abs__", "requires_grad_"}


def test_a_later_use_sees_the_write() -> None:
    def look(gm, inputs):
        shadow = Shadow(gm.graph)
        ends = {called(n): shadow.value(n) for n in gm.graph.nodes if called(n) in ("exp", "tanh", "sin", "cos")}
        assert ends["exp"].args["self"].op == "mul"                              # before
        assert ends["tanh"].args["self"].args["self"].op == "div"                # the same node, after
        assert ends["sin"].args["self"].op == "view"                             # a view of it, after
        assert ends["cos"].args["self"].args["self"].op == "write"               # a slice was written
        return True

    def f(x):
        a = x * 2
        v = a.view(-1)
        b = a.exp()
        a.div_(3)
        c, d = a.tanh(), v.sin()
        a[1:] = 0
        return b, c, d, a.cos()
    assert nodes(f, torch.randn(3, 4), look=look)


def test_a_write_through_overlapping_views_is_opaque() -> None:
    def look(gm, inputs):
        shadow = Shadow(gm.graph)
        return shadow.value(next(n for n in gm.graph.nodes if n.name == "exp")).args["self"].opaque

    def f(x):
        a = x * 2
        a.transpose(0, 1)[1:].mul_(3)
        return a.exp()
    assert nodes(f, torch.randn(3, 4), look=look) == "MUTATION"


def test_the_body_of_a_checkpoint_is_a_graph_like_any_other() -> None:
    def loss(h, w, y):
        return F.cross_entropy(F.linear(h, w), y)

    def look(gm, inputs):
        bodies = [m for m in gm.modules() if isinstance(m, torch.fx.GraphModule) and m is not gm]
        return len(find(gm, ALL)[0]), [len(find(m, ALL)[0]) for m in bodies]
    h, w, y = torch.randn(40, 5, requires_grad=True), torch.randn(70, 5, requires_grad=True), torch.randint(0, 7, (40,))
    for dynamic in (False, True):
        found = nodes(lambda h, w, y: checkpoint(loss, h, w, y, use_reentrant=False), h, w, y, dynamic=dynamic, look=look)
        assert found == (0, [1])
