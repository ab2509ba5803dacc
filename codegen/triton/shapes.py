"""What the tiles of a program look like: which dims they have, which of those are summed over, whether matrix units work."""
from __future__ import annotations

from fuse.codegen.tile import Dot, Reduce, TileProgram


def contracted_dims(program: TileProgram) -> frozenset[str]:
    """Free dims that some inner dot or reduction sums over."""
    over = [s.k if isinstance(s, Dot) else s.over for s in program.statements() if isinstance(s, (Dot, Reduce))]
    return frozenset(d for dims in over for d in dims)


def chunked_dim(program: TileProgram) -> str | None:
    """The width that can be cut into chunks: the last one of the widest accumulators, if that is one dim. Every chunk's
    program computes what does not have it."""
    widths = [tuple(d for d in s.dims if d not in ("row", "col")) for s in program.states]
    most = max(map(len, widths), default=0)
    last = {w[-1] for w in widths if w and len(w) == most}
    return last.pop() if len(last) == 1 else None


def has_rows(program: TileProgram) -> bool:
    """Does any tile have a row dim? Without one a program walks columns alone, each as wide as what is kept of it."""
    return any("row" in dims for dims in tiles(program)[1:]) or any("row" in s.dims for s in program.states)


def has_tile_dot(program: TileProgram) -> bool:
    """Does some dot or matrix product run in the column loop? Without rows a dot with a vector is none: it is summed."""
    rows = has_rows(program)
    inner = any("col" in d.out.dims and (rows or (len(d.m), len(d.n)) == (1, 1)) for d in program.dots)
    return inner or any(u.wide is not None for level in program.levels for u in level.updates)


def tiles(program: TileProgram) -> list[tuple[str, ...]]:
    """The dims of every tile that the kernel makes, a dot's product excepted where the hardware forms it."""
    found: list[tuple[str, ...]] = [("row", "col")]
    for s in program.statements():
        found.append(s.out.dims)
        if isinstance(s, Reduce):
            found.append(s.x.dims)
        elif isinstance(s, Dot) and (len(s.k), len(s.m), len(s.n)) != (1, 1, 1):
            found.append(tuple({*s.a.dims, *s.b.dims}))
    for u in (u for level in program.levels for u in level.updates):
        if u.wide is None:
            found.append(tuple({*program.state(u.state).dims, *u.over}))
    return found


def rank(program: TileProgram) -> int:
    """The most dimensions that a tile of the program has."""
    return max(map(len, tiles(program)))
