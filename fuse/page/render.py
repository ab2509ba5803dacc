"""A report and its record as one page."""
from __future__ import annotations

import json
import re
from importlib.resources import files
from typing import Any

import torch

from fuse import __version__
from fuse.page.graph import gather, operations
from fuse.page.record import Record
from fuse.page.regions import Texts, misses, regions
from fuse.report import GraphReport, Report
from fuse.report_text import headline

SCRIPTS = ("vendor/cytoscape.min.js", "vendor/cytoscape-dagre.min.js", "picture.js", "page.js")


def render(report: Report, record: Record, title: str) -> str:
    """The page as HTML. It loads nothing: scripts, styles and data are inside, and its policy allows no connection."""
    parts = {"title": _escaped(title), "style": _file("page.css"), "data": _data(data(report, record, title)),
             "scripts": "\n".join(f"<script>{_script(name)}</script>" for name in SCRIPTS)}
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _file("template.html"))


def data(report: Report, record: Record, title: str) -> dict[str, Any]:
    """What page.js draws. Regions are numbered through all graphs: r0, r1, ..."""
    texts, graphs, first = Texts(), [], 0
    for i, graph in enumerate(report.graphs):
        graphs.append(_graph(graph, record, i, first))
        first += len(graph.regions)
    return {"title": title, "versions": f"fuse {__version__}, torch {torch.__version__}", "headline": headline(report),
            "graphs": graphs, "breaks": report.graph_breaks, "regions": regions(report, record, texts),
            "misses": misses(report, texts), "texts": texts.table}


def _graph(graph: GraphReport, record: Record, index: int, first: int) -> dict[str, Any]:
    found = operations(record.graphs[index])
    groups = gather(found, enumerate(graph.regions, first))
    return {"groups": groups, "nodes": [o.to_dict() for o in found],
            "edges": [[s.id, o.id] for o in found for s in o.sources]}


def _data(found: dict[str, Any]) -> str:
    """JSON that can stand in a script element."""
    return json.dumps(found, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")


def _file(name: str) -> str:
    return files("fuse.page").joinpath(name).read_text(encoding="utf-8")


def _script(name: str) -> str:
    """Without the reference to a source map, which would be looked for beside the page."""
    return re.sub(r"//# sourceMappingURL=\S+", "", _file(name)).strip()
