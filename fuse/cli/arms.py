"""Arms of a comparison: the same call in float64, in eager mode, through Inductor and through fuse, each on its own copy.

The float64 arm is the truth. There every floating-point tensor is in float64, and so is what the program would cast to a
narrower type. An arm's error in a value is max |x - truth| / max |truth|. It is off where that exceeds

    4 * eager's error + k * eps + 1e-12        k = 2 for the half types, 8 for others; eps of the value's own type

since sums in another order, over thousands of terms, may err a few times as much as eager's without being wrong.
"""
from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fuse.cli.errors import ProgramFailed, UsageError
from fuse.cli.program import Program
from fuse.cli.replace import Replaced, modules_of

WIDE = {torch.float16: torch.float64, torch.bfloat16: torch.float64, torch.float32: torch.float64,
        torch.complex64: torch.complex128}
NARROWING = {"float": "double", "half": "double", "bfloat16": "double", "cfloat": "cdouble"}
ARMS = ("eager", "inductor", "fuse")
Values = dict[str, Tensor]


@dataclass(frozen=True)
class Error:
    """Of one value in one arm; `error` is None where nan or inf is not where float64 has it, or the arm raised."""

    value: str
    arm: str
    error: float | None
    limit: float | None
    off: bool
    detail: str = ""


class Exactly(TorchFunctionMode):
    """Every type narrower than float64 that a call names is float64."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in NARROWING and args and isinstance(args[0], Tensor) and not args[0].dtype.is_complex:
            return args[0].double()
        return func(*map(widened, args), **{k: widened(v) for k, v in (kwargs or {}).items()})


def widened(argument: Any) -> Any:
    return WIDE.get(argument, argument) if isinstance(argument, torch.dtype) else argument


@contextlib.contextmanager
def in_float64() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with Exactly():
            yield
    finally:
        torch.set_default_dtype(before)


class Comparison:
    """The arms of one program. `wanted` are its differentiable leaves by name."""

    def __init__(self, program: Program, options: dict[str, Any], dynamic: bool):
        self.program, self.options, self.dynamic = program, options, dynamic
        self.wanted = leaves(program) if program.train is not False else {}

    def truth(self) -> Values:
        """UsageError if the program draws random numbers, which no two arms draw alike; ProgramFailed if it raises."""
        before = torch.get_rng_state()
        try:
            with in_float64():
                values = self._call(lambda t: t.to(WIDE.get(t.dtype, t.dtype), copy=True), None)
        except Exception as error:
            raise ProgramFailed(f"{self.program.label} raised {type(error).__name__} in float64") from error
        if not torch.equal(before, torch.get_rng_state()):
            raise UsageError(f"{self.program.label} draws random numbers, so that its arms cannot be compared; "
                             "switch dropout off (--no-train does for a module), or draw them before the call")
        return values

    def run(self, arm: str) -> Values:
        """Whatever the program, or its compilation, raises."""
        torch.compiler.reset()
        return self._call(torch.clone, None if arm == "eager" else arm)

    def _call(self, convert: Any, backend: str | None) -> Values:
        copies = Replaced(convert)
        function, args, kwargs = (copies(x) for x in (self.program.function, self.program.args, self.program.kwargs))
        if backend is not None:
            options = self.options if backend == "fuse" else None
            function = torch.compile(function, backend=backend, options=options, dynamic=self.dynamic or None)
        outputs = dict(named(function(*args, **kwargs), "output"))
        sources = {name: copies(leaf) for name, leaf in self.wanted.items()}
        ends = {n: o for n, o in outputs.items() if o.requires_grad}
        found = {n: o.detach().cpu() for n, o in outputs.items()}
        if ends and sources:
            gradients = torch.autograd.grad(list(ends.values()), list(sources.values()), [cotangent(o) for o in ends.values()],
                                            allow_unused=True)
            found |= {f"gradient of {n}": g.detach().cpu() for n, g in zip(sources, gradients, strict=True) if g is not None}
        return found


def leaves(program: Program) -> dict[str, Tensor]:
    """Arguments and parameters that want a gradient, each once."""
    given = [*named(program.args, "args"), *named(program.kwargs, "kwargs")]
    given += [(n, p) for module in modules_of(program.function) for n, p in module.named_parameters()]
    found: dict[str, Tensor] = {}
    seen = set[int]()
    for name, tensor in given:
        if tensor.requires_grad and tensor.is_leaf and id(tensor) not in seen:
            seen.add(id(tensor))
            found[name if name not in found else f"{name} ({len(found)})"] = tensor
    return found


def named(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a result, or of arguments, with a path to each."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from named(item, f"{name}.{key}")
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            yield from named(item, f"{name}[{i}]")
    elif hasattr(value, "__dataclass_fields__"):
        yield from named(vars(value), name)


def cotangent(output: Tensor) -> Tensor:
    """One for a scalar, else numbers that depend on the shape alone, so that no gradient cancels."""
    if output.dim() == 0:
        return torch.ones_like(output)
    draws = torch.Generator().manual_seed(output.numel())
    dtype = torch.complex128 if output.dtype.is_complex else torch.float64
    return torch.randn(output.shape, generator=draws, dtype=dtype).to(output.device, output.dtype)


# ---- errors -----------------------------------------------------------------------------------------------------

def errors(truth: Values, arms: dict[str, Values | Exception]) -> list[Error]:
    """One for every value of every arm that ran, or one for an arm that did not; eager, the yardstick, is never off."""
    found: list[Error] = []
    eager = arms["eager"]
    for arm, values in arms.items():
        if isinstance(values, Exception):
            found.append(Error("", arm, None, None, True, f"{type(values).__name__}: {values}".splitlines()[0]))
            continue
        for name, exact in truth.items():
            if name not in values:
                found.append(Error(name, arm, None, None, arm != "eager", "the arm does not give it"))
                continue
            error = distance(values[name], exact)
            yardstick = distance(eager[name], exact) if isinstance(eager, dict) and name in eager else 0.0
            limit = None if yardstick is None else 4 * yardstick + roundings(values[name].dtype) + 1e-12
            off = arm != "eager" and limit is not None and (error is None or error > limit)
            found.append(Error(name, arm, error, limit, off, "" if error is not None else "nan or inf is elsewhere"))
    return found


def roundings(dtype: torch.dtype) -> float:
    if not (dtype.is_floating_point or dtype.is_complex):
        return 0.0
    return (2 if dtype in (torch.float16, torch.bfloat16) else 8) * torch.finfo(dtype).eps


def distance(x: Tensor, exact: Tensor) -> float | None:
    """max |x - exact| / max |exact| over what is finite; None if something else is finite, or the shapes differ."""
    if x.shape != exact.shape:
        return None
    dtype = torch.complex128 if exact.dtype.is_complex else torch.float64
    x, exact = x.to(dtype), exact.to(dtype)
    finite = exact.isfinite()
    if not torch.equal(finite, x.isfinite()):
        return None
    x, exact = x[finite], exact[finite]
    if x.numel() == 0:
        return 0.0
    scale = exact.abs().max().item()
    return float((x - exact).abs().max().item() / (scale or 1.0))
