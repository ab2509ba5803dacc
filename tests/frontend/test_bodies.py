"""Higher-order scans: what their steps mean is read off their graphs; a combination has to be that of affine maps."""
from __future__ import annotations

import pytest
import torch
from torch._higher_order_ops.associative_scan import associative_scan_op
from torch._higher_order_ops.scan import scan

from fuse.ir.expr import topological
from tests.frontend.scanning import scans
from tests.frontend.tracing import error, outputs_of

B, L, D = 2, 9, 3


def given():
    torch.manual_seed(0)
    return [torch.rand(B, L, D, requires_grad=True), torch.randn(B, L, D, requires_grad=True),
            torch.randn(B, D, requires_grad=True)]


def plain(a, b, c):
    def step(carry, x):
        new = x[0] * carry + x[1]
        return new, new.clone()
    return scan(step, c * 0, (a, b), dim=1)[1]


def backwards_from_a_state(a, b, c):
    def step(carry, x):
        new = x[0] * carry + x[1]
        return new, new * c
    return scan(step, c, (a, b), dim=1, reverse=True)


def two_carries(a, b, c):
    def step(carry, x):
        h, m = carry
        h = x[0] * h + x[1]
        return (h, 0.5 * m + h), m + h
    return scan(step, (c, c * 0), (a, b), dim=1)[1]


def nonlinear(a, b, c):
    def step(carry, x):
        new = torch.tanh(x[0] * carry + x[1])
        return new, new.clone()
    return scan(step, c, (a, b), dim=1)[1]


def mixes(a, b, c):
    def step(carry, x):
        new = x[0] * carry.flip(-1) + x[1]
        return new, new.clone()
    return scan(step, c, (a, b), dim=1)[1]


@pytest.mark.parametrize("function, count", [(plain, 1), (backwards_from_a_state, 1), (two_carries, 2)])
def test_a_scan_is_a_scan(function, count) -> None:
    (region,), misses, worst = scans(function, given())
    assert not misses and worst <= 1e-12
    assert sum(e.op == "scan" for e in topological(region.program.roots())) == count


@pytest.mark.parametrize("function", [nonlinear, mixes])
def test_a_step_that_is_not_affine_stays(function) -> None:
    found, misses, _ = scans(function, given())
    assert not found and [m.code for m in misses] == ["NOT_A_SCAN"]


COMBINATIONS = {
    "factor first": (0, lambda a, b, c, d: [a * c, c * b + d]),
    "factor second": (1, lambda b, a, d, c: [torch.addcmul(d, b, c), c * a]),
    "other order": (0, lambda a, b, c, d: [c * a, d + b * c]),
}
OTHERS = {
    "left factor": lambda a, b, c, d: [a * c, a * b + d],
    "no product": lambda a, b, c, d: [a + c, c * b + d],
    "both": lambda a, b, c, d: [a * c, c * b + d + b],
    "logarithms": lambda a, b, c, d: [a + c, torch.logaddexp(c + b, d)],
    "scaled": lambda a, b, c, d: [a * c, 2 * c * b + d],
    "less": lambda a, b, c, d: [a * c, c * b - d],
}


def combined(combine, place):
    def function(a, b, c):
        a, b = a.movedim(1, 0), b.movedim(1, 0)
        leaves = [a, b] if place == 0 else [b, a]
        return associative_scan_op(lambda *x: combine(*x), leaves, ())[1 - place].movedim(0, 1) * c[:, None]
    return function


def direct(a, b):
    h, out = torch.zeros_like(b[:, 0]), []
    for t in range(b.shape[1]):
        h = a[:, t] * h + b[:, t]
        out.append(h)
    return torch.stack(out, 1)


@pytest.mark.parametrize("name", COMBINATIONS)
def test_affine_maps_combine_to_a_scan(name: str) -> None:
    """torch's own op runs on GPUs alone, and its gradient is wrong: the program is compared with the loop."""
    place, combine = COMBINATIONS[name]
    (region,), misses = regions(combined(combine, place))
    assert not misses
    a, b, _ = given()
    wide = [x.detach().double() for x in (a, b)]
    by_name = {n.name: x for n, x in zip(region.inputs, wide, strict=False)}
    assert len(by_name) == 2
    order = [wide["l_b_" in n.name] for n in region.inputs]
    (found,) = outputs_of(region.program, order)
    assert error(found, direct(*wide)) <= 1e-14


@pytest.mark.parametrize("name", OTHERS)
def test_other_combinations_stay(name: str) -> None:
    found, misses = regions(combined(OTHERS[name], 0))
    assert not found and [m.code for m in misses] == ["NOT_A_SCAN"]


def regions(function):
    from fuse.frontend import find
    seen = []

    class Seen(Exception):
        pass

    def backend(gm, inputs):
        seen.append(find(gm))
        raise Seen
    torch._dynamo.reset()
    with pytest.raises(Exception, match="Seen"):
        torch.compile(function, backend=backend)(*given())
    return seen[0]
