"""The command line: what it prints, its exit codes, and one-sentence errors."""
from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fuse import __version__, cli
from fuse.cli import bench, main
from fuse.cli.explain import reasons_page
from fuse.cli.schema import DOCUMENTS, SCHEMA_VERSION, page, violations
from fuse.reasons import REASONS
from fuse.reasons_examples import EXAMPLES
from tests import stand_in
from tests.plain import quick_builds  # noqa: F401 (fixture)

DOCS = Path(__file__).parent.parent / "docs"
PROGRAM = """
import torch
import torch.nn.functional as F

def loss(h, W, y, scale=1.0):
    return F.cross_entropy(F.linear(h, W), y) * scale

def other(h, W, y):
    return F.cross_entropy(h @ W.T, y)

def raises(h, W, y):
    raise LookupError("my own mistake")

ARGS = torch.randn(37, 16, requires_grad=True), torch.randn(101, 16, requires_grad=True), torch.randint(0, 101, (37,))

def good(): return loss, ARGS
def keywords(): return loss, ARGS, {"scale": 2.0}
def refused(): return other, ARGS
def failing(): return raises, ARGS
def broken(): return ARGS[0] @ ARGS[1]
def wrong(): return loss
NOT_CALLABLE = 3

def halves(h, W, y):
    h = h * 2
    torch._dynamo.graph_break()
    return loss(h, W, y)

def breaks(): return halves, ARGS
def frozen(): return loss, [a.detach() for a in ARGS]
def leaves(): raise SystemExit("no data")
def twice(): return (lambda *x: loss(*x) + loss(ARGS[0].cos(), *x[1:])), ARGS
def untouched(): return (lambda: 3), ()
fuse_example = good
"""


@pytest.fixture
def file(monkeypatch, tmp_path):
    stand_in.install(monkeypatch)
    monkeypatch.setattr(sys, "path", list(sys.path))
    path = tmp_path / "mine.py"
    path.write_text(PROGRAM)
    yield path
    sys.modules.pop("mine", None)


def run(capsys, *arguments):
    code = main([str(a) for a in arguments])
    out = capsys.readouterr()
    return code, out.out, out.err


def document(capsys, command, *arguments):
    """(exit code, the JSON object), which is as docs/cli.md describes it."""
    code, out, _ = run(capsys, command, *arguments, "--json")
    found = json.loads(out)
    assert not list(violations(found, DOCUMENTS[command])) and found["schema"] == SCHEMA_VERSION and found["command"] == command
    return code, found


# ---- inspect ----------------------------------------------------------------------------------------------------

def test_inspect_shows_regions_with_their_place(file, capsys):
    code, out, err = run(capsys, "inspect", f"{file}:good")
    assert code == 0 and not err
    assert "FUSED     softmax-over-vocabulary" in out and f"{file}:6" in out and "not stored 14.6 KiB = 37*101*4 bytes" in out


def test_inspect_takes_a_script_by_convention_and_a_module_by_name(file, capsys, monkeypatch):
    assert run(capsys, "inspect", file)[1] == run(capsys, "inspect", f"{file}:good")[1]
    monkeypatch.chdir(file.parent)
    assert "FUSED" in run(capsys, "inspect", "mine:good")[1]
    assert "FUSED" in run(capsys, "inspect", "mine")[1]


def test_inspect_shows_refusals_with_their_cause(file, capsys):
    code, out, _ = run(capsys, "inspect", f"{file}:refused")
    assert code == 0 and "DECLINED  NOT_A_REDUCTION" in out and REASONS["NOT_A_REDUCTION"].cause in out and f"{file}:9" in out


@pytest.mark.parametrize("after, shown", [("import", "pick"), ("differentiate", "grad."), ("regions", "region region0")])
def test_inspect_shows_the_ir_after_any_pass(file, capsys, after, shown):
    code, out, _ = run(capsys, "inspect", f"{file}:keywords", "--after", after)
    assert code == 0 and f"after {after}" in out and shown in out.partition("; region 0")[2]


def test_inspect_shows_what_a_pass_changes(file, capsys):
    _, out, _ = run(capsys, "inspect", f"{file}:good", "--diff", "differentiate")
    assert "+++ after differentiate" in out and "\n+output grad.x0" in out
    assert "import" not in run(capsys, "inspect", f"{file}:good", "--diff", "reassociate")[1].partition("; region 0")[2]
    _, found = document(capsys, "inspect", f"{file}:good", "--diff", "reassociate")
    assert found["diff"] == {"reassociate": ["reassociate changes nothing"]}


