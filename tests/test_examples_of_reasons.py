"""The examples of `fuse explain`: each is declined as it says, and what it says to write instead is fused."""
from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import fuse
from fuse.reasons import REASONS
from fuse.reasons_examples import EXAMPLES
from tests.plain import quick_builds  # noqa: F401 (fixture)

# Codes of circumstances (a machine, an option, a wrapper): their examples are not refused by themselves.
SAID = ("TOO_SMALL", "NOT_WORTH_IT", "DTENSOR", "UNBOUND_SIZE", "NO_COMPILER", "BUILD_FAILED", "LAUNCH_FAILED",
        "INTERNAL", "FUEL")


def report_of(text):
    world = {"torch": torch, "F": F}
    exec(text, world)
    torch.manual_seed(0)
    h, W = torch.randn(24, 8, requires_grad=True), torch.randn(96, 8, requires_grad=True)
    return fuse.explain(world["f"], h, W, torch.randint(0, 96, (24,)), fuse_options={"min_virtual_bytes": 0})


def test_every_code_has_an_example():
    assert REASONS.keys() <= EXAMPLES.keys()
    for example in EXAMPLES.values():
        compile(example.before, "before", "exec")


@pytest.mark.slow
@pytest.mark.parametrize("code", [code for code in REASONS if code not in SAID])
def test_examples_say_what_happens(code, quick_builds):  # noqa: F811
    report = report_of(EXAMPLES[code].before)
    found = report.misses + [note for region in report.regions for note in region.notes]
    assert code in {m.code for m in found}, str(report)
    if EXAMPLES[code].after:
        report = report_of(EXAMPLES[code].after)
        assert report.regions and not report.misses, str(report)
