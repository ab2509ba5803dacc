"""What is measured: a function in plain PyTorch, its inputs at given sizes, and the sizes that are swept."""
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatch
from typing import Any

import torch

Function = Callable[..., torch.Tensor]
Sizes = Mapping[str, int]
Arm = Callable[["Case"], Function]
SCALES = ("cpu", "cuda", "quick", "tiny")


@dataclass(frozen=True)
class Case:
    """`function(*inputs(sizes))` is one tensor.

    inputs    CPU tensors; floating ones are cast to the task's dtype and differentiated, but for those in `constants`
    sizes     by scale: "cpu" and "cuda" are the whole benchmark, "quick" a short look, "tiny" a dry run
    sweeps    values of one size at a time, the others as in `sizes`
    dtypes    by device
    exact     what float64 is computed by, if not by the function itself (which may cast to float32)
    visible   the share of the products that counts; 0.5 under a causal mask: the floor does not ask for the rest
    arms      names of the arms that can say what the function says; empty: all of the suite
    """

    name: str
    about: str
    function: Function
    inputs: Callable[[Sizes], list[torch.Tensor]]
    sizes: Mapping[str, Sizes]
    sweeps: Mapping[str, Sequence[int]] = field(default_factory=dict)
    dtypes: Mapping[str, Sequence[str]] = field(default_factory=lambda: {"cpu": ("float32",), "cuda": ("bfloat16",)})
    exact: Function | None = None
    constants: tuple[int, ...] = ()
    visible: float = 1.0
    arms: tuple[str, ...] = ()


@dataclass(frozen=True)
class Suite:
    """Cases, and the table of arms: each makes the function to be timed for a case, and may raise if it cannot."""

    cases: Mapping[str, Case]
    arms: Mapping[str, Arm]

    def arms_of(self, case: Case, wanted: Sequence[str] = ()) -> list[str]:
        known = case.arms or tuple(self.arms)
        return [name for name in self.arms if name in known and (not wanted or name in wanted)]


@dataclass(frozen=True)
class Task:
    """One case at one set of sizes. `x` is the size that is swept, None for the case's own sizes."""

    suite: str
    case: str
    sizes: dict[str, int]
    x: str | None
    dtype: str
    device: str

    @property
    def name(self) -> str:
        """'head/float32', 'head/V=32768/float32'."""
        return "/".join([self.case, *([f"{self.x}={self.sizes[self.x]}"] if self.x else []), self.dtype])

    def matches(self, patterns: Sequence[str]) -> bool:
        """Whether a pattern is the name or a beginning of it that ends at a slash; `*` stands for anything.

        A case at its own sizes answers to each of them: 'head/V=50304', too.
        """
        sized = [f"{self.case}/{s}={v}/{self.dtype}" for s, v in self.sizes.items() if self.x is None]
        return not patterns or any(fnmatch(n, p) or fnmatch(n, f"{p}/*") for n in (self.name, *sized) for p in patterns)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def tasks(suite: str, cases: Mapping[str, Case], device: str, scale: str, dtypes: Sequence[str] = ()) -> Iterator[Task]:
    """The cases at their own sizes, then the sweeps, in the first type alone if none is named.

    A quick run takes one type and two values of a case's first sweep, a dry run no sweep.
    """
    for case in cases.values():
        for dtype in dtypes or case.dtypes[device][:1 if scale == "quick" else None]:
            yield Task(suite, case.name, dict(case.sizes[scale]), None, dtype, device)
    for case in cases.values():
        sweeps = [(x, v) for x, values in case.sweeps.items() for v in values if v != case.sizes[scale][x]]
        for dtype in dtypes or case.dtypes[device][:1]:
            for x, value in sweeps[:{"quick": 2, "tiny": 0}.get(scale)]:
                yield Task(suite, case.name, {**case.sizes[scale], x: value}, x, dtype, device)


def arguments(case: Case, task: Task) -> list[torch.Tensor]:
    """The inputs on the task's device, the same ones in every process."""
    torch.manual_seed(0)
    dtype = getattr(torch, task.dtype)
    made = [x.to(task.device) for x in case.inputs(task.sizes)]
    made = [x.to(dtype) if x.is_floating_point() else x for x in made]
    return [x.requires_grad_(x.is_floating_point() and i not in case.constants) for i, x in enumerate(made)]
