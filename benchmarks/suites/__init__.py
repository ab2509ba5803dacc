"""One module per suite: its cases and its table of arms."""
from __future__ import annotations

from benchmarks.cases import Suite
from benchmarks.suites import attention, flow, scan, vocab

SUITES: dict[str, Suite] = {"vocab": vocab.SUITE, "attention": attention.SUITE, "flow": flow.SUITE, "scan": scan.SUITE}
