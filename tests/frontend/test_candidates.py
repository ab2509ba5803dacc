"""Which values are never stored, and why others are: every refusal has a near miss that is accepted."""
from __future__ import annotations

import time

import pytest
import torch
import torch.nn.functional as F

from fuse.frontend import find
from fuse.frontend.candidates import find_candidates
from fuse.options import Options
from tests.frontend.tracing import capture

ALL = Options(min_virtual_bytes=0)
B, T, D, V = 2, 16, 8, 512


def arguments():
    torch.manual_seed(0)
    return [torch.randn(B, T, D, requires_grad=True), torch.randn(V, D, requires_grad=True), torch.randint(0, V, (B, T))]


def look_at(function, *args, options=ALL, dynamic=False):
    """(regions, codes of the misses) of the one graph of `function`."""
    def look(gm, inputs):
        regions, misses = find(gm, options)
        return regions, [m.code for m in misses], misses
    (found,) = capture(function, list(args) or arguments(), dynamic=dynamic, look=look)
    return found


def loss(logits, y):
    return F.cross_entropy(logits.view(-1, logits.shape[-1]), y.view(-1))


def test_the_closure_and_its_exits() -> None:
    def f(h, w, y):
        x = (F.linear(h, w) / 2).tanh()
        m = x.amax(-1, keepdim=True)                     # read by virtual values only: recomputed inside
        p = (x - m).exp()
        return p.sum(-1).log() + m.squeeze(-1), loss(x, y)

    def look(gm, inputs):
        (candidate,), _ = find_candidates(gm.graph, 0)
        return candidate
    (c,) = capture(f, arguments(), look=look)
    assert len(c.anchors) == 1 and c.numel == B * T * V and c.bytes == 4 * B * T * V
    assert {n.name for n in c.virtual} >= {"linear", "truediv", "x", "sub", "p", "view"}
    assert [n.name for n in c.exits][-1] == "cross_entropy" and len(c.exits) == 3     # m leaves too: squeeze reads it
    assert "test_candidates.py:" in c.where


def test_logits_that_are_returned_escape() -> None:
    _, codes, misses = look_at(lambda h, w, y: (x := F.linear(h, w), x.logsumexp(-1)))
    assert codes == ["ESCAPES"] and "test_candidates.py:" in misses[0].where
    regions, codes, _ = look_at(lambda h, w, y: (x := F.linear(h, w), loss(x, y)))    # a number to differentiate: read in tiles
    assert len(regions) == 1 and not codes and regions[0].anchors[0] in regions[0].inputs
    assert look_at(lambda h, w, y: (F.linear(h, w).argmax(-1), loss(F.linear(h, w), y)))[1] == []


def test_a_user_that_is_no_reduction() -> None:
    assert look_at(lambda h, w, y: F.linear(h, w).kthvalue(3, -1)[0])[1] == ["OTHER_USER"]
    assert look_at(lambda h, w, y: F.linear(h, w).max(-1)[0])[1] == []


def test_a_result_as_large_as_the_value() -> None:
    m = torch.randn(V, V)
    assert look_at(lambda h, w, y, m: F.linear(h, w).softmax(-1) @ m, *arguments(), m)[1] == ["EXITS_TOO_BIG"]


def test_small_values_are_left_alone() -> None:
    def f(h, w, y):
        return loss(F.linear(h, w), y)
    size = 4 * B * T * V
    assert look_at(f, options=Options(min_virtual_bytes=size + 1))[1] == ["TOO_SMALL"]
    regions, codes, _ = look_at(f, options=Options(min_virtual_bytes=size))
    assert len(regions) == 1 and codes == []


def test_a_hidden_layer_is_not_worth_it_and_attention_is() -> None:
    def mlp(x, up, down):
        return F.linear(F.silu(F.linear(x, up)), down)

    def attention(q, k, v):
        return torch.softmax(q @ k.transpose(-1, -2) * 0.1, -1) @ v
    x, up, down = torch.randn(300, 400), torch.randn(1600, 400), torch.randn(400, 1600)
    assert look_at(mlp, x, up, down, options=Options(min_virtual_bytes=1000))[1] == ["NOT_WORTH_IT"]
    assert len(look_at(mlp, x, up, down)[0]) == 1                     # min_virtual_bytes=0 switches the cost test off
    q, k, v = (torch.randn(2, 256, 32) for _ in range(3))
    regions, codes, _ = look_at(attention, q, k, v, options=Options(min_virtual_bytes=1000))
    assert len(regions) == 1 and codes == []


