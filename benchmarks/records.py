"""Records on disk: a line of JSON for each row, never rewritten, and the same in the columns of Liger's benchmarks.

What was recorded before there were such lines (results/*.json) is read as well.
"""
from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

Record = dict[str, Any]
SCHEMA = 1
LINES, TABLE = "runs.jsonl", "all_benchmark_data.csv"
# benchmark/data/all_benchmark_data.csv of github.com/linkedin/Liger-Kernel, so that its tools read ours.
COLUMNS = ("kernel_name", "kernel_provider", "kernel_operation_mode", "metric_name", "metric_unit", "x_name", "x_label",
           "x_value", "y_value_50", "y_value_20", "y_value_80", "extra_benchmark_config_str",
           "gpu_name", "timestamp", "liger_version")
OPERATIONS = {"forward": "forward", "backward": "backward", "both": "full"}
KEY = ("suite", "case", "sizes", "dtype", "device", "arm", "mode")
LABELS = {"N": "rows", "N_state": "size of the state", "V": "vocabulary", "L": "sequence length", "d": "width", "D": "channels"}


def append(folder: Path, records: Iterable[Record]) -> None:
    """Adds to both files what there is; nothing that is there changes."""
    folder.mkdir(parents=True, exist_ok=True)
    records = list(records)
    with (folder / LINES).open("a") as lines:
        lines.writelines(json.dumps({"schema": SCHEMA, **r}) + "\n" for r in records)
    new = not (folder / TABLE).exists()
    with (folder / TABLE).open("a", newline="") as table:
        writer = csv.DictWriter(table, COLUMNS, lineterminator="\n")
        if new:
            writer.writeheader()
        for record in records:
            writer.writerows(liger_rows(record))


def liger_rows(record: Record) -> Iterator[dict[str, Any]]:
    """A row for the time and one for the memory, where they were measured."""
    stamp, sizes = record["environment"], record["sizes"]
    x = record["x"] or next((s for s in ("L", *sizes) if s in sizes), "")
    base = {"kernel_name": f"{record['suite']}_{record['case']}", "kernel_provider": record["arm"],
            "kernel_operation_mode": OPERATIONS[record["mode"]], "x_name": x, "x_label": LABELS.get(x, x),
            "x_value": sizes.get(x, ""), "gpu_name": stamp["gpu"] or stamp["machine"], "timestamp": stamp["time"],
            "extra_benchmark_config_str": json.dumps({"dtype": record["dtype"], **sizes}),
            "liger_version": stamp.get("liger-kernel", "")}
    if "median_ms" in record:
        yield {**base, "metric_name": "speed", "metric_unit": "ms", "y_value_50": record["median_ms"],
               "y_value_20": record.get("p20_ms", ""), "y_value_80": record.get("p80_ms", "")}
    if "peak_mb" in record:
        yield {**base, "metric_name": "memory", "metric_unit": "MB", **{f"y_value_{q}": record["peak_mb"] for q in (50, 20, 80)}}


def read(folder: Path) -> list[Record]:
    """Everything that was recorded, oldest first."""
    found = [r for path in sorted(folder.glob("*.json")) for r in legacy(json.loads(path.read_text()))]
    for path in sorted(folder.glob("*.jsonl")):
        found += [json.loads(line) for line in path.read_text().splitlines()]
    return found


def latest(records: Iterable[Record]) -> list[Record]:
    """One record for each row of a table: what was measured last, and from before what was not measured again."""
    rows: dict[str, Record] = {}
    for record in records:
        where = record["environment"]["gpu"] or record["environment"]["machine"]
        record = {**record, "arm": " ".join([record["arm"], *(f"{k}={v}" for k, v in record.get("options", {}).items())])}
        key = json.dumps([record[k] for k in KEY] + [where], sort_keys=True)
        rows[key] = merged(rows.get(key, {}), record)
    return list(rows.values())


def merged(old: Record, new: Record) -> Record:
    """An arm that ran or failed this time keeps nothing of the other outcome."""
    ran = {"ok", "wrong"}
    if old and (old["status"] in ran) != (new["status"] in ran):
        return new
    return {**old, **new}


# ---- before there were lines ----------------------------------------------------------------------------------------

def legacy(record: Mapping[str, Any]) -> Iterator[Record]:
    """The records of results/*.json: one file for a benchmark, arms as its leaves."""
    readers = {"head": _head, "attention": _steps, "scan": _steps}
    for row in readers.get(record.get("benchmark", ""), lambda _: iter(()))(record):
        stamp = {"torch": record["torch"], "machine": record["machine"], "gpu": None, "threads": record["threads"], "time": ""}
        yield {"dtype": record["dtype"], "device": record["device"], "x": None, "status": "ok", "environment": stamp, **row}


def _head(record: Mapping[str, Any]) -> Iterator[Record]:
    for arm, row in record["arms"].items():
        yield {"suite": "vocab", "case": "peaked" if record["peaked"] else "head", "arm": arm, "mode": "both",
               "sizes": {"N": record["rows"], "d": record["width"], "V": record["vocabulary"]}, "n": row["n"],
               "median_ms": row["median_ms"], "peak_mb": row["peak_mb"],
               "errors": [row["error_loss"], row["error_dh"], row["error_dw"]]}


def _steps(record: Mapping[str, Any]) -> Iterator[Record]:
    for name, row in record["rows"].items():
        scan = record["benchmark"] == "scan"
        suite = "scan" if scan else "flow" if name.startswith(("flow", "linear")) else "attention"
        for mode, found in row["steps"].items():
            for arm, times in found.items():
                times = {k: v for k, v in times.items() if k != "first_s"}
                yield {"suite": suite, "case": name.rpartition("-")[0] if scan else name, "arm": arm, "sizes": _sizes(row, scan),
                       "mode": "both" if "+" in mode else mode, "n": row.get("repeat", record.get("repeat")), **times}


def _sizes(row: Mapping[str, Any], scan: bool) -> dict[str, int]:
    shape = row["shape"]
    if not scan:
        names = "BHLd" if shape[1] < shape[2] else "BLHd"
        return dict(sorted(zip(names, shape, strict=True), key=lambda found: "BHLd".index(found[0])))
    return {**dict(zip("BDL", shape[0], strict=True)), "N_state": shape[2][1]}
