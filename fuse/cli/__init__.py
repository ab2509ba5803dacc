"""`fuse`, also `python -m fuse`: what fuse makes of a program, whether it is right, and what this machine lacks.

Exit codes: 0 done; 1 a check failed (`--require`, `verify`, `doctor`); 2 wrong usage, a program that raises, or an error of
fuse's own. `--json` prints one JSON object, described in docs/cli.md, in place of the text.
"""
from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Sequence

from fuse import __version__
from fuse.cli import bench, cache, doctor, explain, inspect, verify
from fuse.cli.errors import ProgramFailed, UsageError, user_traceback

COMMANDS = (inspect, verify, explain, doctor, cache, bench)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code (argparse itself exits with 2)."""
    parsed = parser().parse_args(arguments)
    try:
        return int(parsed.run(parsed))
    except UsageError as error:
        print(f"fuse: {error}", file=sys.stderr)
    except ProgramFailed as error:
        assert error.__cause__ is not None
        print(f"fuse: {error}\n{user_traceback(error.__cause__)}", end="", file=sys.stderr)
    except BrokenPipeError:    # `fuse ... | head`: whoever reads has seen enough
        sys.stderr.close()
        return 0
    except Exception:
        print(f"fuse: this is an error of fuse itself; please report it\n{traceback.format_exc()}", end="", file=sys.stderr)
    return 2


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="fuse", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("--version", action="version", version=f"fuse {__version__}")
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands)
    return top
