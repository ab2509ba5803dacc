"""The results of a part, made from what its steps have stored.

Most are a stored buffer, element by element: which these are is found out once for sizes, and what is left is a view.
"""
from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fuse.ir.access import assemble
from fuse.ir.evaluate import Evaluator
from fuse.ir.expr import Buffer, Expr, topological
from fuse.ir.program import Output, Program, Region
from fuse.private import memory_of

Sizes = Mapping[str, Any]


class Results:
    """The outputs of `program`, then the stored buffers `kept`."""

    def __init__(self, program: Program, kept: Sequence[Buffer]):
        self.outputs, self.kept = program.outputs, tuple(b.name for b in kept)
        self.dtypes = [getattr(torch, b.dtype) for b in (*(o.buffer for o in self.outputs), *kept)]
        self.names = self._whole({name for step in program.steps if isinstance(step, Region) for name in step.stores})
        users = Counter(n for o in self.outputs for n in set(topological(roots((o,)))) if n.args and n.op != "read")
        self.shared = [n for n, times in users.items() if times > 1]
        self.shapes: dict[tuple[Any, ...], list[tuple[int, ...] | None]] = {}

    def _whole(self, fresh: set[str]) -> list[str | None]:
        """By result: the one buffer of memory of its own that it reads, if no other result does."""
        terms = [o.terms[0].value if len(o.terms) == 1 else None for o in self.outputs]
        names = [v["buffer"].name if v is not None and v.op == "read" else None for v in terms] + list(self.kept)
        return [n if n in fresh and names.count(n) == 1 else None for n in names]

    def traced(self, env: Mapping[str, Tensor], sizes: Sizes) -> list[Tensor]:
        """As torch operations; they may be views of what is in `env`."""
        return self._values(env, sizes, range(len(self.names)))

    def _values(self, env: Mapping[str, Tensor], sizes: Sizes, which: Iterable[int]) -> list[Tensor]:
        found, common = list[Tensor](), dict[Expr, Tensor]()
        for k in which:
            if k < len(self.outputs):
                evaluator = Evaluator(env, sizes)
                evaluator.memo.update(common)
                found.append(assemble(self.outputs[k], evaluator))
                common = {n: evaluator.memo[n] for n in self.shared if n in evaluator.memo}
            else:
                found.append(env[self.kept[k - len(self.outputs)]])
        return found

    def owned(self, env: Mapping[str, Tensor], sizes: Sizes, given: Iterable[Tensor]) -> list[Tensor]:
        """Contiguous, each with memory of its own and none with that of `given`."""
        key = tuple(sizes.values())
        shapes = self.shapes.get(key) or [None] * len(self.names)
        found: list[Tensor | None] = [
            env[name].view(shape) if name is not None and shape is not None and env[name].is_contiguous() else None
            for name, shape in zip(self.names, shapes, strict=True)]
        missing = [k for k, t in enumerate(found) if t is None]
        if missing:
            made = self._values(env, sizes, missing)
            for k, tensor in zip(missing, made, strict=True):
                name = self.names[k]
                if name is not None and is_all_of(tensor, env[name]):
                    shapes[k], found[k] = tuple(tensor.shape), tensor
            self.shapes[key] = shapes
            rest = [k for k in missing if found[k] is None]
            values = [made[missing.index(k)] for k in rest]
            for k, tensor in zip(rest, unaliased(values, (*given, *(t for t in found if t is not None))), strict=True):
                found[k] = tensor
        results = [t for t in found if t is not None]
        return [t if t.dtype == dtype else t.to(dtype) for t, dtype in zip(results, self.dtypes, strict=True)]


def is_all_of(view: Tensor, buffer: Tensor) -> bool:
    """Is it the buffer, element by element?"""
    same = view.dtype == buffer.dtype and view.numel() == buffer.numel() and view.data_ptr() == buffer.data_ptr()
    return same and view.is_contiguous() and buffer.is_contiguous() and memory_of(view) == memory_of(buffer) != -1


def unaliased(results: Sequence[Tensor], given: Iterable[Tensor]) -> list[Tensor]:
    """The results, contiguous, each with memory of its own."""
    taken = {memory_of(t) for t in given}
    out = []
    for tensor in results:
        tensor = tensor.contiguous()
        if memory_of(tensor) in taken:
            tensor = tensor.clone()
        taken.add(memory_of(tensor))
        out.append(tensor)
    return out


def roots(outputs: Iterable[Output]) -> list[Expr]:
    return [e for o in outputs for t in o.terms for e in (*t.index, t.value)]
