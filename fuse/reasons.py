"""Every "no" fuse can say: a code, its cause and what the user can do about it.

A rule that does not apply returns a `Miss`, which is falsy, is formatted only when somebody reads it, and carries the
user's own file and line.
"""
from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Reason:
    """`cause` says what stands in the way, `hint` what would remove it."""

    code: str
    cause: str
    hint: str


def _table(*rows: tuple[str, str, str]) -> dict[str, Reason]:
    return {code: Reason(code, cause, hint) for code, cause, hint in rows}


REASONS = _table(
    # what leaves the virtual value
    ("ESCAPES", "the large value itself leaves the compiled graph",
     "return only what you use, for example the loss; a graph break after the large value has the same effect"),
    ("STORED", "a large value is an output as well: it is stored, once, in its own type",
     "compile a step that returns only what you use: `@torch.compile(backend=\"fuse\")` over "
     "`def step(**batch): return model(**batch).loss`"),
    ("OTHER_USER", "the large value is read by something that is not a reduction, so it has to be stored",
     "reduce it first, or compute that part in another function"),
    ("NOT_A_REDUCTION", "an operation on the large value cannot be streamed along one axis",
     "the report names the operation in parentheses"),
    ("EXITS_TOO_BIG", "what leaves the large value is about as large as the value itself", "nothing: there is nothing to save"),
    ("NOT_A_SCAN", "the steps of a loop are not one recurrence h = a h + b with a number a for each element of the state",
     "the report names what differs in parentheses; a loop that is no such recurrence runs as before"),
    ("TOO_SMALL", "the value is below min_virtual_bytes: storing it is cheaper than recomputing it",
     'lower options={"min_virtual_bytes": ...} to force it'),
    ("NOT_WORTH_IT", "recomputing the value costs more than moving it",
     'options={"min_virtual_bytes": 0} switches the cost test off'),
    # capture
    ("UNSUPPORTED_OP", "fuse has no rule for this operation", "please report the operation; the region runs on Inductor"),
    ("UNSUPPORTED_DTYPE", "fuse has no kernels for this element type", "use float32, bfloat16, float16 or (on the CPU) float64"),
    ("UNSUPPORTED_VIEW", "a view mixes axes in a way that no index expression describes",
     "reshape before the large value is made"),
    ("RANDOM", "a random number is drawn inside the region", "move dropout off the large value"),
    ("MUTATION", "a tensor is mutated in a way fuse cannot express as a value", "use the out-of-place form"),
    ("FUNCTORCH", "the region lies inside a torch.func transform", "compile the transformed function's parts instead"),
    ("DTENSOR", "an operand is a DTensor", "fuse local tensors, for example inside local_map"),
    ("UNBOUND_SIZE", "a size of the region cannot be read off its inputs", "mark the dimension static"),
    # passes and targets
    ("NOT_SEPARABLE", "a reduction needs the final statistics of the sweep it would join", "nothing: it takes one more sweep"),
    ("TARGET_LACKS", "fuse makes no kernel for a region of this kind yet", "nothing yet; Inductor compiles it as before"),
    ("NO_COMPILER", "no C++ compiler was found, so the tiled path in plain torch is used", "install g++ or set CXX"),
    ("BUILD_FAILED", "the generated kernel did not build", "please report it with the kernel's source"),
    ("LAUNCH_FAILED", "the kernel failed when it was launched; the tiled path in plain torch is used instead",
     "please report it"),
    ("INTERNAL", "fuse raised an unexpected error", "please report it with the traceback"),
    ("FUEL", "the optimisation fuel was used up", 'raise options={"fuel": ...}'),
)


def size_text(count: int) -> str:
    """12345678 -> '11.8 MiB'"""
    value, unit = float(count), "bytes"
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"


class Miss:
    """A refusal: falsy, so that `if not result` reads well. `where` is the user's file:line, or None."""

    __slots__ = ("_detail", "reason", "where")

    def __init__(self, code: str, where: str | None = None, detail: object = ""):
        self.reason, self.where, self._detail = REASONS[code], where, detail

    def __bool__(self) -> bool:
        return False

    @property
    def code(self) -> str:
        return self.reason.code

    @property
    def detail(self) -> str:
        return str(self._detail() if callable(self._detail) else self._detail)

    def __str__(self) -> str:
        place = f" at {self.where}" if self.where else ""
        detail = f" ({self.detail})" if self.detail else ""
        return f"{self.code}{place}: {self.reason.cause}{detail}. {self.reason.hint[:1].upper()}{self.reason.hint[1:]}."

    def to_dict(self) -> dict[str, str | None]:
        return {"code": self.code, "cause": self.reason.cause, "detail": self.detail, "where": self.where,
                "hint": self.reason.hint}


class Refused(Exception):
    """Carries a Miss out of a nested rule; caught where the region is decided, never by a user."""

    def __init__(self, miss: Miss):
        super().__init__(str(miss))
        self.miss = miss
