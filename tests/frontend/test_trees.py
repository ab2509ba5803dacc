"""The generic mode of associative_scan is a tree in the graph: proved element by element, whatever the length."""
from __future__ import annotations

import pytest
import torch
from torch._higher_order_ops.associative_scan import associative_scan

from fuse.ir.expr import topological
from tests.frontend.scanning import scans

B, D, N = 2, 3, 2


def given(length):
    torch.manual_seed(0)
    return [torch.rand(B, D, length, requires_grad=True), torch.randn(B, D, length, requires_grad=True),
            torch.randn(B, length, N, requires_grad=True), torch.randn(D, N, requires_grad=True)]


def states(a, b, combine, **options):
    return associative_scan(combine, (a, b), dim=2, combine_mode="generic", **options)


def affine(left, right):
    return left[0] * right[0], right[0] * left[1] + right[1]


def selective(a, b, C, A):
    dA, dB = torch.exp(-a[..., None] * A.exp()[:, None]), b[..., None] * C[:, None]
    return torch.matmul(states(dA, dB, affine)[1].transpose(1, 2), C.unsqueeze(-1)).squeeze(-1).transpose(1, 2)


def backwards(a, b, C, A):
    return states(a, b, affine, reverse=True)[1]


def addcmul(a, b, C, A):
    return states(a, b, lambda left, right: (right[0] * left[0], torch.addcmul(right[1], right[0], left[1])))[1]


def leaves_exchanged(a, b, C, A):
    return states(b, a, lambda left, right: (right[1] * left[0] + right[0], left[1] * right[1]))[0]


def both_results(a, b, C, A):
    return states(a, b, affine)


@pytest.mark.parametrize("function, length", [(selective, 8), (selective, 13), (backwards, 7), (addcmul, 6),
                                              (leaves_exchanged, 9), (both_results, 5)])
def test_a_tree_is_a_scan(function, length: int) -> None:
    (region,), misses, worst = scans(function, given(length))
    assert not misses and worst <= 1e-12
    assert sum(e.op == "scan" for e in topological(region.program.roots())) == (2 if function is both_results else 1)


def wrong_factor(left, right):
    return left[0] * right[0], left[0] * left[1] + right[1]


def tropical(left, right):
    return left[0] + right[0], torch.maximum(right[0] + left[1], right[1])


def scaled(left, right):
    return left[0] * right[0], right[0] * left[1] * 2 + right[1]


@pytest.mark.parametrize("combine", [wrong_factor, tropical, scaled])
def test_other_combinations_stay(combine) -> None:
    found, misses, _ = scans(lambda a, b, C, A: states(a, b, combine)[1], given(8))
    assert not found and "NOT_A_SCAN" in [m.code for m in misses]
