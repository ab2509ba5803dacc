"""What a person would call a region: a label for reports and for the option `require`. The compiler never looks at it.

    attention                  a SUM relative to an LSE that brings in an axis of its own: sum_j softmax(s)_ij v_je
    softmax-over-vocabulary    an LSE without that: cross-entropy and its many relatives
    flow-attention             a cascade of normalised sums that ends in such a contraction
    linear-attention           a SUM of (a dot) * (an operand with an axis of its own), without any LSE; or the running sum of
                               outer products that its causal form is
    scan                       an AFFINE carry h = a h + b whose a is not 1
    cascade                    several sweeps of one stream
    contraction                any other reduction of a value that is not stored
"""
from __future__ import annotations

from collections.abc import Iterable

from fuse.ir.expr import Expr, topological
from fuse.ir.program import Carry, Kind, Program, Region

KINDS = ("attention", "softmax-over-vocabulary", "flow-attention", "linear-attention", "scan", "cascade", "contraction")


def kind_of(region: Region) -> str:
    """The label of one region; the rows of the table above, first match."""
    statistics = {c.name: c for c in region.carries if c.kind is Kind.LSE}
    if any(c.relative_to in statistics and _widens(c, statistics[c.relative_to].axes) for c in region.carries):
        return "attention"
    if statistics:
        return "softmax-over-vocabulary"
    values = [v for c in region.carries if c.kind is Kind.SUM and _widens(c, region.grid) for v in [c.body]] + \
        [e.value for e in region.emits]
    if any(c.kind is Kind.AFFINE and not _running_sum(c) for c in region.carries):
        return "scan"
    running = [c for c in region.carries if c.kind is Kind.AFFINE]
    if any(len(set(c.axes) - set(region.grid)) > 1 for c in running):       # a running sum of outer products
        return "flow-attention" if len(running) > 3 else "linear-attention"
    mixes = any(_dot_of_dots(v) for v in values)
    if region.sweeps > 2 and mixes:
        return "flow-attention"
    if mixes:
        return "linear-attention"
    return "cascade" if region.sweeps > 1 else "contraction"


def kinds_of(program: Program) -> tuple[str, ...]:
    """The labels of a program's regions, each once, the most telling first.

    Normalised sums in regions of their own that feed a linear attention make it a Flow-Attention.
    """
    found = [kind_of(r) for r in program.regions]
    if "linear-attention" in found and sum(k in ("contraction", "cascade") for k in found) >= 2:
        found.append("flow-attention")
    return tuple(sorted(set(found), key=KINDS.index))


def _widens(carry: Carry, axes: Iterable[object]) -> bool:
    """Has the carry an axis that is neither its grid's nor summed: the width of a second operand?"""
    return bool(set(carry.axes) - set(axes) - set(carry.over))


def _running_sum(carry: Carry) -> bool:
    a = carry.body.args[0] if carry.body.op == "scan" else carry.body
    return a.op == "const" and a["value"] == 1


def _dot_of_dots(body: Expr) -> bool:
    """A product with a dot among its factors."""
    return body.op == "mul" and any(e.op == "sum" and e.args[0].op == "mul" for e in topological([body]))
