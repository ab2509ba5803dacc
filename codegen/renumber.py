"""Canonical numbers: values, loads and input buffers of a tile program by order of first use."""
from __future__ import annotations

from dataclasses import replace

from fuse.codegen.tile import (
    Dot,
    Entry,
    Imaginary,
    ImaginaryPart,
    Level,
    Load,
    Point,
    Reduce,
    Scan,
    Shift,
    Slot,
    Statement,
    Store,
    TileProgram,
    Update,
    Value,
)


def renumber(program: TileProgram) -> TileProgram:
    """`program` with dead numbers squeezed out, `inputs` filled in and `defines` built."""
    work = _Numbers()
    levels = tuple(work.level(level) for level in program.levels)
    rehearsal = tuple(work.statement(s) for s in program.rehearsal)
    entries = tuple(work.entry(e) for e in program.entries)
    done = replace(program, levels=levels, rehearsal=rehearsal, entries=entries, inputs=tuple(work.inputs.values()))
    defines: dict[int, Statement] = {}
    for s in done.statements():
        defines.setdefault(s.out.id, s)
    return replace(done, defines=defines)


class _Numbers:
    def __init__(self) -> None:
        self.values: dict[int, Value] = {}
        self.loads: dict[int, int] = {}
        self.inputs: dict[str, Slot] = {}

    def value(self, v: Value) -> Value:
        return self.values.setdefault(v.id, replace(v, id=len(self.values)))

    def maybe(self, v: Value | None) -> Value | None:
        return None if v is None else self.value(v)

    def level(self, level: Level) -> Level:
        return Level(tuple(self.statement(s) for s in level.before), tuple(self.statement(s) for s in level.body),
                     tuple(self.update(u) for u in level.updates), tuple(self.store(s) for s in level.stores), level.skips,
                     tuple(self.value(v) for v in level.stage))

    def statement(self, s: Statement) -> Statement:
        match s:
            case Point():
                s = replace(s, args=tuple(self.value(a) for a in s.args))
            case Dot():
                s = replace(s, a=self.value(s.a), b=self.value(s.b))
            case Reduce() | Shift():
                s = replace(s, x=self.value(s.x))
            case Scan():
                s = replace(s, a=self.maybe(s.a), b=self.value(s.b), imaginary=self.imaginary(s.imaginary))
            case Imaginary():
                s = replace(s, scan=self.value(s.scan))
            case Load():
                slot = self.inputs.setdefault(s.buffer, Slot(f"x{len(self.inputs)}", s.buffer, s.out.dtype))
                index = tuple(self.value(i) if isinstance(i, Value) else i for i in s.index)
                s = replace(s, buffer=slot.name, index=index, number=self.loads.setdefault(s.number, len(self.loads)))
        return replace(s, out=self.value(s.out))

    def entry(self, e: Entry) -> Entry:
        load = self.statement(e.load)
        assert isinstance(load, Load)
        return replace(e, load=load)

    def imaginary(self, part: ImaginaryPart | None) -> ImaginaryPart | None:
        return part and replace(part, out=self.value(part.out), a=self.maybe(part.a), b=self.value(part.b))

    def update(self, u: Update) -> Update:
        return replace(u, value=self.maybe(u.value), wide=self.maybe(u.wide), operand=self.maybe(u.operand),
                       limit=self.maybe(u.limit))

    def store(self, s: Store) -> Store:
        return replace(s, value=self.value(s.value))
