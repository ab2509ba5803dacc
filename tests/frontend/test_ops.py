"""Each ATen rule on its own: logits -> op -> one number a row, against torch in float64. Many exits, one graph each."""
from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from fuse.frontend.candidates import find_candidates
from fuse.frontend.importer import Imported, import_candidate
from fuse.ir.evaluate import evaluate_output
from fuse.passes.differentiate import differentiate
from tests.frontend.tracing import Float64, capture, error, graph_values, outputs_of

B, T, D, V = 2, 3, 4, 60

POINTWISE = {
    "exp": torch.exp, "log": lambda x: torch.log(x.abs() + 1), "log1p": lambda x: torch.log1p(x * x),
    "expm1": torch.expm1, "tanh": torch.tanh, "sigmoid": torch.sigmoid, "sqrt": lambda x: x.abs().sqrt(),
    "rsqrt": lambda x: (x * x + 1).rsqrt(), "sin": torch.sin, "cos": torch.cos, "erf": torch.erf, "neg": lambda x: -x,
    "abs": torch.abs, "sign": torch.sign, "floor": torch.floor, "ceil": torch.ceil, "square": torch.square,
    "reciprocal": lambda x: (x * x + 1).reciprocal(), "exp2": torch.exp2, "log2": lambda x: torch.log2(x * x + 1),
    "log10": lambda x: torch.log10(x * x + 1), "relu": torch.relu, "silu": F.silu, "logsigmoid": F.logsigmoid,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.2), "elu": lambda x: F.elu(x, 1.5), "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"), "softplus": lambda x: F.softplus(x, beta=2.0, threshold=1.0),
    "add_alpha": lambda x: torch.add(x, x * x, alpha=2), "sub_alpha": lambda x: torch.sub(1, x, alpha=3),
    "rsub": lambda x: 2 - x, "rdiv": lambda x: 2 / (x * x + 1),
    "div_floor": lambda x: torch.div(x, 0.7, rounding_mode="floor"), "floor_divide": lambda x: x // 0.7,
    "div_trunc": lambda x: torch.div(x, 0.7, rounding_mode="trunc"), "remainder": lambda x: x % 1.5,
    "pow2": lambda x: x ** 2, "pow3": lambda x: x.pow(3), "pow_half": lambda x: x.abs() ** 0.5,
    "pow_fraction": lambda x: x.abs().pow(1.3), "pow_tensor": lambda x: (x * x + 1) ** x, "rpow": lambda x: 2.0 ** x,
    "pow_minus_one": lambda x: (x * x + 1) ** -1, "maximum": lambda x: torch.maximum(x, -x * 0.5),
    "minimum": lambda x: torch.minimum(x, x * x), "max_other": lambda x: torch.max(x, 0.3 * x),
    "logaddexp": lambda x: torch.logaddexp(x, x * 2), "xlogy": lambda x: torch.xlogy(x.relu(), x.relu()),
    "addcmul": lambda x: torch.addcmul(x, x, x, value=0.5), "addcdiv": lambda x: torch.addcdiv(x, x, x * x + 1),
    "lerp": lambda x: torch.lerp(x, x * x, 0.3), "eq": lambda x: (x.floor() == 1) * 1.0,
    "ne": lambda x: (x.floor() != 0).float(), "lt": lambda x: (x < 0.5).float(), "le": lambda x: (0.5 <= x).double(),
    "gt": lambda x: (x > -x * x).long() * x, "and": lambda x: ((x > -1) & (x < 1)) * x,
    "or": lambda x: torch.logical_or(x > 1, x < -1) * x, "xor": lambda x: ((x > 0) ^ (x > 1)) * x,
    "not": lambda x: (~(x > 0)) * x, "logical_not": lambda x: torch.logical_not(x.floor()) * x,
    "isnan": lambda x: torch.isnan(x.log()) * x, "isinf": lambda x: torch.isinf(x.relu().log()) * x,
    "isfinite": lambda x: torch.isfinite(x.relu().log()) * x, "nan_to_num": lambda x: torch.nan_to_num(x.log(), 3.0),
    "where": lambda x: torch.where(x > 0, x, -2.0 * x), "masked_fill": lambda x: x.masked_fill(x > 1, 0.25),
    "clamp": lambda x: x.clamp(-0.5, 0.5), "clamp_min": lambda x: x.clamp(min=0.1),
    "clamp_max": lambda x: x.clamp_max(0.1), "hardtanh": F.hardtanh, "threshold": lambda x: F.threshold(x, 0.1, 20.0),
    "to_int": lambda x: x.int() * x, "to_bool": lambda x: x.floor().bool() * x,
    "dropout_off": lambda x: F.dropout(x, 0.5, training=False), "tril": lambda x: x.tril(1),
    "triu": lambda x: torch.triu(x), "pad": lambda x: F.pad(x, (1, 2), value=0.5),
    "softmax": lambda x: x.softmax(-1) ** 2, "log_softmax": lambda x: F.log_softmax(x, 2) * x,
    "cat": lambda x: torch.cat([x, x * 2], -1) ** 2, "stack": lambda x: torch.stack([x, -x]).amax(0),
    "detach": lambda x: x.detach() * x, "in_place": lambda x: (x * 1).mul_(2).add_(1),
    "assigned": lambda x: assigned(x), "assigned_mask": lambda x: assigned_mask(x),
    "assigned_diagonal": lambda x: assigned_diagonal(x),
    "fill": lambda x: x + torch.full_like(x, 0.5),
    "zeros_like": lambda x: x + torch.zeros_like(x) + torch.ones_like(x),
    "new": lambda x: x * x.new_ones(V) + x.new_zeros(V), "arange": lambda x: x * torch.arange(V),
    "arange_float": lambda x: x * torch.arange(0, 2 * V, 2, dtype=torch.float32), "eye": lambda x: x * torch.eye(T, V),
}


