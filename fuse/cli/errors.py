"""What a command says when it cannot do what it was asked."""
from __future__ import annotations

import sys
import traceback
from pathlib import Path


class UsageError(Exception):
    """Wrong usage, in one sentence."""


class ProgramFailed(Exception):
    """The user's own code raised; the cause carries the traceback."""


def user_traceback(error: BaseException) -> str:
    """The traceback without the frames of torch, of fuse and of the import system."""
    torch = sys.modules.get("torch")
    hidden = ["<frozen", str(Path(__file__).parents[1]), *([str(Path(str(torch.__file__)).parent)] if torch else [])]
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(tuple(hidden))]
    shown = ["Traceback (most recent call last):\n", *traceback.format_list(frames)] if frames else []
    return "".join([*shown, *traceback.format_exception_only(error)])
