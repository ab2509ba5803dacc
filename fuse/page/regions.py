"""What a page shows of each region and each refusal. Equal regions of one line are shown once, with their number."""
from __future__ import annotations

import base64
import linecache
from typing import Any

import torch

from fuse.page.highlight import marked
from fuse.page.interaction import Interaction, interaction
from fuse.page.record import Record, pictured, streams_of
from fuse.reasons import Miss
from fuse.report import RegionReport, Report, WalkReport

AROUND = 3                  # lines of the user's source before and after the one that is meant
MAX_MATRIX = 1 << 16        # entries of all matrices of one region


class Texts:
    """Every text once, though many kernels may share it."""

    def __init__(self) -> None:
        self.table: list[dict[str, str]] = []
        self.known: dict[tuple[str, str], int] = {}

    def add(self, text: str, language: str) -> int:
        """Where in the table the text stands."""
        if (text, language) not in self.known:
            self.known[text, language] = len(self.table)
            self.table.append(marked(text, language))
        return self.known[text, language]


def regions(report: Report, record: Record, texts: Texts) -> list[dict[str, Any]]:
    """Every region of the report, numbered through all graphs; `twin` is the number of the first that is equal."""
    found: list[dict[str, Any]] = []
    first: dict[Any, int] = {}
    for g, graph in enumerate(report.graphs):
        chosen = {id(r) for r in pictured(graph.regions)}
        for region in graph.regions:
            twin = first.setdefault((region.key or id(region), region.where, g), len(found))
            shown = {"id": f"r{len(found)}", "graph": g, "kind": next(iter(region.kinds), "contraction"), "twin": f"r{twin}",
                     "where": region.where, "saved": region.bytes_saved, "stored": region.bytes_stored}
            if twin == len(found):
                shown |= _region(region, texts)
                shown["interaction"] = _interaction(g, region, record) if id(region) in chosen else None
            found.append(shown)
    return found


def _region(region: RegionReport, texts: Texts) -> dict[str, Any]:
    start = next(iter(region.snapshots), None)
    return {"kinds": region.kinds, "inputs": region.inputs, "outputs": region.outputs, "streams": region.streams,
            "sizes": region.sizes, "formula": region.bytes_formula, "flops": region.flops, "target": region.target,
            "source": source(region.where, texts), "notes": [_miss(n, texts) for n in region.notes],
            "expression": texts.add(region.snapshots[start](), "ir") if start else None,
            "walks": [_walk(w, region.target, texts) for w in region.walks]}


def _walk(walk: WalkReport, target: str, texts: Texts) -> dict[str, Any]:
    plain = {k: v for k, v in walk.to_dict().items() if k not in ("text", "source")}
    return {**plain, "ir": texts.add(walk.text, "ir"),
            "code": texts.add(walk.source, "cpp" if target == "cpu" else "python") if walk.source else None,
            "lines": walk.source.count("\n")}


def misses(report: Report, texts: Texts) -> list[dict[str, Any]]:
    """Every refusal, equal ones once; what is merely small comes last."""
    found: dict[Any, dict[str, Any]] = {}
    for g, graph in enumerate(report.graphs):
        for miss in graph.misses:
            shown = found.setdefault((miss.code, miss.where, miss.detail), {**_miss(miss, texts), "graph": g, "times": 0})
            shown["times"] += 1
    return sorted(found.values(), key=lambda m: m["code"] == "TOO_SMALL")


def _miss(miss: Miss, texts: Texts) -> dict[str, Any]:
    return {**miss.to_dict(), "source": source(miss.where, texts)}


def source(where: str | None, texts: Texts) -> dict[str, Any] | None:
    """The user's lines around `where`, if the file can be read: the number of the first, and which is meant."""
    file, _, number = (where or "").rpartition(":")
    lines = linecache.getlines(file) if file and number.isdigit() else []
    line = int(number) if lines else 0
    if not 0 < line <= len(lines):
        return None
    start = max(line - AROUND, 1)
    text = "".join(lines[start - 1:line + AROUND]).rstrip()
    return {"first": start, "line": line, "text": texts.add(text, "python")}


def _interaction(graph: int, region: RegionReport, record: Record) -> dict[str, Any] | str:
    env = record.environment(graph, region)
    if env is None or region.program is None:
        return "the values that enter it were not kept"
    found = interaction(region.program, env, streams_of(region), record.parameters(graph, region))
    return found if isinstance(found, str) else _pictured(found, region)


def _pictured(found: Interaction, region: RegionReport) -> dict[str, Any]:
    """As many channels as a page has room for, each entry in 16 bits of the channel's largest magnitude."""
    channels, rows, columns = found.weights.shape
    shown = found.weights[:max(1, MAX_MATRIX // (rows * columns))]
    largest = shown.abs().amax((1, 2)).clamp(min=torch.finfo(torch.float64).tiny)
    digits = (shown / largest[:, None, None] * 32767).round().to(torch.int16)
    return {"values": found.values, "from": region.operands[found.operand], "implicit": found.implicit, "rows": rows,
            "columns": columns, "channels": found.channels, "count": channels, "example": found.example,
            "heads": found.heads, "nearly": found.nearly, "largest": largest.tolist(),
            "digits": base64.b64encode(digits.numpy().astype("<i2").tobytes()).decode()}