def thirds():
    return (torch.arange(V) % 3 == 0).float()


def assigned(x):
    x = x * 1
    x[:, 1:, 3:7] = 2.0
    x[0] *= 3
    x[:, 1] = x[:, 0]
    return x


def assigned_mask(x):
    x = x * 1
    x[x > 0.5] = 0.0
    x[..., torch.arange(V) % 2 == 0] = 1.5
    return x


def assigned_diagonal(x):
    x = x.reshape(-1, V) * 1
    n = torch.arange(len(x))
    x.fill_diagonal_(0.5)
    x[n, n + 1] = -1.0
    x[n[:3] + 2, n[:3]] = 2.0
    return x.view(B, T, V)


FLAT = ("pad", "cat", "remainder", "isnan", "nan_to_num", "floor_divide")     # another width than x, or no derivative here

REDUCED = {
    "sum": lambda x: x.sum(-1), "sum_keepdim": lambda x: x.sum(-1, keepdim=True), "sum_two": lambda x: x.sum((0, 2)),
    "sum_all": lambda x: x.sum(), "sum_bool": lambda x: (x > 0).sum(-1), "mean": lambda x: x.mean(-1),
    "mean_all": torch.mean, "sum_dtype": lambda x: x.sum(-1, dtype=torch.float64), "amax": lambda x: x.amax(-1),
    "amin": lambda x: x.amin(-1), "max": lambda x: x.max(-1).values, "max_index": lambda x: x.max(-1)[1],
    "min": lambda x: x.min(-1)[0], "max_all": torch.max, "argmax": lambda x: x.argmax(-1),
    "argmin": lambda x: torch.argmin(x, dim=2), "logsumexp": lambda x: x.logsumexp(-1),
    "logsumexp_two": lambda x: x.logsumexp((1, 2)), "any": lambda x: (x > 2.5).any(-1),
    "all": lambda x: (x > -2).all(-1), "norm": lambda x: x.norm(dim=-1), "norm1": lambda x: x.norm(p=1, dim=-1),
    "vector_norm": lambda x: torch.linalg.vector_norm(x, 3, -1),
    "norm_inf": lambda x: torch.linalg.vector_norm(x, math.inf, -1), "var": lambda x: x.var(-1),
    "std": lambda x: x.std(-1, unbiased=False), "normalize": lambda x: F.normalize(x, dim=-1).amax(-1),
    "kl": lambda x: F.kl_div(x.log_softmax(-1), torch.ones(V) / V, reduction="sum"),
    "kl_none": lambda x: F.kl_div(x, x.softmax(-1), reduction="none").sum(-1),
    "kl_batch": lambda x: F.kl_div(x, torch.zeros(V), reduction="batchmean", log_target=True),
    "mse": lambda x: F.mse_loss(x, torch.ones(V).expand(B, T, V)),
    "bce": lambda x: F.binary_cross_entropy_with_logits(x, thirds().expand(B, T, V), reduction="none").sum(-1),
    "column": lambda x: x[..., 5], "last": lambda x: x[..., -1] * 2, "narrow": lambda x: x.narrow(-1, 2, 3).sum(-1),
    "strided": lambda x: x[..., 1::7].sum(-1), "softmax_column": lambda x: x.softmax(-1)[..., 3],
    "diagonal": lambda x: torch.diagonal(x[..., :T], dim1=1, dim2=2), "scan": lambda x: x.cumsum(-1).amax(-1),
}

