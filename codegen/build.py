"""From C++ text to a loaded library, through a cache on disk.

An entry is KEY.so with KEY.json beside it, KEY being the SHA-256 of source, headers, flags, compiler and CPU features. An
entry is used only if the bytes of the .so hash to what the .json says; anything unexpected is a miss, never an error.
The directory belongs to the user and nobody else may write to it; if that cannot be had, nothing is cached.
"""
from __future__ import annotations

import ctypes
import hashlib
import json
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from fuse.reasons import Miss, Refused

HEADERS = Path(__file__).parent / "cpu"
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fopenmp", "-fPIC", "-shared", "-fno-math-errno", "-fno-trapping-math")
TIMEOUT = 300     # seconds a compiler may take
_loaded: dict[str, ctypes.CDLL] = {}


def cache_dir() -> Path | None:
    """The cache directory (mode 0700, ours), made if need be; None if there is none that is safe to load code from."""
    from fuse.options import cache_directory

    path = cache_directory()
    if path is None:
        return None
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.lstat()
        if not stat.S_ISDIR(found.st_mode) or (hasattr(os, "getuid") and found.st_uid != os.getuid()):
            return None
        if stat.S_IMODE(found.st_mode) & 0o077:
            path.chmod(0o700)
    except OSError:
        return None
    return path


@lru_cache(maxsize=1)
def compiler() -> tuple[str, str] | None:
    """(path, version) of the C++ compiler: CXX, else the first of g++, clang++, c++ that runs. None if there is none."""
    from fuse.options import compiler_choice

    chosen = compiler_choice()
    for name in (chosen,) if chosen else ("g++", "clang++", "c++"):
        path = shutil.which(name)
        if path is None:
            continue
        try:
            run = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=TIMEOUT, check=False)
        except (OSError, subprocess.SubprocessError):
            continue
        if run.returncode == 0:
            return path, run.stdout.splitlines()[0] if run.stdout else ""
    return None


@lru_cache(maxsize=1)
def cpu_features() -> str:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        wanted = ("flags", "Features", "model name", "CPU part")
        return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))
    except OSError:
        return platform.processor() + platform.machine()


@lru_cache(maxsize=1)
def flags() -> tuple[str, ...]:
    wide = ("-mprefer-vector-width=512",) if "avx512f" in cpu_features() else ()
    return FLAGS + wide


@lru_cache(maxsize=1)
def headers() -> str:
    return "\n".join(path.read_text() for path in sorted(HEADERS.glob("*.h")))


def key_of(source: str, tool: tuple[str, str]) -> str:
    parts = (source, headers(), *flags(), *tool, cpu_features())
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def library(source: str) -> ctypes.CDLL:
    """The library built from `source`, from memory, the cache or the compiler. Raises Refused(NO_COMPILER | BUILD_FAILED)."""
    tool = compiler()
    if tool is None:
        raise Refused(Miss("NO_COMPILER"))
    key = key_of(source, tool)
    if key not in _loaded:
        cache = cache_dir()
        _loaded[key] = (_cached(cache, key) if cache is not None else None) or _build(cache, key, source, tool)
    return _loaded[key]


def _cached(cache: Path, key: str) -> ctypes.CDLL | None:
    try:
        shared, record = cache / f"{key}.so", json.loads((cache / f"{key}.json").read_text())
        if hashlib.sha256(shared.read_bytes()).hexdigest() != record["sha256"]:
            return None
        return ctypes.CDLL(str(shared))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _build(cache: Path | None, key: str, source: str, tool: tuple[str, str]) -> ctypes.CDLL:
    """Compiles in a directory of its own and moves the result into the cache; without a cache the library is loaded from
    the temporary directory, which can then go."""
    try:
        with tempfile.TemporaryDirectory(prefix="build-", dir=cache) as scratch:
            text, shared = Path(scratch) / "kernel.cpp", Path(scratch) / "kernel.so"
            text.write_text(source)
            _compile(tool[0], text, shared)
            if cache is None:
                return ctypes.CDLL(str(shared))
            record = {"sha256": hashlib.sha256(shared.read_bytes()).hexdigest(), "flags": flags(), "compiler": tool[1]}
            (Path(scratch) / "kernel.json").write_text(json.dumps(record))
            for made in (text, shared, Path(scratch) / "kernel.json"):
                os.replace(made, cache / f"{key}{made.suffix}")
            return ctypes.CDLL(str(cache / f"{key}.so"))
    except OSError as error:
        raise Refused(Miss("BUILD_FAILED", None, str(error))) from error


def assembly(source: str) -> str:
    """What the compiler makes of `source`, as assembler. Raises Refused(NO_COMPILER | BUILD_FAILED)."""
    tool = compiler()
    if tool is None:
        raise Refused(Miss("NO_COMPILER"))
    with tempfile.TemporaryDirectory(prefix="fuse-") as scratch:
        text, made = Path(scratch) / "kernel.cpp", Path(scratch) / "kernel.s"
        text.write_text(source)
        _compile(tool[0], text, made, "-S")
        return made.read_text()


def _compile(path: str, text: Path, made: Path, *more: str) -> None:
    command: Sequence[str] = [path, *flags(), *more, f"-I{HEADERS}", "-o", str(made), str(text)]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    except subprocess.SubprocessError as error:
        raise Refused(Miss("BUILD_FAILED", None, str(error))) from error
    if run.returncode != 0:
        raise Refused(Miss("BUILD_FAILED", None, run.stderr[-2000:]))
