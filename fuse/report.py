"""What fuse did, and why not: a report per graph, with the user's own file and line for every region and every refusal.

`fuse.explain(fn, *args)` gives the report of a call without compiling anything but fuse's own kernels. The backend
writes the same report to the logger `fuse` (INFO: one line per graph), to TORCH_TRACE and to counters["fuse"].
"""
from __future__ import annotations

import linecache
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch

from fuse import private
from fuse.ir.kinds import KINDS, kind_of, kinds_of
from fuse.reasons import Miss, size_text

__all__ = ["KINDS", "GraphReport", "RegionReport", "Report", "explain", "kind_of", "kinds_of"]
SCHEMA_VERSION = 1
log = logging.getLogger("fuse.report")


@dataclass
class RegionReport:
    """One fused neighbourhood of the graph. Bytes and flops are for the sizes seen while compiling.

    streams       the axes that are walked, with their extents, forward regions only
    bytes_saved   storage of the values that plain PyTorch would store and fuse does not
    flops         of one forward walk
    schedules     how each kernel walks its tile program: kind, tile extents, where its threads work
    filters       eps of each kernel that may leave out negligible parts of a gradient (`gradient_filter`), by region name
    sources       the text of every kernel, by region name
    snapshots     the program as text after every pass
    """

    kinds: tuple[str, ...]
    where: str | None
    streams: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    bytes_saved: int = 0
    flops: int = 0
    target: str = ""
    schedules: dict[str, str] = field(default_factory=dict)
    filters: dict[str, float] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    notes: tuple[Miss, ...] = ()
    snapshots: dict[str, Callable[[], str]] = field(default_factory=dict)
    key: str = ""

    def to_dict(self) -> dict[str, Any]:
        plain = {k: v for k, v in vars(self).items() if k not in ("notes", "snapshots")}
        return {**plain, "notes": [n.to_dict() for n in self.notes]}


@dataclass
class GraphReport:
    """One graph that Dynamo captured (a checkpointed body counts with the graph it is part of)."""

    regions: list[RegionReport] = field(default_factory=list)
    misses: list[Miss] = field(default_factory=list)
    nodes: int = 0
    planned: int = 0

    def give_up(self, miss: Miss) -> None:
        """Everything that was fused is undone."""
        self.misses += [Miss(miss.code, region.where, miss.detail) for region in self.regions] or [miss]
        self.regions.clear()

    def line(self) -> str:
        fused = ", ".join(f"{next(iter(r.kinds), 'contraction')} at {r.where or '?'}" for r in self.regions) or "nothing"
        return f"fused {fused}; declined {len(self.misses)}"

    def to_dict(self) -> dict[str, Any]:
        return {"nodes": self.nodes, "regions": [r.to_dict() for r in self.regions],
                "misses": [m.to_dict() for m in self.misses]}


@dataclass
class Report:
    """`str(report)` is a table for people, `to_dict()` the same for programs (`schema` grows when a field changes)."""

    graphs: list[GraphReport] = field(default_factory=list)
    graph_breaks: list[str] = field(default_factory=list)

    @property
    def regions(self) -> list[RegionReport]:
        return [r for g in self.graphs for r in g.regions]

    @property
    def misses(self) -> list[Miss]:
        return [m for g in self.graphs for m in g.misses]

    def to_dict(self) -> dict[str, Any]:
        return {"schema": SCHEMA_VERSION, "graphs": [g.to_dict() for g in self.graphs],
                "graph_breaks": self.graph_breaks}

    def __str__(self) -> str:
        count = f"{len(self.graphs)} graph{'s' * (len(self.graphs) != 1)}"
        lines = [f"{count}, {len(self.regions)} fused, {len(self.misses)} declined"]
        lines += ["\n" + _indented(f"graph break: {reason}") for reason in self.graph_breaks]
        for i, graph in enumerate(self.graphs):
            lines.append(f"\ngraph {i} ({graph.nodes} nodes)")
            for region in graph.regions:
                lines += _region_lines(region)
            for miss, times in _grouped(graph.misses):
                lines += _miss_lines(miss, times)
            if not graph.regions and not graph.misses:
                lines.append("  no value in it is much larger than what it is made from")
        return "\n".join(lines)