VIEWS = {
    "view": lambda x: x.view(B * T, V).amax(-1), "view_split": lambda x: x.view(B, T, 6, 10).sum(-1).amax(-1),
    "view_classes": lambda x: x.view(B, T, 5, 12).sum((2, 3)), "flatten": lambda x: x.flatten(0, 1).sum(-1),
    "unflatten": lambda x: x.unflatten(-1, (4, 15)).amax((-1, -2)), "permute": lambda x: x.permute(2, 0, 1).sum(0),
    "transpose": lambda x: x.transpose(0, 2).sum(0), "swapaxes": lambda x: x.swapaxes(1, 2).sum(1),
    "mT": lambda x: x.mT.sum(1), "movedim": lambda x: x.movedim(-1, 0).sum(0),
    "moveaxis": lambda x: torch.movedim(x, (0, 2), (2, 0)).sum(0), "unsqueeze": lambda x: x.unsqueeze(1).sum(-1),
    "squeeze": lambda x: x[:1].squeeze(0).sum(-1), "chunk": lambda x: x.chunk(2, -1)[1].sum(-1),
    "split": lambda x: x.split(50, -1)[1].sum(-1), "split_sizes": lambda x: x.split([7, 13, 40], 2)[2].sum(-1),
    "unbind": lambda x: x.unbind(1)[2].sum(-1), "slice": lambda x: x[:, 1:, 2:-3].sum(-1),
    "ellipsis": lambda x: x[..., None, :].amax(-1),
    "expand": lambda x: (x[:, :, None] * torch.ones(1, 1, 2, 1)).amax((2, 3)),
    "expand_as": lambda x: (x.sum(-1, keepdim=True).expand_as(x) * x).sum(-1),
    "flip": lambda x: (x.flip(-1) * torch.arange(V)).sum(-1),
    "roll": lambda x: (x.roll(3, -1) * torch.arange(V)).sum(-1), "unfold": lambda x: x.unfold(-1, 5, 3).amax((-1, -2)),
    "contiguous": lambda x: x.transpose(1, 2).contiguous().sum(1), "repeat": lambda x: x.repeat(1, 1, 2).amax(-1),
    "clone": lambda x: x.clone().sum(-1), "reshape": lambda x: x.transpose(0, 1).reshape(-1, V).amax(-1),
    "cat_rows": lambda x: torch.cat([x, x * x], 0).sum(-1), "numpy_T": lambda x: x.view(-1, V).T.sum(0),
}