def test_a_gated_layer_is_judged_by_both_of_its_contractions() -> None:
    def mlp(x, gate, up, down):
        return F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down)

    def gated(width: int, **options: int):
        arguments = torch.randn(300, width), torch.randn(800, width), torch.randn(800, width), torch.randn(width, 800)
        return look_at(mlp, *arguments, options=Options(min_virtual_bytes=1000, **options))
    regions, codes, (miss,) = gated(256)     # 320 products pay for one contraction, 480 for two
    assert regions == [] and codes == ["NOT_WORTH_IT"] and "1024 flops" in str(miss)
    regions, codes, _ = gated(240)
    assert len(regions) == 1 and codes == []


@pytest.mark.parametrize("function, code", [
    (lambda h, w, y: F.dropout(F.linear(h, w), 0.1).sum(-1), "RANDOM"),
    (lambda h, w, y: F.linear(h, w).softmax(1).amax(-1), "NOT_A_REDUCTION"),
    (lambda h, w, y: F.linear(h, w).cumsum(-1).amax(-1), "TARGET_LACKS"),
    (lambda h, w, y: F.pad(F.linear(h, w), (1, 1), mode="reflect").sum(-1), "UNSUPPORTED_OP"),
], ids=["dropout", "two_axes", "scan", "opaque"])
def test_other_refusals(function, code) -> None:
    assert look_at(function)[1] == [code]


@pytest.mark.parametrize("mask", [
    lambda x: x == x.amax(-1, keepdim=True), lambda x: x >= x.max(-1, keepdim=True).values,
    lambda x: (x - x.amax(-1, keepdim=True)) != 0, lambda x: x.softmax(-1) >= x.softmax(-1).amax(-1, keepdim=True),
], ids=["eq", "ge", "difference", "softmax"])
def test_a_value_compared_with_its_own_maximum_is_refused(mask) -> None:
    """It is computed twice, and one rounding would decide."""
    _, codes, misses = look_at(lambda h, w, y: mask(F.linear(h, w)).sum(-1))
    assert codes == ["NOT_A_REDUCTION"] and "one rounding decides" in str(misses[0])
    assert "test_candidates.py:" in misses[0].where


@pytest.mark.parametrize("function", [
    lambda h, w, y: F.linear(h, w).argmax(-1) == y, lambda h, w, y: F.linear(h, w).amax(-1) > 0.5,
    lambda h, w, y: (F.linear(h, w) > y[..., None]).sum(-1),
    lambda h, w, y: torch.where((x := F.linear(h, w)) > 0, x - x.amax(-1, keepdim=True), 0.0).sum(-1),
], ids=["position", "maximum", "threshold", "used_apart"])
def test_other_comparisons_are_taken(function) -> None:
    regions, codes, _ = look_at(function)
    assert codes == [] and len(regions) == 1


def test_row_selection_by_a_mask_says_what_is_missing() -> None:
    def f(h, w, y):
        return F.linear(h, w)[y > 3].exp().sum(-1)
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        _, codes, misses = look_at(f)
    assert codes == ["UNSUPPORTED_OP"] and "boolean mask" in str(misses[0])


@pytest.mark.parametrize("assign, code", [
    (lambda x, n, y: x.index_put((n, n.flip(0)), torch.tensor(1.0)), "MUTATION"),
    (lambda x, n, y: x.index_put((n, y), torch.tensor(1.0)), "MUTATION"),
    (lambda x, n, y: x.index_put((n, n), torch.arange(len(n)).float()), "MUTATION"),
    (lambda x, n, y: x.index_put((n, n), torch.tensor(1.0), accumulate=True), "MUTATION"),
    (lambda x, n, y: x.clone().repeat(1, 1).fill_diagonal_(1.0, wrap=True), "UNSUPPORTED_OP"),
], ids=["mirrored", "labels", "values", "accumulated", "wrapped"])
def test_assignments_that_are_no_diagonal_of_one_value(assign, code) -> None:
    def f(h, w, y):
        x = F.linear(h.reshape(-1, h.shape[-1]), w)
        return assign(x, torch.arange(x.shape[0]), y.reshape(-1)).logsumexp(-1)
    assert look_at(f)[1] == [code]


