"""What is installed, what is imported, and in which direction."""
from __future__ import annotations

import ast
import os
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.metadata import DistributionFinder
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SOURCES = {"fuse": "fuse", "passes": "fuse.passes", "codegen": "fuse.codegen"}  # folder -> package

# What each package may import of fuse besides itself; what is not listed here may import everything.
ALLOWED = {
    "fuse.ir": {"fuse.reasons"},
    "fuse.passes": {"fuse.ir", "fuse.reasons", "fuse.options"},
    "fuse.codegen": {"fuse.ir", "fuse.reasons", "fuse.options"},
}
READS_ENVIRONMENT = {"fuse/options.py"}
WORKLOADS = {
    "attention", "bert", "entropy", "flash", "gpt", "gru", "head", "llama", "logits", "loss", "lstm", "mamba", "retnet",
    "rwkv", "s4", "s4d", "softmax", "ssm", "transformer", "vocab", "vocabulary",
}  # fmt: skip


def shipped() -> Iterator[tuple[str, Path]]:
    """(path in a wheel, path in the repository) of every file that is shipped."""
    for folder, package in SOURCES.items():
        for path in sorted((ROOT / folder).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                yield f"{package.replace('.', '/')}/{path.relative_to(ROOT / folder).as_posix()}", path


def modules() -> Iterator[tuple[str, Path]]:
    """(dotted name, file) of every module that is shipped."""
    for name, path in shipped():
        if name.endswith(".py"):
            yield name.removesuffix(".py").removesuffix("/__init__").replace("/", "."), path


def imported(path: Path) -> Iterator[str]:
    """Absolute names of what a module imports, inside functions too; `from fuse import ir` counts as fuse.ir."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write imports in full"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def inside(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def test_every_package_is_listed() -> None:
    found = {name for name, path in modules() if path.name == "__init__.py"}
    assert found == set(PROJECT["tool"]["setuptools"]["packages"])


def test_every_folder_with_modules_is_a_package() -> None:
    assert not {path.parent for _, path in modules() if not (path.parent / "__init__.py").is_file()}


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_run_one_way(package: str) -> None:
    allowed = {package, *ALLOWED[package]}
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for module, path in modules()
        if inside(module, package)
        for name in imported(path)
        if inside(name, "fuse") and not any(inside(name, good) for good in allowed)
    ]
    assert not wrong, "\n".join(wrong)


def test_the_environment_is_read_in_one_place() -> None:
    readers = {
        path.relative_to(ROOT).as_posix()
        for _, path in modules()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv", "environb")
    }
    assert readers <= READS_ENVIRONMENT


def test_no_code_generator_is_named_after_a_workload() -> None:
    names = [path.relative_to(ROOT) for path in (ROOT / "codegen").rglob("*") if "__pycache__" not in path.parts]
    assert not [name for name in names if WORKLOADS & set(name.stem.lower().split("_"))]


def build_wheel(scratch: Path) -> zipfile.ZipFile:
    """Without a network, from links to the sources: nothing is left behind in the checkout."""
    tree = scratch / "source"
    tree.mkdir()
    for name in (*SOURCES, "pyproject.toml", "README.md", "LICENSE"):
        (tree / name).symlink_to(ROOT / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps", "--no-index"]
    done = subprocess.run([*command, "-w", str(scratch), str(tree)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (path,) = scratch.glob("torch_fuse-*.whl")
    return zipfile.ZipFile(path)


def test_the_wheel_holds_every_file_and_names_the_backend(tmp_path: Path) -> None:
    with build_wheel(tmp_path) as wheel:
        files = {name for name in wheel.namelist() if ".dist-info/" not in name}
        (name,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
        entry_points = wheel.read(name).decode()
    assert files == {name for name, _ in shipped()}
    assert "[torch_dynamo_backends]\nfuse = fuse.backend:fuse" in entry_points
    assert "[console_scripts]\nfuse = fuse.cli:main" in entry_points


HIDE_THE_INSTALLED = """
import sys, importlib.metadata as metadata
sys.meta_path = [finder for finder in sys.meta_path if "__editable__" not in str(finder)]
find = metadata.MetadataPathFinder.find_distributions
others = lambda *args: (found for found in find(*args) if found.metadata["Name"] != "torch-fuse")
metadata.MetadataPathFinder.find_distributions = staticmethod(others)
"""


def run_in_checkout(code: str, cwd: Path) -> str:
    """In a process that sees the checkout on PYTHONPATH and no installed fuse, from some other folder."""
    done = subprocess.run(
        [sys.executable, "-c", HIDE_THE_INSTALLED + code],
        cwd=cwd, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_checkout_imports_without_being_installed_and_without_torch(tmp_path: Path) -> None:
    code = "import fuse, fuse.passes, fuse.codegen; print(fuse.__version__, fuse.passes.__file__)\n"
    version, path = run_in_checkout(code, tmp_path).split()
    assert version == run_in_checkout("import fuse; print(fuse.__version__)", tmp_path).strip()
    assert Path(path) == ROOT / "passes" / "__init__.py"
    assert run_in_checkout("import fuse, sys; print('torch' in sys.modules)", tmp_path).strip() == "False"


def test_a_checkout_advertises_what_an_installation_would() -> None:
    from fuse._checkout import ENTRY_POINTS, _Finder

    points = PROJECT["project"]["entry-points"]
    assert ENTRY_POINTS == "".join(
        f"[{group}]\n" + "".join(f"{name} = {target}\n" for name, target in members.items())
        for group, members in points.items()
    )
    (distribution,) = _Finder().find_distributions(DistributionFinder.Context(name=PROJECT["project"]["name"]))
    assert distribution.metadata["Name"] == PROJECT["project"]["name"]
    assert [point.name for point in distribution.entry_points] == ["fuse"]


@pytest.mark.parametrize("torch_looked_before", [False, True])
def test_a_checkout_is_found_by_name(torch_looked_before: bool, tmp_path: Path) -> None:
    before = "import torch; torch._dynamo.list_backends()\n" if torch_looked_before else ""
    code = f"{before}import fuse, torch\nfrom torch._dynamo.backends.registry import lookup_backend\n"
    assert run_in_checkout(code + "print(lookup_backend('fuse').__module__)", tmp_path).strip() == "fuse.backend"
