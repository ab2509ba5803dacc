"""Indices of reads: affine in the axes and proved in range, or computed and clamped."""
from __future__ import annotations

from fuse.codegen.roles import Roles
from fuse.codegen.tile import Affine
try:
    from fuse.ir.evaluate import affine
except ImportError:
    from fuse.codegen._affine import affine
from fuse.ir.expr import Expr, const, make, size
from fuse.ir.size import Size


def affine_index(e: Expr, extent: Size, r: Roles) -> Affine | None:
    """`e` as offset + sum c_a * position(a), if that is what it is and 0 <= e < extent for every position; else None."""
    form = affine(e)
    if form is None:
        return None
    low = high = form.offset
    for axis, c in form.terms.items():
        last = c * (axis.extent - 1)
        if c.nonnegative():
            high = high + last
        elif (-c).nonnegative():
            low = low + last
        else:
            return None
    if not (low.nonnegative() and (extent - 1 - high).nonnegative()):
        return None
    return Affine(tuple((r.name[axis.name], c) for axis, c in form.terms.items()), form.offset)


def clamped(e: Expr, extent: Size) -> Expr:
    """min(max(e, 0), extent - 1): reads that a `where` discards may lie outside, and must stay inside the memory."""
    return make("maximum", make("minimum", e, size(extent - 1)), const(0, "int64"))
