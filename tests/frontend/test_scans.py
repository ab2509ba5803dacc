"""Whatever the idiom: the calls that a scan stands for leave the graph together, or stay together."""
from __future__ import annotations

import pytest
import torch

from fuse import private
from fuse.reasons import Miss, Refused
from fuse.runtime import plan
from tests.frontend.idioms import IDIOMS
from tests.plain import plain_kernels  # noqa: F401 (a fixture)


@pytest.fixture
def graphs(monkeypatch):
    """The graphs that are left for Inductor, which run as they stand."""
    seen = []

    def keep(gm, inputs, patches):
        seen.append(gm)
        return gm.forward
    monkeypatch.setattr(private, "inductor", keep)
    return seen


@pytest.mark.parametrize("name", IDIOMS)
def test_a_scan_leaves_the_graph_whole(name: str, graphs, plain_kernels) -> None:  # noqa: F811
    function, maker = IDIOMS[name]
    torch.manual_seed(0)
    args = maker()
    torch._dynamo.reset()
    compiled = torch.compile(function, backend="fuse")(*args)
    (graph,) = graphs
    names = [n.name for n in graph.graph.nodes if n.op.startswith("call")]
    assert len(names) < 9 and "forward_default" in names
    check(function, args, compiled)


def check(function, args, compiled):
    """Outputs and gradients against eager."""
    expected = function(*args)
    found, expected = (x if isinstance(x, tuple) else (x,) for x in (compiled, expected))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)
    leaves = [a for a in args if a.requires_grad]
    if leaves:
        seeds = [torch.randn_like(e) for e in expected]
        pairs = [torch.autograd.grad(x, leaves, seeds, allow_unused=True) for x in (found, expected)]
        for a, b in zip(*pairs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=5e-5)


@pytest.mark.parametrize("name", ["setitem", "tree"])
def test_what_no_target_takes_is_left_as_it_was(name: str, graphs, monkeypatch) -> None:
    def refuse(*_):
        raise Refused(Miss("TARGET_LACKS", None, "scans"))
    monkeypatch.setattr(plan, "compile_region", refuse)
    function, maker = IDIOMS[name]
    torch.manual_seed(0)
    args, before = maker(), []
    torch._dynamo.reset()
    torch.compile(function, backend=lambda gm, _: before.append(str(gm.graph)) or gm.forward)(*args)
    torch._dynamo.reset()
    compiled = torch.compile(function, backend="fuse")(*args)
    assert [str(g.graph) for g in graphs] == before
    check(function, args, compiled)
