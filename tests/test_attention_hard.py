"""Corners of attention as a user meets them: lengths, masks that broadcast, biases and their gradients, checkpointing.

Judged as in test_attention: fuse errs at most twice as much as eager against float64, plus a few roundings.
"""
from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.utils import counters
from torch.utils.checkpoint import checkpoint

import fuse
from fuse import private
from tests.forms_attention import LOWEST, B, D, H, allowed, leaf, scores
from tests.plain import quick_builds, without_aot  # noqa: F401 (fixtures)
from tests.test_attention import judge
from tests.test_forms import outputs_and_gradients

pytestmark = pytest.mark.usefixtures("quick_builds", "without_aot")
N, M = 21, 37
OPTIONS = {"min_virtual_bytes": 0, "strict": True}
INFINITY = float("-inf")


def operands(n=N, m=M, d=D, heads=(B, H)):
    torch.manual_seed(0)
    return [leaf(*heads, n, d), leaf(*heads, m, d), leaf(*heads, m, d)]


def attention(q, k, v, bias=0.0):
    return torch.softmax(scores(q, k) + bias, dim=-1) @ v


# ---- sizes -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("n, m, d, fused", [(1, 1, 5, 1), (1, 40, 3, 0), (40, 1, 3, 0), (65, 17, 1, 1), (17, 65, 24, 1),
                                            (33, 33, 7, 1)])
def test_lengths_and_widths(n, m, d, fused):
    """Of one query to many keys, or of many to one, the gradients are as large as the scores: left to Inductor."""
    assert judge(attention, operands(n, m, d)) == fused


@pytest.mark.parametrize("heads", [(), (1,), (3,), (1, 1), (2, 1), (2, 2, 3)], ids=str)
def test_heads(heads):
    assert judge(attention, operands(heads=heads)) == 1


def test_one_tensor_is_queries_keys_and_values():
    assert judge(lambda x: attention(x, x, x), operands()[:1]) == 1


def test_queries_and_keys_of_other_widths_than_values():
    q, k, _ = operands()
    assert judge(attention, [q, k, leaf(B, H, M, 11)]) == 1


def test_one_kernel_for_every_length():
    """Also where the mask and the learned bias grow with it."""
    def f(q, k, v, bias):
        s = (scores(q, k) + bias).masked_fill(~allowed(q.shape[2], k.shape[2]), INFINITY)
        return torch.softmax(s, dim=-1) @ v
    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(f, backend="fuse", dynamic=True, options=OPTIONS)
    for n in (21, 48, 7, 65):
        args = [*operands(n, n), leaf(1, H, n, n)]
        want, seeds = outputs_and_gradients(f, args)
        torch.testing.assert_close(outputs_and_gradients(compiled, args, seeds)[0], want)
    assert counters["fuse"]["fused"] == 1 and counters["stats"]["unique_graphs"] == 1


# ---- masks -----------------------------------------------------------------------------------------------------------

MASKS = {"keys": (M,), "pairs": (N, M), "queries": (N, 1), "batch and keys": (B, 1, 1, M), "heads": (1, H, 1, 1),
         "batch and pairs": (B, 1, N, M), "everything": (B, H, N, M), "nothing": ()}


FILLS = [INFINITY, LOWEST, pytest.param(-1e4, marks=pytest.mark.slow)]


@pytest.mark.parametrize("fill", FILLS, ids=["infinite", "lowest", "large"])
@pytest.mark.parametrize("name", [n if n in ("pairs", "queries", "batch and keys") else pytest.param(n, marks=pytest.mark.slow)
                                  for n in MASKS])
def test_masks_that_broadcast(name, fill):
    """Rows that see nothing are uniform or nan, as eager makes them, and so are the gradients."""
    shape = MASKS[name]
    hidden = torch.rand(shape, generator=torch.Generator().manual_seed(4)) < 0.5
    if len(shape) == 4 and shape[-2:] == (N, M):
        hidden[..., 3, :] = True

    def f(q, k, v, hidden):
        return torch.softmax(scores(q, k).masked_fill(hidden, fill), dim=-1) @ v
    assert judge(f, [*operands(), hidden]) == 1


def test_a_mask_that_is_added_twice_over():
    """finfo.min + finfo.min is -inf: a row that both masks hide is nan."""
    def f(q, k, v, first, second):
        return torch.softmax(scores(q, k) + first + second, dim=-1) @ v
    first, second = torch.zeros(N, M), torch.zeros(B, 1, 1, M)
    first[5], second[1] = LOWEST, LOWEST
    assert judge(f, [*operands(), first, second]) == 1


