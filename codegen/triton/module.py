"""Generated text as an importable module: `triton.jit` reads its source back from the file."""
from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
import tempfile
from functools import cache
from pathlib import Path
from types import ModuleType

from fuse.codegen.build import cache_dir


def load(source: str, directory: Path) -> ModuleType:
    """The module whose text is `source`, imported once per process. Files are named by their content."""
    name = f"fuse_triton_{hashlib.sha256(source.encode()).hexdigest()[:24]}"
    if name in sys.modules:
        return sys.modules[name]
    path = directory / f"{name}.py"
    if not path.is_file() or path.read_text() != source:
        write(path, source)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def write(path: Path, text: str) -> None:
    """Whole or not at all, whoever else writes the same file."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    with os.fdopen(handle, "w") as file:
        file.write(text)
    os.replace(temporary, path)


@cache
def directory() -> Path:
    """Where modules go: below the kernel cache or, if there is none that only the user can write to, a fresh directory."""
    base = cache_dir()
    if base is None:
        return Path(tempfile.mkdtemp(prefix="fuse-triton-"))
    path = base / "triton"
    path.mkdir(mode=0o700, exist_ok=True)
    return path
