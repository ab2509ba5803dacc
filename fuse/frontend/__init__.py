"""From Dynamo's graph to programs: `find(graph, options)` returns what can be fused and why the rest cannot."""
from __future__ import annotations

from torch import fx

from fuse.frontend.candidates import Candidate, find_candidates
from fuse.frontend.importer import Imported, import_candidate
from fuse.frontend.supported import streamable, supported
from fuse.options import Options
from fuse.reasons import Miss

__all__ = ["Candidate", "Imported", "find", "import_candidate"]


def find(graph: fx.Graph | fx.GraphModule, options: Options | None = None) -> tuple[list[Imported], list[Miss]]:
    """The regions of one graph, in graph order, and a Miss for every refused candidate.

    Works on any graph whose nodes carry `example_value` (or `val`) metadata of one fake mode: Dynamo's graph, or the
    body of a higher-order op. The graph is not changed.
    """
    if isinstance(graph, fx.GraphModule):
        graph = graph.graph
    options = options or Options()
    candidates, misses = find_candidates(graph, options.virtual_floor)
    found: list[Imported] = []
    for candidate in candidates:
        miss = supported(candidate)
        if miss is None:
            imported = import_candidate(candidate)
            miss = streamable(imported.program, candidate) if isinstance(imported, Imported) else imported
            if isinstance(imported, Imported) and miss is None:
                found.append(imported)
        if miss is not None:
            misses.append(miss)
    return found, misses