# ---- biases ----------------------------------------------------------------------------------------------------------

BIASES = {"pairs": (N, M), "heads and pairs": (H, N, M), "keys": (B, 1, 1, M), "batch and pairs": (B, 1, N, M)}
SCALES = {"heads": (H, 1, 1), "one": (1,)}      # as biases they would have no gradient: a softmax ignores them


def scaled(q, k, v, scale):
    return torch.softmax(scores(q, k) * scale, dim=-1) @ v


def from_a_table(q, k, v, table, index):
    """T5 and Swin: one number for each head and distance."""
    return attention(q, k, v, F.embedding(index, table).permute(2, 0, 1).unsqueeze(0))


def from_a_network(q, k, v, w1, w2):
    """Swin v2: of the distance, through two layers."""
    distance = (torch.arange(q.shape[2])[:, None] - torch.arange(k.shape[2])[None]).to(q.dtype)[..., None] / 10
    return attention(q, k, v, 4 * torch.sigmoid(torch.tanh(distance @ w1) @ w2).permute(2, 0, 1))


def learned(n=N, m=M):
    index = (torch.arange(n)[:, None] - torch.arange(m)[None]).clamp(-7, 7) + 7
    return {"a table": (from_a_table, [leaf(15, H), index]), "a network": (from_a_network, [leaf(1, 6), leaf(6, H)]),
            **{name: (attention, [leaf(*(n if x == N else m if x == M else x for x in shape))])
               for name, shape in BIASES.items()},
            **{name: (scaled, [leaf(*shape)]) for name, shape in SCALES.items()}}


@pytest.mark.parametrize("name", learned())
def test_the_gradient_of_a_bias(name):
    q, k, v = operands()
    f, extra = learned()[name]
    assert judge(f, [q, k, v, *extra]) == (2 if name == "a network" else 1)      # the network's hidden layer is large too


def test_a_learned_bias_as_large_as_the_scores():
    """Its gradient has to be written whatever happens."""
    args = [*operands(), leaf(B, H, N, M)]
    assert judge(attention, args) == 0
    assert [m.code for m in fuse.explain(attention, *args, fuse_options=OPTIONS).misses] == ["EXITS_TOO_BIG"]


@pytest.mark.parametrize("wanted", list(itertools.product([True, False], repeat=2)))
def test_gradients_of_some(wanted):
    """A bias without gradient, and values alone."""
    q, k, v = operands()
    bias, q, k = leaf(1, H, N, M).requires_grad_(wanted[0]), q.requires_grad_(wanted[1]), k.requires_grad_(wanted[1])
    assert judge(attention, [q, k, v, bias]) == 1


@pytest.mark.parametrize("name", ["a table", *(pytest.param(n, marks=pytest.mark.slow)
                                               for n in ("a network", "pairs", "keys", "one"))])
def test_two_runs_give_the_same_bits(name):
    """Sums over batch, heads and rows are made in one order, however many threads there are."""
    torch.manual_seed(0)
    f, extra = learned(130, 210)[name]
    args = [*operands(130, 210, 8), *extra]
    compiled = torch.compile(f, backend="fuse", options=OPTIONS)
    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        first, seeds = outputs_and_gradients(compiled, args)
        for _ in range(4):
            for a, b in zip(first, outputs_and_gradients(compiled, args, seeds)[0], strict=True):
                assert torch.equal(a, b)
    finally:
        torch.set_num_threads(threads)


# ---- what surrounds it -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("outside", [False, True])
def test_checkpointing(outside, reentrant):
    def body(q, k, v):
        return attention(q.tanh(), k, v)

    def saved(*args):
        return checkpoint(body, *args, use_reentrant=reentrant)
    args = operands()
    torch._dynamo.reset()
    counters.clear()
    inner = torch.compile(body, backend="fuse", options=OPTIONS)
    compiled = (lambda *a: checkpoint(inner, *a, use_reentrant=reentrant)) if outside else \
        torch.compile(saved, backend="fuse", options=OPTIONS)
    want, seeds = outputs_and_gradients(saved, args)
    torch.testing.assert_close(outputs_and_gradients(compiled, args, seeds)[0], want)
    assert counters["fuse"]["fused"] == (2 if outside and reentrant else 1)     # once without gradients, once with


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_without_gradients(context):
    args = operands()
    with context():
        got = torch.compile(attention, backend="fuse", options=OPTIONS)(*args)
        torch.testing.assert_close(got, attention(*args))
    assert not got.requires_grad


