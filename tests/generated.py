"""Random training losses over a linear head: spelling of the head, a chain on the scores, statistics, a tail.

`program(seed)` gives a function and its arguments. Everything is drawn from `random.Random(seed)`: a failing seed is a
test case. `near_miss(seed)` gives one that must not be fused as it stands: something else reads the scores.
"""
from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE = -100


@dataclass
class Draw:
    """The arguments of one program, made as they are asked for."""

    rng: random.Random
    dtype: torch.dtype
    args: dict[str, Tensor] = field(default_factory=dict)

    def tensor(self, name: str, *shape: int, grad: bool = True, scale: float = 1.0) -> str:
        g = torch.Generator().manual_seed(self.rng.randrange(1 << 30))
        x = (torch.randn(shape, generator=g, dtype=torch.float64) * scale).to(self.dtype)
        self.args[name] = x.requires_grad_(grad and self.rng.random() < 0.7)
        return name


Step = Callable[[Tensor, dict[str, Tensor]], Tensor]


@dataclass
class Sizes:
    batch: tuple[int, ...]
    d: int
    v: int


def head(draw: Draw, size: Sizes) -> Callable[[dict[str, Tensor]], Tensor]:
    kind = draw.rng.choice(["linear", "bias", "matmul", "einsum", "transposed", "flat", "scaled"])
    draw.tensor("h", *size.batch, size.d)
    if kind == "transposed":
        draw.tensor("W", size.d, size.v)
        return lambda a: a["h"] @ a["W"]
    draw.tensor("W", size.v, size.d)
    if kind == "bias":
        draw.tensor("b", size.v)
        return lambda a: F.linear(a["h"], a["W"], a["b"])
    letters = "bt"[:len(size.batch)]
    return {
        "linear": lambda a: F.linear(a["h"], a["W"]),
        "matmul": lambda a: torch.matmul(a["h"], a["W"].t()),
        "einsum": lambda a: torch.einsum(f"{letters}d,vd->{letters}v", a["h"], a["W"]),
        "flat": lambda a: F.linear(a["h"].reshape(-1, size.d), a["W"]).view(*size.batch, size.v),
        "scaled": lambda a: F.linear(a["h"] * size.d ** -0.5, a["W"]),
    }[kind]


