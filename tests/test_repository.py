"""What keeps the sources small and self-contained."""
from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = sorted(path for folder in ("fuse", "passes", "codegen") for path in (ROOT / folder).rglob("*.py"))
FOLDERS = ("fuse", "passes", "codegen", "tests", "tools", "examples", "benchmarks", "docs", ".ci")
TEXTS = sorted(
    path
    for path in [*ROOT.iterdir(), *(file for folder in FOLDERS for file in (ROOT / folder).rglob("*"))]
    if path.is_file() and path.name != ".git" and path.suffix in {".py", ".md", ".toml", ".txt", ".json", ".yml", ".cpp", ""}
)

MAX_FILE = 400  # lines
MAX_FUNCTION = 60

# A path that climbs out of the repository, or that is somebody's own: it means nothing to whoever reads this.
FOREIGN = re.compile(r"\.\./shared|/(?:home|root|work|Users)/\w|https?://(?:localhost|\d+\.\d+)")


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", SHIPPED, ids=relative)
def test_files_and_functions_fit_in_the_head(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= MAX_FILE, "is there a smaller idea inside?"
    functions = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    lengths = {f"{node.name}:{node.lineno}": (node.end_lineno or 0) - node.lineno + 1 for node in functions}
    assert not {name: length for name, length in lengths.items() if length > MAX_FUNCTION}


def test_no_file_mentions_a_foreign_path() -> None:
    found = [
        f"{relative(path)}:{number}: {line.strip()}"
        for path in TEXTS
        if path != Path(__file__)
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if FOREIGN.search(line)
    ]
    assert not found, "\n".join(found)


def test_every_module_says_what_it_is_for() -> None:
    silent = [relative(path) for path in SHIPPED if not ast.get_docstring(ast.parse(path.read_text()))]
    assert not silent


def private_parts(tree: ast.AST) -> list[str]:
    """Imports from torch's private modules, `torch._x`, and private attributes that fuse once took from torch's objects."""
    found: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
            found += [n for n in names if re.match(r"torch\..*(\b_|experimental)", n)]
        elif isinstance(node, ast.Attribute) and node.attr.startswith("_"):
            text = ast.unparse(node)
            if (re.match(r"torch\.", text) and not node.attr.startswith("__")) or node.attr in TORCHS:
                found.append(text)
    return found


TORCHS = {"_schema", "_overloadname", "_cdata", "_dynamo_source", "_orig_mod"}


def test_the_private_interface_of_torch_is_used_in_one_file() -> None:
    assert private_parts(ast.parse((ROOT / "fuse/private.py").read_text())), "the test sees what it looks for"
    others = {relative(path): private_parts(ast.parse(path.read_text())) for path in SHIPPED if path.name != "private.py"}
    assert not {path: found for path, found in others.items() if found}
