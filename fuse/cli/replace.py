"""Copies of a program with its tensors replaced: in its arguments, in modules, and in what its functions close over.

An arm of a comparison must not see what another has changed (buffers, gradients), and one of them runs in float64.
"""
from __future__ import annotations

import copy
import functools
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch

from fuse.log import STDLIB

HEAP_TYPE = 1 << 9       # a class statement made it
Convert = Callable[[torch.Tensor], torch.Tensor]


class Replaced:
    """`self(value)`: the value with every tensor in it replaced by `convert` of it; shared objects stay shared.

    Looks into containers, modules, partial applications and bound methods, and into functions of the user's own: what they
    close over, their defaults, and the globals that they name.
    """

    def __init__(self, convert: Convert):
        self.convert, self.memo = convert, dict[int, Any]()
        self.alive: list[Any] = []      # an id stays taken as long as its object lives

    def __call__(self, value: Any) -> Any:
        if id(value) not in self.memo:
            self.alive.append(value)
            self.memo[id(value)] = value       # what contains itself ends here
            self.memo[id(value)] = self._replaced(value)
        return self.memo[id(value)]

    def _replaced(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            made = self.convert(value.detach()).requires_grad_(value.requires_grad)
            return torch.nn.Parameter(made, value.requires_grad) if isinstance(value, torch.nn.Parameter) else made
        if isinstance(value, torch.nn.Module):
            return self._module(value)
        if isinstance(value, functools.partial):
            return functools.partial(self(value.func), *map(self, value.args), **{k: self(v) for k, v in value.keywords.items()})
        if isinstance(value, types.MethodType):
            return types.MethodType(value.__func__, self(value.__self__))
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, dict) and type(value) is dict:
            return {k: self(v) for k, v in value.items()}
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*map(self, value))
        if type(value) in (list, tuple, set):
            return type(value)(map(self, value))
        return self._object(value) if own_class(type(value)) else value

    def _object(self, value: Any) -> Any:
        """An object of a class of the user's own: a trainer with a model, say."""
        made = copy.copy(value)
        for name, inner in list(vars(value).items()):
            object.__setattr__(made, name, self(inner))
        return made

    def _module(self, module: torch.nn.Module) -> torch.nn.Module:
        memo = {id(t): self(t) for t in (*module.parameters(), *module.buffers())}
        made = copy.deepcopy(module, memo)
        for part in made.modules():       # tensors that are plain attributes, such as a rope's frequencies
            for name, value in list(vars(part).items()):
                if isinstance(value, torch.Tensor):
                    setattr(part, name, self.convert(value.detach()))
        return made

    def _function(self, function: types.FunctionType) -> types.FunctionType:
        """The function over replaced closures, globals and defaults; itself if it reaches no tensor through them."""
        if not own(function):
            return function
        closure, defaults, keywords = function.__closure__ or (), function.__defaults__ or (), function.__kwdefaults__ or {}
        held = [c.cell_contents for c in closure if _filled(c)]
        named = {n: function.__globals__[n] for n in names_in(function.__code__) if n in function.__globals__}
        changed = {n: made for n, v in named.items() if (made := self(v)) is not v}
        if not changed and all(self(v) is v for v in (*held, *defaults, *keywords.values())):
            return function
        cells = tuple(types.CellType(self(c.cell_contents)) if _filled(c) else c for c in closure)
        world = {**function.__globals__, **changed} if changed else function.__globals__
        made = types.FunctionType(function.__code__, world, function.__name__, tuple(map(self, defaults)), cells)
        made.__kwdefaults__ = {k: self(v) for k, v in keywords.items()}
        return made


def own(function: types.FunctionType) -> bool:
    """A function that the user wrote, rather than one of a library: only those are looked into."""
    file = function.__code__.co_filename
    return "site-packages" not in file and "dist-packages" not in file and not file.startswith((STDLIB, "<frozen"))


def own_class(kind: type) -> bool:
    """A class with plain attributes whose methods the user wrote."""
    methods = (m for m in vars(kind).values() if isinstance(m, types.FunctionType))
    plain = bool(kind.__flags__ & HEAP_TYPE) and "__slots__" not in vars(kind)
    return plain and any(map(own, methods))


def names_in(code: types.CodeType) -> set[str]:
    """Global names that a function, or one defined inside it, may read."""
    return set(code.co_names).union(*(names_in(c) for c in code.co_consts if isinstance(c, types.CodeType)))


def _filled(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not None or True
    except ValueError:
        return False


def modules_of(function: Any) -> Iterator[torch.nn.Module]:
    """The modules a program computes with: itself, what it is bound to, what it closes over."""
    found: dict[int, Any] = {}

    def collect(value: Any, depth: int = 0) -> None:
        if id(value) in found or depth > 8:
            return
        found[id(value)] = value
        if isinstance(value, torch.nn.Module):
            return
        for inner in _inside(value):
            collect(inner, depth + 1)
    collect(function)
    yield from (v for v in found.values() if isinstance(v, torch.nn.Module))


def _inside(value: Any) -> list[Any]:
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, types.MethodType):
        return [value.__self__]
    if own_class(type(value)):
        return list(vars(value).values())
    if isinstance(value, types.FunctionType) and own(value):
        world = value.__globals__
        cells = [c.cell_contents for c in value.__closure__ or () if _filled(c)]
        return [*cells, *(value.__defaults__ or ()), *(world[n] for n in names_in(value.__code__) if n in world)]
    if type(value) in (list, tuple, set):
        return list(value)
    return list(value.values()) if type(value) is dict else []
