"""Which chains of sums are candidates, and that everyday models hold none."""
from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fuse.frontend import find
from fuse.frontend.cascades import find_cascades
from fuse.options import Options
from tests.frontend.tracing import capture

ALL = Options(min_virtual_bytes=0)
B, H, L, S, D = 2, 3, 96, 80, 8


def tensors(*lengths):
    torch.manual_seed(0)
    return [torch.randn(B, H, n, D, requires_grad=True) for n in lengths]


def flow(q, k, v):
    q, k = q.sigmoid(), k.sigmoid()
    incoming = 1 / ((q + 1e-6) * (k.sum(2, keepdim=True) + 1e-6)).sum(-1, keepdim=True)
    outgoing = 1 / torch.einsum("bhsd,bhd->bhs", k + 1e-6, q.sum(2) + 1e-6)[..., None]
    sink = torch.einsum("bhld,bhd->bhl", q + 1e-6, (k * outgoing).sum(2) + 1e-6)
    source = torch.einsum("bhsd,bhd->bhs", k + 1e-6, (q * incoming).sum(2) + 1e-6)
    kv = k.transpose(-2, -1) @ (v * torch.softmax(source, -1)[..., None] * k.shape[2])
    return ((q * incoming) @ kv) * torch.sigmoid(sink)[..., None]


def linear_attention(q, k, v):
    q, k = F.elu(q) + 1, F.elu(k) + 1
    return (q @ (k.mT @ v)) / (q @ k.sum(2)[..., None])


def look(function, args, options=ALL):
    return capture(function, args, look=lambda gm, _: find(gm, options))[0]


def candidates(function, args):
    return capture(function, args, look=lambda gm, _: find_cascades(gm.graph, (), 0)[0])[0]


@pytest.mark.parametrize("function", [flow, linear_attention])
def test_a_chain_is_one_region(function):
    (region,), misses = look(function, tensors(L, S, S))
    assert not misses and len(region.inputs) == 3 and len(region.exits) == 1 and not region.anchors


def test_a_chain_behind_one_projection_for_all_three():
    """The projection is three times its operand, and so a candidate of its own; refused, it leaves the chain to itself."""
    def f(x, w):
        q, k, v = F.linear(x, w).unflatten(-1, (3, 2, 16)).permute(2, 0, 3, 1, 4)
        return flow(q, k, v).transpose(1, 2).flatten(2)
    weight = torch.nn.Parameter(torch.randn(96, 32))
    regions, misses = look(f, [torch.randn(2, 512, 32, requires_grad=True), weight], Options(min_virtual_bytes=32 << 10))
    assert "TARGET_LACKS" in [m.code for m in misses]
    assert [(r.anchors, [n.name for n in r.inputs]) for r in regions] == [((), ["linear"])]


def test_a_map_that_somebody_else_reads_stays_outside():
    def f(q, k, v):
        k = k.sigmoid()
        return linear_attention(q, k, v), k
    (region,), _ = look(f, tensors(L, S, S))
    assert [n.name for n in region.exits] == ["truediv"] and "k" in [n.name for n in region.inputs]


def test_a_statistic_that_is_returned_is_an_exit():
    def f(q, k, v):
        kv = k.exp().mT @ v
        return q.exp() @ kv, kv
    (region,), _ = look(f, tensors(L, S, S))
    assert len(region.exits) == 2


def test_a_region_that_needs_itself_through_something_else_is_refused():
    def f(q, k, v):
        kv = k.exp().mT @ v
        order = torch.sort(q.exp() @ kv, -2)[0]
        return (q.exp() * order) @ (kv * 2)
    assert all(not {a.name for n in c.virtual for a in n.all_input_nodes} & {"sort"} for c in candidates(f, tensors(L, S, S)))


def test_what_does_not_pay_is_said():
    _, misses = look(linear_attention, tensors(L, S, S), Options(min_virtual_bytes=1))
    assert [m.code for m in misses] == ["NOT_WORTH_IT"]
    _, misses = look(flow, tensors(L, S, S), Options())
    assert {m.code for m in misses} == {"TOO_SMALL"} and any("traffic" in str(m) for m in misses)


def test_devices_that_were_not_measured_are_left_alone():
    args = [t.detach().to("meta") for t in tensors(L, S, S)]
    _, misses = look(flow, args, Options(min_virtual_bytes=1))
    assert "NOT_WORTH_IT" in [m.code for m in misses] and look(flow, args)[0]


class Block(nn.Module):
    """RMSNorm and LayerNorm, rotary positions, attention, a gated MLP."""

    def __init__(self, width=32, heads=4):
        super().__init__()
        self.heads, self.norm = heads, nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.gate, self.up, self.down = nn.Linear(width, 64), nn.Linear(width, 64), nn.Linear(64, width)

    def forward(self, x):
        b, n, w = x.shape
        q, k, v = self.qkv(self.norm(x)).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        angles = torch.outer(torch.arange(n).float(), 1e4 ** -torch.linspace(0, 1, w // self.heads))
        q, k = (t * angles.cos() + t.roll(1, -1) * angles.sin() for t in (q, k))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, w))
        y = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


def convolutional():
    class Squeeze(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.down, self.up = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Linear(16, 4), nn.Linear(4, 16)

        def forward(self, x):
            x = self.norm(self.conv(x)).relu()
            scale = self.up(self.down(x.mean((2, 3))).relu()).sigmoid()
            return (x * scale[:, :, None, None]).flatten(2).mean(-1)
    return Squeeze()


def softmax_pooled(x, w):
    """Attention pooling, then a layer: what is pooled is never brought back to what is long."""
    return torch.einsum("bn,bnd->bd", torch.softmax(x.mean(-1), -1), x) @ w


@pytest.mark.parametrize(("model", "args"), [
    (Block(), [torch.randn(2, 64, 32)]),
    (convolutional(), [torch.randn(2, 3, 32, 32)]),
    (nn.Sequential(nn.Linear(32, 128), nn.GELU(), nn.LayerNorm(128), nn.Linear(128, 32)), [torch.randn(256, 32)]),
    (softmax_pooled, [torch.randn(4, 64, 16), torch.randn(16, 128)]),
    (lambda x, w: ((x - x.mean(0)) / x.std(0)) @ w, [torch.randn(256, 16), torch.randn(16, 128)]),
], ids=["transformer", "convolutions", "mlp", "pooling", "standardised"])
def test_everyday_models_hold_none(model, args):
    assert candidates(model, args) == []