def test_scores_used_twice():
    """By two softmaxes with other signs and temperatures, and by a statistic that has a gradient."""
    def f(q, k, v):
        s = scores(q, k)
        return torch.softmax(s, dim=-1) @ v - torch.softmax(-2 * s, dim=-1) @ v.cos(), torch.logsumexp(s, dim=-1).square()
    assert judge(f, operands()) == 1


def test_weights_that_are_also_averaged():
    """The mean over queries of the weights is small, but a sum along the other axis: a second way to walk."""
    def f(q, k, v):
        p = torch.softmax(scores(q, k), dim=-1)
        return p @ v, p.mean(dim=-2)
    assert judge(f, operands()) == 0
    assert [m.code for m in fuse.explain(f, *operands(), fuse_options=OPTIONS).misses] == ["NOT_A_REDUCTION"]


def test_attention_to_a_few_keys_that_is_pooled():
    """The product of weights and values is itself much larger than the values: what leaves attention, and stored."""
    def f(q, k, v):
        return attention(q, k, v).square().mean(-2)
    assert judge(f, operands(96, 24, 4)) == 1


@pytest.mark.parametrize("p, training, drops", [(0.3, True, True), (0.0, True, False), (0.3, False, False)])
def test_dropout_of_the_weights(p, training, drops):
    """With p > 0 fuse declines, and entries are dropped at random; with p = 0, and in eval, there is nothing to draw."""
    def f(q, k, v):
        return F.dropout(torch.softmax(scores(q, k), dim=-1), p, training) @ v
    q, k, _ = (t.detach() for t in operands(d=8))
    v = torch.eye(M)[:, :8].expand(B, H, M, 8).contiguous()      # so that the first weights are what leaves
    counters.clear()
    compiled = torch.compile(f, backend="fuse", options=OPTIONS)
    torch.manual_seed(1)
    first, second = compiled(q, k, v), compiled(q, k, v)
    exact = torch.softmax(scores(q, k), dim=-1)[..., :8]
    if drops:
        dropped = first == 0
        assert 0.2 < dropped.float().mean() < 0.4 and not torch.equal(first, second)
        torch.testing.assert_close(first, torch.where(dropped, 0.0, exact / (1 - p)))
    else:
        torch.testing.assert_close((first, second), (exact, exact))
    assert counters["fuse"]["fused"] == (not drops)


@pytest.mark.parametrize("drop", [F.dropout, torch.dropout, torch.nn.Dropout(0.3), F.alpha_dropout,
                                  lambda p, *_: p * torch.bernoulli(torch.full_like(p, 0.7)) / 0.7,
                                  lambda p, *_: p * (torch.rand_like(p) > 0.3), lambda p, *_: p + torch.randn_like(p)],
                         ids=["function", "torch", "module", "alpha", "bernoulli", "rand", "noise"])
def test_whatever_is_random_is_drawn(drop):
    """Every call draws anew: nothing random is left out, drawn once for all, or drawn again in the backward."""
    def f(q, k, v):
        p = torch.softmax(scores(q, k), dim=-1)
        return (drop(p) if isinstance(drop, torch.nn.Module) else drop(p, 0.3, True)) @ v
    args = operands()
    compiled = torch.compile(f, backend="fuse", options=OPTIONS)
    seeds, found = None, []
    for call in (f, compiled, compiled):
        torch.manual_seed(len(found) // 2)      # the first two alike
        values, seeds = outputs_and_gradients(call, args, seeds)
        found.append(values)
    torch.testing.assert_close(found[0], found[1])
    assert not torch.equal(found[1][0], found[2][0])


def test_what_is_dropped_is_inductors(monkeypatch):
    """Nothing of fuse is in the graph of an attention whose weights are dropped."""
    seen = []
    monkeypatch.setattr(private, "inductor", lambda gm, inputs, patches: seen.append(gm.code) or gm.forward)

    def f(q, k, v):
        return F.dropout(torch.softmax(scores(q, k), dim=-1), 0.3) @ v
    torch.compile(f, backend="fuse", options=OPTIONS)(*operands())
    assert len(seen) == 1 and "fuse" not in seen[0] and "dropout" in seen[0]
