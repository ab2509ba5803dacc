"""The benchmark harness, with arms that compile nothing."""
from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import floor, harness, plots, records, report, worker
from benchmarks import run as command
from benchmarks.arms import Absent, copied, peer
from benchmarks.cases import SCALES, Case, Function, Suite, Task, arguments, tasks
from benchmarks.floor import Rates, Work
from benchmarks.records import COLUMNS, KEY
from benchmarks.suites import SUITES
from benchmarks.suites import models as whole_models
from fuse.ir.text import parse_program
from fuse.options import parse_options

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results"
STAMP = {"machine": "a machine", "gpu": None, "threads": 2, "time": "2026-01-01T00:00:00Z", "torch": "2.13.0"}


def square(x: torch.Tensor) -> torch.Tensor:
    return (x * x).sum(-1)


def off(case: Case) -> Function:
    return lambda x: square(x) * 1.01


def missing(case: Case) -> Function:
    raise Absent("no such device")


def unsupported(case: Case) -> Function:
    raise NotImplementedError("no backward on this device")


def broken(case: Case) -> Function:
    raise ValueError("a bad tile\nand more")


FAKE = Suite(
    cases={"squares": Case("squares", "sums of squares", square, lambda sizes: [torch.randn(sizes["N"], sizes["L"])],
                           {scale: {"N": 3, "L": 5} for scale in SCALES}, {"L": (5, 7, 9)})},
    arms={"eager": lambda case: case.function, "fuse": lambda case: lambda x: x.square().sum(-1), "off": off, "missing": missing,
          "unsupported": unsupported,
          "broken": broken, "peer": peer("no_such_package", off)})


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., list[dict[str, Any]]]:
    """The records of a run over the fake suite, in this process."""
    monkeypatch.setitem(SUITES, "fake", FAKE)
    monkeypatch.setattr(worker, "counted", lambda case, task: ({m: Work(80, 30) for m in floor.MODES}, "nothing"))
    threads = torch.get_num_threads()
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    assert torch.get_num_threads() == threads

    def measure(scale: str = "tiny", **settings: Any) -> list[dict[str, Any]]:
        chosen = harness.Settings(tmp_path, "cpu", call=worker.run, repeat=2, **{"measure": ("time", "error"), **settings})
        bad = harness.run(tasks("fake", FAKE.cases, "cpu", scale), chosen, lambda t: list(FAKE.arms), command.show)
        found = records.read(tmp_path)
        assert bad >= sum(r["status"] in ("wrong", "failed") for r in found[-6:])
        return found
    return measure


# ---- the tables ------------------------------------------------------------------------------------------------------

def test_every_suite_has_its_arms_in_one_table() -> None:
    assert set(SUITES["vocab"].arms) >= {"eager", "inductor", "auto_chunker", "linear_cross_entropy", "liger",
                                         "cut_cross_entropy", "fuse"}
    assert set(SUITES["attention"].arms) >= {"eager", "inductor", "sdpa", "flex_attention", "fuse"}
    assert set(SUITES["flow"].arms) >= {"eager", "inductor", "fla", "fuse"}
    assert set(SUITES["scan"].arms) >= {"eager", "inductor", "mamba_ssm", "accelerated_scan", "mambapy", "fuse"}


@pytest.mark.parametrize("suite", SUITES)
def test_every_case_can_be_computed_and_names_arms_that_exist(suite: str) -> None:
    for task in tasks(suite, SUITES[suite].cases, "cpu", "tiny", ["float32"]):
        case = SUITES[suite].cases[task.case]
        assert set(case.arms) <= set(SUITES[suite].arms)
        assert {"eager", "fuse"} <= set(SUITES[suite].arms_of(case))
        args = arguments(case, task)
        out = case.function(*args)
        assert torch.isfinite(out).all()
        if case.exact:
            torch.testing.assert_close(out, case.exact(*args))
        assert all(x.requires_grad == (x.is_floating_point() and i not in case.constants) for i, x in enumerate(args))


def test_a_sweep_changes_one_size_and_leaves_out_what_the_case_measures_anyway() -> None:
    found = list(tasks("fake", FAKE.cases, "cpu", "cpu"))
    assert [t.name for t in found] == ["squares/float32", "squares/L=7/float32", "squares/L=9/float32"]
    assert [t.x for t in tasks("fake", FAKE.cases, "cpu", "tiny")] == [None]
    quick = list(tasks("vocab", SUITES["vocab"].cases, "cpu", "quick"))
    assert [t.name for t in quick] == [*(f"{case}/float32" for case in SUITES["vocab"].cases),
                                       "head/V=8192/float32", "head/V=32768/float32"]
    assert [t.name for t in found if t.matches(["squares/L=7"])] == ["squares/L=7/float32"]
    assert [t.name for t in found if t.matches(["squares"])] == [t.name for t in found]
    assert [t.name for t in found if t.matches(["squares/L=5"])] == ["squares/float32"]
    assert not any(t.matches(["square"]) for t in found)


