"""Which values are never stored: a contraction that amplifies, and everything as large that is made from it.

    anchor    a contraction whose result has at least twice the elements of what its smaller operand reads
    closure   forward from the anchor through pointwise ops, views and normalisations while the size stays comparable
    merge     overlapping closures are one candidate
    exits     the smaller values computed from the closure that somebody else reads

Sizes are compared by hints alone and leave no guard: the region is right for any size, so that a wrong guess costs time
and not a recompile.
"""
from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import fx

from fuse.frontend.context import mutated_arguments
from fuse.frontend.escapes import Escape, escaping, stored_for
from fuse.frontend.shadow import Shadow
from fuse.frontend.symbols import numel_hint, symbol_hints
from fuse.frontend.tables import RANDOM, kind_of
from fuse.frontend.tables_contract import product_of
from fuse.frontend.value import Value, called, example, flat, where
from fuse.frontend.views import source
from fuse.reasons import Miss, Refused, size_text

AMPLIFICATION = 2        # an anchor's result against its smaller operand; the anchors' results against what leaves
NARROWEST, WIDEST = 0.25, 2.1     # how far a value's size may be from its anchor's to belong to the closure


@dataclass(frozen=True)
class Candidate:
    """Virtual nodes in graph order, the nodes whose values leave, and everything that depends on a virtual value. `chained`:
    with what a scan is made of (`upstream`). `escapes`: virtual nodes that are outputs too; `stored`: the anchors they are
    made of."""

    anchors: tuple[fx.Node, ...]
    virtual: tuple[fx.Node, ...]
    exits: tuple[fx.Node, ...]
    dependent: frozenset[fx.Node]
    shadow: Shadow
    hints: dict[str, int]
    where: str | None
    chained: bool = False
    covered: tuple[fx.Node, ...] = ()      # leave the graph together, whatever they write or guard
    escapes: tuple[Escape, ...] = ()
    stored: frozenset[fx.Node] = frozenset()

    @property
    def numel(self) -> int:
        return sum(elements(n) or 0 for n in self.anchors)

    @property
    def bytes(self) -> int:
        return sum((elements(n) or 0) * example(n).element_size() for n in self.anchors)


def elements(node: fx.Node) -> int | None:
    """Elements of a node's tensors, by hints; None if unknown or if it has none."""
    found = [_numel(t) for t in tensors_of(example(node))]
    return None if not found or any(n is None for n in found) else sum(n for n in found if n is not None)


def _numel(t: torch.Tensor) -> int | None:
    try:
        return numel_hint(t)
    except (RuntimeError, NotImplementedError):
        return None


