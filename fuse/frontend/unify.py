"""One sweep for many exits: axes are renamed so that equal anchors become the same expression.

Every exit was pulled at its own fresh axes, so its anchor differs from another exit's only by names. Numbering the axes
of an anchor in order of first visit gives a text; equal texts give the renaming. It must never merge two axes of one
value (S_ij and S_ji are not the same), so it is a bijection, and no expression may vary along both old and new axis.
"""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from fuse.frontend.index import linear
from fuse.ir.expr import Axis, Expr, rebuild, rename_axes, rewrite, topological
from fuse.ir.program import Output, Term

Outputs = tuple[Output, ...]


def fingerprint(anchor: Expr) -> tuple[str, tuple[Axis, ...]]:
    """A text that is equal for anchors equal up to names, and the axes in the order in which they are numbered."""
    order: dict[str, Axis] = {}

    def name(axis: Axis) -> str:
        order.setdefault(axis.name, axis)
        return f"{list(order).index(axis.name)}:{axis.extent}"

    numbers: dict[Expr, int] = {}
    lines = []
    for node in topological([anchor]):
        numbers[node] = len(numbers)
        attrs = [f"{k}={name(v) if isinstance(v, Axis) else sorted(map(name, v)) if k == 'axes' else v!r}"
                 for k, v in node.attrs]
        lines.append(f"{node.op} {node.dtype} {[numbers[a] for a in node.args]} {attrs}")
    return "\n".join(lines), tuple(order.values())


def unify(outputs: Outputs, anchors: tuple[Expr, ...]) -> tuple[Outputs, tuple[Expr, ...]]:
    """The outputs with equal anchors shared, and the distinct anchors that remain."""
    done: list[Expr] = []
    pending = list(anchors)
    while pending:
        anchor = pending.pop(0)
        if anchor in done:
            continue
        text, axes = fingerprint(anchor)
        for known in done:
            other, targets = fingerprint(known)
            names = {a.name: b for a, b in zip(axes, targets, strict=False) if a != b}
            # A renaming that moves an axis of the known anchor would change that one too.
            if other != text or not names or names.keys() & {a.name for a in targets}:
                continue
            merged = renamed(outputs, names)
            if merged is not None:
                outputs = merged
                pending, done = rename_axes(pending, names), rename_axes(done, names)
                anchor = known
                break
        if anchor not in done:
            done.append(anchor)
    return outputs, tuple(dict.fromkeys(done))


def roots_of(outputs: Iterable[Output]) -> list[Expr]:
    """Indices and values, in order."""
    return [e for o in outputs for t in o.terms for e in (*t.index, t.value)]


def renamed(outputs: Outputs, names: dict[str, Axis]) -> Outputs | None:
    """The outputs with axes renamed, or None where two axes of one value would become one."""
    if len({a.name for a in names.values()}) < len(names):
        return None
    for output in outputs:
        for node in topological(roots_of([output])):
            own = {a.name for a in node.axes}
            if any(old in own and new.name in own for old, new in names.items()):
                return None
    fresh = iter(rewrite(rename_axes(roots_of(outputs), names), _respelled))
    return tuple(replace(o, terms=tuple(Term(tuple(next(fresh) for _ in t.index), next(fresh)) for t in o.terms))
                 for o in outputs)


def _respelled(node: Expr) -> Expr | None:
    """A read whose indices are sums in the order of their axes' new names: equal reads must be one object."""
    return rebuild(node, (linear(i).expr() for i in node.args)) if node.op == "read" else None
