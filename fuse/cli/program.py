"""A program named on the command line: what to call with which arguments, and how it is to be compiled."""
from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from fuse.cli.errors import ProgramFailed, UsageError

CONVENTION = "fuse_example"


@dataclass
class Program:
    """`function(*args, **kwargs)`, to be called with gradients wanted (True), not wanted (False), or as it stands (None)."""

    label: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    train: bool | None

    @contextlib.contextmanager
    def mode(self) -> Iterator[None]:
        """Grad mode, and the module's own mode, as the user asked for."""
        import torch

        if self.train is not None and isinstance(self.function, torch.nn.Module):
            self.function.train(self.train)
        if self.train:
            require_gradients(self.function, [*self.args, *self.kwargs.values()])
        with torch.set_grad_enabled(self.train is not False):
            yield


def require_gradients(function: Any, arguments: list[Any]) -> None:
    """Where nothing wants a gradient, every floating-point argument does."""
    import torch

    tensors = [a for a in arguments if isinstance(a, torch.Tensor)]
    parameters = list(function.parameters()) if isinstance(function, torch.nn.Module) else []
    if not any(t.requires_grad for t in (*tensors, *parameters)):
        for t in (t for t in tensors if t.dtype.is_floating_point or t.dtype.is_complex):
            t.requires_grad_()


def add_program(parser: argparse.ArgumentParser, *, optional: bool = False) -> None:
    """The arguments with which every command names a program."""
    parser.add_argument("program", metavar="PROGRAM", **({"nargs": "?"} if optional else {}),  # type: ignore[arg-type]
                        help="FILE.py:CALLABLE or package.module:CALLABLE; called without arguments, it returns (function or "
                             f"module, args[, kwargs]). Without :CALLABLE it is {CONVENTION}")
    parser.add_argument("--train", action=argparse.BooleanOptionalAction, default=None,
                        help="gradients are wanted and a module is in train(), or neither; as it stands by default")
    parser.add_argument("--dynamic", action="store_true", help="sizes are symbols, as with torch.compile(dynamic=True)")
    parser.add_argument("--target", choices=("cpu", "triton"), help="where kernels are to run; by default where the tensors are")
    parser.add_argument("--fuel", type=int, metavar="N", help="fuse at most N regions of each graph: a fault is found by halving")
    parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE",
                        help="an option of the backend, such as min_virtual_bytes=0; repeatable")


def options_of(parsed: argparse.Namespace) -> dict[str, Any]:
    """The backend's options; UsageError for one that does not exist."""
    from fuse.options import OptionError, Options, parse_options

    given = {name: getattr(parsed, name, None) for name in ("target", "fuel", "arch")}
    try:
        options = parse_options(parsed.option) | {name: value for name, value in given.items() if value is not None}
        Options.parse(options)
    except OptionError as error:
        raise UsageError(str(error)) from None
    return options


def load(parsed: argparse.Namespace) -> Program:
    """What the user's callable returns. UsageError or ProgramFailed."""
    place, colon, name = parsed.program.rpartition(":")
    place, name = (place, name) if colon else (parsed.program, CONVENTION)
    if not place or not name.isidentifier():
        raise UsageError(f"expected FILE.py:CALLABLE or package.module:CALLABLE, got {parsed.program!r}")
    module, label = _module(place), f"{place}:{name}"
    factory = getattr(module, name, None)
    if not callable(factory):
        defined = [n for n, v in vars(module).items() if callable(v) and getattr(v, "__module__", None) == module.__name__]
        raise UsageError(f"{place} defines no callable {name!r}; it defines {', '.join(defined) or 'none'}")
    try:
        made = factory()
    except (Exception, SystemExit) as error:
        raise ProgramFailed(f"{label} raised {type(error).__name__}") from error
    if not isinstance(made, tuple) or len(made) not in (2, 3) or not callable(made[0]) \
            or not isinstance(made[1], (tuple, list)) or not isinstance(made[2] if len(made) == 3 else {}, dict):
        raise UsageError(f"{label} must return (function or module, args) or (..., args, kwargs), not {type(made).__name__}")
    return Program(label, made[0], tuple(made[1]), dict(made[2]) if len(made) == 3 else {}, parsed.train)


def _module(place: str) -> ModuleType:
    """The module of a file, or by its dotted name; the file's folder, or this one, is searched for what it imports."""
    if place.endswith(".py") or Path(place).is_file():
        if not Path(place).is_file():
            raise UsageError(f"there is no file {place!r}")
        return _loaded(place, str(Path(place).resolve().parent), lambda: _from_file(Path(place)))
    if not all(part.isidentifier() for part in place.split(".")):
        raise UsageError(f"{place!r} is neither a Python file nor the dotted name of a module")
    return _loaded(place, str(Path.cwd()), lambda: importlib.import_module(place))


def _loaded(place: str, folder: str, load: Callable[[], ModuleType]) -> ModuleType:
    sys.path.insert(0, folder)    # as if it were run
    try:
        return load()
    except UsageError:
        raise
    except ModuleNotFoundError as error:
        if error.name is not None and f"{place}.".startswith(f"{error.name}."):
            raise UsageError(f"there is no module {place!r}") from None
        raise ProgramFailed(f"{place} raised {type(error).__name__} while it was loaded") from error
    except (Exception, SystemExit) as error:
        raise ProgramFailed(f"{place} raised {type(error).__name__} while it was loaded") from error


def _from_file(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"inspected_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise UsageError(f"{str(file)!r} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module    # dataclasses and pickling look there
    spec.loader.exec_module(module)
    return module


def checked_kinds(kinds: Sequence[str]) -> set[str]:
    """UsageError for a kind of region that does not exist."""
    from fuse.ir.kinds import KINDS

    for kind in kinds:
        if kind not in KINDS:
            raise UsageError(f"no kind of region is called {kind!r}; the kinds are {', '.join(KINDS)}")
    return set(kinds)
