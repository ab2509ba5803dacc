"""Sums that are computed in the loops of a scan, so that its values need no memory.

    y[t] = sum_n C[t, n] h[t, n]        h[n] = a h[n] + b;  y[t] += C[t, n] h[n]

A sum rides along with the last scan below it, if nothing else below it depends on that scan. A scan that only riders
read is spent: it has no array.
"""
from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from fuse.codegen.cpu.context import Array
from fuse.codegen.tile import Dot, Imaginary, Reduce, Scan, Shift, Statement, TileProgram, Update, Value, operands
from fuse.ir.program import Kind

Rider = Reduce | Update


@dataclass(frozen=True)
class Riding:
    """A rider, the value that it adds, and where."""

    rider: Rider
    value: Value
    array: Array

    @property
    def name(self) -> str:
        return f"r_{self.rider.out.id}" if isinstance(self.rider, Reduce) else f"r_{self.rider.state}"


class Riders:
    """`below(values)`: ids of what they are computed from, down to what is stored. `repeated`: values stored besides."""

    def __init__(self, program: TileProgram, below: Callable[[list[Value]], set[int]], repeated: Collection[Value]):
        self.program, self.below = program, below
        self.host: dict[int, Value] = {}
        self.hosted: dict[int, list[Rider]] = {}
        (level,) = program.levels
        self.scans = [s for s in level.body if isinstance(s, Scan)]
        self.owner = {value.id: s for s in self.scans for value, _ in states_of(s)}
        sums = [s for s in level.body if isinstance(s, Reduce) and s.op == "sum" and s.out not in repeated]
        riders: list[Rider] = [*sums, *level.updates]
        for rider in riders:
            self.seat(rider)
        stored = [s for s in level.body if isinstance(s, (Scan, Reduce, Dot, Shift)) or s.out in repeated]
        self.spent = {s.out.id for s in self.scans if self.is_spent(s, stored, [x.value for x in level.stores])}

    @property
    def all(self) -> list[Rider]:
        return [r for group in self.hosted.values() for r in group]

    def of(self, scan: Scan) -> list[Rider]:
        return self.hosted.get(scan.out.id, [])

    def seat(self, rider: Rider) -> None:
        value = rider.x if isinstance(rider, Reduce) else summand(rider)
        if value is None or "col" not in value.dims:
            return
        leaves = self.below([value])
        scans = [s for s in self.scans if leaves & {v.id for v, _ in states_of(s)}]
        if not scans or len(scans[-1].out.dims) < 2 or not self.fits(rider, value, scans[-1]):
            return
        host = scans[-1]
        mine = {v.id for v, _ in states_of(host)}
        shifted = {i for i in leaves if isinstance(s := self.program.defines[i], Shift) and s.x.id in mine}
        if any(self.needs(i, mine) for i in leaves - mine - shifted if self.is_kept(self.program.defines[i])):
            return
        self.hosted.setdefault(host.out.id, []).append(rider)
        if isinstance(rider, Reduce):
            self.host[rider.out.id] = host.out

    def fits(self, rider: Rider, value: Value, host: Scan) -> bool:
        """Does it add one value at every point of the scan?"""
        kept = rider.out.dims if isinstance(rider, Reduce) else self.program.state(rider.state).dims
        return set(value.dims) == set(host.out.dims) == {*kept, *rider.over} and set(rider.over) != set(value.dims)

    def is_kept(self, s: Statement) -> bool:
        return isinstance(s, (Scan, Imaginary, Reduce, Dot, Shift))

    def needs(self, value: int, scan: set[int]) -> bool:
        """Does a value depend on the scan, however indirectly?"""
        seen, todo = {value}, [value]
        while todo:
            i = todo.pop()
            if i in scan:
                return True
            new = [v.id for v in operands(self.program.defines[i]) if v.id not in seen]
            seen.update(new)
            todo += new
        return False

    def is_spent(self, scan: Scan, stored: list[Statement], emitted: list[Value]) -> bool:
        mine, riders = {v.id for v, _ in states_of(scan)}, self.of(scan)
        apart = [list(operands(s)) for s in stored if s is not scan and s not in riders]
        apart += [[v] for v in emitted]
        apart += [list(u.values) for level in self.program.levels for u in level.updates if u not in riders]
        return bool(riders) and not any(self.below(values) & mine for values in apart)


def summand(u: Update) -> Value | None:
    """What a plain sum adds, over one kind of dim."""
    plain = u.kind is Kind.SUM and u.relative is None and u.wide is None and u.limit is None
    return u.value if plain and len(u.over) == 1 else None


def states_of(s: Scan) -> list[tuple[Value, str]]:
    """(value, state) of a scan: of both parts of a complex one."""
    return [(s.out, s.state), *([(s.imaginary.out, s.imaginary.state)] if s.imaginary else [])]
