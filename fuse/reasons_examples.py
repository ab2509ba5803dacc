"""For every code of `fuse.reasons` a program that it declines, and what to write instead where that is in the user's hands.

`h` is [tokens, width], `W` is [words, width], `y` a word for each token. Tests run those that are functions.
"""
from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Example:
    """`before` is declined, `after` is not; it is empty where there is nothing to write otherwise."""

    before: str
    after: str = ""


ORDINARY = """\
def f(h, W, y):
    return F.cross_entropy(F.linear(h, W), y)"""

EXAMPLES = {
    "ESCAPES": Example("""\
def f(h, W, y):
    weights = F.linear(h, W).softmax(-1)
    return weights @ W, weights""", """\
def f(h, W, y):
    weights = F.linear(h, W).softmax(-1)
    return weights @ W"""),
    "STORED": Example("""\
def f(h, W, y):
    logits = F.linear(h, W)
    return F.cross_entropy(logits, y), logits""", ORDINARY),
    "OTHER_USER": Example("""\
def f(h, W, y):
    logits = F.linear(h, W)
    return F.cross_entropy(logits, y) + logits.topk(3).values.mean()""", """\
def f(h, W, y):
    logits = F.linear(h, W)
    return F.cross_entropy(logits, y) + logits.logsumexp(-1).mean()"""),
    "NOT_A_REDUCTION": Example("""\
def f(h, W, y):
    logits = F.linear(h, W)
    return logits.softmax(0).amax(1).sum()""", """\
def f(h, W, y):
    logits = F.linear(h, W)
    return logits.softmax(1).amax(1).sum()"""),
    "EXITS_TOO_BIG": Example("""\
def f(h, W, y):
    return F.linear(h, W).softmax(-1) @ torch.eye(len(W))"""),
    "NOT_A_SCAN": Example("""\
def f(h, W, y):
    state, states = h[0], []
    for t in range(6):
        state = torch.tanh(0.5 * state + h[t] * W[t])
        states.append(state)
    return torch.stack(states).sum()""", """\
def f(h, W, y):
    state, states = h[0], []
    for t in range(6):
        state = torch.sigmoid(W[t]) * state + h[t] * W[t]
        states.append(state)
    return torch.stack(states).tanh().sum()"""),
    "TOO_SMALL": Example(ORDINARY, """\
step = torch.compile(f, backend="fuse", options={"min_virtual_bytes": 1 << 20})"""),
    "NOT_WORTH_IT": Example("""\
def f(x, up, down):        # a hidden layer 2.7 times as wide as its input: to compute it again costs more than to read it
    return F.linear(F.silu(F.linear(x, up)), down)"""),
    "UNSUPPORTED_OP": Example("""\
def f(h, W, y):
    logits = F.linear(h, W)
    return F.binary_cross_entropy_with_logits(logits, torch.zeros_like(logits), pos_weight=torch.full((len(W),), 2.0))""", """\
def f(h, W, y):
    logits = F.linear(h, W)
    return F.softplus(logits).mean()"""),
    "UNSUPPORTED_DTYPE": Example("""\
def f(h, W, y):
    return (h.to(torch.complex64) @ W.T.to(torch.complex64)).abs().sum(-1).mean()""", """\
def f(h, W, y):
    return (h @ W.T).abs().sum(-1).mean()"""),
    "UNSUPPORTED_VIEW": Example("""\
def f(h, W, y):
    return F.linear(h, W).roll(3).logsumexp(-1).mean()        # rolls through rows and columns as one""", """\
def f(h, W, y):
    return F.linear(h, W.roll(3, 0)).logsumexp(-1).mean()"""),
    "RANDOM": Example("""\
def f(h, W, y):
    return F.cross_entropy(F.dropout(F.linear(h, W), 0.1), y)""", """\
def f(h, W, y):
    return F.cross_entropy(F.linear(F.dropout(h, 0.1), W), y)"""),
    "MUTATION": Example("""\
def f(h, W, y):
    logits = F.linear(h, W)
    logits[:, ::2] = -1.0
    return logits.logsumexp(-1).mean()""", """\
def f(h, W, y):
    logits = F.linear(h, W)
    even = torch.arange(len(W)) % 2 == 0
    return torch.where(even, -1.0, logits).logsumexp(-1).mean()"""),
    "FUNCTORCH": Example("""\
def f(h, W, y):
    return torch.vmap(lambda x, t: F.cross_entropy(F.linear(x, W), t))(h[:, None], y[:, None]).mean()""", ORDINARY),
    "DTENSOR": Example("""\
def f(h, W, y):            # h and W are DTensors
    return F.cross_entropy(F.linear(h, W), y)""", """\
def f(h, W, y):
    return F.cross_entropy(F.linear(h.to_local(), W.to_local()), y)"""),
    "UNBOUND_SIZE": Example("""\
def f(h, W, y, k):         # k is a number that changes from call to call, and no dimension of an input
    return F.linear(h, W)[:, :k].logsumexp(-1).mean()""", """\
def f(h, W, y):            # called with W[:k]
    return F.linear(h, W).logsumexp(-1).mean()"""),
    "NOT_SEPARABLE": Example("""\
def f(h, W, y):            # streamed, in one more sweep
    p = F.linear(h, W).softmax(-1)
    return -(p * torch.log(p + 1e-6)).sum(-1).mean()""", """\
def f(h, W, y):
    logits = F.linear(h, W)
    return -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1).mean()"""),
    "TARGET_LACKS": Example("""\
def f(h, W, y):
    return F.linear(h, W).cumsum(-1).square().sum(-1).mean()"""),
    "NO_COMPILER": Example(ORDINARY, "$ CXX=/usr/bin/clang++ python train.py"),
    "BUILD_FAILED": Example(ORDINARY),
    "LAUNCH_FAILED": Example(ORDINARY),
    "INTERNAL": Example(ORDINARY, "$ TORCH_LOGS=+fuse python train.py"),
    "FUEL": Example("""\
step = torch.compile(f, backend="fuse", options={"fuel": 0})""", """\
step = torch.compile(f, backend="fuse")"""),
}
