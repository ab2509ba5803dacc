"""`fuse cache ls|clear`: the built kernels that fuse keeps on disk."""
from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fuse.cli import screen
from fuse.cli.errors import UsageError

DAY = 86400
NATIVE = re.compile(r"([0-9a-f]{64})\.so$")
GENERATED = re.compile(r"fuse_triton_([0-9a-f]{24})\.py$")


@dataclass(frozen=True)
class Entry:
    """One kernel: its key, the target, bytes on disk, days since it was built, and the compiler that built it."""

    key: str
    target: str
    bytes: int
    days: float
    compiler: str
    files: tuple[str, ...]


def add(commands: Any) -> None:
    parser = commands.add_parser("cache", help="list or clear the kernels kept on disk", description=__doc__)
    parser.add_argument("action", choices=("ls", "clear"))
    parser.add_argument("--older-than", type=float, metavar="DAYS", default=0.0, help="only what was built longer ago")
    screen.add_json(parser)
    parser.set_defaults(run=run)


def run(parsed: argparse.Namespace) -> int:
    from fuse.codegen.build import cache_dir

    folder = cache_dir()
    if folder is None:
        raise UsageError("there is no cache: it is switched off, or its folder cannot be made yours alone")
    found = [e for e in entries(folder) if e.days >= parsed.older_than]
    if parsed.action == "clear":
        clear(folder, found)
    if parsed.json:
        screen.document("cache", {"folder": str(folder), "action": parsed.action, "entries": [asdict(e) for e in found]})
    else:
        _show(parsed.action, folder, found)
    return 0


def entries(folder: Path) -> Iterator[Entry]:
    """What fuse itself has put into the folder, oldest first; whatever else lies there is nobody's business."""
    files = sorted([*folder.glob("*.so"), *folder.glob("triton/*.py")], key=lambda path: path.stat().st_mtime)
    for path in files:
        if match := NATIVE.match(path.name):
            beside = [path.with_suffix(suffix) for suffix in (".so", ".json", ".cpp")]
            yield _entry(folder, match[1], "cpu", [p for p in beside if p.is_file()], _compiler(path.with_suffix(".json")))
        elif match := GENERATED.match(path.name):
            yield _entry(folder, match[1], "triton", [path], "")


def _entry(folder: Path, key: str, target: str, files: list[Path], compiler: str) -> Entry:
    stats = [path.stat() for path in files]
    names = tuple(path.relative_to(folder).as_posix() for path in files)
    return Entry(key, target, sum(s.st_size for s in stats), (time.time() - stats[0].st_mtime) / DAY, compiler, names)


def _compiler(record: Path) -> str:
    try:
        return str(json.loads(record.read_text())["compiler"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def clear(folder: Path, found: list[Entry]) -> None:
    """Removes the files of these entries. A process that has loaded one keeps it."""
    for entry in found:
        for name in entry.files:
            (folder / name).unlink(missing_ok=True)


def _show(action: str, folder: Path, found: list[Entry]) -> None:
    from fuse.reasons import size_text

    rows = [(e.key[:12], e.target, size_text(e.bytes), f"{e.days:.1f}", e.compiler) for e in found]
    if rows and action == "ls":
        screen.say(screen.table(("kernel", "target", "size", "days", "compiler"), rows))
    verb = "removed from" if action == "clear" else "in"
    screen.say(f"{len(found)} kernel{'s' * (len(found) != 1)}, {size_text(sum(e.bytes for e in found))}, {verb} {folder}")