def test_inspect_prints_json(file, capsys):
    code, found = document(capsys, "inspect", f"{file}:good", "--after", "import")
    region = found["graphs"][0]["regions"][0]
    assert code == 0 and region["where"] == f"{file}:6" and "program" in found["after"]["import"][0]
    assert region["bytes_saved"] == eval(region["bytes_formula"]) == 37 * 101 * 4
    assert region["walks"][0]["sweeps"] == 2 and {c["kind"] for c in region["walks"][0]["carries"]} == {"lse", "sum"}
    assert region["seconds"]["differentiate"] > 0 and found["graphs"][0]["seconds"]["find"] > 0
    document(capsys, "inspect", f"{file}:refused")
    document(capsys, "inspect", f"{file}:breaks")


def test_inspect_may_require_a_kind(file, capsys):
    assert run(capsys, "inspect", f"{file}:good", "--require", "softmax-over-vocabulary")[0] == 0
    code, _, err = run(capsys, "inspect", f"{file}:good", "--require", "attention")
    assert code == 1 and err == "fuse: required but not fused: attention\n"
    assert document(capsys, "inspect", f"{file}:good", "--require", "attention")[1]["missing"] == ["attention"]


def test_inspect_with_and_without_gradients(file, capsys):
    def gradients(*arguments):
        return "grad.x0" in run(capsys, "inspect", *arguments, "--after", "differentiate")[1]
    assert gradients(f"{file}:good") and not gradients(f"{file}:good", "--no-train")
    assert not gradients(f"{file}:frozen") and gradients(f"{file}:frozen", "--train")


def test_inspect_with_symbols_for_sizes(file, capsys):
    _, out, _ = run(capsys, "inspect", f"{file}:good", "--dynamic")
    assert re.search(r"not stored 14\.6 KiB = s\d+\*s\d+\*4 bytes", out) and re.search(r"s\d+ is dimension 1 of l_h_", out)


def test_inspect_with_fuel(file, capsys):
    out = run(capsys, "inspect", f"{file}:twice", "--fuel", "1")[1]
    assert out.count("FUSED") == 1 and "DECLINED  FUEL" in out
    assert "1 graph, 2 fused, 0 declined" in run(capsys, "inspect", f"{file}:twice", "--fuel", "2")[1]


def test_inspect_shows_what_the_passes_took(file, capsys):
    out = run(capsys, "inspect", f"{file}:good", "--profile")[1]
    assert re.search(r"fuse spent \d+\.\d ms", out) and re.search(r"differentiate +\d+\.\d ms", out)


def test_inspect_of_a_program_with_graph_breaks_or_without_graphs(file, capsys):
    code, out, _ = run(capsys, "inspect", f"{file}:breaks")
    assert code == 0 and "2 graphs, 1 fused" in out and f"graph break: {file}:26" in out
    code, out, _ = run(capsys, "inspect", f"{file}:untouched")
    assert code == 0 and out.startswith("Dynamo captured no graph")


def test_inspect_shows_kernels_and_how_wide_their_vectors_are(tmp_path, capsys, quick_builds):  # noqa: F811
    """With the real front end and the real target."""
    path = tmp_path / "real.py"
    path.write_text(PROGRAM)
    arguments = (f"{path}:frozen", "--option=min_virtual_bytes=0", "--kernels", "--arch", "cpu")
    code, out, _ = run(capsys, "inspect", *arguments)
    assert code == 0 and "fuse_kernel: vectors of" in out and "void fuse_kernel(" in out
    assert document(capsys, "inspect", *arguments)[1]["resources"][0]["region0"][0]["kernel"] == "fuse_kernel"


@pytest.mark.parametrize("arguments, message", [
    (["nowhere.py:good"], "there is no file 'nowhere.py'"),
    (["nowhere.nothing:good"], "there is no module 'nowhere.nothing'"),
    (["no where:good"], "'no where' is neither a Python file nor the dotted name of a module"),
    (["{file}:"], "expected FILE.py:CALLABLE"),
    (["{file}:missing"], "defines no callable 'missing'; it defines loss, other, raises, good"),
    (["{file}:NOT_CALLABLE"], "defines no callable 'NOT_CALLABLE'"),
    (["{file}:wrong"], "must return (function or module, args)"),
    (["{file}:good", "--after", "magic"], "there is no pass called 'magic'; the passes are import, recognise"),
    (["{file}:good", "--diff", "magic"], "there is no pass called 'magic'"),
    (["{file}:good", "--option", "speed=1"], "fuse has no option 'speed'"),
    (["{file}:good", "--option", "speed"], "--option expects NAME=VALUE"),
    (["{file}:good", "--require", "magic"], "no kind of region is called 'magic'"),
    (["{file}:good", "--arch", "sm_12"], "option 'arch' must be one of cpu, sm80"),
    (["{file}:good", "--fuel", "-1"], "option 'fuel' must be an integer >= 0"),
])
def test_wrong_usage_is_one_sentence_and_exit_code_2(file, capsys, arguments, message):
    code, out, err = run(capsys, "inspect", *(a.format(file=file) for a in arguments))
    assert code == 2 and not out and err.startswith("fuse: ") and message in err and err.count("\n") == 1