INDEX = {
    "gather": lambda x, y, k: x.gather(-1, y[..., None]),
    "gather_many": lambda x, y, k: x.softmax(-1).gather(-1, k).sum(-1),
    "take_along": lambda x, y, k: torch.take_along_dim(x, y[..., None], -1),
    "index_select": lambda x, y, k: x.view(-1, V).index_select(0, y[:, 0] % 6).sum(-1),
    "rows": lambda x, y, k: x[torch.tensor([1, 0, 1])].sum(-1),
    "picked": lambda x, y, k: x.view(-1, V)[torch.arange(B * T), y.view(-1)],
    "negative": lambda x, y, k: x.view(-1, V)[torch.arange(B * T), y.view(-1) - V],
    "same_column": lambda x, y, k: x.gather(-1, torch.zeros_like(y)[..., None]),
    "all_by_data": lambda x, y, k: x.view(-1, V)[y.view(-1) % 6, y.view(-1)],
    "one_hot": lambda x, y, k: (F.one_hot(y, V) * x).sum(-1), "middle": lambda x, y, k: x[:, torch.arange(T), y[0]],
    "scatter": lambda x, y, k: torch.zeros_like(x).scatter(-1, y[..., None], 1.0).mul(x).sum(-1),
    "scatter_add": lambda x, y, k: x.scatter_add(-1, y[..., None], x.sum(-1, keepdim=True)).amax(-1),
}


def problem(function, *extra):
    torch.manual_seed(0)
    h, w = torch.randn(B, T, D, requires_grad=True), torch.randn(V, D, requires_grad=True)
    return lambda h, w, *rest: function(F.linear(h, w), *rest), [h, w, *extra]


def imported(gm) -> list[Imported]:
    candidates, misses = find_candidates(gm.graph, 0)
    assert not misses, str(misses[0])
    found = [import_candidate(c) for c in candidates]
    assert all(isinstance(i, Imported) for i in found), list(map(str, found))
    return found


def differing(function, *extra) -> list[str]:
    """Names of exits whose values differ."""
    def look(gm, inputs):
        errors = {}
        for region in imported(gm):
            values = graph_values(gm, inputs)
            outputs = outputs_of(region.program, [values[n.name] for n in region.inputs])
            errors.update({e.name: error(o, values[e.name]) for e, o in zip(region.exits, outputs, strict=True)})
        return errors
    f, args = problem(function, *extra)
    (errors,) = capture(f, args, look=look)
    assert errors
    return [name for name, e in errors.items() if not e <= 1e-12]


def gradient_error(function) -> float:
    """Of both operands, for a function whose result is the only exit."""
    f, args = problem(function)
    wide = [a.detach().double().requires_grad_() for a in args]
    old = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with Float64():
            out = f(*wide)
            seed = torch.randn(out.shape, dtype=torch.float64)
            want = torch.autograd.grad(out, wide, seed)
    finally:
        torch.set_default_dtype(old)

    def look(gm, inputs):
        (region,) = imported(gm)
        names = [n.target for n in region.inputs]
        program = differentiate(region.program, tuple(b.name for b in region.program.inputs if b.dtype == "float32"))
        env = {b.name: {"L_h_": wide[0], "L_w_": wide[1]}[t] for b, t in zip(region.program.inputs, names, strict=True)}
        env["ct.out0"] = seed
        found = {o.gradient_of: evaluate_output(o, env, {}, dtype="float64") for o in program.outputs if o.gradient_of}
        return max(error(found[b.name], want[["L_h_", "L_w_"].index(t)].detach())
                   for b, t in zip(region.program.inputs, names, strict=True))
    (worst,) = capture(f, args, look=look)
    return worst


@pytest.mark.parametrize("name", POINTWISE)
def test_pointwise(name: str) -> None:
    assert differing(lambda x: POINTWISE[name](x).sum(-1)) == []


@pytest.mark.parametrize("name", [n for n in POINTWISE if n not in FLAT])
def test_gradients(name: str) -> None:
    assert gradient_error(lambda x: (POINTWISE[name](x) * x).sum(-1)) <= 1e-11


@pytest.mark.parametrize("name", REDUCED)
def test_reductions(name: str) -> None:
    assert differing(REDUCED[name]) == []


@pytest.mark.parametrize("name", VIEWS)
def test_views(name: str) -> None:
    assert differing(VIEWS[name]) == []


@pytest.mark.parametrize("name", INDEX)
def test_indexing(name: str) -> None:
    y, k = torch.randint(0, V, (B, T)), torch.randint(0, V, (B, T, 5))
    assert differing(INDEX[name], y, k) == []