def tensors_of(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for v in value:
            yield from tensors_of(v)


def find_candidates(graph: fx.Graph, min_virtual_bytes: int,
                    taken: Container[fx.Node] = (), outermost: bool = True) -> tuple[list[Candidate], list[Miss]]:
    """Candidates that are worth importing, and a Miss for each that was looked at and refused.

    `taken`: nodes that belong to another region. `outermost`: the graph's outputs are the caller's, who may be given a
    large value as well.
    """
    large = [n for n in graph.nodes if n not in taken and _may_amplify(n)]
    if not large:
        return [], []
    shadow = Shadow(graph)
    found: list[Candidate] = []
    misses: list[Miss] = []
    anchors: list[fx.Node] = []
    for node in large:
        try:
            if _bytes(node) < min_virtual_bytes:
                raise Refused(_too_small(node, min_virtual_bytes))
            anchors += [node] if _is_anchor(shadow, node) else []
        except Refused as refused:
            misses.append(refused.miss)
    hints = symbol_hints(t for n in graph.nodes for t in tensors_of(example(n)))
    groups, refusals = _groups(shadow, [(a, _closure(shadow, a)) for a in anchors])
    misses += refusals
    for group in groups:
        try:
            candidate = _candidate(shadow, group, hints, outermost)
            found += [candidate] if candidate.exits else []      # without exits nobody reads what it is made for
        except Refused as refused:
            # A product that only outgrows the smaller of two operands is an everyday layer: nothing to report.
            if refused.miss.code != "ESCAPES" or any(_outgrows_all(a) for a in group.anchors):
                misses.append(refused.miss)
    return found, misses


def _bytes(node: fx.Node) -> int:
    return (elements(node) or 0) * int(example(node).element_size())


def _too_small(node: fx.Node, floor: int) -> Miss:
    return Miss("TOO_SMALL", where(node), lambda: f"{size_text(_bytes(node))}; the limit is {size_text(floor)}")


# ---- anchors ----------------------------------------------------------------------------------------------------

# Functions of torch that may be contractions; whether one is, its ATen view decides.
CONTRACTS = frozenset({"linear", "matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "einsum", "addmm", "baddbmm", "mv",
                       "tensordot", "inner", "outer", "ger", "dot"})


def _floats(node: fx.Node) -> list[fx.Node]:
    return [a for a in node.all_input_nodes if isinstance(t := example(a), torch.Tensor)
            and (t.is_floating_point() or t.is_complex())]


def _may_amplify(node: fx.Node) -> bool:
    """By metadata alone: is the result twice as large as the smaller of the two largest floating operands?

    Parameters are not counted beside other operands: they are stored whatever happens.
    """
    if node.op not in ("call_function", "call_method") or called(node) not in CONTRACTS:
        return False
    result = example(node)
    if not isinstance(result, torch.Tensor) or not (result.is_floating_point() or result.is_complex()):
        return False
    operands = _floats(node)
    made = [a for a in operands if not _is_parameter(a)]
    sizes = sorted(n for a in (made or operands) if (n := _numel(example(a))) is not None)
    total = _numel(result)
    return bool(sizes) and total is not None and total >= AMPLIFICATION * sizes[max(len(sizes) - 2, 0)]


def _is_parameter(node: fx.Node) -> bool:
    """A parameter, seen through transposes, casts and other nodes with one input."""
    for _ in range(4):
        if node.op in ("placeholder", "get_attr"):
            return isinstance(example(node), torch.nn.Parameter)
        if len(node.all_input_nodes) != 1:
            return False
        node = node.all_input_nodes[0]
    return False


def _outgrows_all(node: fx.Node) -> bool:
    total = _numel(example(node)) or 0
    return all(total >= AMPLIFICATION * (_numel(example(a)) or 0) for a in _floats(node) if not _is_parameter(a))


def _is_anchor(shadow: Shadow, node: fx.Node) -> bool:
    value = shadow.value(node)
    if not isinstance(value, Value):
        return False
    if value.op is None and value.opaque in ("FUNCTORCH", "DTENSOR"):
        raise Refused(Miss(value.opaque, where(node), node.name))
    return smallest_read(value) is not None


def contractions(value: Any) -> Iterator[Value]:
    """The contractions that a node's values are views of."""
    for v in flat(value):
        while kind_of(v) == "view" and source(v).node is v.node:
            v = source(v)
        if kind_of(v) == "contraction":
            yield v


def smallest_read(value: Any) -> int | None:
    """Elements that the smaller operand of a contraction holds; None if the value is not one (or a view of one)."""
    for v in contractions(value):
        try:
            tensors = [example(o.node) for o in product_of(v).operands]
        except Refused:
            return None
        return min((n for t in tensors if isinstance(t, torch.Tensor) and (n := _numel(t)) is not None), default=None)
    return None


# ---- closures ---------------------------------------------------------------------------------------------------

def consumers(node: fx.Node) -> Iterator[fx.Node]:
    """Users of the node's values; those that only ask for its shape do not count."""
    for user in node.users:
        if user.op in ("call_method", "call_function") and asks_for_shape(user):
            continue
        yield user


def asks_for_shape(user: fx.Node) -> bool:
    name = called(user)
    return name in ("size", "dim", "numel", "stride", "sym_size") or \
        (name == "getattr" and len(user.args) > 1 and user.args[1] in ("shape", "ndim", "dtype", "device"))


def _closure(shadow: Shadow, anchor: fx.Node) -> set[fx.Node]:
    top = elements(anchor) or 0
    least = AMPLIFICATION * (smallest_read(shadow.value(anchor)) or 0)
    found, stack = {anchor}, [anchor]
    while stack:
        for user in consumers(stack.pop()):
            if user in found or not _stays_large(shadow, user, top, least, found):
                continue
            found.add(user)
            stack.append(user)
    return found


def _stays_large(shadow: Shadow, user: fx.Node, top: int, least: int, virtual: set[fx.Node]) -> bool:
    if user.op not in ("call_function", "call_method"):
        return False
    if example(user) is None:      # an assignment to a slice: its value is seen by later uses of what it assigns to
        return any(a in virtual for a in mutated_arguments(user))
    if not any(True for _ in tensors_of(example(user))):
        return False
    total = elements(user)
    if total is None:              # as many rows as the data says: as virtual as what they are selected from
        total = 0 if any(kind_of(v) == "reduction" for v in flat(shadow.value(user))) else top
    values = list(flat(shadow.value(user)))
    joined = any(v.op in ("cat", "concat") for v in values)       # with another anchor's value, perhaps
    if (total > WIDEST * top and not joined) or total < min(NARROWEST * top, least):
        return False
    if not values or not all(_streams(v, user, virtual) for v in values):
        return False
    return total >= NARROWEST * top or (total >= least and all(_selects(v) for v in values))


def _selects(v: Value) -> bool:
    """A view, or rows chosen by an index: what is left of a large value after it is as virtual."""
    if v.op in ("index", "index_select"):
        picked = v.args.get("index", v.args.get("indices"))
        given = [t for t in (picked if isinstance(picked, (list, tuple)) else [picked]) if isinstance(t, Value)]
        return bool(given) and all(len(t.shape) < len(v.shape) for t in given)
    return kind_of(v) == "view"


def _streams(v: Value, user: fx.Node, virtual: set[fx.Node]) -> bool:
    """Is v made from the virtual values by ops that can be part of one sweep?"""
    kind = kind_of(v)
    if kind == "" or (kind == "contraction" and product_of(v).contracted) \
            or (kind == "gather" and v.op not in ("index", "index_select", "gather", "take_along_dim")):
        return False
    return all(s.node is not user or s.op is None or _streams(s, user, virtual) or not _touches(s, virtual)
               for s in v.sources())


def _touches(v: Value, virtual: set[fx.Node]) -> bool:
    return v.node in virtual or any(s.node in virtual or (s.node is v.node and _touches(s, virtual)) for s in v.sources())


@dataclass(frozen=True)
class _Group:
    anchors: list[fx.Node]
    virtual: set[fx.Node]

    @cached_property
    def users(self) -> set[fx.Node]:
        """What reads a virtual value without being one."""
        return {u for n in self.virtual for u in consumers(n) if u.op != "output"} - self.virtual

    def joined(self, other: _Group) -> _Group:
        return _Group(other.anchors + self.anchors, self.virtual | other.virtual)


def _groups(shadow: Shadow, closures: list[tuple[fx.Node, set[fx.Node]]]) -> tuple[list[_Group], list[Miss]]:
    """Closures that share a value are one; then those whose values meet in one user, if each is worth it alone."""
    groups = _join([_Group([a], nodes) for a, nodes in closures], lambda a, b: bool(a.virtual & b.virtual))
    anchors = {a for g in groups for a in g.anchors}
    inside = {n for g in groups for n in g.virtual} - anchors
    kept: list[_Group] = []
    misses: list[Miss] = []
    for g in groups:
        leaving, total = g.users - inside, _total(g.anchors)
        if AMPLIFICATION * _total(leaving) <= total:
            kept.append(g)
        elif any(map(_outgrows_all, g.anchors)):
            widest = max(leaving, key=lambda n: (elements(n) or 0, shadow.position[n]))
            miss = _without_rule(shadow, widest, g.virtual)
            misses.append(_exits_too_big(g, _total(leaving), total) if miss is None else miss)
    given = anchors & {u for g in kept for u in g.users}
    if given:      # an anchor made of another group's values is what leaves that group, and stored
        return _groups(shadow, [(a, nodes) for a, nodes in closures if a not in given])
    return _join(kept, lambda a, b: bool((a.users & (b.users | b.virtual) | (a.virtual & b.users)) - anchors)), misses


def _join(groups: list[_Group], related: Callable[[_Group, _Group], bool]) -> list[_Group]:
    found: list[_Group] = []
    for new in groups:
        rest = []
        for group in found:
            if related(group, new):
                new = new.joined(group)
            else:
                rest.append(group)
        found = [*rest, new]
    return found


def _total(nodes: Iterable[fx.Node]) -> int:
    return sum(elements(n) or 0 for n in nodes)


def _exits_too_big(group: _Group, leaving: int, total: int) -> Miss:
    anchor = group.anchors[0]
    through = ", ".join(sorted({called(u) for u in group.users})[:4])
    return Miss("EXITS_TOO_BIG", where(anchor), f"{leaving} elements leave the {total} of {anchor.name} through {through}")


# ---- exits ------------------------------------------------------------------------------------------------------

def _candidate(shadow: Shadow, group: _Group, hints: dict[str, int], outermost: bool) -> Candidate:
    position = shadow.position
    anchors = tuple(sorted(group.anchors, key=position.__getitem__))
    virtual = tuple(sorted(group.virtual, key=position.__getitem__))
    for node in virtual:
        if shadow.context[node].functorch:
            raise Refused(Miss("FUNCTORCH", where(node), node.name))
    dependent = dependents(virtual)
    exits = _exits(shadow, group, dependent)
    escapes = escaping(shadow, virtual, anchors)
    stored = stored_for(shadow, anchors, group.virtual, dependent, escapes) if escapes else frozenset[fx.Node]()
    if isinstance(stored, Miss) or (escapes and not (outermost and exits)):
        raise Refused(stored if isinstance(stored, Miss) else Miss("ESCAPES", where(escapes[0].node), escapes[0].cost))
    return Candidate(anchors, virtual, exits, dependent, shadow, hints, where(anchors[0]), escapes=escapes, stored=stored)


def dependents(virtual: tuple[fx.Node, ...]) -> frozenset[fx.Node]:
    found, stack = set(virtual), list(virtual)
    while stack:
        for user in stack.pop().users:
            if user not in found and user.op != "output":
                found.add(user)
                stack.append(user)
    return frozenset(found)


def _exits(shadow: Shadow, group: _Group, dependent: frozenset[fx.Node]) -> tuple[fx.Node, ...]:
    """Small values computed from virtual ones that something outside reads."""
    inner = _inner(group.virtual, dependent)
    found: list[fx.Node] = []
    for node in group.users:
        miss = _without_rule(shadow, node, group.virtual)
        if miss is not None:
            raise Refused(miss)
        found += [node] if isinstance(example(node), torch.Tensor) else list(node.users)
    kept = {n for n in found if n not in inner and len(n.users) > 0}
    return tuple(sorted(kept, key=shadow.position.__getitem__))


def _without_rule(shadow: Shadow, node: fx.Node, virtual: set[fx.Node]) -> Miss | None:
    """The Miss of a user of a virtual value that is made of an op without a rule."""
    operand = next((a.name for a in node.all_input_nodes if a in virtual), "it")
    use = f"{called(node) or node.target} of {operand}"
    stack = list(flat(shadow.value(node)))
    if not stack:
        return Miss("OTHER_USER", where(node), use)
    while stack:
        v = stack.pop()
        if kind_of(v) == "" and (v.op is None or _touches(v, virtual)):
            known = "RANDOM" if v.op in RANDOM else v.opaque if v.op is None and v.opaque != "UNSUPPORTED_OP" else ""
            return Miss(known or "OTHER_USER", where(node), use)
        stack += [s for s in v.sources() if s.node is node]
    return None


def _inner(virtual: set[fx.Node], dependent: frozenset[fx.Node]) -> set[fx.Node]:
    """Small values that only virtual values (or other inner values) read: recomputed inside, they do not leave."""
    found = {n for n in dependent if n not in virtual}
    changed = True
    while changed:
        changed = False
        for node in list(found):
            users = [u for u in node.users if not (asks_for_shape(u) and u.op != "output")]
            if any(u.op == "output" or (u not in virtual and u not in found) for u in users) or not users:
                found.discard(node)
                changed = True
    return found
