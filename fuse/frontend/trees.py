"""`associative_scan` in its generic mode leaves a tree of slices, products and joins in the graph, one level for each bit of L.

Proved by what every element stands for. With a, b the leaves, h_{s..e} the state after steps s..e from zero:

    factor  s..e     a_s ... a_e                  factor s..m * factor m+1..e       = factor s..e
    state   s..e     h_{s..e}                     factor m+1..e * state s..m        = moved s, m, e
    moved   s, m, e                               moved s, m, e + state m+1..e      = state s..e

Slices, joins and interleavings along the first dimension move elements. What ends as the states 0..j for all j is scan(a, b).
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from fuse.frontend.candidates import Candidate
from fuse.frontend.cascades import leaving
from fuse.frontend.recurrence import scanned
from fuse.frontend.scope import Scope
from fuse.frontend.symbols import shape_of
from fuse.frontend.value import arguments, called, example, where
from fuse.reasons import Miss, Refused

Span = tuple[int, ...] | None          # None: what a pad puts there


@dataclass(frozen=True)
class Elements:
    """What stands at each position of the first dimension."""

    kind: str                          # factor, state, moved, or pairs (two sequences, stacked)
    spans: tuple[Any, ...]


def find_trees(scope: Scope) -> tuple[list[Candidate], list[Miss]]:
    """Candidates for the trees of a graph, and a Miss for each pair of leaves whose tree is not proved."""
    roots = list(dict.fromkeys(arguments(n)[0] for n in scope.graph.nodes if _halves(n)))
    found: list[Candidate] = []
    misses: list[Miss] = []
    while len(roots) > 1:
        try:
            found.append(_candidate(scope, roots[0], roots[1]))
            del roots[:2]
        except Refused as refused:
            misses.append(refused.miss)
            del roots[0]
    return found, misses


def _halves(node: fx.Node) -> bool:
    """Every second element of something that is no inner level of a tree."""
    return node.op == "call_function" and called(node) == "slice" and len(arguments(node)) == 5 and arguments(node)[1] == 0 \
        and arguments(node)[2] == 0 and arguments(node)[4] == 2 and called(arguments(node)[0]) != "_remove_batch_dim"


def _candidate(scope: Scope, one: fx.Node, two: fx.Node) -> Candidate:
    length = shape_of(example(one))[0].constant
    if length is None or shape_of(example(one)) != shape_of(example(two)) or example(one).dtype != example(two).dtype:
        raise Refused(Miss("NOT_A_SCAN", where(one), "the leaves of the tree differ"))
    for a, b in ((one, two), (two, one)):
        known = _interpreted(scope, a, b, length)
        whole = tuple((0, j) for j in range(length))
        results = {n: e.kind for n, e in known.items() if e.spans == whole and e.kind in ("factor", "state")}
        if "state" not in results.values():
            continue
        region = known.keys() - {a, b}
        region |= {u for n in region for u in n.users if not u.users and u.op.startswith("call")}
        if not set(leaving(region)) <= results.keys():
            raise Refused(Miss("NOT_A_SCAN", where(one), "an inner level of the tree is read by something else"))
        for node, kind in results.items():
            leaves = scope.shadow.value(a), scope.shadow.value(b) if kind == "state" else None
            scope.shadow.memo[node] = scanned(*leaves, 0, node)
        return scope.candidate(region, list(results), tuple(_levels(scope, region)))
    raise Refused(Miss("NOT_A_SCAN", where(one), "the combination is not (a_l a_r, a_r b_l + b_r)"))


def _levels(scope: Scope, region: set[fx.Node]) -> Iterator[fx.Node]:
    """The calls that enter and leave vmap around nothing but the tree."""
    opened: list[fx.Node] = []
    whole = True
    for node in scope.graph.nodes:
        name = called(node) if node.op == "call_function" else ""
        if name == "_vmap_increment_nesting":
            opened, whole = [*([node.prev] if called(node.prev) == "lazy_load_decompositions" else ()), node], True
        elif name == "_vmap_decrement_nesting" and opened:
            yield from (*opened, node) if whole else ()
            opened = []
        elif opened:
            whole &= node in region


# ---- what elements stand for ----------------------------------------------------------------------------------------

def _interpreted(scope: Scope, a: fx.Node, b: fx.Node, length: int) -> dict[fx.Node, Elements]:
    each = tuple((j, j) for j in range(length))
    known = {a: Elements("factor", each), b: Elements("state", each)}
    reached = {a, b}
    for node in scope.graph.nodes:
        if node.op != "call_function" or reached.isdisjoint(node.all_input_nodes):
            continue
        rule = RULES.get(called(node))
        found = rule(node, known) if rule is not None else None
        if found is not None:
            known[node] = found
            reached.add(node)
    return known


Known = dict[fx.Node, Elements]


def _argument(node: fx.Node, place: int, name: str, default: Any = None) -> Any:
    return arguments(node)[place] if len(arguments(node)) > place else node.kwargs.get(name, default)


def _slice(node: fx.Node, known: Known) -> Elements | None:
    if len(arguments(node)) < 4 or node.kwargs:
        return None
    x, dim, *bounds = arguments(node)
    if dim != 0 or known[x].kind == "pairs" or not all(b is None or type(b) is int for b in bounds):
        return None
    return Elements(known[x].kind, known[x].spans[slice(*bounds)])


def _cat(node: fx.Node, known: Known) -> Elements | None:
    parts = arguments(node)[0]
    if _argument(node, 1, "dim", 0) != 0 or not all(p in known for p in parts) or len({known[p].kind for p in parts}) > 1:
        return None
    return Elements(known[parts[0]].kind, tuple(s for p in parts for s in known[p].spans))


def _stack(node: fx.Node, known: Known) -> Elements | None:
    parts = arguments(node)[0]
    if _argument(node, 1, "dim", 0) != 1 or not all(p in known for p in parts) or len({known[p].kind for p in parts}) > 1:
        return None
    kind = known[parts[0]].kind
    return Elements("pairs", tuple((kind, spans) for spans in zip(*(known[p].spans for p in parts), strict=True)))


def _flatten(node: fx.Node, known: Known) -> Elements | None:
    x = known[arguments(node)[0]]
    if x.kind != "pairs" or (_argument(node, 1, "start_dim", 0), _argument(node, 2, "end_dim", -1)) != (0, 1):
        return None
    return Elements(x.spans[0][0], tuple(s for _, spans in x.spans for s in spans)) if x.spans else None


def _pad(node: fx.Node, known: Known) -> Elements | None:
    x, amounts = known[arguments(node)[0]], list(_argument(node, 1, "pad", ()))
    rank = len(shape_of(example(node)))
    if x.kind == "pairs" or len(amounts) != 2 * rank or any(amounts[:-1]) or type(amounts[-1]) is not int or amounts[-1] < 0:
        return None
    return Elements(x.kind, (*x.spans, *([None] * amounts[-1])))


def _batched(dim: int) -> Callable[[fx.Node, Known], Elements | None]:
    """Into and out of vmap over the first dimension."""
    return lambda node, known: known[arguments(node)[0]] if arguments(node)[dim] == 0 else None


def _operands(node: fx.Node, known: Known) -> list[Elements] | None:
    found = [known.get(a) if isinstance(a, fx.Node) else None for a in arguments(node)]
    if node.kwargs or any(f is None or f.kind == "pairs" for f in found):
        return None
    return [f for f in found if f is not None]


def _pairwise(kind: str, one: Elements, two: Elements, rule: Callable[[Any, Any], Span]) -> Elements | None:
    """Both sequences combined, if every pair of elements has a meaning."""
    if len(one.spans) != len(two.spans) or None in one.spans or None in two.spans:
        return None
    spans = tuple(rule(s, t) for s, t in zip(one.spans, two.spans, strict=True))
    return None if None in spans else Elements(kind, spans)


def _product(one: Elements, two: Elements) -> Elements | None:
    kinds = (one.kind, two.kind)
    if kinds == ("factor", "factor"):
        return _pairwise("factor", one, two, lambda s, t: (s[0], t[1]) if s[1] + 1 == t[0] else
                         (t[0], s[1]) if t[1] + 1 == s[0] else None)
    if kinds == ("state", "factor"):
        one, two = two, one
    elif kinds != ("factor", "state"):
        return None
    return _pairwise("moved", one, two, lambda f, h: (*h, f[1]) if h[1] + 1 == f[0] else None)


def _sum(one: Elements, two: Elements) -> Elements | None:
    if (one.kind, two.kind) == ("state", "moved"):
        one, two = two, one
    elif (one.kind, two.kind) != ("moved", "state"):
        return None
    return _pairwise("state", one, two, lambda m, h: (m[0], m[2]) if h == (m[1] + 1, m[2]) else None)


def _mul(node: fx.Node, known: Known) -> Elements | None:
    found = _operands(node, known)
    return _product(*found) if found is not None and len(found) == 2 else None


def _add(node: fx.Node, known: Known) -> Elements | None:
    found = _operands(node, known)
    return _sum(*found) if found is not None and len(found) == 2 else None


def _addcmul(node: fx.Node, known: Known) -> Elements | None:
    found: Sequence[Elements] | None = _operands(node, known)
    moved = _product(*found[1:]) if found is not None and len(found) == 3 else None
    return _sum(moved, found[0]) if found is not None and moved is not None else None


RULES: dict[str, Callable[[fx.Node, Known], Elements | None]] = {
    "slice": _slice, "cat": _cat, "stack": _stack, "flatten": _flatten, "pad": _pad, "mul": _mul, "add": _add,
    "addcmul": _addcmul, "_add_batch_dim": _batched(1), "_remove_batch_dim": _batched(3),
}
