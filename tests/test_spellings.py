"""Spellings of one meaning give byte-identical kernels; another meaning does not."""
from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import fuse
from fuse.ir import kinds

N, D, V = 24, 8, 96

HEADS = {
    "linear": lambda h, W: F.linear(h, W),
    "matmul": lambda h, W: h @ W.t(),
    "einsum": lambda h, W: torch.einsum("nd,vd->nv", h, W),
    "transposed": lambda h, W: torch.matmul(h, W.transpose(0, 1)),
}
LOSSES = {
    "gather": lambda x, y: -F.log_softmax(x, -1).gather(-1, y[:, None]).squeeze(-1).mean(),
    "index": lambda x, y: -F.log_softmax(x, -1)[torch.arange(N), y].mean(),
    "one-hot": lambda x, y: -(F.one_hot(y, V) * F.log_softmax(x, -1)).sum(-1).mean(),
    "minus": lambda x, y: (torch.logsumexp(x, -1) - x.gather(-1, y[:, None]).squeeze(-1)).mean(),
}


def sources(function, **options):
    """The text of every kernel, in order."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    args = (torch.randn(N, D, requires_grad=True), torch.randn(V, D, requires_grad=True), torch.randint(0, V, (N,)))
    report = fuse.explain(function, *args, fuse_options={"min_virtual_bytes": 0, "strict": True, **options})
    texts = [text for graph in report.graphs for region in graph.regions for text in region.sources.values()]
    assert texts, str(report)
    return texts


def step(head, loss):
    return lambda h, W, y: LOSSES[loss](HEADS[head](h, W), y)


@pytest.mark.parametrize("head", HEADS)
def test_spellings_have_one_kernel(head):
    want = sources(step("linear", "gather"))
    for loss in LOSSES:
        assert sources(step(head, loss)) == want, loss


def test_nll_loss_differs_by_its_mask_alone():
    plain = sources(step("linear", "gather"), schedule="recompute")
    masked = sources(lambda h, W, y: F.nll_loss(F.log_softmax(F.linear(h, W), -1), y), schedule="recompute")
    assert masked[0] == plain[0]                                    # the statistics sweep has no mask


@pytest.mark.parametrize("other", [
    lambda h, W, y: -F.log_softmax(F.linear(h, W) * 2, -1).gather(-1, y[:, None]).mean(),
    lambda h, W, y: -F.softmax(F.linear(h, W), -1).gather(-1, y[:, None]).mean(),
    lambda h, W, y: -F.log_softmax(F.linear(h, W), -1).mean(),
], ids=["temperature", "probability", "all-classes"])
def test_another_meaning_has_another_kernel(other):
    assert sources(other) != sources(step("linear", "gather"))


def test_the_label_is_never_a_branch(monkeypatch):
    want = sources(step("linear", "gather"))
    monkeypatch.setattr(kinds, "kind_of", lambda region: "contraction")
    assert sources(step("linear", "minus")) == want


