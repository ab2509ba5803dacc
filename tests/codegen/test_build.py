"""The compiler and the cache of built libraries."""
from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fuse.codegen import Schedule, build, compile_region
from fuse.codegen.cpu import TARGET
from fuse.reasons import Miss, Refused
from tests.codegen.regions import BY_NAME

SOURCE = 'extern "C" int answer() {{ return {}; }}\n'
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FUSE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(build, "_loaded", {})
    return tmp_path / "cache"


def entry(cache: Path) -> Path:
    (found,) = cache.glob("*.so")
    return found


def test_a_library_is_built_once_and_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert build.library(SOURCE.format(41)).answer() == 41
    assert cache.stat().st_mode & 0o777 == 0o700
    record = json.loads(entry(cache).with_suffix(".json").read_text())
    assert record["sha256"] == hashlib.sha256(entry(cache).read_bytes()).hexdigest()
    assert not [p for p in cache.iterdir() if p.is_dir()], "scratch directories are removed"
    monkeypatch.setattr(build, "_loaded", {})
    monkeypatch.setattr(build, "_compile", None)
    assert build.library(SOURCE.format(41)).answer() == 41


@pytest.mark.parametrize("damage", ["truncate", "flip", "no json", "bad json", "list", "no so"])
def test_a_damaged_entry_is_a_miss(cache: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    build.library(SOURCE.format(42))
    shared = entry(cache)
    record = shared.with_suffix(".json")
    match damage:
        case "truncate":
            replace(shared, shared.read_bytes()[:100])
        case "flip":
            replace(shared, shared.read_bytes()[:-1] + b"x")
        case "no json":
            record.unlink()
        case "bad json":
            record.write_text("{")
        case "list":
            record.write_text("[]")
        case "no so":
            shared.unlink()
    monkeypatch.setattr(build, "_loaded", {})
    assert build.library(SOURCE.format(42)).answer() == 42
    assert json.loads(record.read_text())["sha256"] == hashlib.sha256(shared.read_bytes()).hexdigest()


def replace(path: Path, data: bytes) -> None:
    """As another process would: the loaded library's file must not change under it."""
    path.unlink()
    path.write_bytes(data)


def test_the_key_depends_on_everything_that_shapes_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    tool = ("g++", "12")
    keys = {build.key_of("a", tool), build.key_of("b", tool), build.key_of("a", ("g++", "13"))}
    for name, other in (("flags", ("-O0",)), ("cpu_features", "another"), ("headers", "changed")):
        with monkeypatch.context() as patch:
            patch.setattr(build, name, lambda other=other: other)
            keys.add(build.key_of("a", tool))
    assert len(keys) == 6


def test_a_second_process_compiles_nothing(cache: Path) -> None:
    code = ("from fuse.codegen import build\n"
            "if {sealed}: build._compile = None\n"
            f"print(build.library({SOURCE.format(43)!r}).answer())")
    for sealed in (False, True):
        environment = {**os.environ, "FUSE_CACHE_DIR": str(cache), "PYTHONPATH": str(ROOT)}
        run = subprocess.run([sys.executable, "-c", code.replace("{sealed}", str(sealed))], env=environment, capture_output=True,
                             text=True, check=False)
        assert run.stdout.strip() == "43", run.stderr


def test_somebody_elses_directory_is_not_used(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.mkdir()
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    assert build.cache_dir() is None
    assert build.library(SOURCE.format(44)).answer() == 44
    assert not list(cache.iterdir())


def test_a_file_or_a_link_in_place_of_the_directory_is_not_used(cache: Path, tmp_path: Path) -> None:
    cache.symlink_to(tmp_path)
    assert build.cache_dir() is None
    cache.unlink()
    cache.write_text("")
    assert build.cache_dir() is None


def test_an_open_directory_is_closed(cache: Path) -> None:
    cache.mkdir(mode=0o755)
    cache.chmod(0o777)
    assert build.cache_dir() == cache
    assert cache.stat().st_mode & 0o777 == 0o700


def test_no_compiler_is_a_miss(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", str(cache / "nothing"))
    build.compiler.cache_clear()
    try:
        case = BY_NAME["row_gradient"]
        miss = compile_region(case.region(), TARGET, case.sizes)
        assert isinstance(miss, Miss) and miss.code == "NO_COMPILER"
    finally:
        monkeypatch.delenv("CXX")
        build.compiler.cache_clear()


def test_source_that_does_not_compile_is_a_miss(cache: Path) -> None:
    with pytest.raises(Refused, match="BUILD_FAILED"):
        build.library("this is not C++")
    assert not list(cache.iterdir())
    case = BY_NAME["row_gradient"]
    with pytest.raises(Refused, match="BUILD_FAILED"):
        TARGET.build(case.region(), Schedule("recompute"), "nor is this")


def test_kernels_share_the_threads_of_torch(cache: Path) -> None:
    """One OpenMP runtime of that name in the process (other packages bring theirs under another): the one torch loaded."""
    case = BY_NAME["row_gradient"]
    kernel = compile_region(case.region(), TARGET, case.sizes)
    assert kernel
    kernel(case.inputs(), case.sizes)
    torch.ones(1 << 20).sum()
    maps = Path("/proc/self/maps")
    if maps.exists():
        assert len({line.split()[-1] for line in maps.read_text().splitlines() if "libgomp.so" in line}) == 1
