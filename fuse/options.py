"""The options of `torch.compile(model, backend="fuse", options={...})`, checked by name.

torch hands a backend whatever the user wrote, unchecked: a misspelt key would be ignored silently. Inductor's own
options are not fuse's: only `mode` is understood, and means what it means for Inductor.
"""
from __future__ import annotations

import ast
import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

TARGETS = ("auto", "cpu", "triton")
ARCHS = ("cpu", "sm80", "sm89", "sm90", "sm100", "sm120", "gfx942")
SCHEDULES = ("auto", "recompute", "slab", "least-memory", "fastest")
DEFAULT_MIN_VIRTUAL_BYTES = 8 << 20     # measured on a CPU: below, the calls cost more than the memory traffic saved


class OptionError(ValueError):
    """An option that does not exist or a value it cannot take; the message names those it can."""


def parse_options(texts: Iterable[str]) -> dict[str, Any]:
    """Options from a command line's NAME=VALUE, the value in Python's spelling or a bare word. OptionError without an equals
    sign; whether the options exist, `Options.parse` says."""
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise OptionError(f"--option expects NAME=VALUE, got {text!r}")
        try:
            found[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[name] = value
    return found


@dataclass(frozen=True)
class Options:
    """What a user may choose; the defaults are meant to be right.

    target             "cpu" (C++) or "triton"; "auto" goes by the device of the tensors
    min_virtual_bytes  values below this are left to Inductor; None is the default of 8 MiB, 0 fuses whatever the size
                       and switches the cost test off
    gradient_filter    "off": gradients are exact; a number eps: what the rows of a tile add to a gradient may be left out
                       where all their entries are below eps times the row's cotangent; "auto": eps by the type of
                       the operands, 2**-12 for bfloat16 (see fuse.passes.negligible)
    schedule           "recompute": every tile is recomputed in the backward; "least-memory": the same with smaller tiles;
                       "slab" or "fastest": gradients are computed in the forward where that is legal; "auto": fuse chooses
    strict             raise where fuse would warn and leave a region to Inductor
    require            kinds of region that every compiled graph must contain; raises if one was not fused
    fuel               at most this many regions per graph (for bisection); None: no limit
    mode               Inductor's mode, since torch refuses `mode` beside `options`
    tile               extents of a tile by dimension, e.g. {"row": 16, "col": 32}; None lets the target choose
    arch               the device kernels are made for, such as "sm90" or "gfx942"; None is the one that is here. Kernels for
                       another can be looked at (`fuse inspect --arch`), not run
    """

    target: str = "auto"
    min_virtual_bytes: int | None = None
    gradient_filter: str | float = "off"
    schedule: str = "auto"
    strict: bool = False
    require: tuple[str, ...] = ()
    fuel: int | None = None
    mode: str | None = None
    tile: Mapping[str, int] | None = None
    arch: str | None = None

    @staticmethod
    def parse(options: Mapping[str, Any] | None = None, mode: str | None = None) -> Options:
        """Options from what torch.compile passed on. OptionError names the unknown key and the known ones."""
        given = dict(options or {})
        known = [f.name for f in fields(Options)]
        for key in given:
            if key not in known:
                raise OptionError(f"fuse has no option {key!r}; the options are {', '.join(known)}")
        if mode is not None:
            given["mode"] = mode
        for name, value in given.items():
            given[name] = _CHECKS[name](name, value)
        return Options(**given)

    @property
    def virtual_floor(self) -> int:
        """Bytes below which a value is not worth streaming."""
        return DEFAULT_MIN_VIRTUAL_BYTES if self.min_virtual_bytes is None else self.min_virtual_bytes

    @property
    def eps(self) -> float | str | None:
        """The gradient filter's bound: a number, "auto", or None if gradients are exact."""
        return None if self.gradient_filter == "off" else self.gradient_filter

    @property
    def slab(self) -> bool:
        """May gradients be computed in the forward? Under "auto" the target has a say (see runtime.plan.wanted_slab)."""
        return self.schedule not in ("recompute", "least-memory")

    @property
    def digest(self) -> str:
        """Hash of everything that can change generated code or what is fused."""
        chosen = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("strict", "require")}
        chosen["tile"] = sorted(self.tile.items()) if self.tile is not None else None
        return hashlib.sha256(repr(sorted(chosen.items())).encode()).hexdigest()


def _one_of(*choices: str) -> Any:
    def check(name: str, value: Any) -> str:
        if value not in choices:
            raise OptionError(f"option {name!r} must be one of {', '.join(map(repr, choices))}, not {value!r}")
        return str(value)
    return check


def _gradient_filter(name: str, value: Any) -> str | float:
    if isinstance(value, str) and value in ("off", "auto"):
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise OptionError(f"option {name!r} must be 'off' (exact gradients), 'auto', or a number of at least 0 and below 1, "
                          f"not {value!r}")
    return float(value)


def _count(name: str, value: Any) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
        raise OptionError(f"option {name!r} must be an integer >= 0 or None, not {value!r}")
    return value


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise OptionError(f"option {name!r} must be True or False, not {value!r}")
    return value


def _kinds(name: str, value: Any) -> tuple[str, ...]:
    from fuse.ir.kinds import KINDS  # not needed to read the other options

    kinds = (value,) if isinstance(value, str) else tuple(value)
    for kind in kinds:
        if kind not in KINDS:
            raise OptionError(f"option {name!r}: no kind is called {kind!r}; the kinds are {', '.join(KINDS)}")
    return kinds


def _mode(name: str, value: Any) -> str | None:
    from fuse.private import mode_names

    if value is not None and value not in mode_names():
        raise OptionError(f"option {name!r} must be one of {', '.join(mode_names())}, not {value!r}")
    return None if value is None else str(value)


def _arch(name: str, value: Any) -> str | None:
    known = value.replace("_", "") if isinstance(value, str) else value      # sm_90 is how NVIDIA writes it
    if known is not None and known not in ARCHS:
        raise OptionError(f"option {name!r} must be one of {', '.join(ARCHS)}, not {value!r}")
    return None if known is None else str(known)


def _tile(name: str, value: Any) -> dict[str, int] | None:
    if value is None:
        return None
    if not isinstance(value, Mapping) or not all(
            isinstance(k, str) and isinstance(v, int) and not isinstance(v, bool) and v > 0 for k, v in value.items()):
        raise OptionError(f'option {name!r} must map dimensions to positive extents, e.g. {{"row": 16}}, not {value!r}')
    return dict(value)


_CHECKS: dict[str, Any] = {
    "target": _one_of(*TARGETS), "min_virtual_bytes": _count, "gradient_filter": _gradient_filter,
    "schedule": _one_of(*SCHEDULES), "strict": _flag, "require": _kinds, "fuel": _count, "mode": _mode, "tile": _tile,
    "arch": _arch,
}


def cache_directory() -> Path | None:
    """Where built kernels are kept, or None to keep none: FUSE_CACHE_DIR, else fuse/ in the user's cache directory, if any.

    torch's own switch, TORCHINDUCTOR_FORCE_DISABLE_CACHES=1, counts for fuse too.
    """
    if os.environ.get("TORCHINDUCTOR_FORCE_DISABLE_CACHES") == "1":
        return None
    chosen = os.environ.get("FUSE_CACHE_DIR")
    if chosen:
        return Path(chosen)
    caches = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))    # "~" stays if nobody's home is known
    return caches / "fuse" if caches.is_absolute() else None


def compiler_choice() -> str | None:
    """The C++ compiler the user named in CXX, if any."""
    return os.environ.get("CXX") or None
