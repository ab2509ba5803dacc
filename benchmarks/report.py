"""docs/benchmarks.md, made from the records: every case with all its arms, what fuse loses first, beside the goal."""
from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from os.path import relpath
from pathlib import Path
from typing import Any

from benchmarks import records
from benchmarks.records import Record

GOAL = 0.8     # of the time of the best peer, at no more memory
MODES = ("forward", "backward", "both")
# Arms that compute something else, or that are variants of fuse: nothing to compare with.
APPROXIMATE = ("cut_cross_entropy",)
Group = tuple[str, str, str, str, str]
INTRODUCTION = """# Benchmarks

Made by `python benchmarks/run.py --report` from the records in `benchmarks/results`; `make bench` measures (and
`fuse bench` from a checkout; `python benchmarks/run.py --help` lists what can be chosen).

The arms of a case take turns in one process, so that a slow moment of the machine hits all of them: read the ratios. Times are
medians in milliseconds, with the 20th and 80th percentiles where they were recorded; the peak is what a fresh process grows by in
one warm step, above its inputs, so that gradients count. The error is the largest difference of the output and of all gradients
to float64, relative to the largest element of each. **Wrong** is what errs more than four times as much as eager mode plus two
roundings of the type. The floor is what the bytes of inputs and results take at the machine's copy rate, or the products at its
GEMM rate, whichever is longer; "of it" is the share that an arm reaches. Arms that are `absent` could not run on that machine.

The goal is {goal:.1f} of the time of the best exact peer, at no more memory.
"""


def write(folder: Path, page: Path) -> int:
    """Writes the page; returns the exit code: 2 if there is nothing to report."""
    found = records.latest(records.read(folder))
    if not found:
        print(f"there are no records in {folder}")
        return 2
    pictures = {p.stem: relpath(p, page.parent) for p in sorted((folder / "plots").glob("*.svg"))}
    page.write_text(text(found, pictures))
    return 0


def text(found: Sequence[Record], pictures: dict[str, str] | None = None) -> str:
    """The page. `pictures` are paths by the name of their sweep."""
    groups = grouped(found)
    parts = [INTRODUCTION.format(goal=GOAL), summary(groups)]
    suite = ""
    for key, rows in groups.items():
        if key[0] != suite:
            suite = key[0]
            parts.append(f"## {suite}\n")
        parts.append(section(key, rows))
    parts += [f"![{name}]({path})\n" for name, path in (pictures or {}).items()]
    return "\n".join(parts)


def grouped(found: Iterable[Record]) -> dict[Group, list[Record]]:
    """(suite, case, sizes, type, machine) -> its rows, in the order of the suites."""
    groups: defaultdict[Group, list[Record]] = defaultdict(list)
    for r in found:
        stamp = r["environment"]
        where = stamp["gpu"] or f"{stamp['threads']} threads of {stamp['machine']}"
        sizes = " ".join(f"{k}={v}" for k, v in r["sizes"].items())
        groups[r["suite"], r["case"], sizes, r["dtype"], where].append(r)
    order = ("vocab", "attention", "flow", "scan", "models")
    return dict(sorted(groups.items(), key=lambda g: (order.index(g[0][0]) if g[0][0] in order else len(order), g[0][1:])))


# ---- fuse against the best peer --------------------------------------------------------------------------------------

def ratio(rows: Iterable[Record], mode: str, metric: str = "median_ms") -> tuple[float, str] | None:
    """fuse's share of the best exact and right peer's, and which peer that is."""
    measured = {r["arm"]: r[metric] for r in rows if r["mode"] == mode and r["status"] == "ok" and metric in r}
    mine = measured.get("fuse")
    peers = {a: v for a, v in measured.items() if not a.startswith("fuse") and a not in APPROXIMATE and v > 0}
    if mine is None or not peers:
        return None
    best = min(peers, key=lambda a: peers[a])
    return mine / peers[best], best


def judged(time: float, memory: float) -> str:
    if time > 1:
        return "**slower**"
    return "reached" if time <= GOAL and memory <= 1 else "not reached"


def summary(groups: dict[Group, list[Record]]) -> str:
    """A line for each case, what fuse loses first."""
    lines = []
    for (_, case, sizes, dtype, where), rows in groups.items():
        whole, alone, memory = ratio(rows, "both"), ratio(rows, "forward"), ratio(rows, "both", "peak_mb")
        if whole:
            found = [f"{case} {sizes}".strip(), dtype, short(where), share(alone), share(whole), whole[1], share(memory)]
            lines.append((whole[0], row([*found, judged(whole[0], memory[0] if memory else 0)])))
    head = ["case", "type", "on", "forward", "forward + backward", "best peer", "memory", "goal"]
    return "\n".join(["## fuse's share of the best peer", "", row(head), "|" + "---|" * len(head),
                      *(line for _, line in sorted(lines, reverse=True)), ""])


def share(found: tuple[float, str] | None) -> str:
    return f"{found[0]:.2f}" if found else ""


def short(where: str) -> str:
    return " ".join(w for w in where.split() if w not in ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "Processor"))


def row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


# ---- one case --------------------------------------------------------------------------------------------------------

def section(key: Group, rows: Sequence[Record]) -> str:
    _, case, sizes, dtype, where = key
    arms: defaultdict[str, dict[str, Record]] = defaultdict(dict)
    for r in rows:
        arms[r["arm"]][r["mode"]] = r
    head = ["arm", *(f"{m}, ms" for m in MODES), "peak, MB", "error", "floor, ms", "of it", "cold, s", "warm, s"]
    used = [i for i, _ in enumerate(head) if any(cells(a, m)[i] for a, m in arms.items())]
    table = [row(head[i] for i in used), "|" + "---|" * len(used)]
    table += [row(cells(a, m)[i] for i in used) for a, m in arms.items()]
    stamp = rows[-1]["environment"]
    versions = ", ".join(f"{p} {stamp[p]}" for p in ("torch", "triton") if p in stamp)
    said = next((f" fuse: {r['fused']}." for r in rows if r.get("fused")), "")
    return "\n".join([f"### {' '.join(filter(None, (case, sizes, dtype)))}", "", f"{where}, {versions}.{said}", "", *table, ""])


def cells(arm: str, modes: dict[str, Record]) -> list[str]:
    both = modes.get("both") or next(iter(modes.values()))
    if "reason" in both:
        return [arm, "", "", f"{both['status']}: {both['reason']}", "", "", "", "", "", ""]
    numbers = {"floor_ms": ".3g", "roofline": ".0%", "cold_s": ".1f", "warm_s": ".1f"}
    return [arm, *(time_of(modes.get(m, {})) for m in MODES), shown(both, "peak_mb", ".1f"), error_of(both),
            *(shown(both, name, form) for name, form in numbers.items())]


def shown(record: Record, name: str, form: str) -> str:
    value: Any = record.get(name)
    return format(value, form) if value is not None else ""


def time_of(record: Record) -> str:
    if "median_ms" not in record:
        return ""
    spread = f" ({record['p20_ms']:.4g} .. {record['p80_ms']:.4g})" if "p20_ms" in record else ""
    return f"{record['median_ms']:.4g}{spread}"


def error_of(record: Record) -> str:
    found = f"{max(record['errors']):.1e}" if "errors" in record else ""
    return f"{found} **wrong**".strip() if record["status"] == "wrong" else found
