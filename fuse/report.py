"""What fuse did, and why not: a report per graph, with the user's own file and line for every region and every refusal.

`fuse.explain(fn, *args)` gives the report of a call without compiling anything but fuse's own kernels. The backend
writes the same report to the logger `fuse` (INFO: one line per graph), to TORCH_TRACE and to counters["fuse"].
"""
from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import torch

from fuse import private
from fuse.ir.kinds import KINDS, kind_of, kinds_of
from fuse.ir.program import Program
from fuse.reasons import Miss

__all__ = ["KINDS", "CarryReport", "GraphReport", "RegionReport", "Report", "WalkReport", "explain", "kind_of", "kinds_of"]
SCHEMA_VERSION = 3
PRIVATE = ("notes", "snapshots", "walks", "body", "nodes", "operands", "program")    # not in to_dict as they stand
log = logging.getLogger("fuse.report")


@dataclass(frozen=True)
class CarryReport:
    """What a walk keeps: `axes` it is kept for, `over` those it is accumulated along, `level` the sweep that computes it."""

    name: str
    kind: str
    axes: tuple[str, ...]
    over: tuple[str, ...]
    level: int
    relative_to: str | None
    dtype: str
    body: str


@dataclass(frozen=True)
class WalkReport:
    """One kernel: a walk, or several sweeps, along `streams` for every point of `grid`. Axes are `name:extent`.

    schedule    how the kernel walks its tile program: kind, tile extents, where its threads work
    eps         what the kernel may leave out of a gradient (`gradient_filter`), relative to the row's cotangent
    text        the region in the words of the IR; `source` what was made of it
    resources   compiles the kernel for its device, present or not, and says what it takes (see docs/cli.md)
    """

    name: str
    direction: str
    kind: str
    streams: tuple[str, ...]
    grid: tuple[str, ...]
    reverse: bool
    sweeps: int
    carries: tuple[CarryReport, ...]
    emits: tuple[str, ...]
    flops: int
    flops_formula: str
    schedule: str
    eps: float | None
    text: str
    source: str
    resources: Callable[[], list[dict[str, Any]]] = field(compare=False)

    def to_dict(self) -> dict[str, Any]:
        plain = {k: v for k, v in vars(self).items() if k != "resources"}
        return {**plain, "carries": [vars(c) for c in self.carries]}


@dataclass
class RegionReport:
    """One fused neighbourhood of the graph. Bytes and flops are for the sizes seen while compiling.

    streams        the axes that are walked, with their extents, forward walks only
    bytes_saved    storage of the values that plain PyTorch would store and fuse does not; `bytes_formula` by their sizes
    bytes_stored   of the results and of what the forward keeps for the backward
    flops          of the forward walks; each walk has its own, with a formula
    sizes          where every size symbol of the formulas is read
    walks          every kernel, forward and backward
    seconds        of each pass and of building the kernels; empty if another region of the process had the same plan
    snapshots      the program as text after every pass
    nodes          of the captured graph that the region took the place of, in its body number `body` (0: the graph itself)
    operands       the nodes that feed the inputs of `program`, which is what the region means, its axes named as in the walks
    """

    kinds: tuple[str, ...]
    where: str | None
    streams: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    bytes_saved: int = 0
    bytes_formula: str = "0"
    bytes_stored: int = 0
    flops: int = 0
    sizes: dict[str, str] = field(default_factory=dict)
    target: str = ""
    walks: tuple[WalkReport, ...] = ()
    notes: tuple[Miss, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    snapshots: dict[str, Callable[[], str]] = field(default_factory=dict)
    key: str = ""
    body: int = 0
    nodes: tuple[str, ...] = ()
    operands: tuple[str, ...] = ()
    program: Program | None = field(default=None, repr=False, compare=False)

    @property
    def schedules(self) -> dict[str, str]:
        """How each kernel walks, by its name."""
        return {w.name: w.schedule for w in self.walks if w.schedule}

    @property
    def filters(self) -> dict[str, float]:
        """eps of each kernel that may leave out negligible parts of a gradient."""
        return {w.name: w.eps for w in self.walks if w.eps is not None}

    @property
    def sources(self) -> dict[str, str]:
        """The text of every kernel, by its name."""
        return {w.name: w.source for w in self.walks if w.source}

    def to_dict(self) -> dict[str, Any]:
        plain = {k: v for k, v in vars(self).items() if k not in PRIVATE}
        return {**plain, "walks": [w.to_dict() for w in self.walks], "notes": [n.to_dict() for n in self.notes]}


@dataclass
class GraphReport:
    """One graph that Dynamo captured (a checkpointed body counts with the graph it is part of).

    `seconds`: what fuse spent on it, to find candidates, to plan them (passes and kernels), to edit the graph.
    """

    regions: list[RegionReport] = field(default_factory=list)
    misses: list[Miss] = field(default_factory=list)
    nodes: int = 0
    planned: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Adds what happens inside to the seconds of `stage`."""
        begun = perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + perf_counter() - begun

    def give_up(self, miss: Miss) -> None:
        """Everything that was fused is undone."""
        self.misses += [Miss(miss.code, region.where, miss.detail) for region in self.regions] or [miss]
        self.regions.clear()

    def line(self) -> str:
        fused = ", ".join(f"{next(iter(r.kinds), 'contraction')} at {r.where or '?'}" for r in self.regions) or "nothing"
        return f"fused {fused}; declined {len(self.misses)}"

    def to_dict(self) -> dict[str, Any]:
        return {"nodes": self.nodes, "regions": [r.to_dict() for r in self.regions],
                "misses": [m.to_dict() for m in self.misses], "seconds": self.seconds}


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
        from fuse.report_text import text_of

        return text_of(self)


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


Watch = Callable[[torch.fx.GraphModule, GraphReport], Callable[..., Any]]


def explain(fn: Callable[..., Any], *args: Any, fuse_options: dict[str, Any] | None = None,
            fuse_dynamic: bool | None = None, fuse_watch: Watch | None = None, **kwargs: Any) -> Report:
    """What fuse would do with `fn(*args, **kwargs)`. `fn` is a function, a module, or either of them compiled.

    The call runs in eager mode while Dynamo records it, side effects included. `fuse_options` are the options that
    torch.compile would be given, `fuse_dynamic` what it calls `dynamic`. `fuse_watch` is shown every captured graph with
    its report, and returns what is to run in its place. Whatever `fn` raises is raised.
    """
    from fuse.backend import fuse_graph
    from fuse.options import Options

    chosen, report = Options.parse(fuse_options), Report()

    places: dict[str, str] = {}

    def collect(gm: torch.fx.GraphModule, example_inputs: Any) -> Callable[..., Any]:
        report.graphs.append(fuse_graph(private.untouched_copy(gm), chosen))
        places.update(private.break_after(gm))
        return fuse_watch(gm, report.graphs[-1]) if fuse_watch else gm.forward
    before = private.graph_breaks()
    compiled: Callable[..., Any] = torch.compile(private.uncompiled(fn), backend=collect, dynamic=fuse_dynamic)
    compiled(*args, **kwargs)
    found = [reason for reason, count in private.graph_breaks().items() if count > before.get(reason, 0)]
    report.graph_breaks = [f"{places[reason]}: {reason}" if reason in places else reason for reason in found]
    return report
