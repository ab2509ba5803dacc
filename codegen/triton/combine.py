"""The parts of a sweep's splits joined: row vectors (and accumulators) of a few splits, in plain torch."""
from __future__ import annotations

from collections.abc import Mapping
from math import comb

import torch
from torch import Tensor

from fuse.codegen.tile import TileProgram, Update
from fuse.ir.program import Kind


def combine(program: TileProgram, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`parts[name]` has the splits first. The rules are those of `tile.Update` with a split in place of a tile."""
    out: dict[str, Tensor] = {}
    for u in program.levels[0].updates:
        part = parts[u.state + ".m"] if u.kind is Kind.LSE else parts[u.state]
        match u.kind:
            case Kind.LSE:
                m = part.amax(0)
                rho = torch.exp(part - finite(m))
                out[u.state + ".m"], out[u.state + ".l"] = m, (parts[u.state + ".l"] * rho).sum(0)
            case Kind.MAX:
                out[u.state] = part.amax(0)
            case Kind.ARGMAX:
                best = first_best(parts[u.state + ".v"])[None]
                out[u.state], out[u.state + ".v"] = (parts[u.state + s].gather(0, best)[0] for s in ("", ".v"))
            case Kind.SUM if u.relative is None:
                out[u.state] = part.sum(0)
            case Kind.SUM:
                out[u.state] = relative(program, u, parts)
    return out


def finite(m: Tensor) -> Tensor:
    return torch.where(m == float("-inf"), 0.0, m)


def first_best(values: Tensor) -> Tensor:
    """The first split that holds the maximum; nan is the largest."""
    top = values.amax(0)
    hit = (values == top) | ((values != values) & (top != top))
    return (hit.cumsum(0) == 0).sum(0)


def relative(program: TileProgram, u: Update, parts: Mapping[str, Tensor]) -> Tensor:
    """sum over splits of rho**k sum_j C(n, j) delta**(n - j) T_j with delta = m_split - m, nothing where m_split = -inf."""
    m = parts[f"{u.relative}.m"]
    g = finite(m.amax(0))
    extra = parts[u.state].dim() - m.dim()
    delta = torch.where(m == float("-inf"), 0.0, m - g)
    rho = torch.exp(delta * u.exponent)
    delta, rho = (x.reshape(*x.shape, *[1] * extra) for x in (delta, rho))
    total = parts[u.state]
    for j in range(u.moment):
        total = total + comb(u.moment, j) * delta ** (u.moment - j) * parts[u.lower[j]]
    return (total * rho).sum(0)
