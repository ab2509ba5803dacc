"""What joins the walk of a scan, and what must not."""
from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fuse.frontend import find
from fuse.ir.expr import topological
from fuse.ir.text import print_program
from fuse.options import Options
from tests.frontend.tracing import capture

L, D = 40, 8


def programs(function, *args):
    def look(gm, inputs):
        regions, misses = find(gm, Options(min_virtual_bytes=0))
        return [r.program for r in regions], [m.code for m in misses]
    ((found, misses),) = capture(function, list(args), look=look)
    return found, misses


def scans(program) -> int:
    return len({n for n in topological(t.value for o in program.outputs for t in o.terms) if n.op == "scan"})


def outer(k, v):
    return torch.einsum("bld,blm->bldm", k, v)


def read(q, kv):
    return torch.einsum("bld,bldm->blm", q, kv)


def qkv(*more):
    return [torch.randn(2, L, D, requires_grad=True) for _ in range(3)] + [torch.randn(*s, requires_grad=True) for s in more]


def test_a_chain_of_sums_is_one_program_over_its_inputs() -> None:
    def f(q, k, v):
        z = 1 / torch.einsum("bld,bld->bl", q, k.exp().cumsum(1))
        return read(q * z[..., None], outer(k.exp(), v).cumsum(1)) * z.sigmoid()[..., None]
    (program,), _ = programs(f, *qkv())
    assert len(program.inputs) == 3 and len(program.outputs) == 1 and scans(program) == 2


@pytest.mark.parametrize("f, inputs, number", [
    (lambda q, k, v, w: read(q, outer((k @ w).exp(), v).cumsum(1)), 3, 1),
    (lambda q, k, v, w: read(q, outer(F.normalize(k, dim=1), v).cumsum(1)), 3, 1),
    (lambda q, k, v, w: read(q, outer(k - k.mean(1, keepdim=True), v).cumsum(1)), 3, 1),
    (lambda q, k, v, w: read(q, outer(k.cumsum(0), v).cumsum(1)), 3, 1),
    (lambda q, k, v, w: (lambda e: (read(q, outer(e, v).cumsum(1)), e))(k.exp()), 3, 1),
], ids=["a projection", "a norm along the walk", "a mean along the walk", "another axis", "read by others"])
def test_what_stays_outside(f, inputs, number) -> None:
    """A weight's product would be made again in every backward, and nothing may look along the walk but its scans."""
    (program,), _ = programs(f, *qkv((D, D)))
    assert (len(program.inputs), scans(program)) == (inputs, number), print_program(program)
    assert all(len(b.shape) == 3 for b in program.inputs)
