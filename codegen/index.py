"""Indices of reads: affine in the axes and proved in range, or computed and clamped."""
from __future__ import annotations

from fuse.codegen.roles import Roles
from fuse.codegen.tile import Affine
from fuse.ir.expr import Expr, const, make, size
from fuse.ir.index import affine, bounds
from fuse.ir.size import Size


def affine_index(e: Expr, extent: Size, r: Roles) -> Affine | None:
    """`e` as offset + sum c_a * position(a), if that is what it is and 0 <= e < extent for every position; else None."""
    form = affine(e)
    if form is None:
        return None
    reach = bounds(form)
    if reach is None or not (reach[0].nonnegative() and (extent - 1 - reach[1]).nonnegative()):
        return None
    return Affine(tuple((r.name[axis.name], c) for axis, c in form.terms.items()), form.offset)


def clamped(e: Expr, extent: Size) -> Expr:
    """min(max(e, 0), extent - 1): reads that a `where` discards may lie outside, and must stay inside the memory."""
    return make("maximum", make("minimum", e, size(extent - 1)), const(0, "int64"))
