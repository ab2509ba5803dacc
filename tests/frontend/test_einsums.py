"""An einsum of many operands is respelled where torch's own way to compute it makes a large value, and only there."""
from __future__ import annotations

import pytest
import torch

from fuse.frontend.einsums import split_einsums
from tests.frontend.tracing import capture

B, L, D, N = 2, 24, 3, 4


def equations(function, *shapes: tuple[int, ...]) -> list[str]:
    """The equations of the graph after respelling; its value is the same, and so are types and gradients recorded."""
    def look(gm, inputs):
        inputs = [torch.randn(t.shape, requires_grad=True) for t in inputs]
        before, recorded = gm(*inputs), gm.graph.output_node().args[0][0].meta["example_value"]
        split_einsums(gm.graph)
        gm.graph.lint()
        gm.recompile()
        made = gm.graph.output_node().args[0][0].meta["example_value"]
        assert (made.shape, made.dtype, made.requires_grad) == (recorded.shape, recorded.dtype, recorded.requires_grad)
        torch.testing.assert_close(gm(*inputs), before)
        return [n.args[0] for n in gm.graph.nodes if getattr(n.target, "__name__", "") == "einsum"]
    torch.manual_seed(0)
    (seen,) = capture(function, [torch.randn(*s, requires_grad=True) for s in shapes], look=look)
    return seen


def scores(q, k, v):
    return torch.einsum("bid, bjd, bje -> bie", q, k, v)


def operands_in_a_list(q, k, v):
    return torch.einsum("bid,bjd,bje->bie", [q, k, v])


def without_gradient(q, k, v):
    with torch.no_grad():
        return torch.einsum("bid,bjd,bje->bie", q, k, v)


def under_autocast(q, k, v):
    with torch.autocast("cpu", torch.bfloat16):
        return torch.einsum("bid,bjd,bje->bie", q, k, v).float()


@pytest.mark.parametrize("function", [scores, operands_in_a_list, without_gradient])
def test_scores_inside_an_einsum(function) -> None:
    assert equations(function, *[(B, L, D)] * 3) == ["bid,bjd->bij", "bij,bje->bie"]


def test_types_are_those_that_autocast_gives() -> None:
    def look(gm, inputs):
        split_einsums(gm.graph)
        return [n.meta["example_value"].dtype for n in gm.graph.nodes if getattr(n.target, "__name__", "") == "einsum"]
    (seen,) = capture(under_autocast, [torch.randn(B, L, D, requires_grad=True) for _ in range(3)], look=look)
    assert seen == [torch.bfloat16, torch.bfloat16]


def product_of_three(x, y, z):
    return torch.einsum("bld,bln,bl->bldn", x, y, z)


def small_on_the_way(x, y, z):
    return torch.einsum("bld,bln,de->bne", x, y, z)


def implicit(x, y, z):
    return torch.einsum("ij,kj,kl", x, y, z)


@pytest.mark.parametrize("function, shapes", [
    (product_of_three, [(B, L, D), (B, L, N), (B, L)]), (small_on_the_way, [(B, L, D), (B, L, N), (D, 5)]),
    (implicit, [(L, 2), (L, 2), (L, 2)]),
], ids=lambda x: getattr(x, "__name__", ""))
def test_what_stays_one_einsum(function, shapes) -> None:
    assert len(equations(function, *shapes)) == 1
