"""recurrent: masked scores that are linear and decay by a factor a step are a scan.

    sum_{j <= i} exp(F_i - F_j) (q_i . k_j) v_j   ->   q_i . h_i,   h_i = exp(F_i - F_{i-1}) h_{i-1} + k_i v_i

F is what the weight says it is: c (i - j), the logarithm of g ** (i - j), or the difference of one value at i and at j;
without a weight h is a running sum. The two sides cost i (d + m) / 2 and 4 d m products a position, d and m being the
widths of k and v, and those of a scan are worth about a quarter of a matrix product's: the scan is chosen from
i (d + m) > 16 d m on (state-space duality, arXiv 2405.21060). It is not if anything else reads the scores.
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import reduce

from fuse.ir.expr import Axis, Expr, const, iota, make, rewrite, substitute, sum_, topological, where
from fuse.ir.index import affine
from fuse.ir.program import Program, on_values
from fuse.ir.size import product

LINEAR = 16


def recurrent(program: Program, hints: Mapping[str, int]) -> Program:
    pairs: set[tuple[Axis, Axis]] = set()

    def rule(node: Expr) -> Expr | None:
        found = _scan_of(node, hints)
        if found is None:
            return None
        pairs.add(found[:2])
        return found[2]
    done = on_values(program, lambda roots: rewrite(roots, rule))
    nodes = dict.fromkeys(topological(done.roots()))
    if not pairs or any(n.has(i) and n.has(j) for n in nodes for i, j in pairs):
        return program
    return replace(done, anchors=tuple(a for a in done.anchors if a in nodes))


def _scan_of(node: Expr, hints: Mapping[str, int]) -> tuple[Axis, Axis, Expr] | None:
    """(i, j, q_i . h_i) of a sum over j <= i."""
    if node.op != "sum" or len(node["axes"]) != 1 or not node.args[0].has(node["axes"][0]):
        return None
    (j,) = node["axes"]
    masks = [m for f in _factors(node.args[0]) if (m := _masked(f, j)) is not None]
    if len(masks) != 1:
        return None
    i, inside = masks[0]
    factors = [f for f in _factors(node.args[0]) if _masked(f, j) is None] + _factors(inside)
    across = [f for f in factors if f.has(i) and f.has(j)]
    dots = [parts for f in across if (parts := _sides(f, i, j)) is not None]
    steps = [a for f in across if _sides(f, i, j) is None and (a := _step(f, i, j)) is not None]
    if len(dots) != 1 or len(across) != 1 + len(steps):
        return None
    (queries, keys, contracted), values = dots[0], [f for f in factors if not f.has(i) and f.has(j)]
    if not _pays(i, contracted, keys, values, hints):
        return None
    here = [substitute(f, {iota(j): iota(i)}) for f in (*keys, *values)]
    a = _multiplied(steps) if steps else const(1, node.dtype)
    h = make("scan", a, _multiplied(here), axis=i, reverse=False, origin=node.origin)
    outside = [f for f in factors if not f.has(j)]
    return i, j, _multiplied([sum_(_multiplied([*queries, h]), *contracted), *outside])


def _factors(x: Expr) -> list[Expr]:
    return _factors(x.args[0]) + _factors(x.args[1]) if x.op == "mul" else [x]


def _multiplied(factors: list[Expr]) -> Expr:
    return reduce(lambda a, b: a * b, factors)


def _masked(x: Expr, j: Axis) -> tuple[Axis, Expr] | None:
    """(i, y) if x is where(j <= i, y, 0), or exp(where(j <= i, log y, -inf)), for an axis i as long as j."""
    choice = x.args[0] if x.op == "exp" else x
    if choice.op != "where":
        return None
    (condition, yes, no), hidden = choice.args, float("-inf") if x.op == "exp" else 0.0
    if condition.op == "lt":       # i < j hides
        condition, yes, no = make("le", *condition.args[::-1]), no, yes
    if condition.op != "le" or any(a.op != "iota" for a in condition.args) or not _is(no, hidden):
        return None
    left, i = (a["axis"] for a in condition.args)
    if left != j or i.extent != j.extent:
        return None
    known = substitute(yes, {condition: const(True, "bool")})
    return i, make("exp", known) if x.op == "exp" else known


def _is(x: Expr, value: float) -> bool:
    return x.op == "const" and x["value"] == value


def _sides(x: Expr, i: Axis, j: Axis) -> tuple[list[Expr], list[Expr], tuple[Axis, ...]] | None:
    """(factors of i, factors of j, contracted axes) of a dot between a value of i and a value of j."""
    if x.op != "sum":
        return None
    factors = _factors(x.args[0])
    queries, keys = [f for f in factors if not f.has(j)], [f for f in factors if f.has(j)]
    if any(f.has(i) for f in keys) or not queries or not keys:
        return None
    return queries, keys, tuple(x["axes"])


def _step(weight: Expr, i: Axis, j: Axis) -> Expr | None:
    """What the weight of a pair is multiplied by when i moves on by one; None if that depends on j."""
    match weight.op:
        case "pow":
            base, exponent = weight.args
            return base if _is_distance(exponent, i, j) and not (base.has(i) or base.has(j)) else None
        case "exp":
            rate = _rate(weight.args[0], i, j)
            return None if rate is None else make("exp", rate)
    return None


def _rate(e: Expr, i: Axis, j: Axis) -> Expr | None:
    """F_i - F_{i-1} where e = F_i - F_j."""
    factors = _factors(e)
    distances = [f for f in factors if _is_distance(f, i, j)]
    rest = [f for f in factors if f not in distances]
    if len(distances) == 1 and not any(f.has(i) or f.has(j) for f in rest):
        return _multiplied(rest) if rest else const(1, e.dtype)
    if e.op != "sub":
        return None
    here, there = e.args
    if here.has(j) or substitute(here, {iota(i): iota(j)}) is not there:
        return None
    if here.op == "scan" and here["axis"] == i and not here["reverse"] and _is(here.args[0], 1):
        return here.args[1]
    return where(make("le", const(1, "int64"), iota(i)), here - make("shift", here, axis=i, by=1), 0)


def _is_distance(x: Expr, i: Axis, j: Axis) -> bool:
    """Is x the number i - j?"""
    x = x.args[0] if x.op == "cast" else x
    if x.op == "where" and _is(x.args[0], True):
        x = x.args[1]
    form = affine(x) if x.dtype == "int64" else None
    return form is not None and form.offset == 0 and {a: c.constant for a, c in form.terms.items()} == {i: 1, j: -1}


def _pays(length: Axis, contracted: tuple[Axis, ...], keys: list[Expr], values: list[Expr], hints: Mapping[str, int]) -> bool:
    beside = {a for f in keys for a in f.axes}
    wide = dict.fromkeys(a for f in values for a in f.axes if a not in beside)
    sizes = length.extent, product(a.extent for a in contracted), product(a.extent for a in wide)
    if not all(size.symbols <= hints.keys() for size in sizes):
        return False
    n, d, m = (int(size.evaluate(hints)) for size in sizes)
    return n * (d + m) > LINEAR * d * m
