"""Which values are never stored: a contraction that amplifies, and everything as large that is made from it.

    anchor    a contraction whose result has at least twice the elements of what its smaller operand reads
    closure   forward from the anchor through pointwise ops, views and normalisations while the size stays comparable
    merge     overlapping closures are one candidate
    exits     the smaller values computed from the closure that somebody else reads

Sizes are compared by hints alone and leave no guard: the region is right for any size, so that a wrong guess costs time
and not a recompile.
"""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from fuse.frontend.context import mutated_arguments
from fuse.frontend.shadow import Shadow, Value, example, where
from fuse.frontend.symbols import numel_hint, symbol_hints
from fuse.frontend.tables import kind_of
from fuse.frontend.tables_contract import product_of
from fuse.frontend.views import source
from fuse.reasons import Miss, Refused

AMPLIFICATION = 2        # an anchor's result against its smaller operand; the anchors' results against what leaves
MANY = 16                # more users than this are not looked at one by one if they are too large together
NARROWEST, WIDEST = 0.25, 2.1     # how far a value's size may be from its anchor's to belong to the closure


@dataclass(frozen=True)
class Candidate:
    """Virtual nodes in graph order, the nodes whose values leave, and everything that depends on a virtual value."""

    anchors: tuple[fx.Node, ...]
    virtual: tuple[fx.Node, ...]
    exits: tuple[fx.Node, ...]
    dependent: frozenset[fx.Node]
    shadow: Shadow
    hints: dict[str, int]
    where: str | None

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


def find_candidates(graph: fx.Graph, min_virtual_bytes: int) -> tuple[list[Candidate], list[Miss]]:
    """Candidates that are worth importing, and a Miss for each that was looked at and refused."""
    large = [n for n in graph.nodes if _may_amplify(n)]
    if not large:
        return [], []
    shadow = Shadow(graph)
    found: list[Candidate] = []
    misses: list[Miss] = []
    anchors: list[fx.Node] = []
    for node in large:
        try:
            anchors += [node] if _is_anchor(shadow, node) else []
        except Refused as refused:
            misses.append(refused.miss)
    hints = symbol_hints(t for n in graph.nodes for t in tensors_of(example(n)))
    for group in _merged([(a, _closure(shadow, a)) for a in anchors]):
        try:
            found.append(_candidate(shadow, group, hints, min_virtual_bytes))
        except Refused as refused:
            # A product that only outgrows the smaller of two operands is an everyday layer: nothing to report.
            if refused.miss.code not in ("EXITS_TOO_BIG", "ESCAPES") or any(_outgrows_all(a) for a in group[0]):
                misses.append(refused.miss)
    return found, misses


# ---- anchors ----------------------------------------------------------------------------------------------------

# Functions of torch that may be contractions; whether one is, its ATen view decides.
CONTRACTS = frozenset({"linear", "matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "einsum", "addmm", "baddbmm", "mv",
                       "tensordot", "inner", "outer", "ger", "dot"})


def _called(node: fx.Node) -> str:
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target._schema.name.split("::")[-1]
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")


def _floats(node: fx.Node) -> list[fx.Node]:
    return [a for a in node.all_input_nodes if isinstance(t := example(a), torch.Tensor)
            and (t.is_floating_point() or t.is_complex())]


def _may_amplify(node: fx.Node) -> bool:
    """By metadata alone: is the result twice as large as the smaller of the two largest floating operands?

    Parameters are not counted beside other operands: they are stored whatever happens.
    """
    if node.op not in ("call_function", "call_method") or _called(node) not in CONTRACTS:
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


def smallest_read(v: Value) -> int | None:
    """Elements that the smaller operand of a contraction holds; None if v is no contraction (or a view of one)."""
    while kind_of(v) == "view" and source(v).node is v.node:
        v = source(v)
    try:
        operands = product_of(v).operands if kind_of(v) == "contraction" else ()
    except Refused:
        return None
    tensors = [example(o.node) for o in operands]
    known = [n for t in tensors if isinstance(t, torch.Tensor) and (n := _numel(t)) is not None]
    return min(known, default=None)


# ---- closures ---------------------------------------------------------------------------------------------------

def consumers(node: fx.Node) -> Iterator[fx.Node]:
    """Users of the node's values; those that only ask for its shape do not count."""
    for user in node.users:
        if user.op in ("call_method", "call_function") and asks_for_shape(user):
            continue
        yield user


def asks_for_shape(user: fx.Node) -> bool:
    name = user.target if isinstance(user.target, str) else getattr(user.target, "__name__", "")
    return name in ("size", "dim", "numel", "stride", "sym_size") or \
        name == "getattr" and len(user.args) > 1 and user.args[1] in ("shape", "ndim", "dtype", "device")


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
    if total is None:
        total = top                # as many rows as the data says: as virtual as what they are selected from
    if total > WIDEST * top or total < min(NARROWEST * top, least):
        return False
    values = list(_flat(shadow.value(user)))
    if not values or not all(_streams(v, user, virtual) for v in values):
        return False
    return total >= NARROWEST * top or total >= least and all(_selects(v) for v in values)


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
    if kind in ("", "contraction") or kind == "gather" and v.op not in ("index", "index_select", "gather", "take_along_dim"):
        return False
    return all(s.node is not user or s.op is None or _streams(s, user, virtual) or not _touches(s, virtual)
               for s in v.sources())