# ---- rows ------------------------------------------------------------------------------------------------------------

def test_arms_that_cannot_run_are_rows_with_a_reason(measured: Callable[..., list[dict[str, Any]]]) -> None:
    said = {r["arm"]: (r["status"], r.get("reason")) for r in measured()}
    assert said["missing"] == ("absent", "no such device")
    assert said["unsupported"] == ("absent", "NotImplementedError: no backward on this device")
    assert said["peer"] == ("absent", "no_such_package is not installed")
    assert said["broken"] == ("failed", "ValueError: a bad tile")


def test_a_wrong_arm_is_shown_as_wrong(measured: Callable[..., list[dict[str, Any]]], capsys: pytest.CaptureFixture[str]) -> None:
    rows = {(r["arm"], r["mode"]): r for r in measured()}
    assert {rows["off", m]["status"] for m in floor.MODES} == {"wrong"}
    assert {rows["fuse", m]["status"] for m in floor.MODES} == {"ok"}
    assert max(rows["off", "both"]["errors"]) == pytest.approx(0.01, rel=0.1)
    assert "WRONG" in capsys.readouterr().out
    assert report.ratio(rows.values(), "both") is not None
    assert report.ratio([r | {"median_ms": 1e-9} if r["arm"] == "off" else r for r in rows.values()], "both")[1] == "eager"


def test_a_verdict_allows_what_eager_mode_errs_and_rejects_nan() -> None:
    assert worker.verdict([4e-6], [1e-6], 0.0) == "ok"
    assert worker.verdict([5e-6], [1e-6], 0.0) == "wrong"
    assert worker.verdict([float("nan")], [1e-6], 1.0) == "wrong"


def test_a_row_says_time_error_floor_and_where_it_was_measured(measured: Callable[..., list[dict[str, Any]]]) -> None:
    row = next(r for r in measured() if (r["arm"], r["mode"]) == ("fuse", "both"))
    assert row["p20_ms"] <= row["median_ms"] <= row["p80_ms"] and row["n"] >= 2 and len(row["errors"]) == 2
    assert row["floor_ms"] > 0 and row["roofline"] == pytest.approx(row["floor_ms"] / row["median_ms"], rel=0.02, abs=1e-3)
    assert {"torch", "machine", "threads", "commit", "load", "copy_GBps", "gemm_GFLOPS"} <= set(row["environment"])


def test_a_process_that_dies_costs_its_own_arm_alone(tmp_path: Path) -> None:
    def call(job: dict[str, Any]) -> Any:
        if job["what"] == "rates":
            return {"copy": 1.0, "gemm": 1.0}
        if "broken" in job["arms"]:
            raise RuntimeError("Traceback\nSegmentation fault")
        row = {"status": "ok", "median_ms": 1.0}
        return {"rows": {arm: dict.fromkeys(floor.MODES, row) for arm in job["arms"]}, "work": {}}
    settings = harness.Settings(tmp_path, "cpu", measure=("time",), call=call)
    harness.run(tasks("fake", FAKE.cases, "cpu", "tiny"), settings, lambda t: ["eager", "broken", "fuse"], lambda r: None)
    found = {r["arm"]: r for r in records.read(tmp_path)}
    assert found["broken"]["reason"] == "Segmentation fault" and found["eager"]["status"] == found["fuse"]["status"] == "ok"


def test_compile_times_and_peaks_come_from_processes_of_their_own(tmp_path: Path) -> None:
    jobs: list[dict[str, Any]] = []

    def call(job: dict[str, Any]) -> Any:
        jobs.append(job)
        peaks = {"peaks": dict.fromkeys(floor.MODES, 5.0)} if job.get("peaks") else {}
        return {"copy": 1.0, "gemm": 1.0} if job["what"] == "rates" else {"seconds": 3.0 - len(jobs), **peaks}
    settings = harness.Settings(tmp_path, "cpu", measure=("memory", "compile"), call=call)
    harness.run(tasks("fake", FAKE.cases, "cpu", "tiny"), settings, lambda t: ["fuse"], lambda r: None)
    assert [(j["what"], j.get("peaks")) for j in jobs] == [("rates", None), ("first", False), ("first", True)]
    row = next(r for r in records.read(tmp_path) if r["mode"] == "both")
    assert (row["cold_s"], row["warm_s"], row["peak_mb"]) == (1.0, 0.0, 5.0)


