"""`fuse bench ...`: the benchmarks of the checkout that fuse is imported from; they are not part of an installation."""
from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

from fuse.cli.errors import UsageError


def add(commands: Any) -> None:
    parser = commands.add_parser("bench", help="run the benchmarks, from a checkout", description=__doc__, add_help=False,
                                 prefix_chars="\0")    # whatever follows is the benchmarks' own
    parser.add_argument("arguments", nargs="*", metavar="ARGUMENT", help="passed on; --help lists them")
    parser.set_defaults(run=run)


def run(parsed: argparse.Namespace) -> int:
    script = entry_point()
    return subprocess.run([sys.executable, str(script), *parsed.arguments], check=False).returncode


def entry_point(root: Path = Path(__file__).parents[2]) -> Path:
    """benchmarks/run.py of the checkout. UsageError if there is none."""
    script = root / "benchmarks" / "run.py"
    if not (root / "pyproject.toml").is_file():
        raise UsageError("the benchmarks are part of the repository, not of an installation: run fuse bench from a checkout")
    if not script.is_file():
        raise UsageError(f"this checkout has no benchmarks/run.py: {root}")
    return script
