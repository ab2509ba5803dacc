"""Sweeps of a region as levels of a tile program.

Expressions become SSA values once each (`ssa`), carries become states and updates (`updates`). What a level needs is found
from its updates and stores; a value without "col" is computed in the first level that needs it and stays valid, a value
with "col" is recomputed by each level, unless the program is staged.
"""
from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from fuse.codegen.renumber import renumber
from fuse.codegen.roles import refuse
from fuse.codegen.skip import skips
from fuse.codegen.tile import Dot, Level, Slot, Staged, Store, TileProgram, Update, Value, operands
from fuse.codegen.updates import Carries
from fuse.ir.program import Emit, Kind


@dataclass(frozen=True)
class Plan:
    """What one level computes besides values."""

    updates: list[Update]
    stores: list[Store]


class Levels(Carries):
    def program(self, staged: bool) -> TileProgram:
        plans = [self.plan(k) for k in range(self.region.sweeps)]
        roots = [[v for u in p.updates for v in u.values] + [s.value for s in p.stores] for p in plans]
        needed = [self.closure(r, frozenset()) for r in roots]
        again = frozenset(i for later in needed[1:] for i in later) & frozenset(needed[0])
        stage = frozenset(i for i in again if isinstance(self.defines[i], Dot) and self.defines[i].out.scope == "tile")
        if staged and not stage:
            raise refuse(f"{self.region.name} has nothing to stage")
        levels, done = [], set[int]()
        for k, (plan, root) in enumerate(zip(plans, roots, strict=True)):
            order = self.closure(root, stage if staged and k else frozenset())
            statements = [Staged(self.defines[i].out, 0) if staged and k and i in stage else self.defines[i] for i in order]
            before = tuple(s for s in statements if "col" not in s.out.dims and s.out.id not in done)
            body = tuple(s for s in statements if "col" in s.out.dims)
            done |= {s.out.id for s in before}
            kept = tuple(s.out for s in body if s.out.id in stage) if staged and not k else ()
            level = Level(before, body, tuple(plan.updates), tuple(plan.stores), (), kept)
            levels.append(replace(level, skips=skips(replace(level, before=tuple(statements)), self.compared)))
        return self.finished(tuple(levels))

    def finished(self, levels: tuple[Level, ...], **walk: Any) -> TileProgram:
        r = self.roles
        dims = {"row": r.row, "col": r.col} | {a.name: (a.name,) for a in r.axes if a.name in r.dim.values()}
        return renumber(TileProgram(self.region, r.axes, r.batch, dims, tuple(self.params), (), self.outputs(),
                                    tuple(self.states), levels, **walk))

    def plan(self, level: int) -> Plan:
        groups = [self.updates(c) for c in self.region.carries if c.level == level]
        updates = [u for group in groups for u in group]
        updates.sort(key=lambda u: (u.relative is not None, u.relative or "", -u.moment))
        return Plan(updates, [self.store(e) for e in self.region.emits if e.level == level])

    def store(self, emit: Emit) -> Store:
        walked = {a.name for a in self.region.grid}
        if not walked <= {a.name for a in emit.axes}:
            raise refuse(f"the emit {emit.name} lacks a grid axis")
        value = self.value(emit.value)
        if not set(value.dims) <= set(self.roles.dims(emit.axes)):
            raise refuse(f"the emit {emit.name} lacks an axis of its value")
        return Store(self.output_name(emit.name), value, tuple(self.roles.name[a.name] for a in emit.axes),
                     self.roles.dims(emit.axes))

    def closure(self, roots: list[Value], stop: frozenset[int]) -> list[int]:
        """Ids of everything below `roots`, arguments first; nothing below an id in `stop` is visited."""
        order: list[int] = []
        seen: set[int] = set()
        stack = [(v.id, False) for v in reversed(roots)]
        while stack:
            i, ready = stack.pop()
            if ready:
                order.append(i)
            elif i not in seen:
                seen.add(i)
                stack.append((i, True))
                if i not in stop:
                    stack.extend((v.id, False) for v in reversed(operands(self.defines[i])))
        return order

    def outputs(self) -> tuple[Slot, ...]:
        slots = []
        for carry in self.region.carries:
            wide = "int64" if carry.kind is Kind.ARGMAX else carry.body.dtype
            dtype = wide if carry.kind is Kind.LSE else carry.storage or wide
            slots += [(s, dtype, axes) for s, axes in carry.buffers.items()]
        slots += [(e.name, e.value.dtype, e.axes) for e in self.region.emits]
        return tuple(Slot(self.output_name(source), source, dtype, tuple(self.roles.name[a.name] for a in axes))
                     for source, dtype, axes in slots)