def link(draw: Draw, size: Sizes, i: int) -> Step:
    """One pointwise step on the scores."""
    rng, c = draw.rng, round(draw.rng.uniform(0.3, 2.0), 3)
    kind = rng.choice(["mul", "div", "cap", "column", "row", "temperature", "pad", "clamp", "relu", "gate", "inplace", "neg"])
    if kind == "column":
        name = draw.tensor(f"c{i}", size.v)
        return lambda x, a: x + a[name]
    if kind == "row":
        name = draw.tensor(f"r{i}", *size.batch, 1)
        return lambda x, a: x * torch.exp(a[name] * 0.1)
    if kind == "temperature":
        name = draw.tensor(f"t{i}")
        return lambda x, a: x * torch.exp(a[name] * 0.2)
    if kind == "pad":
        keep = size.v - rng.randrange(1, size.v // 3)
        fill = rng.choice([float("-inf"), -50.0])
        return lambda x, a: x.masked_fill((torch.arange(size.v) >= keep) & (torch.arange(size.v) != 0), fill)
    return {
        "mul": lambda x, a: x * c, "div": lambda x, a: x / c, "neg": lambda x, a: -x,
        "cap": lambda x, a: 5.0 * torch.tanh(x / 5.0), "clamp": lambda x, a: x.clamp(-4 * c, 6 * c),
        "relu": lambda x, a: F.leaky_relu(x, 0.1), "gate": lambda x, a: x * torch.sigmoid(x),
        "inplace": lambda x, a: (x * 1.0).mul_(c),
    }[kind]


def statistic(draw: Draw, size: Sizes, infinite: bool) -> Step:
    """One value per row. Products of p and log p are nan where a score is -inf, in eager too: left out there."""
    finite = {
        "entropy": lambda x, a: -(F.softmax(x, -1) * F.log_softmax(x, -1)).sum(-1),
        "entropy2": lambda x, a: torch.logsumexp(x, -1) - (F.softmax(x, -1) * x).sum(-1),
        "mean": lambda x, a: x.mean(-1),
        "smoothing": lambda x, a: -F.log_softmax(x, -1).mean(-1),
        "varentropy": lambda x, a: (F.softmax(x, -1) * F.log_softmax(x, -1) ** 2).sum(-1),
        "square": lambda x, a: (x * x).mean(-1),
    }
    always = {
        "ce": lambda x, a: _rows(F.cross_entropy(_flat(x), a["y"].reshape(-1), reduction="none", ignore_index=IGNORE), x),
        "gather": lambda x, a: F.log_softmax(x, -1).gather(-1, _safe(a)).squeeze(-1),
        "minus": lambda x, a: x.gather(-1, _safe(a)).squeeze(-1) - torch.logsumexp(x, -1),
        "onehot": lambda x, a: (F.softmax(x, -1) * F.one_hot(_safe(a).squeeze(-1), size.v)).sum(-1),
        "lse": lambda x, a: torch.logsumexp(x, -1),
        "brier": lambda x, a: (F.softmax(x, -1) ** 2).sum(-1),
        "power": lambda x, a: (F.softmax(x, -1) ** 1.5).sum(-1),
        "confidence": lambda x, a: F.softmax(x, -1).gather(-1, _safe(a)).squeeze(-1),
        "max": lambda x, a: x.max(-1).values,
        "byhand": lambda x, a: _by_hand(x).gather(-1, _safe(a)).squeeze(-1),
    }
    table = always if infinite else {**always, **finite}
    return table[draw.rng.choice(sorted(table))]


def _flat(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


def _rows(x: Tensor, like: Tensor) -> Tensor:
    return x.view(like.shape[:-1])


def _safe(a: dict[str, Tensor]) -> Tensor:
    return a["y"].clamp(min=0).unsqueeze(-1)


def _by_hand(x: Tensor) -> Tensor:
    e = torch.exp(x - x.amax(-1, keepdim=True).detach())
    return e / e.sum(-1, keepdim=True)


def tail(draw: Draw, rows: int) -> Callable[[list[Tensor], dict[str, Tensor]], Tensor | tuple[Tensor, ...]]:
    kind = draw.rng.choice(["mean", "masked", "rows", "focal", "ratio", "both"])
    weights = [round(draw.rng.uniform(-1, 1), 3) or 0.5 for _ in range(rows)]

    def mix(s: list[Tensor]) -> Tensor:
        return sum((w * x for w, x in zip(weights, s, strict=True)), torch.zeros_like(s[0]))
    return {
        "mean": lambda s, a: mix(s).mean(),
        "masked": lambda s, a: (mix(s) * (a["y"] != IGNORE)).sum() / (a["y"] != IGNORE).sum(),
        "rows": lambda s, a: mix(s),
        "focal": lambda s, a: ((1 - torch.exp(-s[0].abs())) ** 2 * mix(s)).mean(),
        "ratio": lambda s, a: mix(s).sum() / (1 + s[0].abs().sum()),
        "both": lambda s, a: (mix(s).mean(), s[0]),
    }[kind]


def program(seed: int, dtype: torch.dtype = torch.float64) -> tuple[Callable[..., object], list[Tensor]]:
    """A function of its arguments, and the arguments."""
    rng = random.Random(seed)
    draw = Draw(rng, dtype)
    size = Sizes(rng.choice([(12,), (3, 5), (2, 7), (1, 9)]), rng.choice([3, 8, 16]), rng.choice([33, 64, 101]))
    first = head(draw, size)
    chain = [link(draw, size, i) for i in range(rng.randrange(0, 4))]
    draw.args["y"] = torch.randint(0, size.v // 2, size.batch, generator=torch.Generator().manual_seed(seed))
    if rng.random() < 0.4:
        draw.args["y"].view(-1)[::4] = IGNORE
    infinite = _has_infinity(first, chain, draw.args)
    stats = [statistic(draw, size, infinite) for _ in range(rng.randrange(1, 4))]
    last = tail(draw, len(stats))
    if not any(t.requires_grad for t in draw.args.values()):
        draw.args["W"].requires_grad_()
    return _function(draw.args, first, chain, lambda x, a: last([s(x, a) for s in stats], a))


def near_miss(seed: int) -> tuple[Callable[..., object], list[Tensor]]:
    """All of the scores are needed: as probabilities that are returned, sorted, cumulated, convolved or normalised over the
    wrong axis."""
    rng = random.Random(seed)
    draw = Draw(rng, torch.float64)
    size = Sizes((3, 5), 8, 33)
    first, chain = head(draw, size), [link(draw, size, i) for i in range(2)]
    draw.args["y"] = torch.randint(0, size.v, size.batch, generator=torch.Generator().manual_seed(seed))
    draw.args["W"].requires_grad_()
    spoil: Step = rng.choice([
        lambda x, a: (torch.logsumexp(x, -1).mean(), F.softmax(x, -1)),
        lambda x, a: (torch.logsumexp(x, -1).mean(), F.log_softmax(x, -1)),
        lambda x, a: x.sort(-1).values[..., :3].mean(),
        lambda x, a: x.topk(4, -1).values.sum(),
        lambda x, a: torch.cumsum(F.softmax(x.clamp(-5, 5), -1), -1).mean(),
    ])
    return _function(draw.args, first, chain, spoil)


def _has_infinity(first, chain, args) -> bool:
    with torch.no_grad():
        x = first(args)
        for step in chain:
            x = step(x, args)
    return not bool(torch.isfinite(x).all())


def _function(args, first, chain, last) -> tuple[Callable[..., object], list[Tensor]]:
    names = list(args)

    def run(*values: Tensor) -> object:
        a = dict(zip(names, values, strict=True))
        x = first(a)
        for step in chain:
            x = step(x, a)
        return last(x, a)
    return run, [args[n] for n in names]