def _touches(v: Value, virtual: set[fx.Node]) -> bool:
    return v.node in virtual or any(s.node in virtual or s.node is v.node and _touches(s, virtual) for s in v.sources())


def _flat(value: Any) -> Iterator[Value]:
    if isinstance(value, Value):
        yield value
    elif isinstance(value, (list, tuple)):
        for v in value:
            yield from _flat(v)


def _merged(closures: list[tuple[fx.Node, set[fx.Node]]]) -> list[tuple[list[fx.Node], set[fx.Node]]]:
    """Closures that overlap, or whose values meet in one user, are one."""
    groups: list[tuple[list[fx.Node], set[fx.Node]]] = []
    beside = lambda nodes: {u for n in nodes for u in consumers(n) if u.op != "output"} - nodes  # noqa: E731
    for anchor, nodes in closures:
        anchors, union = [anchor], set(nodes)
        rest = []
        for group in groups:
            if group[1] & union or beside(group[1]) & beside(union):
                anchors, union = group[0] + anchors, union | group[1]
            else:
                rest.append(group)
        groups = [*rest, (anchors, union)]
    return groups


# ---- exits ------------------------------------------------------------------------------------------------------

def _candidate(shadow: Shadow, group: tuple[list[fx.Node], set[fx.Node]], hints: dict[str, int], floor: int) -> Candidate:
    position = shadow.position
    anchors = tuple(sorted(group[0], key=position.__getitem__))
    virtual = tuple(sorted(group[1], key=position.__getitem__))
    place = where(anchors[0])
    size = sum((elements(n) or 0) * example(n).element_size() for n in anchors)
    if size < floor:
        raise Refused(Miss("TOO_SMALL", place, lambda: f"{anchors[0].name} holds {size} bytes, the limit is {floor}"))
    for node in virtual:
        if shadow.context[node].functorch:
            raise Refused(Miss("FUNCTORCH", where(node), node.name))
    dependent = _dependents(virtual)
    exits = _exits(shadow, anchors, group[1], dependent)
    leaving = sum(elements(n) or 0 for n in exits)
    numel = sum(elements(n) or 0 for n in anchors)
    if AMPLIFICATION * leaving > numel:
        raise Refused(Miss("EXITS_TOO_BIG", place, lambda: f"{leaving} elements leave {numel}: {_names(exits)}"))
    return Candidate(anchors, virtual, exits, dependent, shadow, hints, place)


def _names(nodes: tuple[fx.Node, ...]) -> str:
    return ", ".join(n.name for n in nodes[:4])


def _dependents(virtual: tuple[fx.Node, ...]) -> frozenset[fx.Node]:
    found, stack = set(virtual), list(virtual)
    while stack:
        for user in stack.pop().users:
            if user not in found and user.op != "output":
                found.add(user)
                stack.append(user)
    return frozenset(found)


def _exits(shadow: Shadow, anchors: tuple[fx.Node, ...], virtual: set[fx.Node],
           dependent: frozenset[fx.Node]) -> tuple[fx.Node, ...]:
    """Small values computed from virtual ones that something outside reads. Refused where a large one leaves."""
    first: list[fx.Node] = []
    for node in virtual:
        for user in consumers(node):
            if user.op == "output":
                raise Refused(Miss("ESCAPES", where(node), node.name))
            if user not in virtual and user not in first:
                first.append(user)
    if len(first) > MANY and AMPLIFICATION * sum(elements(n) or 0 for n in first) > sum(elements(a) or 0 for a in anchors):
        raise Refused(Miss("EXITS_TOO_BIG", where(anchors[0]), lambda: f"{len(first)} values leave {_names(anchors)}"))
    inner = _inner(virtual, dependent)
    found: list[fx.Node] = []
    for node in first:
        _check_exit(shadow, node, virtual)
        if isinstance(example(node), torch.Tensor):
            found.append(node)
        else:
            found += [u for u in node.users if any(True for _ in u.users)]
    kept = {n for n in found if n not in inner and (any(True for _ in n.users) or n.op == "output")}
    return tuple(sorted(kept, key=shadow.position.__getitem__))


def _check_exit(shadow: Shadow, node: fx.Node, virtual: set[fx.Node]) -> None:
    """A user of a virtual value that is not large itself must be made of ops that have a rule."""
    name = getattr(node.target, "__name__", node.target)
    stack = list(_flat(shadow.value(node)))
    if not stack:
        raise Refused(Miss("OTHER_USER", where(node), lambda: f"{node.name} = {name}(...)"))
    while stack:
        v = stack.pop()
        if kind_of(v) == "" and (v.op is None or _touches(v, virtual)):
            code = v.opaque if v.op is None and v.opaque not in ("", "UNSUPPORTED_OP") else "OTHER_USER"
            raise Refused(Miss(code, where(node), f"{node.name} = {name}(...)" if v.op is None else f"aten.{v.op}"))
        stack += [s for s in v.sources() if s.node is node]


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