def test_an_operand_written_while_it_is_in_use() -> None:
    def late(h, w, y):
        x = F.linear(h, w)
        h.detach().zero_()
        return loss(x, y)

    def early(h, w, y):
        h = h * 2
        h.add_(1)
        return loss(F.linear(h, w), y)

    def stale(h, w, y):
        h = h * 2
        copy = h.clone()
        h.add_(1)
        return loss(F.linear(copy, w), y) + h.sum()
    assert look_at(late)[1] == ["MUTATION"]
    for f in (early, stale):
        regions, codes, _ = look_at(f)
        assert codes == [] and len(regions) == 1
    assert [n.name for n in regions[0].inputs if "copy" in n.name], "the copy itself is read, not what it was made from"


def test_weights_written_without_gradient_cannot_be_followed() -> None:
    def f(h, w, y):
        x = F.linear(h, w)
        with torch.no_grad():
            x.mul_(2)                   # eager's gradient does not know about this factor
        return loss(x, y)
    assert look_at(f)[1] == ["MUTATION"]


def test_values_made_without_gradient_carry_none() -> None:
    def f(h, w, y):
        x = F.linear(h, w)
        with torch.no_grad():
            p = x.softmax(-1)
        return -(p * x.log_softmax(-1)).sum(-1).mean(), (x.argmax(-1) == y).float().mean()
    regions, codes, _ = look_at(f)
    text = str(regions[0].program.outputs)
    assert codes == [] and "stop(exp_sub" in text


def test_autocast_rounds_operands_and_not_logits() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        regions, codes, _ = look_at(lambda h, w, y: loss(F.linear(h, w), y))
    program = regions[0].program
    assert codes == [] and [b.dtype for b in program.inputs] == ["int64", "bfloat16", "bfloat16"]
    assert program.outputs[0].buffer.dtype == "float32" and "bfloat16}" not in str(program.outputs)


def test_parameters_do_not_make_every_layer_a_candidate() -> None:
    class Layers(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.ModuleList(torch.nn.Linear(16, 16) for _ in range(3))

        def forward(self, x):
            for layer in self.layers:
                x = layer(x).relu()
            return x.sum(-1)
    regions, codes, _ = look_at(Layers(), torch.randn(4, 500, 16))
    assert regions == [] and codes == []


def test_two_heads_are_two_regions() -> None:
    def f(h, w, y):
        return loss(F.linear(h, w), y) + loss(F.linear(h * 2, w), y)
    regions, codes, _ = look_at(f)
    assert len(regions) == 2 and codes == []


def test_a_graph_in_which_nothing_amplifies_costs_nothing() -> None:
    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v, self.o = (torch.nn.Linear(64, 64) for _ in range(4))
            self.up, self.down = torch.nn.Linear(64, 96), torch.nn.Linear(96, 64)
            self.norm = torch.nn.LayerNorm(64)

        def forward(self, x):
            y = self.norm(x)
            q, k, v = (f(y).view(*y.shape[:-1], 4, 16).transpose(1, 2) for f in (self.q, self.k, self.v))
            x = x + self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(y.shape))
            return x + self.down(F.silu(self.up(self.norm(x))))

    def look(gm, inputs):
        best = float("inf")
        for _ in range(3):
            start = time.perf_counter()
            found = find(gm, ALL)
            best = min(best, time.perf_counter() - start)
        return len(gm.graph.nodes), found, best
    model = torch.nn.Sequential(*(Block() for _ in range(24)))
    ((count, found, seconds),) = capture(model, [torch.randn(2, 64, 64)], look=look)
    assert count > 500 and found == ([], []) and seconds < 0.1