@pytest.mark.parametrize("name, line, error", [("failing", 12, "LookupError: my own mistake"), ("broken", 20, "RuntimeError"),
                                               ("leaves", 31, "SystemExit: no data")])
def test_a_failing_program_shows_its_own_traceback(file, capsys, name, line, error):
    code, _, err = run(capsys, "inspect", f"{file}:{name}")
    assert code == 2 and f'File "{file}", line {line}' in err and error in err and "fuse/cli/" not in err


def test_a_file_that_does_not_load(tmp_path, capsys):
    path = tmp_path / "bad.py"
    path.write_text("x = 1\nundefined\n")
    code, _, err = run(capsys, "inspect", f"{path}:x")
    assert code == 2 and "while it was loaded" in err and "NameError" in err and "line 2" in err


def test_an_error_of_fuse_is_exit_code_2(file, capsys, monkeypatch):
    monkeypatch.setattr("fuse.cli.inspect._show", lambda *_: 1 / 0)
    code, _, err = run(capsys, "inspect", f"{file}:good")
    assert code == 2 and err.startswith("fuse: this is an error of fuse itself") and "ZeroDivisionError" in err


# ---- the others -------------------------------------------------------------------------------------------------

def test_explain_a_code(capsys):
    code, out, _ = run(capsys, "explain", "escapes")
    assert code == 0 and REASONS["ESCAPES"].cause in out and REASONS["ESCAPES"].hint in out and "; instead" in out
    assert document(capsys, "explain", "fuel")[1]["code"] == "FUEL"
    code, _, err = run(capsys, "explain", "nope")
    assert code == 2 and "the codes are ESCAPES" in err


def test_version_and_missing_command_without_importing_torch():
    script = "import sys, fuse.cli\ntry: fuse.cli.main(sys.argv[1:])\nfinally: assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", script, "--version"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == f"fuse {__version__}\n", done.stderr
    done = subprocess.run([sys.executable, "-m", "fuse"], capture_output=True, text=True)
    assert done.returncode == 2 and "usage: fuse" in done.stderr


def test_the_page_of_reasons_is_up_to_date(capsys):
    assert run(capsys, "reasons") == (0, reasons_page(), "")
    assert (DOCS / "reasons.md").read_text() == reasons_page(), "run: python -m fuse reasons > docs/reasons.md"
    assert all(f"## {code}\n" in reasons_page() and EXAMPLES[code].before in reasons_page() for code in REASONS)
    assert [r["code"] for r in document(capsys, "reasons")[1]["reasons"]] == list(REASONS)


def test_the_page_of_the_command_line_is_up_to_date():
    text = (DOCS / "cli.md").read_text()
    assert page() in text, "paste: python -c 'from fuse.cli.schema import page; print(page())'"
    assert all(f"## `fuse {name}" in text for name in ("inspect", "verify", "explain", "doctor", "cache", "bench"))
    commands = re.search(r"\{(.*?)\}", cli.parser().format_usage())
    assert commands is None or set(commands[1].split(",")) >= DOCUMENTS.keys()


def test_what_is_not_of_a_shape_is_said():
    shape = {"a": [int], "b": (str, None), "c": {str: float}}
    assert not list(violations({"a": [1], "b": None, "c": {"x": 1, "y": 0.5}}, shape))
    assert list(violations({"a": ["1"], "b": None, "c": {}}, shape)) == [".a[0]: '1' is no int"]
    assert list(violations({"a": [], "b": None}, shape)) == [": missing ['c'], unknown []"]
    assert list(violations({"a": [], "b": 3, "c": {"x": True}}, shape)) == [".b: 3 is none of 2 shapes", ".c.x: True is no float"]
    assert list(violations([], shape)) and list(violations({}, [int])) and list(violations(3, None))


