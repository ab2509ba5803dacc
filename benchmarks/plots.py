"""Time and peak memory over the size that is swept, log-log, with the physical floor drawn in."""
from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.records import LABELS, Record

# Okabe and Ito's colours, told apart by most eyes; an arm keeps its own in every plot.
COLOURS = {"eager": "#999999", "inductor": "#56B4E9", "auto_chunker": "#0072B2", "fuse": "#D55E00",
           "fuse-least-memory": "#E69F00", "linear_cross_entropy": "#CC79A7", "sdpa": "#009E73",
           "flex_attention": "#F0E442"}
METRICS = {"median_ms": ("floor_ms", "ms, forward and backward"), "peak_mb": ("floor_mb", "MB above the inputs")}
Curve = list[tuple[int, float]]


def sweeps(records: Iterable[Record]) -> dict[tuple[str, ...], list[Record]]:
    """(suite, case, size, dtype, device) -> the rows of whole steps that differ in that size alone, if there are several."""
    whole = [r for r in records if r["mode"] == "both" and r["sizes"]]
    found: dict[tuple[str, ...], list[Record]] = {}
    for x, line in {(r["x"], _line(r, r["x"])) for r in whole if r["x"]}:
        rows = [r for r in whole if x in r["sizes"] and _line(r, x) == line]
        if len({r["sizes"][x] for r in rows}) > 1:
            first = rows[0]
            found[first["suite"], first["case"], x, first["dtype"], first["device"]] = rows
    return dict(sorted(found.items()))


def _line(record: Record, x: str) -> tuple[Any, ...]:
    """What all points of a curve share."""
    others = tuple((k, v) for k, v in record["sizes"].items() if k != x)
    stamp = record["environment"]
    return (*(record[k] for k in ("suite", "case", "dtype", "device")), others, stamp["gpu"] or stamp["machine"])


def curves(rows: Sequence[Record], x: str, metric: str) -> dict[str, Curve]:
    """Arm -> points in order. What is wrong is not drawn."""
    found: defaultdict[str, Curve] = defaultdict(list)
    for row in rows:
        if metric in row and row["status"] == "ok":
            found[row["arm"]].append((row["sizes"][x], row[metric]))
    return {arm: sorted(points) for arm, points in found.items()}


def floor_of(rows: Sequence[Record], x: str, name: str) -> Curve:
    """The floor of the time, or the bytes of the results, which have to be somewhere."""
    return sorted({r["sizes"][x]: r[name] for r in rows if name in r}.items())


def draw(records: Iterable[Record], folder: Path) -> list[Path]:
    """One picture for each sweep, as SVG and PNG. ImportError without matplotlib; no pictures without sweeps."""
    found = sweeps(records)
    if not found:
        return []
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.hashsalt": "fuse", "font.size": 9})     # equal records, equal files
    folder.mkdir(parents=True, exist_ok=True)
    return [path for key, rows in found.items() for path in _picture(key, rows, folder)]


def _picture(key: tuple[str, ...], rows: Sequence[Record], folder: Path) -> list[Path]:
    from matplotlib.figure import Figure

    _, case, x, dtype, device = key
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, (metric, (bottom, label)) in zip(figure.subplots(1, 2), METRICS.items(), strict=True):
        for arm, points in curves(rows, x, metric).items():
            axes.plot(*zip(*points, strict=True), "o-", ms=3, lw=2 if arm == "fuse" else 1.2, color=COLOURS.get(arm), label=arm)
        if points := floor_of(rows, x, bottom):
            axes.plot(*zip(*points, strict=True), "k:", lw=1, label="floor")
        axes.set(xscale="log", yscale="log", xlabel=f"{x} ({LABELS.get(x, x)})", ylabel=label)
        axes.grid(True, which="both", lw=0.3)
    figure.axes[0].legend(fontsize=7)
    figure.suptitle(f"{case}, {dtype}, {device}")
    paths = [folder / f"{file_name(key)}.{suffix}" for suffix in ("svg", "png")]
    for path in paths:
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=150)
    return paths


def file_name(key: Sequence[str]) -> str:
    return re.sub(r"[^A-Za-z0-9.-]+", "-", "-".join(key))
