"""The command line: what it prints, its exit codes, and one-sentence errors."""
from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fuse import __version__
from fuse.cli import main, reasons_page
from fuse.reasons import REASONS
from tests import stand_in

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
"""


@pytest.fixture
def file(monkeypatch, tmp_path):
    stand_in.install(monkeypatch)
    path = tmp_path / "mine.py"
    path.write_text(PROGRAM)
    return path


def run(capsys, *arguments):
    code = main([str(a) for a in arguments])
    out = capsys.readouterr()
    return code, out.out, out.err


def test_inspect_shows_regions_with_their_place(file, capsys):
    code, out, err = run(capsys, "inspect", f"{file}:good")
    assert code == 0 and not err
    assert "FUSED     softmax-over-vocabulary" in out and f"{file}:6" in out and "not stored" in out


def test_inspect_shows_refusals_with_their_cause(file, capsys):
    code, out, _ = run(capsys, "inspect", f"{file}:refused")
    assert code == 0 and "DECLINED  NOT_A_REDUCTION" in out and REASONS["NOT_A_REDUCTION"].cause in out and f"{file}:9" in out


@pytest.mark.parametrize("after, shown", [("import", "pick"), ("differentiate", "grad."), ("regions", "region region0")])
def test_inspect_shows_the_ir_after_any_pass(file, capsys, after, shown):
    code, out, _ = run(capsys, "inspect", f"{file}:keywords", "--after", after)
    assert code == 0 and f"after {after}" in out and shown in out.partition("; region 0")[2]


def test_inspect_prints_json(file, capsys):
    code, out, _ = run(capsys, "inspect", f"{file}:good", "--json", "--after", "import")
    found = json.loads(out)
    assert code == 0 and found["graphs"][0]["regions"][0]["where"] == f"{file}:6" and "program" in found["after"]["import"][0]


def test_inspect_may_require_a_kind(file, capsys):
    assert run(capsys, "inspect", f"{file}:good", "--require", "softmax-over-vocabulary")[0] == 0
    code, _, err = run(capsys, "inspect", f"{file}:good", "--require", "attention")
    assert code == 1 and err == "fuse: required but not fused: attention\n"


@pytest.mark.parametrize("arguments, message", [
    (["nowhere.py:good"], "there is no file 'nowhere.py'"),
    (["{file}"], "expected FILE.py:CALLABLE"),
    (["{file}:missing"], "defines no callable 'missing'; it defines loss, other, raises, good"),
    (["{file}:NOT_CALLABLE"], "defines no callable 'NOT_CALLABLE'"),
    (["{file}:wrong"], "must return (function or module, args)"),
    (["{file}:good", "--after", "magic"], "there is no pass called 'magic'; the passes are import, recognise"),
    (["{file}:good", "--option", "speed=1"], "fuse has no option 'speed'"),
    (["{file}:good", "--option", "speed"], "--option expects NAME=VALUE"),
    (["{file}:good", "--require", "magic"], "no kind of region is called 'magic'"),
])
def test_wrong_usage_is_one_sentence_and_exit_code_2(file, capsys, arguments, message):
    code, out, err = run(capsys, "inspect", *(a.format(file=file) for a in arguments))
    assert code == 2 and not out and err.startswith("fuse: ") and message in err and err.count("\n") == 1


@pytest.mark.parametrize("name, line, error", [("failing", 12, "LookupError: my own mistake"), ("broken", 20, "RuntimeError")])
def test_a_failing_program_shows_its_own_traceback(file, capsys, name, line, error):
    code, _, err = run(capsys, "inspect", f"{file}:{name}")
    assert code == 1 and f'File "{file}", line {line}' in err and error in err and "fuse/cli.py" not in err


def test_a_file_that_does_not_load(tmp_path, capsys):
    path = tmp_path / "bad.py"
    path.write_text("x = 1\nundefined\n")
    code, _, err = run(capsys, "inspect", f"{path}:x")
    assert code == 1 and "while it was loaded" in err and "NameError" in err and "line 2" in err


def test_explain_a_code(capsys):
    code, out, _ = run(capsys, "explain", "escapes")
    assert code == 0 and REASONS["ESCAPES"].cause in out and REASONS["ESCAPES"].hint in out
    code, _, err = run(capsys, "explain", "nope")
    assert code == 2 and "the codes are ESCAPES" in err


def test_version_and_missing_command_without_importing_torch():
    script = "import sys, fuse.cli\ntry: fuse.cli.main(sys.argv[1:])\nfinally: assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", script, "--version"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == f"fuse {__version__}\n", done.stderr
    done = subprocess.run([sys.executable, "-m", "fuse"], capture_output=True, text=True)
    assert done.returncode == 2 and "usage: fuse" in done.stderr


def test_the_page_of_reasons_is_up_to_date(capsys):
    page = Path(__file__).parent.parent / "docs" / "reasons.md"
    assert run(capsys, "reasons") == (0, reasons_page(), "")
    assert page.read_text() == reasons_page(), "run: python -m fuse reasons > docs/reasons.md"
    assert all(f"`{code}`" in reasons_page() for code in REASONS)