def test_the_cache_is_listed_and_cleared_of_what_is_fuses_own(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FUSE_CACHE_DIR", str(tmp_path))
    (tmp_path / "triton").mkdir()
    key, old = "ab" * 32, tmp_path / "triton" / f"fuse_triton_{'c' * 24}.py"
    for path in (tmp_path / f"{key}.so", tmp_path / f"{key}.cpp", old, tmp_path / "mine.so", tmp_path / "notes.txt"):
        path.write_text("x" * 10)
    (tmp_path / f"{key}.json").write_text('{"compiler": "g++ 12"}')
    os.utime(old, (time.time() - 9 * 86400,) * 2)
    code, out, _ = run(capsys, "cache", "ls")
    assert code == 0 and re.search(r"c{12} +triton +10 bytes +9\.0", out) and re.search(r"abababababab +cpu .*g\+\+ 12", out)
    assert f"2 kernels, 52 bytes, in {tmp_path}" in out
    assert [e["target"] for e in document(capsys, "cache", "clear", "--older-than", "3")[1]["entries"]] == ["triton"]
    assert not old.exists() and "1 kernel, 42 bytes, removed from" in run(capsys, "cache", "clear")[1]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine.so", "notes.txt", "triton"]
    monkeypatch.setenv("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")
    assert run(capsys, "cache", "ls")[0] == 2


def test_the_doctor_looks_at_the_machine(capsys, monkeypatch):
    code, found = document(capsys, "doctor")
    status = {f["check"]: f["status"] for f in found["findings"]}
    assert code == 0 and status.keys() == {"versions", "backend", "compiler", "gemm", "gpu", "cache"}
    assert status["compiler"] == "ok"
    monkeypatch.setattr("fuse.codegen.build.compiler", lambda: None)
    code, out, _ = run(capsys, "doctor")
    assert code == 1 and "fail   compiler    no C++ compiler" in out and "install g++" in out


def test_the_doctor_looks_at_a_program(file, capsys):
    code, out, _ = run(capsys, "doctor", f"{file}:good")
    assert code == 0 and "ok     break       1 graph, no graph break" in out and "ok     regions     1 fused, 14.6 KiB" in out
    code, out, _ = run(capsys, "doctor", f"{file}:breaks")
    assert code == 0 and f"warn   break       graph break: {file}:26" in out
    code, out, _ = run(capsys, "doctor", f"{file}:refused")
    assert code == 0 and "warn   regions     0 fused" in out and "declined: NOT_A_REDUCTION" in out


def test_the_doctor_finds_what_escapes(tmp_path, capsys):
    path = tmp_path / "escaping.py"
    path.write_text(PROGRAM.replace("    return F.cross_entropy(h @ W.T, y)", "    z = h @ W.T\n    torch._dynamo.graph_break()\n"
                                    "    return F.cross_entropy(z, y)"))
    code, out, _ = run(capsys, "doctor", f"{path}:refused", "--option", "min_virtual_bytes=0")
    assert code == 1 and "fail   escape      a large value leaves the graph (at a graph break, or as a result)" in out


def test_the_doctor_finds_a_head_that_fsdp_has_cut_off(tmp_path, capsys, monkeypatch):
    from torch.distributed.fsdp import FSDPModule

    class Sharded(FSDPModule):
        out_features, in_features = 32000, 256
    path = tmp_path / "sharded.py"
    path.write_text("import torch\nmodel = torch.nn.Sequential(torch.nn.Linear(4, 4))\n"
                    "def fuse_example(): return model, (torch.ones(2, 4),)\n")
    monkeypatch.setattr("torch.nn.Module.named_modules", lambda self, *_: iter([("lm_head", object.__new__(Sharded))]))
    assert "fail   head        lm_head (256 -> 32000) is sharded by FSDP2 on its own" in run(capsys, "doctor", path)[1]


def test_benchmarks_are_run_from_a_checkout(tmp_path, capfd, monkeypatch):
    with pytest.raises(cli.UsageError, match="run fuse bench from a checkout"):
        bench.entry_point(tmp_path)
    (tmp_path / "pyproject.toml").touch()
    with pytest.raises(cli.UsageError, match="this checkout has no benchmarks/run"):
        bench.entry_point(tmp_path)
    (tmp_path / "benchmarks").mkdir()
    script = tmp_path / "benchmarks" / "run.py"
    script.write_text("import sys; print(sys.argv[1:]); sys.exit(3)")
    monkeypatch.setattr(bench, "entry_point", lambda: script)
    assert main(["bench", "--suite", "scan", "--quick"]) == 3
    assert capfd.readouterr().out == "['--suite', 'scan', '--quick']\n"


def test_a_terminal_is_coloured_and_a_pipe_is_not(monkeypatch, capsys):
    from fuse.cli import screen

    pytest.importorskip("rich")
    screen._console.cache_clear()
    screen.say("  FUSED     scan")
    assert capsys.readouterr().out == "  FUSED     scan\n"
    screen._console.cache_clear()
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    screen.say("  FUSED     scan")
    screen.code("x = 1", "python")
    screen._console.cache_clear()
    assert "\x1b[1;32m" in capsys.readouterr().out
