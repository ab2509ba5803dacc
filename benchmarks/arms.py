"""The arms that every suite has: PyTorch as it is, compiled, and fuse. An arm that raises is reported with its reason."""
from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from types import FunctionType
from typing import Any
from zlib import crc32

import torch

from benchmarks.cases import Arm, Case, Function


class Absent(Exception):
    """The arm cannot run here; the message says why."""


def need(module: str, device: str = "") -> None:
    """Absent unless the module is installed and, if a device is named, there is one."""
    if find_spec(module) is None:
        raise Absent(f"{module} is not installed")
    if device == "cuda" and not torch.cuda.is_available():
        raise Absent(f"{module} needs CUDA")


def peer(module: str, make: Arm, device: str = "cuda") -> Arm:
    """An arm of a package that need not be installed and runs on `device` alone ("": anywhere)."""
    def arm(case: Case) -> Function:
        need(module, device)
        return make(case)
    return arm


def eager(case: Case) -> Function:
    return case.function


def compiled(case: Case, backend: str, options: dict[str, Any] | None = None) -> Function:
    """Sizes are constants: a sweep compiles each of them."""
    function = copied(case.function, f"{backend} {options}")
    made: Function = torch.compile(function, backend=backend, dynamic=False, options=options)
    return made


def copied(function: Function, arm: str) -> Function:
    """The function with code of its own: Dynamo keeps what it compiled with the code, and the arms must not share its limit."""
    assert isinstance(function, FunctionType)
    code = function.__code__.replace(co_name=f"{function.__name__}_{crc32(arm.encode())}")
    return FunctionType(code, function.__globals__, function.__name__, function.__defaults__, function.__closure__)


def inductor(case: Case) -> Function:
    return compiled(case, "inductor")


def auto_chunker(case: Case) -> Function:
    """Inductor's own chunking of large values, made to fire: by default it leaves most language models alone."""
    if not hasattr(torch._inductor.config, "auto_chunker"):
        raise Absent(f"torch {torch.__version__} has no auto_chunker")
    return compiled(case, "inductor", {"auto_chunker.enable": True, "auto_chunker.amplify_ratio_threshold": 1})


def fuse(**options: Any) -> Arm:
    """fuse with these of its options, beside those of the command line."""
    def arm(case: Case) -> Function:
        import_module("fuse")     # a checkout that is not installed makes its backend known
        return compiled(case, "fuse", {**options, **given} or None)
    return arm


given: dict[str, Any] = {}     # fuse's options from the command line (--option NAME=VALUE)

COMPILED: dict[str, Arm] = {"eager": eager, "inductor": inductor}
FUSE: dict[str, Arm] = {"fuse": fuse()}
