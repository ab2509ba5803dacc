"""What kind of thing an ATen value is: which table holds its rule, and so what a candidate may do with it."""
from __future__ import annotations

from fuse.frontend.tables_contract import CONTRACTIONS
from fuse.frontend.tables_gather import ARRANGED, GATHERS
from fuse.frontend.tables_pointwise import POINTWISE
from fuse.frontend.tables_reduce import FREE, REDUCTIONS, SHAPED
from fuse.frontend.value import Value
from fuse.frontend.views import VIEWS

RANDOM = ("bernoulli", "cauchy", "exponential", "geometric", "log_normal", "multinomial", "normal", "poisson", "rand_like",
          "randint_like", "randn_like", "random", "rrelu_with_noise", "uniform")
ELEMENTWISE = ("kl_div", "mse_loss", "binary_cross_entropy_with_logits")     # with reduction="none"


def kind_of(v: Value) -> str:
    """view, contraction, pointwise, free, shaped (as large as its argument), reduction, gather, or "" for no rule."""
    op = v.op or ""
    if op in VIEWS:
        return "view"
    if op in CONTRACTIONS:
        return "contraction"
    if op in ELEMENTWISE and not int(v.args.get("reduction", 1)):
        return "pointwise"
    if op in REDUCTIONS and not (op in POINTWISE and (v.overload == "other" or "other" in v.args)):
        return "reduction"
    if op in POINTWISE or op in ("one_hot", "scatter", "pad", "constant_pad_nd", "tril", "triu", "index_put", "write"):
        return "pointwise"
    if op in FREE:
        return "free"
    if op in SHAPED:
        return "shaped"
    if op in GATHERS:
        return "gather"
    return "pointwise" if op in ARRANGED else ""
