"""From Dynamo's graph to programs: `find(graph, options)` returns what can be fused and why the rest cannot."""
from __future__ import annotations

from torch import fx

from fuse.frontend.absorb import with_tail
from fuse.frontend.candidates import Candidate, find_candidates
from fuse.frontend.cascades import find_cascades
from fuse.frontend.einsums import split_einsums
from fuse.frontend.importer import Imported, import_candidate
from fuse.frontend.scans import find_scans
from fuse.frontend.supported import streamable, worthwhile
from fuse.frontend.upstream import one_walk, with_sources
from fuse.log import miss_of
from fuse.options import Options
from fuse.reasons import Miss

__all__ = ["Candidate", "Imported", "find", "import_candidate"]


def find(graph: fx.Graph | fx.GraphModule, options: Options | None = None,
         outermost: bool = True) -> tuple[list[Imported], list[Miss]]:
    """The regions of one graph, in graph order, and a Miss for every refused candidate.

    Works on any graph whose nodes carry `example_value` (or `val`) metadata of one fake mode: Dynamo's graph, or the
    body of a higher-order op (which is not `outermost`). The graph keeps its meaning; only an einsum of many operands may be
    respelled (einsums.py).
    """
    if isinstance(graph, fx.GraphModule):
        graph = graph.graph
    options = options or Options()
    split_einsums(graph)
    found, misses = _scans(graph)
    taken = {n for imported in found for n in imported.candidate.virtual}
    candidates, more = find_candidates(graph, options.virtual_floor, taken, outermost)
    alone = len(candidates) == 1
    large, refused = _import_all(candidates, options, alone)
    found += large
    cascades, unpaid = find_cascades(graph, [i.candidate for i in found], options.virtual_floor)    # of what is left
    more_found, failed = _import_all(cascades, options, alone)
    return found + more_found, misses + more + unpaid + refused + failed


def _import_all(candidates: list[Candidate], options: Options, alone: bool) -> tuple[list[Imported], list[Miss]]:
    found: list[Imported] = []
    misses: list[Miss] = []
    for candidate in candidates:
        try:
            imported = _imported(candidate, options, alone)
        except Exception as error:    # a candidate that breaks the importer costs that candidate alone
            imported = miss_of(error, candidate.where)
        if isinstance(imported, Miss):
            misses.append(imported)
        else:
            found.append(imported)
    return found, misses


def _scans(graph: fx.Graph) -> tuple[list[Imported], list[Miss]]:
    """Linear recurrences, however they are written. What is none of them is looked at again by the others."""
    try:
        candidates, misses = find_scans(graph)
        found = [import_candidate(c) for c in candidates]
    except Exception as error:    # what breaks the recognisers costs the scans alone
        return [], [miss_of(error)]
    return [i for i in found if isinstance(i, Imported)], misses + [i for i in found if isinstance(i, Miss)]


def _imported(candidate: Candidate, options: Options, alone: bool) -> Imported | Miss:
    if not candidate.anchors:
        return import_candidate(candidate)
    miss = worthwhile(candidate) if options.virtual_floor else None
    if miss is not None:
        return miss
    chain = with_sources(candidate)
    chained = _streamable(chain) if chain is not None else None
    if isinstance(chained, Imported) and one_walk(chained.program):
        return chained
    whole = with_tail(candidate) if alone else None    # a tail may join two regions: it is neither's
    found = _streamable(whole) if whole is not None else None
    return found or _streamable(candidate)


def _streamable(candidate: Candidate) -> Imported | Miss:
    imported = import_candidate(candidate)
    if isinstance(imported, Miss):
        return imported
    miss = streamable(imported.program, candidate)
    return imported if miss is None else miss
