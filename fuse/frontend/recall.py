"""Templates that outlive their graph: tracing a call takes milliseconds, and models make the same calls again and again.

What a call stands for depends on the call, on the sizes seen (tracing adds no guard) and on the modes torch is in. `lasting`
names all of them, or gives None where something else may matter: functions that are not torch's own, sizes known only from
the data, torch function modes.
"""
from __future__ import annotations

import types
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import fx

from fuse.frontend.trace import Slot, Template
from fuse.private import function_modes

MOST = 4096
PLAIN = (int, float, complex, bool, str, types.NoneType, types.EllipsisType, torch.dtype, torch.device, torch.layout,
         torch.memory_format, Slot)
_templates: dict[Any, Template] = {}


def lasting(key: Any, node: fx.Node, spec: Any, tensors: Sequence[torch.Tensor]) -> Any:
    """`key` and everything else that the template of the call depends on; None if that cannot be said."""
    if not _of_torch(node) or function_modes():
        return None
    sizes = [d for t in tensors for d in (*t.shape, *t.stride()) if isinstance(d, torch.SymInt)]
    for leaf in _leaves(spec):
        if isinstance(leaf, torch.SymInt):
            sizes.append(leaf)
        elif not isinstance(leaf, PLAIN):
            return None
    if not all(s.node.has_hint() for s in sizes):
        return None
    seen = tuple(sorted({(str(s), int(s.node.hint)) for s in sizes}))
    return key, seen, _modes({t.device.type for t in tensors} | {"cpu"})


def _modes(devices: set[str]) -> Any:
    autocast = tuple((d, torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in sorted(devices)
                     if torch.amp.is_autocast_available(d))
    return (torch.get_default_dtype(), str(torch.get_default_device()), torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(), torch.are_deterministic_algorithms_enabled(), autocast)


def _of_torch(node: fx.Node) -> bool:
    """A method of a tensor, an operator, or a function of torch; not a module, whose name says nothing of it."""
    module = getattr(node.target, "__module__", None) or "torch"
    return node.op == "call_method" or (node.op == "call_function" and module.partition(".")[0] in ("torch", "_operator"))


def _leaves(x: Any) -> Iterator[Any]:
    if isinstance(x, (list, tuple)):
        for item in x:
            yield from _leaves(item)
    elif isinstance(x, dict):
        yield from _leaves(list(x.values()))
    elif isinstance(x, slice):
        yield from _leaves([x.start, x.stop, x.step])
    else:
        yield x


def recall(key: Any) -> Template | None:
    return None if key is None else _templates.get(key)


def keep(key: Any, template: Template) -> None:
    if key is not None:
        if len(_templates) >= MOST:
            _templates.clear()
        _templates[key] = template