def test_the_peak_of_a_backward_starts_after_a_forward_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def peak_above(step: Callable[[], object], reset: Callable[[], object], device: str) -> float:
        step()
        reset()
        step()
        return 1.0
    monkeypatch.setattr(worker, "peak_above", peak_above)
    task = Task("fake", "squares", {"N": 3, "L": 5}, None, "float32", "cpu")
    work = worker.Work.of(FAKE.cases["squares"], task)
    assert worker.peaks(square, work) == dict.fromkeys(floor.MODES, 1.0)


def test_models_are_judged_by_their_own_script(tmp_path: Path) -> None:
    def call(script: str, arguments: list[str]) -> Any:
        assert Path(script).name == "models.py" and "--only=a model" in arguments
        return {"milliseconds": dict.fromkeys(whole_models.ARMS, 2.0), "peaks": dict.fromkeys(whole_models.ARMS, 7),
                "right": False, "regions": {"softmax-over-vocabulary": 1}}
    rows = list(whole_models.measured("a model", harness.Settings(tmp_path, "cpu"), call))
    assert [(r["arm"], r["status"]) for r in rows] == [("eager", "ok"), ("inductor", "ok"), ("fuse", "wrong")]


# ---- files -----------------------------------------------------------------------------------------------------------

def a_record(**more: Any) -> dict[str, Any]:
    return {"suite": "vocab", "case": "head", "sizes": {"N": 8, "d": 4, "V": 16}, "x": "V", "dtype": "float32", "device": "cpu",
            "arm": "fuse", "mode": "both", "status": "ok", "median_ms": 2.0, "p20_ms": 1.5, "p80_ms": 2.5, "n": 5,
            "environment": STAMP, **more}


def test_files_only_grow(tmp_path: Path) -> None:
    records.append(tmp_path, [a_record()])
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    records.append(tmp_path, [a_record(median_ms=1.0), a_record(peak_mb=3.0)])
    assert set(before) == {"runs.jsonl", "all_benchmark_data.csv"}
    for name, text in before.items():
        assert (tmp_path / name).read_bytes().startswith(text) and (tmp_path / name).stat().st_size > len(text)
    assert [json.loads(line)["median_ms"] for line in (tmp_path / "runs.jsonl").read_text().splitlines()] == [2.0, 1.0, 2.0]


def test_the_table_has_ligers_columns(tmp_path: Path) -> None:
    records.append(tmp_path, [a_record(peak_mb=3.0), a_record(status="absent", reason="", median_ms=1.0)])
    with (tmp_path / "all_benchmark_data.csv").open() as file:
        reader = csv.DictReader(file)
        assert tuple(reader.fieldnames or ()) == COLUMNS
        time, memory, *_ = reader
    assert (time["kernel_name"], time["kernel_provider"], time["kernel_operation_mode"]) == ("vocab_head", "fuse", "full")
    assert (time["metric_name"], time["metric_unit"], time["y_value_50"], time["y_value_20"]) == ("speed", "ms", "2.0", "1.5")
    assert (memory["metric_name"], memory["y_value_50"], memory["x_name"], memory["x_value"]) == ("memory", "3.0", "V", "16")
    assert json.loads(time["extra_benchmark_config_str"])["dtype"] == "float32" and time["gpu_name"] == "a machine"


def test_the_last_measurement_of_a_row_counts() -> None:
    old, new = a_record(peak_mb=9.0), a_record(median_ms=1.0)
    assert records.latest([old, new]) == [{**old, **new}]
    assert records.latest([old, a_record(status="failed", reason="x")])[0].get("peak_mb") is None
    elsewhere = a_record(environment={**STAMP, "machine": "another"})
    assert len(records.latest([old, elsewhere])) == 2


def test_a_row_under_options_of_the_command_line_is_an_arm_of_its_own() -> None:
    found = records.latest([a_record(), a_record(median_ms=9.0, options={"schedule": "slab"})])
    assert {r["arm"]: r["median_ms"] for r in found} == {"fuse": 2.0, "fuse schedule=slab": 9.0}
    settings = harness.Settings(Path(), "cpu", options={"schedule": "slab"})
    assert [harness.told(arm, settings) for arm in ("eager", "fuse-filter")] == [{}, {"options": {"schedule": "slab"}}]


