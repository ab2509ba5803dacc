"""A report as text for people: each region and each refusal with the user's own line."""
from __future__ import annotations

import linecache
from collections.abc import Iterable

from fuse.reasons import Miss, size_text
from fuse.report import CarryReport, GraphReport, RegionReport, Report, WalkReport


def text_of(report: Report) -> str:
    """What `print(fuse.explain(...))` shows."""
    return "\n".join([headline(report), *_breaks(report),
                      *(line for i, graph in enumerate(report.graphs) for line in _graph_lines(i, graph))])


def headline(report: Report) -> str:
    if not report.graphs:
        return "Dynamo captured no graph: nothing in the call is computed by torch operations that it can follow"
    count = f"{len(report.graphs)} graph{'s' * (len(report.graphs) != 1)}"
    return f"{count}, {len(report.regions)} fused, {len(report.misses)} declined"


def _breaks(report: Report) -> list[str]:
    return ["\n" + indented(f"graph break: {reason}") for reason in report.graph_breaks]


def _graph_lines(i: int, graph: GraphReport) -> list[str]:
    lines = [f"\ngraph {i} ({graph.nodes} nodes)"]
    for region, times in _alike(graph.regions):
        lines += _region_lines(region, times)
    for miss, times in _grouped(graph.misses):
        lines += _miss_lines(miss, times)
    if not graph.regions and not graph.misses:
        lines.append("  no value in it is much larger than what it is made from")
    return lines


def _alike(regions: list[RegionReport]) -> list[tuple[RegionReport, int]]:
    """Equal regions of one line, such as a model's layers, once, with their number."""
    counts: dict[object, tuple[RegionReport, int]] = {}
    for region in regions:
        key = (region.key or id(region), region.where)
        first, times = counts.get(key, (region, 0))
        counts[key] = first, times + 1
    return list(counts.values())


def _region_lines(region: RegionReport, times: int = 1) -> list[str]:
    rows = [("at", place(region.where)), ("walks", ", ".join(f"{s.rpartition(':')[2]} positions" for s in region.streams)),
            ("reads", _types(region.inputs)), ("gives", _types(region.outputs)),
            ("not stored", f"{size_text(region.bytes_saved)} = {region.bytes_formula} bytes" if region.bytes_saved else ""),
            ("sizes", "; ".join(f"{s} is {at}" for s, at in region.sizes.items())),
            ("forward", _flops(region.flops)), ("target", region.target)]
    for walk in region.walks:
        rows += _walk_rows(walk)
    rows += [("note", str(note)) for note in region.notes]
    count = f" ({times} times)" if times > 1 else ""
    return [f"  FUSED     {', '.join(region.kinds)}{count}"] + [f"    {name:<11}{text}" for name, text in rows if text]


def _walk_rows(walk: WalkReport) -> list[tuple[str, str]]:
    sweeps = f"{walk.sweeps} sweep{'s' * (walk.sweeps != 1)} along {' x '.join(walk.streams)}"
    grid = f" for each of {' x '.join(walk.grid)}" if walk.grid else ""
    formula = f" = {walk.flops_formula}" if walk.flops else ""
    rows = [("kernel", f"{walk.name}, {walk.direction} {walk.kind}: {sweeps}{grid}{', from the end' * walk.reverse}"),
            *(("  carries" if c is walk.carries[0] else " ", _carry(c)) for c in walk.carries),
            ("  emits", "; ".join(e.partition(" = ")[0] for e in walk.emits)),
            ("  work", f"{_flops(walk.flops)}{formula}" if walk.flops else ""), ("  schedule", walk.schedule)]
    if walk.eps is not None:
        rows.append(("  filter", f"may leave out what is below {walk.eps:.3g} of its row's cotangent"))
    return [(name, text) for name, text in rows if text]


def _carry(carry: CarryReport) -> str:
    """'c2: sum[a0, a1] in float32 relative to c0, sweep 2'"""
    relative = f" relative to {carry.relative_to}" if carry.relative_to else ""
    level = f", sweep {carry.level + 1}" if carry.level else ""
    axes = ", ".join(a.rpartition(":")[0] for a in carry.axes)
    return f"{carry.name}: {carry.kind}[{axes}] in {carry.dtype}{relative}{level}"


def _flops(count: int) -> str:
    return f"{count / 1e9:.3g} GFLOP" if count else ""


def _miss_lines(miss: Miss, times: int) -> list[str]:
    detail = f" ({miss.detail})" if miss.detail else ""
    rows = [("at", place(miss.where)), ("cause", miss.reason.cause + detail), ("hint", miss.reason.hint)]
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


def place(where: str | None) -> str:
    """'model.py:12   loss = ...', with the line itself where the file can be read."""
    file, _, line = (where or "").rpartition(":")
    text = linecache.getline(file, int(line)).strip() if file and line.isdigit() else ""
    return f"{where}   {text}" if text else where or "?"


def _types(buffers: Iterable[str]) -> str:
    """'x0: float32[3, 4]' -> 'float32[3, 4]': the names are the compiler's own."""
    return "; ".join(b.rpartition(": ")[2] for b in buffers)


def indented(text: str) -> str:
    """A message of several lines without what only its authors need."""
    lines = [line for line in text.splitlines() if line.strip() and "Developer debug context" not in line]
    return "\n".join([lines[0], *(f"  {line.strip()}" for line in lines[1:])])


def profile_text(report: Report) -> str:
    """What fuse spent on compiling, stage by stage and pass by pass, in milliseconds."""
    stages, passes = dict[str, float](), dict[str, float]()
    for table, found in ((stages, (g.seconds for g in report.graphs)), (passes, (r.seconds for r in report.regions))):
        for seconds in found:
            for name, value in seconds.items():
                table[name] = table.get(name, 0.0) + value
    shared = sum(not r.seconds for r in report.regions)
    lines = [f"fuse spent {sum(stages.values()) * 1e3:.1f} ms"]
    lines += [f"  {name:<15}{seconds * 1e3:>9.1f} ms" for name, seconds in stages.items()]
    lines += ["  of the plan:"] * bool(passes) + [f"    {name:<13}{seconds * 1e3:>9.1f} ms" for name, seconds in passes.items()]
    lines += [f"  {shared} of {len(report.regions)} regions share the plan of an equal one"] * bool(shared)
    return "\n".join(lines)
