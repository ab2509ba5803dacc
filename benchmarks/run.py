"""The benchmark harness: fuse against PyTorch and the best peers, with the error against float64 beside each time.

    python benchmarks/run.py --quick                             a short look at every suite
    python benchmarks/run.py --suite vocab,scan --device cuda    whole suites
    python benchmarks/run.py --only head/V=32768 --arms inductor,fuse
    python benchmarks/run.py --list                              what there is to measure, and with which arms
    python benchmarks/run.py --report                            docs/benchmarks.md from benchmarks/results

Rows go to OUT/runs.jsonl and, in Liger's columns, to OUT/all_benchmark_data.csv; both only grow. Read the ratios: the arms take
turns, so that a slow moment of the machine hits all of them. An arm that cannot run is a row with its reason. Exit codes:
0 measured; 1 a row is wrong or an arm failed (an absent one does not count); 2 wrong usage.
"""
from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

SUITES = ("vocab", "attention", "flow", "scan", "models")
MEASURES = ("time", "error", "memory", "compile")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code (argparse itself exits with 2)."""
    a = parser().parse_args(arguments)
    if a.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"     # before anything imports triton
    if a.worker:
        from benchmarks import worker

        print(json.dumps(worker.run(json.loads(a.worker))))
        return 0
    if a.report:
        from benchmarks import report

        return report.write(a.out or ROOT / "benchmarks/results", ROOT / "docs/benchmarks.md")
    return run(a)


def names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def some_of(known: Sequence[str], text: str) -> list[str]:
    chosen = names(text)
    if unknown := [n for n in chosen if n not in known]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(known)}")
    return chosen


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--suite", type=partial(some_of, SUITES), default=list(SUITES), metavar="NAMES", help=", ".join(SUITES))
    made.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    made.add_argument("--quick", action="store_true", help="small sizes, few repetitions, one type, two values of a sweep")
    made.add_argument("--only", type=names, default=[], metavar="PATTERNS", help="case, case/SIZE=VALUE or case/dtype, with *")
    made.add_argument("--no-sweeps", action="store_true", help="the cases at their own sizes alone")
    made.add_argument("--arms", type=names, default=[], metavar="NAMES")
    made.add_argument("--dtype", type=partial(some_of, ["float32", "bfloat16", "float16"]), default=[], metavar="NAMES")
    made.add_argument("--measure", type=partial(some_of, MEASURES), default=list(MEASURES), metavar="NAMES",
                      help=", ".join(MEASURES))
    made.add_argument("--repeat", type=int, help="times each arm is called (11; 50 on a GPU; 3 if quick)")
    made.add_argument("--threads", type=int, default=2)
    made.add_argument("--budget", type=float, default=float("inf"), metavar="SECONDS", help="start no task after so long")
    made.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help="an option of fuse; repeatable")
    made.add_argument("--caches", type=Path, metavar="DIR", help="keep compiled code here: a second run finds it")
    made.add_argument("--out", type=Path, metavar="DIR", help="of the records and plots (build/benchmarks)")
    made.add_argument("--plots", action=argparse.BooleanOptionalAction, default=True, help="draw the sweeps")
    made.add_argument("--dry-run", action="store_true", help="tiny sizes, one repetition, Triton's interpreter, one process")
    made.add_argument("--list", action="store_true", help="print the tasks and their arms")
    made.add_argument("--report", action="store_true", help="write docs/benchmarks.md from the records in --out")
    made.add_argument("--worker", help=argparse.SUPPRESS)
    return made


def run(a: argparse.Namespace) -> int:
    from benchmarks import harness
    from benchmarks.cases import tasks
    from benchmarks.suites import SUITES as TABLES

    scale = "tiny" if a.dry_run else "quick" if a.quick else a.device
    found = [t for s in a.suite if s in TABLES for t in tasks(s, TABLES[s].cases, a.device, scale, a.dtype) if t.matches(a.only)]
    chosen = [t for t in found if not (a.no_sweeps and t.x)]
    if a.list:
        for t in chosen:
            print(f"{t.suite:10} {t.name:32} {', '.join(arms_of(t, a.arms))}")
        return 0
    bad = harness.run(chosen, settings(a), partial(arms_of, wanted=a.arms), show)
    if "models" in a.suite and a.device == "cpu" and not a.dry_run:
        from benchmarks.suites import models

        bad += models.run(models.chosen(a.only, a.quick), settings(a), show)
    if a.plots:
        draw(a.out or default_out())
    return 1 if bad else 0


def arms_of(task: Any, wanted: Sequence[str]) -> list[str]:
    from benchmarks.suites import SUITES as TABLES

    suite = TABLES[task.suite]
    return suite.arms_of(suite.cases[task.case], wanted)


def default_out() -> Path:
    return ROOT / "build/benchmarks"


def settings(a: argparse.Namespace) -> Any:
    from benchmarks import harness, worker
    from fuse.options import parse_options

    options = parse_options(a.option)
    if a.dry_run:
        options = {"min_virtual_bytes": 0, "target": "triton", **options}
    usual = 1 if a.dry_run else 3 if a.quick else 50 if a.device == "cuda" else 11
    measure = [m for m in a.measure if m in ("time", "error")] if a.dry_run else a.measure
    return harness.Settings(out=a.out or default_out(), device=a.device, arms=tuple(a.arms), measure=tuple(measure),
                            repeat=a.repeat or usual, threads=a.threads, budget=a.budget, options=options, caches=a.caches,
                            call=worker.run if a.dry_run else None)


def show(record: dict[str, Any]) -> None:
    """One line for a row, as soon as it is measured."""
    sizes = " ".join(f"{k}={v}" for k, v in record["sizes"].items())
    head = f"{record['case']:14}{sizes:34}{record['dtype']:10}{record['arm']:21}{record['mode']:9}"
    if "reason" in record:
        print(f"{head}{record['status']}: {record['reason']}", flush=True)
        return
    cells = [f"{record['median_ms']:10.4g} ms"] if "median_ms" in record else []
    cells += [f"({record['p20_ms']:.4g} .. {record['p80_ms']:.4g})"] if "p20_ms" in record else []
    cells += [f"{record['peak_mb']:.1f} MB"] if "peak_mb" in record else []
    cells += [f"{record['roofline']:.0%} of the floor"] if "roofline" in record else []
    cells += [f"errs {max(record['errors']):.1e}" + " WRONG" * (record["status"] == "wrong")] if "errors" in record else []
    cells += [f"compiles in {record['cold_s']} s, warm {record['warm_s']} s"] if "cold_s" in record else []
    print(head + "   ".join(cells), flush=True)


def draw(folder: Path) -> None:
    """Plots of the sweeps, where matplotlib is installed."""
    from benchmarks import plots, records

    try:
        plots.draw(records.latest(records.read(folder)), folder / "plots")
    except ImportError as error:
        print(f"no plots: {error}; pip install -e '.[bench]'", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
