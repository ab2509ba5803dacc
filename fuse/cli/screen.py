"""Printing: one JSON object, or text, which rich colours where it is installed and a person looks at a terminal."""
from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

STYLES = {r"(?m)^ *(FUSED|ok) ": "bold green", r"(?m)^ *(DECLINED|warn|NOTE) ": "bold yellow", r"(?m)^ *(OFF|fail) ": "bold red",
          r"(?m)^(graph \d+|; .*)": "bold", r"(?m)^    +[a-z ]{1,10}  ": "dim"}


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")


def document(command: str, found: dict[str, Any]) -> None:
    """Prints the JSON object of a command, with the version of its schema."""
    from fuse.cli.schema import SCHEMA_VERSION

    print(json.dumps({"schema": SCHEMA_VERSION, "command": command, **found}, indent=2, allow_nan=False))


def say(text: str) -> None:
    console = _console()
    if console is None:
        print(text)
        return
    from rich.text import Text

    shown = Text(text)
    for pattern, style in STYLES.items():
        shown.highlight_regex(pattern, style)
    console.print(shown, soft_wrap=True)


def code(text: str, language: str) -> None:
    """Source text; the IR has no language."""
    console = _console()
    if console is None or not language:
        print(text)
        return
    from rich.syntax import Syntax

    console.print(Syntax(text, language, background_color="default"), soft_wrap=True)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Aligned columns."""
    cells = [list(columns), *map(list, rows)]
    widths = [max(len(row[k]) for row in cells) for k in range(len(columns))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells)


def warn(text: str) -> None:
    print(f"fuse: {text}", file=sys.stderr)


@cache
def _console() -> Any:
    """rich's console, or None in a pipe and without rich."""
    if not sys.stdout.isatty():
        return None
    try:
        from rich.console import Console
    except ImportError:
        return None
    console = Console(highlight=False)
    return None if console.is_dumb_terminal else console
