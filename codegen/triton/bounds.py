"""Column tiles that add nothing left out: `tile.Skip` as bounds of the loop over columns.

A form that moves with the column, row + column >= bound wherever the tile has rows, ends the loop at the first column of
which that is true for every row; one that moves against it begins the loop at the tile of the last column of which it is
not. Bounds are taken where columns are one axis and move the form by one; other forms leave every tile in.
"""
from __future__ import annotations

from collections.abc import Sequence

from fuse.codegen.tile import Affine, Skip
from fuse.codegen.triton.emit import Tiles

FAR = 2 ** 62


def narrowed(t: Tiles, skips: Sequence[Skip]) -> tuple[str, str]:
    """(first, end) of the loop over columns: variables of the prologue, which begins with `begin` and `end`."""
    first, last = "begin", "end"
    (*others, column) = t.program.dims["col"]
    for skip in skips:
        terms = {axis: c.constant for axis, c in skip.form.terms}
        by = terms.pop(column, None)
        rows = least(t, terms, skip.form) if not others and by in (1, -1) else None
        if rows is None:
            continue
        if by == 1:
            t.prologue.add(f"stop = tl.maximum(tl.minimum({skip.bound} - {rows}, {last}), begin).to(end.dtype)")
            last = "stop"
        else:
            t.prologue.add(f"start = tl.maximum({rows} - {skip.bound - 1}, {first}).to(end.dtype)")
            t.prologue.add("start = begin + (start - begin) // C * C")
            first = "start"
    return first, last


def least(t: Tiles, terms: dict[str, int | None], form: Affine) -> str | None:
    """The variable that holds the least value of the form without its column, over the rows of the tile; None if it is
    not known how positions or sizes enter."""
    if any(c is None for c in terms.values()):
        return None
    if form.offset.constant is None and form.offset not in t.program.params:
        return None
    tiles, summands = list[str](), list[str]()
    for axis, c in terms.items():
        position, dims = t.position(axis)
        (tiles if dims else summands).append(f"far({position}, {c})")
        if dims not in ((), ("row",)):
            return None
    if tiles:
        summands.append(f"tl.min(tl.where(row_ok, {' + '.join(tiles)}, {FAR}), 0)")
    if form.offset.constant is None:
        index = t.program.params.index(form.offset)
        summands.append(f"far({t.arguments(f'p{index}', 'param', index)}, 1)")
    elif form.offset.constant or not summands:
        summands.append(f"tl.full([], {form.offset.constant}, tl.int64)")
    name = t.name("least")
    t.prologue.add(f"{name} = {' + '.join(summands)}")
    return name
