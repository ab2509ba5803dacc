"""The rules of the IR. Bad programs do not live past the pass that made them.

`verify` raises IRError with the rule, what was expected, and the text around the fault. It checks
  - expressions: known ops, arity, types derived again; one extent per axis name;
  - names: inputs, stored values, steps and outputs are each unique;
  - reads: an input, or a value that an earlier step stores, with its very type and shape;
  - steps: a Define has exactly the axes of its value; `carry` occurs in the bodies of its own region only;
  - carries: `over` is part of the streams and the grid, `axes` the rest of them and of the body; nothing inside a body
    binds a stream or grid axis again, except the scans that are AFFINE carries; a SUM relative to an LSE carry finds
    it in the region, at its level or a lower one; `final` reads go to lower levels, `prefix` reads form no cycle;
  - outputs: one int64 index per dimension, a value of the output's kind, gradients shaped as their input;
  - once there are steps, no anchor (a virtual value) is evaluated outside a region.
"""
from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NoReturn

from fuse.ir.expr import COMPLEXES, FLOATS, INTEGERS, Axis, Buffer, Expr, IRError, topological
from fuse.ir.ops import OPS
from fuse.ir.program import Carry, Define, Emit, Kind, Output, Program, Region
from fuse.ir.text import axes_text, numbered_lines

CONTEXT = 6    # lines of text printed on either side of a fault


def verify(program: Program) -> None:
    """Returns if every rule holds, else raises IRError."""
    _Verifier(program).run()


def _kind(dtype: str) -> str:
    return "float" if dtype in FLOATS else "complex" if dtype in COMPLEXES else "bool" if dtype == "bool" else "integer"


def _names(axes: Iterable[Axis]) -> str:
    return f"({axes_text(axes)})"