def _region_lines(region: RegionReport) -> list[str]:
    schedules = "; ".join(f"{name} {schedule}" for name, schedule in region.schedules.items())
    rows = [("at", _place(region.where)), ("walks", ", ".join(f"{s.rpartition(':')[2]} positions" for s in region.streams)),
            ("reads", _types(region.inputs)), ("gives", _types(region.outputs)),
            ("not stored", size_text(region.bytes_saved) if region.bytes_saved else ""),
            ("forward", f"{region.flops / 1e9:.3g} GFLOP" if region.flops else ""),
            ("kernels", f"{region.target}: {schedules}" if schedules else region.target)]
    rows += [("filter", f"{name} may leave out what is below {eps:.3g} of its row's cotangent")
             for name, eps in region.filters.items()]
    rows += [("note", str(note)) for note in region.notes]
    return [f"  FUSED     {', '.join(region.kinds)}"] + [f"    {name:<11}{text}" for name, text in rows if text]


def _miss_lines(miss: Miss, times: int) -> list[str]:
    detail = f" ({miss.detail})" if miss.detail else ""
    rows = [("at", _place(miss.where)), ("cause", miss.reason.cause + detail), ("hint", miss.reason.hint)]
    count = f" ({times} times)" if times > 1 else ""
    return [f"  DECLINED  {miss.code}{count}"] + [f"    {name:<11}{text}" for name, text in rows]


def _grouped(misses: list[Miss]) -> list[tuple[Miss, int]]:
    """Equal refusals once, with their number; what is merely small comes last."""
    counts: dict[tuple[str, str | None, str], tuple[Miss, int]] = {}
    for miss in misses:
        key = miss.code, miss.where, miss.detail
        first, times = counts.get(key, (miss, 0))
        counts[key] = first, times + 1
    return sorted(counts.values(), key=lambda found: found[0].code == "TOO_SMALL")


def _place(where: str | None) -> str:
    """'model.py:12   loss = ...', with the line itself where the file can be read."""
    file, _, line = (where or "").rpartition(":")
    text = linecache.getline(file, int(line)).strip() if file and line.isdigit() else ""
    return f"{where}   {text}" if text else where or "?"


def _types(buffers: Iterable[str]) -> str:
    """'x0: float32[3, 4]' -> 'float32[3, 4]': the names are the compiler's own."""
    return "; ".join(b.rpartition(": ")[2] for b in buffers)


def _indented(text: str) -> str:
    """A message of several lines without what only its authors need."""
    lines = [line for line in text.splitlines() if line.strip() and "Developer debug context" not in line]
    return "\n".join([lines[0], *(f"  {line.strip()}" for line in lines[1:])])


def publish(report: GraphReport) -> None:
    """Counts, one log line, and an artifact for tlparse. Silent for a graph in which nothing amplifies."""
    if not report.regions and not report.misses:
        return
    counters = private.counters()
    counters["fused"] += len(report.regions)
    counters["declined"] += len(report.misses)
    log.info("%s", report.line())
    for miss in report.misses:
        log.debug("declined %s", miss)
    private.trace_artifact("fuse_report", lambda: {"schema": SCHEMA_VERSION, **report.to_dict()})


def explain(fn: Callable[..., Any], *args: Any, fuse_options: dict[str, Any] | None = None, **kwargs: Any) -> Report:
    """What fuse would do with `fn(*args, **kwargs)`. `fn` is a function, a module, or either of them compiled.

    The call runs in eager mode while Dynamo records it, side effects included. `fuse_options` are the options that
    torch.compile would be given. Whatever `fn` raises is raised.
    """
    from fuse.backend import fuse_graph
    from fuse.options import Options

    chosen, report = Options.parse(fuse_options), Report()

    places: dict[str, str] = {}

    def collect(gm: torch.fx.GraphModule, example_inputs: Any) -> Callable[..., Any]:
        report.graphs.append(fuse_graph(private.untouched_copy(gm), chosen))
        places.update(private.break_after(gm))
        return gm.forward
    before = private.graph_breaks()
    compiled: Callable[..., Any] = torch.compile(private.uncompiled(fn), backend=collect)
    compiled(*args, **kwargs)
    found = [reason for reason, count in private.graph_breaks().items() if count > before.get(reason, 0)]
    report.graph_breaks = [f"{places[reason]}: {reason}" if reason in places else reason for reason in found]
    return report
