"""`fuse verify PROGRAM`: are fuse's results right? Every output and every gradient against float64, beside Inductor's.

Exit code 1 if fuse is off. Where Inductor is, that is said, and is no fault of fuse. See docs/cli.md for what off means.
"""
from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fuse.cli import screen
from fuse.cli.errors import UsageError
from fuse.cli.program import Program, add_program, load, options_of

if TYPE_CHECKING:
    from fuse.cli.arms import Error, Values


def add(commands: Any) -> None:
    parser = commands.add_parser("verify", help="compare fuse and Inductor with eager mode in float64", description=__doc__)
    add_program(parser)
    parser.add_argument("--reproducer", type=Path, metavar="FILE",
                        help="write a script that needs nothing of the program; by default fuse_reproducer.py if an arm is off")
    parser.add_argument("--no-reproducer", action="store_true", help="write none")
    screen.add_json(parser)
    parser.set_defaults(run=run)


def run(parsed: argparse.Namespace) -> int:
    options = {"strict": True, **options_of(parsed)}
    program = load(parsed)
    with program.mode():
        found, regions = compared(program, options, parsed.dynamic)
    off = sorted({e.arm for e in found if e.off})
    path = parsed.reproducer or (Path("fuse_reproducer.py") if off else None)
    written = None if parsed.no_reproducer or path is None else _reproduce(program, parsed, path)
    if parsed.json:
        screen.document("verify", {"program": parsed.program, "off": off, "errors": [asdict(e) for e in found],
                                   "regions": regions, "reproducer": written})
    else:
        screen.say(text(found, off, regions))
        if written:
            screen.say(f"\nwrote {written}: python {written} compares the arms again")
    return int("fuse" in off)


def compared(program: Program, options: dict[str, Any], dynamic: bool) -> tuple[list[Error], int]:
    """The errors of every arm, and how many regions fuse made."""
    from fuse.cli.arms import ARMS, Comparison, errors
    from fuse.private import counters

    comparison = Comparison(program, options, dynamic)
    truth = comparison.truth()
    if not truth:
        raise UsageError(f"{program.label} returns no tensor: there is nothing to compare")
    arms: dict[str, Values | Exception] = {}
    fused = 0
    for arm in ARMS:
        before = counters()["fused"]
        try:
            arms[arm] = comparison.run(arm)
        except Exception as error:
            arms[arm] = error
        fused = counters()["fused"] - before
    return errors(truth, arms), fused


def text(found: list[Error], off: list[str], regions: int) -> str:
    by_value: dict[str, dict[str, Error]] = {}
    for e in found:
        if e.value:
            by_value.setdefault(e.value, {})[e.arm] = e
    arms = list(dict.fromkeys(e.arm for e in found if e.value))
    rows = [(name, *(_number(row.get(arm)) for arm in arms), _limit(row)) for name, row in by_value.items()]
    lines = [screen.table(("error against float64", *arms, "limit"), rows), ""] if rows else []
    lines += [f"OFF  {e.arm}: {e.value or 'it raised'}{': ' * bool(e.detail)}{e.detail}" for e in found if e.off]
    if not regions:
        lines.append("fuse took nothing of this program: its arm is Inductor's")
    if "fuse" not in off:
        lines.append("ok   fuse errs no more than it may" + ("; Inductor does" if "inductor" in off else ""))
    return "\n".join(lines)


def _number(error: Error | None) -> str:
    if error is None:
        return "-"
    return ("not finite" if error.error is None else f"{error.error:.2g}") + " OFF" * error.off


def _limit(row: dict[str, Error]) -> str:
    limit = next(iter(row.values())).limit
    return "-" if limit is None else f"{limit:.2g}"


def _reproduce(program: Program, parsed: argparse.Namespace, path: Path) -> str | None:
    from fuse.cli.reproduce import Unwritable, script

    given = [f"--option={o}" for o in parsed.option] + ["--dynamic"] * parsed.dynamic
    given += [f"--{name}={value}" for name in ("target", "fuel") if (value := getattr(parsed, name)) is not None]
    given += {None: [], True: ["--train"], False: ["--no-train"]}[parsed.train]
    try:
        with program.mode():
            source = script(program, given)
    except Unwritable as error:
        screen.warn(f"no reproducer: {error}")
        return None
    path.write_text(source)
    return str(path)
