"""share: axes that walk through one dimension of one buffer become one, so that one sweep serves them all.

    sum_r x[r] ... sum_l f(x[l])   ->   sum_l x[l] ... sum_l f(x[l])

Every reduction was pulled along an axis of its own. Renaming a bound axis is sound where no value varies along both the
old and the new one (the two positions of a Gram matrix), which is what `renamed` refuses.
"""
from __future__ import annotations

from collections.abc import Iterator

from fuse.frontend.unify import Outputs, renamed, roots_of
from fuse.ir.expr import Axis, topological
from fuse.ir.index import affine
from fuse.ir.size import Size


def share_axes(outputs: Outputs) -> Outputs:
    """The outputs with as many axes shared as the rule allows. An output's own axes stay unless another output's match."""
    refused: set[tuple[Axis, Axis]] = set()
    while True:
        pair = next((p for p in _pairs(outputs) if p not in refused), None)
        if pair is None:
            return outputs
        old, new = pair
        done = renamed(outputs, {old.name: new})
        if done is None:
            refused.add(pair)
        else:
            outputs = done


def _pairs(outputs: Outputs) -> Iterator[tuple[Axis, Axis]]:
    """(old, new): two axes of one extent that take the same steps from the same place in one dimension of one buffer, alone
    or as one digit of several; results' axes are kept."""
    results = dict.fromkeys(a for o in outputs for t in o.terms for i in t.index for a in i.axes)
    walks: dict[tuple[str, int, Size, Size, Size], dict[Axis, None]] = {}
    for node in topological(roots_of(outputs)):
        if node.op == "read":
            for dim, index in enumerate(node.args):
                form = affine(index)
                if form is None:
                    continue
                for axis, step in form.terms.items():
                    walks.setdefault((node["buffer"].name, dim, form.offset, step, axis.extent), {})[axis] = None
    for axes in walks.values():
        ordered = sorted(axes, key=lambda a: a not in results)
        yield from ((old, new) for k, new in enumerate(ordered) for old in ordered[k + 1:])
