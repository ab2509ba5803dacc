"""Linear recurrences in a graph, however they are written: each idiom is one file that proves what it recognises."""
from __future__ import annotations

from torch import fx

from fuse.frontend.bodies import find_bodies
from fuse.frontend.calls import find_calls
from fuse.frontend.candidates import Candidate
from fuse.frontend.convolutions import find_convolutions
from fuse.frontend.logspace import find_logspace
from fuse.frontend.loops import find_loops
from fuse.frontend.scope import Scope
from fuse.frontend.trees import find_trees
from fuse.reasons import Miss

IDIOMS = (find_calls, find_loops, find_bodies, find_trees, find_logspace, find_convolutions)


def find_scans(graph: fx.Graph) -> tuple[list[Candidate], list[Miss]]:
    """Candidates for scans, and a Miss for each recurrence that is none. One look at each node of a graph without them."""
    scope = Scope(graph)
    found: list[Candidate] = []
    misses: list[Miss] = []
    for idiom in IDIOMS:
        candidates, more = idiom(scope)
        found += candidates
        misses += more
    return found, misses