def test_records_of_before_are_read() -> None:
    found = records.read(RESULTS)
    assert all(set(KEY) <= set(r) for r in found)
    cases = {(r["suite"], r["case"]) for r in found}
    assert cases >= {("vocab", "head"), ("flow", "flow-causal"), ("scan", "selective"), ("scan", "s4d")}
    s4d = next(r for r in found if r["case"] == "s4d")
    assert s4d["sizes"] == {"B": 4, "D": 256, "L": 1024, "N_state": 32}


# ---- the page and the plots ------------------------------------------------------------------------------------------

def test_the_page_is_made_from_the_committed_records(tmp_path: Path) -> None:
    assert report.write(RESULTS, tmp_path / "page.md") == 0
    def lines(path: Path) -> list[str]:
        return [line for line in path.read_text().splitlines() if not line.startswith("![")]     # paths are relative to the page
    assert lines(tmp_path / "page.md") == lines(ROOT / "docs/benchmarks.md"), "python benchmarks/run.py --report"


def test_losses_are_shown_first_beside_the_goal() -> None:
    times = {"won": (1.0, 2.0), "even": (0.9, 1.0), "lost": (3.0, 2.0)}
    rows = [a_record(case=case, arm=arm, median_ms=ms, peak_mb=1.0)
            for case, both in times.items() for arm, ms in zip(("fuse", "inductor"), both, strict=True)]
    page = report.text([*rows, a_record(case="won", arm="liger", status="absent", reason="needs CUDA")])
    lines = [line for line in page.splitlines() if "| inductor | 1.00 |" in line]
    assert [line.split()[1] for line in lines] == ["lost", "even", "won"]
    assert "**slower**" in lines[0] and "not reached" in lines[1] and "| reached |" in lines[2]
    assert "absent: needs CUDA" in page


def test_an_approximate_peer_is_not_the_best() -> None:
    rows = [a_record(arm=a, median_ms=t) for a, t in (("fuse", 2.0), ("cut_cross_entropy", 1.0), ("inductor", 4.0))]
    assert report.ratio(rows, "both") == (0.5, "inductor")


def test_no_report_of_nothing(tmp_path: Path) -> None:
    assert report.write(tmp_path, tmp_path / "page.md") == 2 and not (tmp_path / "page.md").exists()


def test_a_curve_joins_rows_that_differ_in_one_size() -> None:
    rows = [a_record(sizes={"N": n, "d": 4, "V": v}, x=x, median_ms=float(v), floor_ms=0.5)
            for n, v, x in ((8, 16, None), (8, 32, "V"), (8, 64, "V"), (16, 16, "N"))]
    rows.append(a_record(sizes={"N": 8, "d": 4, "V": 128}, status="wrong"))
    found = plots.sweeps(rows)
    assert [key[2] for key in found] == ["N", "V"]
    swept = found["vocab", "head", "V", "float32", "cpu"]
    assert plots.curves(swept, "V", "median_ms") == {"fuse": [(16, 16.0), (32, 32.0), (64, 64.0)]}
    assert plots.floor_of(swept, "V", "floor_ms") == [(16, 0.5), (32, 0.5), (64, 0.5)]


def test_plots_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rows = [a_record(sizes={"N": 8, "d": 4, "V": v}, median_ms=float(v), peak_mb=1.0 * v, floor_ms=0.5) for v in (16, 32)]
    assert [p.name for p in plots.draw(rows, tmp_path)] == ["vocab-head-V-float32-cpu.svg", "vocab-head-V-float32-cpu.png"]
    assert all(p.stat().st_size > 1000 for p in tmp_path.iterdir())


# ---- the floor -------------------------------------------------------------------------------------------------------

HEAD = """
program
axis n: 4
axis v: 100
axis k: 8
input x: float32[4, 8]
input w: float32[100, 8]
input ct: float32[4]
cotangents ct
stored c: float32[4]
stored g: float32[4, 8]
region r0 streams(v) grid(n) {
  %0 = sum{k}(x[n, k] * w[v, k])
  sum c[n] over(v) = %0
}
region r1 streams(v) grid(n) {
  %1 = sum{k}(x[n, k] * w[v, k])
  sum g[n, k] over(v) = %1 * w[v, k]
}
output out: float32[4]
  [n] += c[n]
output grad.x: float32[4, 8] gradient_of x
  [n, k] += g[n, k] * ct[n]
"""