class _Verifier:
    def __init__(self, program: Program):
        self.program = program
        self.owner = "program"                                    # the step or output being checked
        self.buffers: dict[str, Buffer] = {}
        self.axes: dict[str, Axis] = {}
        self.checked: set[Expr] = set()
        self.outside: set[Expr] = set()                           # checked to be computable outside of a region
        self.anchors = frozenset(program.anchors) if program.steps else frozenset()

    def fail(self, message: str) -> NoReturn:
        raise IRError(f"{self.owner}: {message}\n{self.neighbourhood()}")

    def neighbourhood(self) -> str:
        try:
            lines = numbered_lines(self.program)
        except Exception as error:      # what is being reported may be what cannot be printed
            return f"(the program cannot be printed: {error})"
        here = [i for i, (owner, _) in enumerate(lines) if owner == self.owner] or [0]
        first, last = max(here[0] - CONTEXT, 0), here[-1] + CONTEXT + 1
        marked = [f"{'>' if i in here else ' '} {line}" for i, (_, line) in enumerate(lines)]
        return "\n".join(marked[first:last])

    def run(self) -> None:
        program = self.program
        for buffer in program.inputs:
            self.owner = buffer.name
            self.define(buffer)
        self.owner = "cotangents"
        for name in program.cotangents:
            if name not in self.buffers:
                self.fail(f"cotangent {name} is not an input")
        names = [s.name for s in program.steps]
        for step in program.steps:
            self.owner = step.name
            if names.count(step.name) > 1:
                self.fail("two steps have this name")
            if isinstance(step, Define):
                self.check_define(step)
            else:
                self.check_region(step)
        self.check_outputs()
        self.owner = "anchor"
        self.expressions(program.anchors)
        self.owner = "check"
        self.outside_regions(check.index for check in program.checks)
        for check in program.checks:
            if check.index.dtype not in INTEGERS:
                self.fail(f"the index of {check.op} is {check.index.dtype}, expected an integer")

    def define(self, buffer: Buffer) -> None:
        if buffer.name in self.buffers:
            self.fail(f"the name {buffer.name} is taken by {self.buffers[buffer.name]!r}")
        self.buffers[buffer.name] = buffer

    # ---- expressions ----------------------------------------------------------------------------------------------

    def expressions(self, roots: Iterable[Expr]) -> None:
        for node in topological(roots, self.checked):
            if node not in self.checked:
                self.checked.add(node)
                self.expression(node)

    def expression(self, node: Expr) -> None:
        row = OPS.get(node.op)
        if row is None:
            self.fail(f"unknown op {node.op!r}")
        if row.arity is not None and len(node.args) != row.arity:
            self.fail(f"{node.op} takes {row.arity} arguments, got {len(node.args)}")
        try:
            expected = row.type_rule(node.args, dict(node.attrs))
        except IRError as error:
            self.fail(f"{node.op}: {error}")
        if expected != node.type:
            self.fail(f"{node.op} has type {node.type}, expected {expected}")
        self.axes_are_known((*node.axes, *_bound(node), *(v for _, v in node.attrs if isinstance(v, Axis))))
        if node.op == "read":
            buffer = node["buffer"]
            known = self.buffers.get(buffer.name)
            if known is None:
                self.fail(f"reads {buffer!r}, which is neither an input nor stored by an earlier step")
            if known != buffer:
                self.fail(f"reads {buffer!r}, expected {known!r}")

    def axes_are_known(self, axes: Iterable[Axis]) -> None:
        for axis in axes:
            known = self.axes.setdefault(axis.name, axis)
            if known.extent != axis.extent:
                self.fail(f"axis {axis.name} has extent {axis.extent}, expected {known.extent} as elsewhere")

    def outside_regions(self, roots: Iterable[Expr]) -> None:
        """What is evaluated densely reads stored values only."""
        roots = list(roots)
        self.expressions(roots)
        for node in topological(roots, self.outside):
            self.outside.add(node)
            if node.op == "carry":
                self.fail(f"carry {node['name']} is read outside a region, expected a read of what it stores")
            if node in self.anchors:
                self.fail("a virtual value is evaluated outside a region, expected a read of a stored value")

    # ---- steps ----------------------------------------------------------------------------------------------------

    def check_define(self, step: Define) -> None:
        self.outside_regions([step.value])
        self.same_axes(step.value, step.axes)
        self.define(Buffer(step.name, step.value.dtype, tuple(a.extent for a in step.axes)))

    def same_axes(self, value: Expr, axes: tuple[Axis, ...]) -> None:
        self.axes_are_known(axes)
        if len(set(axes)) != len(axes):
            self.fail(f"axes {_names(axes)} repeat")
        if not set(value.axes) <= set(axes):
            self.fail(f"a value over {_names(value.axes)} is stored over {_names(axes)}")

    def check_region(self, region: Region) -> None:
        walked = (*region.streams, *region.grid)
        self.axes_are_known(walked)
        if not region.streams or len(set(walked)) != len(walked):
            self.fail(f"streams {_names(region.streams)} and grid {_names(region.grid)} must be disjoint, "
                      "with one stream at least")
        if not region.carries and not region.emits:
            self.fail("the region stores nothing")
        self.expressions(region.bodies)
        names = [c.name for c in region.carries] + [e.name for e in region.emits]
        for name in names:
            if names.count(name) > 1:
                self.fail(f"two carries or emits are named {name}")
        table = {c.name: c for c in region.carries}
        for carry in region.carries:
            self.check_carry(region, carry, table)
        for emit in region.emits:
            self.check_emit(region, emit, table)
        self.acyclic(region, table)
        for carry in region.carries:
            for name, axes in carry.buffers.items():
                self.define(Buffer(name, _stored_type(carry), tuple(a.extent for a in axes)))
        for emit in region.emits:
            self.define(Buffer(emit.name, emit.value.dtype, tuple(a.extent for a in emit.axes)))

    def check_carry(self, region: Region, carry: Carry, table: dict[str, Carry]) -> None:
        walk, here = (*region.streams, *region.grid), f"carry {carry.name}"
        walked = set(walk)
        self.axes_are_known((*carry.axes, *carry.over, *carry.boundary))
        if not carry.over or not set(carry.over) <= walked:
            self.fail(f"{here} goes over {_names(carry.over)}, expected some of {_names(walk)}")
        if len({*carry.axes, *carry.over}) != len(carry.axes) + len(carry.over):
            self.fail(f"{here}: axes {_names(carry.axes)} and over {_names(carry.over)} must be disjoint, "
                      "without repeats")
        if not walked <= {*carry.axes, *carry.over}:
            self.fail(f"{here} ignores an axis of the walk {_names(walk)}, "
                      f"expected it in axes {_names(carry.axes)} or over {_names(carry.over)}")
        if not set(carry.body.axes) <= {*carry.axes, *carry.over}:
            self.fail(f"{here}: the body varies along {_names(carry.body.axes)}, "
                      f"expected only {_names((*carry.axes, *carry.over))}")
        if carry.kind is Kind.LSE and carry.body.dtype not in FLOATS:
            self.fail(f"{here}: the operand of an LSE must be a float, got {carry.body.dtype}")
        if carry.kind is Kind.ARGMAX and len(carry.over) != 1:
            self.fail(f"{here}: ARGMAX goes over one axis, got {_names(carry.over)}")
        if carry.level < 0:
            self.fail(f"{here}: level {carry.level} is negative")
        self.check_affine(region, carry)
        self.check_relative(carry, table)
        self.check_body(region, carry.body, carry.level, here, table)
        self.check_scale(region, carry, table)

    def check_scale(self, region: Region, carry: Carry, table: dict[str, Carry]) -> None:
        here, eps, scale = f"carry {carry.name}", carry.eps, carry.scale
        if scale is None or eps is None:
            if scale is not None or eps is not None:
                self.fail(f"{here}: eps and scale go together")
            return
        if carry.kind is not Kind.SUM or carry.relative_to is not None or carry.body.dtype not in FLOATS:
            self.fail(f"{here} has a scale, expected a plain SUM of floats")
        if not 0 <= eps < 1:
            self.fail(f"{here}: eps is {eps}, expected 0 <= eps < 1")
        if scale.dtype != carry.body.dtype:
            self.fail(f"{here}: the scale has element type {scale.dtype}, expected {carry.body.dtype}")
        if not (set(scale.axes) <= set(region.grid) or set(scale.axes) <= set(region.streams)):
            self.fail(f"{here}: the scale varies along {_names(scale.axes)}, expected axes of the grid "
                      f"{_names(region.grid)} or of the streams {_names(region.streams)}")
        self.check_body(region, scale, carry.level, f"the scale of {here}", table)

    def check_affine(self, region: Region, carry: Carry) -> None:
        here, body = f"carry {carry.name}", carry.body
        if carry.kind is not Kind.AFFINE:
            if carry.boundary or carry.entry is not None or not carry.final:
                self.fail(f"{here} has a boundary or an entry or is not final, expected an AFFINE carry")
            return
        if body.op != "scan" or (body["axis"],) != carry.over or carry.over != region.streams:
            self.fail(f"{here}: the body of an AFFINE carry must be a scan along its `over`, the region's only stream")
        if carry.boundary:
            self.check_boundary(region, carry)
        if carry.entry is not None:
            self.check_entry(region, carry, carry.entry)

    def check_boundary(self, region: Region, carry: Carry) -> None:
        here, length, (counter, *axes) = f"carry {carry.name}", carry.over[0].extent.constant, carry.boundary
        if carry.entry is not None or carry.body["reverse"] != region.reverse:
            self.fail(f"{here} has a boundary, expected a scan along the walk")
        if not region.tile or length is None or counter.extent != -(-length // region.tile):
            self.fail(f"{here}: the boundary {counter.name} has extent {counter.extent}, "
                      f"expected the tiles of {region.tile} positions in {carry.over[0].extent}")
        if sorted(map(repr, axes)) != sorted(map(repr, carry.axes)) or counter in (*region.streams, *region.grid):
            self.fail(f"{here}: the boundary has axes {_names(axes)}, expected {_names(carry.axes)}")

    def check_entry(self, region: Region, carry: Carry, entry: Expr) -> None:
        here, tiles = f"carry {carry.name}", set(entry.axes) - set(carry.axes)
        if carry.body["reverse"] == region.reverse or not region.tile:
            self.fail(f"{here} has an entry, expected a scan against the walk, and a tile")
        if entry.op != "read" or len(tiles) != 1 or entry.dtype != carry.body.dtype \
                or not set(carry.axes) <= set(entry.axes) or tiles & {*region.streams, *region.grid}:
            self.fail(f"{here}: the entry must be a read of its {carry.body.dtype} states along the tiles of the stream")

    def check_relative(self, carry: Carry, table: dict[str, Carry]) -> None:
        here = f"carry {carry.name}"
        if carry.relative_to is None:
            if carry.moment or carry.exponent != 1:
                self.fail(f"{here} has a moment or an exponent, expected relative_to")
            return
        lse = table.get(carry.relative_to)
        if carry.kind is not Kind.SUM or lse is None or lse.kind is not Kind.LSE:
            self.fail(f"{here} is relative to {carry.relative_to}: "
                      "expected a SUM relative to an LSE carry of the region")
        if lse.level > carry.level:
            self.fail(f"{here} at level {carry.level} is relative to {lse.name} at level {lse.level}, "
                      "expected a lower or equal one")
        if lse.level == carry.level and set(lse.over) != set(carry.over):
            self.fail(f"{here} goes over {_names(carry.over)}, expected {_names(lse.over)} as {lse.name}, "
                      "whose maximum moves")
        if not {*lse.axes, *lse.over} <= {*carry.axes, *carry.over}:
            self.fail(f"{here} lacks an axis of {lse.name} {_names((*lse.axes, *lse.over))}")
        if lse.body.dtype != carry.body.dtype:
            self.fail(f"{here} has element type {carry.body.dtype}, expected {lse.body.dtype} as {lse.name}")
        if carry.exponent < 0 or carry.moment < 0 or int(carry.moment) != carry.moment:
            self.fail(f"{here}: exponent {carry.exponent} and moment {carry.moment} must not be negative")

    def check_emit(self, region: Region, emit: Emit, table: dict[str, Carry]) -> None:
        self.same_axes(emit.value, emit.axes)
        walked = (*region.streams, *region.grid)
        if not set(walked) <= set(emit.axes):
            self.fail(f"emit {emit.name} has axes {_names(emit.axes)}, expected all of {_names(walked)} among them")
        self.check_body(region, emit.value, emit.level, f"emit {emit.name}", table)

    def check_body(self, region: Region, body: Expr, level: int, here: str, table: dict[str, Carry]) -> None:
        walked = {*region.streams, *region.grid}
        scans = {c.body for c in region.carries if c.kind is Kind.AFFINE}
        for node in topological([body]):
            again = walked & set(_bound(node))
            if again and node not in scans and node.op != "shift":
                self.fail(f"{here}: {node.op} binds {_names(again)}, which the region walks; "
                          "expected a carry, or another axis")
            if node.op == "carry":
                self.check_part(node, level, here, table)

    def check_part(self, node: Expr, level: int, here: str, table: dict[str, Carry]) -> None:
        name, suffix = _split(node["name"], table)
        carry, part = table.get(name), node["part"]
        if carry is None or (suffix and carry.kind is not Kind.LSE):
            self.fail(f"{here} reads carry {node['name']}, which the region does not have")
        if part not in ("final", "prefix", "running"):
            self.fail(f"{here} reads part {part!r} of {name}, expected final, prefix or running")
        if part == "final" and carry.level >= level:
            self.fail(f"{here} at level {level} reads the final value of {name}, "
                      f"expected a level below, got {carry.level}")
        if part != "final" and carry.level > level:
            self.fail(f"{here} at level {level} reads {name}, which is computed at level {carry.level}")
        has_prefix = carry.kind in (Kind.SUM, Kind.AFFINE) and carry.relative_to is None and len(carry.over) == 1
        if part == "prefix" and not has_prefix:
            self.fail(f"{here} reads a prefix of {name}, expected an AFFINE carry or a plain SUM over one stream")
        axes = (*carry.axes, *carry.over) if part == "prefix" else carry.axes
        if set(node.axes) != set(axes):
            self.fail(f"{here} reads the {part} value of {name} over {_names(node.axes)}, expected {_names(axes)}")
        dtype = "int64" if carry.kind is Kind.ARGMAX else carry.body.dtype
        if node.dtype != dtype:
            self.fail(f"{here} reads {name} as {node.dtype}, expected {dtype}")

    def acyclic(self, region: Region, table: dict[str, Carry]) -> None:
        """No carry needs its own value at the same position (a scan's own state excepted: it is the scan)."""
        parts = {n: [e for e in topological([c.body]) if e.op == "carry" and e["part"] != "final"]
                 for n, c in table.items()}
        below = {n: {_split(e["name"], table)[0] for e in es} for n, es in parts.items()}
        done: set[str] = set()

        def visit(name: str, path: tuple[str, ...]) -> None:
            if name in path:
                self.fail(f"carries read each other in a cycle: {' -> '.join((*path[path.index(name):], name))}")
            if name not in done:
                for other in sorted(below[name]):
                    visit(other, (*path, name))
                done.add(name)
        for name in table:
            visit(name, ())

    # ---- outputs --------------------------------------------------------------------------------------------------

    def check_outputs(self) -> None:
        names = [o.buffer.name for o in self.program.outputs]
        for output in self.program.outputs:
            self.owner = output.buffer.name
            if names.count(output.buffer.name) > 1:
                self.fail("two outputs have this name")
            self.check_output(output)

    def check_output(self, output: Output) -> None:
        for term in output.terms:
            self.outside_regions([*term.index, term.value])
            if len(term.index) != len(output.buffer.shape):
                self.fail(f"a term has {len(term.index)} indices, expected {len(output.buffer.shape)}: "
                          "one per dimension")
            if any(i.dtype != "int64" for i in term.index):
                self.fail("the indices of a term must be int64")
            if _kind(term.value.dtype) != _kind(output.buffer.dtype):
                self.fail(f"a term has element type {term.value.dtype}, expected a {_kind(output.buffer.dtype)} type")
            self.axes_are_known(a for e in (*term.index, term.value) for a in e.axes)
        if output.gradient_of is not None:
            of = next((b for b in self.program.inputs if b.name == output.gradient_of), None)
            # A backward program need not read what it gives the gradient of.
            if of is not None and of.shape != output.buffer.shape:
                self.fail(f"the gradient of {of!r} has shape {list(output.buffer.shape)}")


def _bound(node: Expr) -> Iterator[Axis]:
    """The axes an op binds: its result varies along none of them, or sees all of them."""
    if node.op in ("carry", "iota", "bounded"):
        return
    for key, value in node.attrs:
        if key == "axes":
            yield from value
        elif key == "axis":
            yield value


def _split(name: str, table: dict[str, Carry]) -> tuple[str, str]:
    """A carry's name and the suffix `.m` or `.l`."""
    return (name, "") if name in table or name[-2:] not in (".m", ".l") else (name[:-2], name[-2:])


def _stored_type(carry: Carry) -> str:
    return "int64" if carry.kind is Kind.ARGMAX else carry.storage or carry.body.dtype
