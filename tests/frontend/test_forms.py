"""Every form in the wild is imported, and every value that leaves is the graph's own, in float64, with and without symbols."""
from __future__ import annotations

import contextlib

import pytest
import torch

from fuse.frontend import find
from fuse.frontend.candidates import find_candidates
from fuse.frontend.importer import Imported, import_candidate
from fuse.ir.verify import verify
from fuse.options import Options
from tests.forms_vocab import FORMS, Form, arguments
from tests.frontend.tracing import capture, error, graph_values, outputs_of

TOLERANCE = 1e-12


def check(gm, inputs):
    """Compares what leaves each region, and each candidate that can be imported but is refused."""
    regions, misses = find(gm, Options(min_virtual_bytes=0))
    candidates = find_candidates(gm.graph, 0)[0] if misses else []
    programs = [*regions, *(p for p in map(import_candidate, candidates) if isinstance(p, Imported))]
    values = graph_values(gm, inputs) if programs else {}
    worst = 0.0
    for imported in programs:
        verify(imported.program)
        found = outputs_of(imported.program, [values[n.name] for n in imported.inputs])
        for exit, output in zip(imported.exits, found, strict=True):
            worst = max(worst, error(output, values[exit.name]))
    return worst, regions, misses


def run(form: Form, dynamic: bool):
    context = torch.autocast("cpu", dtype=torch.bfloat16) if form.autocast else contextlib.nullcontext()
    with context:
        (found,) = capture(form.function, arguments(form), dynamic=dynamic, look=check)
    return found


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("name", FORMS)
def test_form(name: str, dynamic: bool) -> None:
    form = FORMS[name]
    if dynamic and not form.dynamic:
        pytest.skip("the form fixes its sizes")
    worst, regions, misses = run(form, dynamic)
    assert worst <= TOLERANCE
    assert tuple(m.code for m in misses) == form.misses, list(map(str, misses))
    assert len(regions) == form.regions
    assert all("forms_vocab.py:" in (m.where or "") for m in misses)
    for region in regions:
        assert len(region.program.anchors) == len(region.candidate.anchors)