def test_the_floor_counts_each_product_and_each_byte_once() -> None:
    work = floor.work_of(parse_program(HEAD), {})
    given, results = (4 * 8 + 100 * 8) * 4, 4 * 4
    assert work["forward"] == Work(given + results, 2 * 4 * 100 * 8, results)
    assert work["both"].flops == 2 * 2 * 4 * 100 * 8, "the second walk makes the same product again, which nobody has to"
    assert work["backward"] == Work(given + 4 * 8 * 4 + 4 * 4, 2 * 4 * 100 * 8, 4 * 8 * 4)


def test_the_longer_of_two_times_is_the_floor() -> None:
    rates = Rates(copy=1e9, gemm=1e12)
    assert Work(bytes=1_000_000, flops=1).milliseconds(rates) == pytest.approx(1.0)
    assert Work(bytes=1, flops=1_000_000_000_000).milliseconds(rates) == pytest.approx(1000.0)
    assert floor.fraction(1.0, [4.0]) == 0.25 and floor.fraction(None, [4.0]) is None and floor.fraction(1.0, []) is None


# ---- the command -----------------------------------------------------------------------------------------------------

def test_wrong_usage_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        command.main(["--suite", "vocabulary"])
    assert error.value.code == 2 and "'vocabulary' is none of vocab, attention" in capsys.readouterr().err


def test_what_there_is_to_measure_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--suite", "vocab", "--quick", "--only", "head/V=[38]*", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["head/V=8192/float32", "head/V=32768/float32"] and "liger" in lines[0]


def test_arms_share_no_code_but_compute_the_same() -> None:
    one, other = copied(square, "inductor None"), copied(square, "fuse None")
    codes = {f.__code__ for f in (square, one, other)}     # type: ignore[attr-defined]
    assert len(codes) == 3
    x = torch.randn(2, 3)
    torch.testing.assert_close(one(x), other(x))


def test_options_of_fuse_are_passed_on() -> None:
    assert parse_options(["schedule=recompute", "min_virtual_bytes=0"]) == {"schedule": "recompute", "min_virtual_bytes": 0}
    with pytest.raises(ValueError, match="NAME=VALUE"):
        parse_options(["schedule"])


def test_a_step_by_step_clock_gives_a_lap_for_each_part(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import clock
    from benchmarks.clock import interleaved, laps

    order: list[str] = []

    def step(name: str) -> Any:
        order.append(name)
        yield
        order.append(f"{name}'")
    assert len(laps(lambda: step("a"), "cpu")) == 2
    monkeypatch.setattr(clock, "TURN", 0)
    found = interleaved({"b": lambda: step("b"), "c": lambda: step("c")}, 2, "cpu")
    assert order == ["a", "a'", *["b", "b'", "c", "c'"] * 2] and [len(s) for s in found["b"]] == [2, 2]


def test_short_steps_are_called_again_within_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first call of a turn, which pays for the arm before, does not count."""
    from benchmarks import clock

    def step(seconds: Iterator[float]) -> Any:
        now[0] += next(seconds)
        yield
    now = [0.0]
    monkeypatch.setattr(clock.time, "perf_counter", lambda: now[0])
    first, long = iter([0.009, 0.007, 0.006] * 2), iter([0.5, 0.5])
    found = clock.interleaved({"short": lambda: step(first), "long": lambda: step(long)}, 2, "cpu")
    assert [[round(lap) for lap in laps] for laps in found["short"]] == [[7, 0], [6, 0]] * 2
    assert len(found["long"]) == 2


def test_the_gpu_is_asked_for_its_clocks(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import clock

    monkeypatch.setattr(subprocess, "run", lambda *a, **k: SimpleNamespace(stdout="1980, 3201, 41, 250.5\n"))
    assert clock.gpu_state() == {"clocks.sm": 1980.0, "clocks.mem": 3201.0, "temperature.gpu": 41.0, "power.draw": 250.5}


@pytest.mark.slow
def test_the_script_for_gpus_runs_dry(tmp_path: Path) -> None:
    environment = {**os.environ, "OUT": str(tmp_path / "out"), "PYTHON": sys.executable}
    done = subprocess.run([str(ROOT / "benchmarks/gpu.sh"), "--dry-run"], capture_output=True, text=True, timeout=1800,
                          cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    found = records.read(tmp_path / "out")
    cases = {(s, c) for s, suite in SUITES.items() for c in suite.cases}
    assert {(r["suite"], r["case"]) for r in found if r["arm"] == "fuse" and r["status"] == "ok"} == cases
