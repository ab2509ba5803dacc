"""`python -m fuse`: what fuse makes of a program, and what its refusals mean.

    inspect FILE.py:CALLABLE    regions, refusals and, with --after, the IR; CALLABLE() returns (function, args) or
                                (function, args, kwargs)
    explain CODE                the cause of a refusal and what would remove it
    reasons                     every code, as the page docs/reasons.md

Exit codes: 0 done; 1 the inspected program failed, or a kind given with --require was not fused; 2 wrong usage.
"""
from __future__ import annotations

import argparse
import ast
import importlib.util
import json
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from fuse import __version__
from fuse.reasons import REASONS


class UsageError(Exception):
    """Wrong usage, in one sentence."""


class ProgramFailed(Exception):
    """The user's own code raised; the cause carries the traceback."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code (argparse itself exits with 2)."""
    parsed = _parser().parse_args(arguments)
    try:
        return int(parsed.run(parsed))
    except UsageError as error:
        print(f"fuse: {error}", file=sys.stderr)
        return 2
    except ProgramFailed as error:
        assert error.__cause__ is not None
        print(f"fuse: {error}", file=sys.stderr)
        _show(error.__cause__)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fuse", description="what fuse makes of a program, and what its refusals mean")
    parser.add_argument("--version", action="version", version=f"fuse {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    inspect = commands.add_parser("inspect", help="show the regions, refusals and IR of a program")
    inspect.add_argument("program", metavar="FILE.py:CALLABLE",
                         help="called without arguments; returns (function, args[, kwargs])")
    inspect.add_argument("--after", metavar="PASS", help="print the IR after this pass; a wrong name lists the passes")
    inspect.add_argument("--source", action="store_true", help="print the source of every kernel")
    inspect.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    inspect.add_argument("--option", action="append", default=[], metavar="NAME=VALUE",
                         help="an option of the backend, such as min_virtual_bytes=0; repeatable")
    inspect.add_argument("--require", action="append", default=[], metavar="KIND",
                         help="exit with 1 if no region of this kind was fused; repeatable")
    inspect.set_defaults(run=_inspect)
    explain = commands.add_parser("explain", help="say what a refusal means")
    explain.add_argument("code", metavar="CODE")
    explain.set_defaults(run=_explain)
    reasons = commands.add_parser("reasons", help="print every refusal as Markdown")
    reasons.set_defaults(run=_reasons)
    return parser


# ---- inspect ----------------------------------------------------------------------------------------------------

def _inspect(parsed: argparse.Namespace) -> int:
    file, name = _split(parsed.program)
    passes = _passes() if parsed.after else []
    if parsed.after and parsed.after not in passes:
        raise UsageError(f"there is no pass called {parsed.after!r}; the passes are {', '.join(passes)}")
    options = _options(parsed.option)
    _check_kinds(parsed.require)
    function, args, kwargs = _make(file, name)
    from fuse.report import explain

    try:
        report = explain(function, *args, fuse_options=options, **kwargs)
    except Exception as error:
        raise ProgramFailed(f"{parsed.program} failed while it was compiled") from error
    if parsed.json:
        found = report.to_dict()
        if parsed.after:
            found["after"] = {parsed.after: [r.snapshots[parsed.after]() for r in report.regions]}
        print(json.dumps(found, indent=2))
    else:
        print(report)
        for i, region in enumerate(report.regions):
            if parsed.after:
                print(f"\n; region {i}, {next(iter(region.kinds), 'contraction')} at {region.where}, after {parsed.after}")
                print(region.snapshots[parsed.after]())
            for kernel, source in region.sources.items() if parsed.source else ():
                print(f"\n; region {i}, kernel {kernel}\n{source}")
    missing = set(parsed.require) - {kind for region in report.regions for kind in region.kinds}
    if missing:
        print(f"fuse: required but not fused: {', '.join(sorted(missing))}", file=sys.stderr)
    return 1 if missing else 0


def _split(text: str) -> tuple[Path, str]:
    file, colon, name = text.rpartition(":")
    if not colon or not file or not name.isidentifier():
        raise UsageError(f"expected FILE.py:CALLABLE, got {text!r}")
    if not Path(file).is_file():
        raise UsageError(f"there is no file {file!r}")
    return Path(file), name


def _passes() -> list[str]:
    from fuse.passes import PIPELINE

    return ["import", *(name for name, _ in PIPELINE)]


def _options(given: Sequence[str]) -> dict[str, Any]:
    from fuse.options import OptionError, Options

    options: dict[str, Any] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--option expects NAME=VALUE, got {text!r}")
        try:
            options[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[key] = value
    try:
        Options.parse(options)
    except OptionError as error:
        raise UsageError(str(error)) from None
    return options


def _check_kinds(kinds: Sequence[str]) -> None:
    from fuse.ir.kinds import KINDS

    for kind in kinds:
        if kind not in KINDS:
            raise UsageError(f"no kind of region is called {kind!r}; the kinds are {', '.join(KINDS)}")


def _make(file: Path, name: str) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """What the user's callable returns: function or module, arguments, keyword arguments."""
    module = _load(file)
    factory = getattr(module, name, None)
    if not callable(factory):
        defined = [n for n, v in vars(module).items()
                   if callable(v) and getattr(v, "__module__", None) == module.__name__]
        raise UsageError(f"{file} defines no callable {name!r}; it defines {', '.join(defined) or 'none'}")
    try:
        made = factory()
    except Exception as error:
        raise ProgramFailed(f"{file}:{name} raised {type(error).__name__}") from error
    if not isinstance(made, tuple) or len(made) not in (2, 3) or not callable(made[0]) \
            or not isinstance(made[1], (tuple, list)) or not isinstance(made[2] if len(made) == 3 else {}, dict):
        raise UsageError(f"{file}:{name} must return (function or module, args) or (..., args, kwargs), "
                         f"not {type(made).__name__}")
    return made[0], tuple(made[1]), dict(made[2]) if len(made) == 3 else {}


def _load(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"inspected_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise UsageError(f"{str(file)!r} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module    # dataclasses and pickling look there
    sys.path.insert(0, str(file.resolve().parent))    # as if it were run
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ProgramFailed(f"{file} raised {type(error).__name__} while it was loaded") from error
    return module


def _show(error: BaseException) -> None:
    """The traceback without the frames of torch, of fuse and of the import system."""
    import torch

    hidden = (str(Path(torch.__file__).parent), str(Path(__file__).parent), importlib.util.__file__, "<frozen")
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(hidden)]
    if frames:
        print("Traceback (most recent call last):\n" + "".join(traceback.format_list(frames)), end="", file=sys.stderr)
    print("".join(traceback.format_exception_only(error)), end="", file=sys.stderr)


# ---- refusals ---------------------------------------------------------------------------------------------------

def _explain(parsed: argparse.Namespace) -> int:
    reason = REASONS.get(parsed.code.upper())
    if reason is None:
        raise UsageError(f"there is no code {parsed.code!r}; the codes are {', '.join(REASONS)}")
    print(f"{reason.code}\n  cause  {reason.cause}\n  hint   {reason.hint}")
    return 0


def _reasons(parsed: argparse.Namespace) -> int:
    print(reasons_page(), end="")
    return 0


def reasons_page() -> str:
    """docs/reasons.md."""
    rows = "\n".join(f"| `{r.code}` | {r.cause} | {r.hint} |" for r in REASONS.values())
    return f"""# Why fuse declines

Every refusal has a code. `fuse.explain` and `python -m fuse inspect` give it together with the line of your program;
`torch._dynamo.utils.counters["fuse"]["declined"]` counts them, and `TORCH_LOGS=+fuse` logs each. What is declined is
compiled by Inductor, as if fuse were not there.

This page is made by `python -m fuse reasons > docs/reasons.md`.

| code | cause | what you can do |
|---|---|---|
{rows}
"""
