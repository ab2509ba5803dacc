"""How fuse speaks: a warning for each failure, and in the log one line a graph (TORCH_LOGS=fuse; +fuse for refusals)."""
from __future__ import annotations

import os
import sys
import sysconfig
import traceback
import warnings
from pathlib import Path

from fuse.reasons import Miss, Refused

# What is a failure of fuse and deserves a warning; any other Miss is a refusal, which reports and the log mention.
FAILURES = ("INTERNAL", "BUILD_FAILED", "LAUNCH_FAILED", "NO_COMPILER")
ONCE = ("NO_COMPILER",)    # true of the machine, not of a region: said once in a process
_said: set[str] = set()
STDLIB = sysconfig.get_path("stdlib")
_shown: dict[str | tuple[str, type[Warning], int], int] = {}      # what Python's filters remember of the warnings shown


class FuseWarning(UserWarning):
    """Something inside fuse failed; the result is right, but the region runs without fuse."""


class FuseError(RuntimeError):
    """Raised instead of a warning under options={"strict": True}, and when a required region was not fused."""


def miss_of(error: Exception, where: str | None = None, code: str = "INTERNAL") -> Miss:
    """The Miss for an exception: its own if it is a Refused, else `code` with the exception's text and place."""
    if isinstance(error, Refused):
        miss = error.miss
        return miss if miss.where or not where else Miss(miss.code, where, miss.detail)
    frames = traceback.extract_tb(error.__traceback__)
    place = f", raised at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    return Miss(code, where, f"{type(error).__name__}: {error}{place}")


def fail(miss: Miss, strict: bool, consequence: str, cause: BaseException | None = None) -> None:
    """For a failure: raises FuseError if strict, else warns; `consequence` says what happens instead."""
    if miss.code not in FAILURES:
        return
    if strict:
        raise FuseError(str(miss)) from cause
    if miss.code in _said:
        return
    _said.update({miss.code} & set(ONCE))
    file, line = place_of(miss.where) or caller()
    warnings.warn_explicit(f"fuse: {miss} {consequence}", FuseWarning, file, line, registry=_shown)


def place_of(where: str | None) -> tuple[str, int] | None:
    """(file, line) of 'file:line'; None for anything else, such as the name of a module."""
    file, _, line = (where or "").rpartition(":")
    return (file, int(line)) if file and line.isdigit() else None


def caller() -> tuple[str, int]:
    """The innermost line on the stack that is neither fuse's nor torch's nor of Python's own library."""
    fuse = Path(__file__).parent
    hidden = (f"{fuse}{os.sep}", f"{fuse.parent / 'passes'}{os.sep}", f"{fuse.parent / 'codegen'}{os.sep}",
              f"{Path(getattr(sys.modules.get('torch'), '__file__', None) or fuse).parent}{os.sep}", "<")
    for frame in reversed(traceback.extract_stack()):
        library = frame.filename.startswith(STDLIB) and "site-packages" not in frame.filename
        if not library and not frame.filename.startswith(hidden):
            return frame.filename, frame.lineno or 0
    return __file__, 0
