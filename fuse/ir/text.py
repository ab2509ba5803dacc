"""Programs as text, and back: `parse_program(print_program(p)) == p`, down to the identity of interned expressions.

    program
    axis b: B
    axis v: 50304
    axis d: 64
    input h: bfloat16[B, 64]
    input W: bfloat16[50304, 64]
    stored c0.m: float32[B]
    region r0 streams(v) grid(b) {
      %0 = sum{d}(cast{float32}(h[b, d]) * cast{float32}(W[v, d]))
      lse c0[b] over(v) = %0
    }
    output loss: float32[B]
      [b] += c0.m[b]

`name[...]` reads a buffer, a bare name is the position along an axis, `op{attributes}(arguments)` is any op. A number
is int64, or float32 if it has a point; others carry their type (`1.0:float64`). What is used twice has a %name.
Hints and origins are not part of the text.
"""
from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from fuse.ir.expr import Axis, Buffer, Expr, topological
from fuse.ir.program import Carry, Define, Program, Region, Step
from fuse.ir.size import Size

NAME = re.compile(r"[A-Za-z_][\w.$]*\Z")
INFIX = {"or": ("|", 1), "and": ("&", 2), "eq": ("==", 3), "ne": ("!=", 3), "lt": ("<", 3), "le": ("<=", 3),
         "add": ("+", 4), "sub": ("-", 4), "mul": ("*", 5), "div": ("/", 5)}
WORDS = ("inf", "nan", "true", "false", "complex")
LONGEST = 100


def name(text: str) -> str:
    """A name as it is written: quoted unless it is a plain identifier."""
    return text if NAME.match(text) and text not in WORDS else json.dumps(text)


def bare_key(op: str, keys: Collection[str]) -> str | None:
    """The attribute of `op` that is written first and without its name."""
    return None if op == "carry" else next((k for k in ("axes", "axis", "dtype") if k in keys), None)


def attribute(value: Any) -> str:
    """An attribute's value; its spelling tells its type."""
    if isinstance(value, Axis):
        return name(value.name)
    if isinstance(value, tuple):
        return "(" + ", ".join(attribute(v) for v in value) + ")"
    if isinstance(value, Size):
        return f"<{value}>"
    if isinstance(value, Buffer):
        return "&" + name(value.name)
    if isinstance(value, complex):
        return f"complex({value.real!r}, {value.imag!r})"
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps(value) if isinstance(value, str) else repr(value)


def number(value: Any, dtype: str) -> str:
    if isinstance(value, complex):
        return f"const{{{dtype}, value={attribute(value)}}}()"
    plain = str(value).lower() if isinstance(value, bool) else repr(value)
    default = {bool: "bool", int: "int64", float: "float32"}[type(value)]
    return plain if dtype == default else f"{plain}:{dtype}"


def axes_text(axes: Iterable[Axis]) -> str:
    return ", ".join(name(a.name) for a in axes)


class Printer:
    """Spells expressions; those in `shared` get a %name and a line of their own, before the first line with them."""

    def __init__(self, shared: Iterable[Expr] = ()):
        self.shared, self.names, self.lines = set(shared), dict[Expr, str](), list[str]()

    def text(self, root: Expr) -> str:
        """The spelling of `root`; new lines go to `self.lines`."""
        done: dict[Expr, tuple[str, int]] = {}
        for node in topological([root], self.names):
            if node in self.names:
                done[node] = (self.names[node], 9)
                continue
            spelled, level = self._spell(node, [done[a] for a in node.args])
            if node in self.shared or (len(spelled) > LONGEST and node.args):
                self.names[node] = f"%{len(self.names)}"
                origin = f"    # {node.origin}" if node.origin else ""
                self.lines.append(f"{self.names[node]} = {spelled}{origin}")
                spelled, level = self.names[node], 9
            done[node] = (spelled, level)
        return done[root][0]

    def _spell(self, node: Expr, args: list[tuple[str, int]]) -> tuple[str, int]:
        plain = [t for t, _ in args]
        if node.op in INFIX:
            symbol, level = INFIX[node.op]
            chain = node.op in ("add", "sub", "mul", "div", "and", "or")
            left = plain[0] if args[0][1] >= level + (not chain) else f"({plain[0]})"
            right = plain[1] if args[1][1] > level else f"({plain[1]})"
            return f"{left} {symbol} {right}", level
        if node.op == "const":
            return number(node["value"], node["dtype"]), 9
        if node.op == "iota":
            return name(node["axis"].name), 9
        if node.op == "read":
            return f"{name(node['buffer'].name)}[{', '.join(plain)}]", 9
        attrs = dict(node.attrs)
        key = bare_key(node.op, attrs)
        inside = []
        if key is not None:
            value = attrs.pop(key)
            inside = [value] if key == "dtype" else [name(a.name) for a in (value if key == "axes" else (value,))]
        inside += [f"{k}={attribute(v)}" for k, v in attrs.items()]
        return node.op + (f"{{{', '.join(inside)}}}" if inside else "") + f"({', '.join(plain)})", 9


def print_expr(expr: Expr) -> str:
    """The spelling of one expression; shared subexpressions on lines before it."""
    printer = Printer(_shared([expr]))
    text = printer.text(expr)
    lines = [line for line in printer.lines if not line.startswith(f"{text} = ")]
    last = next((line.split(" = ", 1)[1] for line in printer.lines if line.startswith(f"{text} = ")), text)
    return "\n".join([*lines, last])


def _shared(roots: Iterable[Expr]) -> list[Expr]:
    """What is worth a name: used at least twice, and not just a constant, a position or a plain read."""
    roots = list(roots)
    uses = Counter(a for e in topological(roots) for a in e.args) + Counter(roots)
    leaves = ("const", "iota", "size", "read")

    def small(e: Expr) -> bool:
        below = topological([e])[:-1]
        return e.op in ("const", "iota", "size", "carry") or (
            e.op in ("read", "cast") and all(f.op in leaves for f in below))
    return [e for e, n in uses.items() if n > 1 and not small(e)]


def print_program(program: Program) -> str:
    """The program's text; see the module docstring."""
    return "\n".join(line for _, line in numbered_lines(program)) + "\n"


def print_region(region: Region) -> str:
    """The text of one region, without the declarations that it needs in a program."""
    lines = [line for owner, line in numbered_lines(Program((), (), (region,))) if owner == region.name]
    return "\n".join(lines[next(i for i, line in enumerate(lines) if line.startswith("region ")):])


def numbered_lines(program: Program) -> list[tuple[str, str]]:
    """The text line by line, each with the name of the step, output or declaration it belongs to."""
    roots = [*program.roots(), *program.anchors]
    printer = Printer(_shared(roots))
    out: list[tuple[str, str]] = [("program", "program")]
    out += [(a, f"axis {name(a)}: {e}") for a, e in sorted(_axes_of(program, roots))]
    inputs = {b.name for b in program.inputs}
    out += [(b.name, f"input {_buffer(b)}") for b in program.inputs]
    out += [("cotangents", "cotangents " + ", ".join(map(name, program.cotangents)))] * bool(program.cotangents)
    others = {e["buffer"] for e in topological(roots) if e.op == "read"} - set(program.inputs)
    out += [(b.name, f"stored {_buffer(b)}") for b in sorted(others, key=lambda b: (b.name in inputs, b.name, repr(b)))]

    def emit(owner: str, line: str, indent: str = "") -> None:
        out.extend((owner, indent + extra) for extra in printer.lines)
        printer.lines.clear()
        out.append((owner, indent + line))
    for step in program.steps:
        if isinstance(step, Define):
            emit(step.name, f"define {name(step.name)}[{axes_text(step.axes)}] = {printer.text(step.value)}")
            continue
        out.append((step.name, _region_head(step) + " {"))
        for c in step.carries:
            scale = "" if c.scale is None else f" eps={c.eps!r} scale={printer.text(c.scale)}"
            entry = "" if c.entry is None else f" entry={printer.text(c.entry)}"
            emit(step.name, f"{_carry_head(c)}{scale}{entry} = {printer.text(c.body)}", "  ")
        for e in step.emits:
            level = f" level={e.level}" if e.level else ""
            emit(step.name, f"emit {name(e.name)}[{axes_text(e.axes)}]{level} = {printer.text(e.value)}", "  ")
        out.append((step.name, "}"))
    for output in program.outputs:
        of = "" if output.gradient_of is None else f" gradient_of {name(output.gradient_of)}"
        out.append((output.buffer.name, f"output {_buffer(output.buffer)}{of}"))
        for term in output.terms:
            index = [printer.text(i) for i in term.index]
            emit(output.buffer.name, f"[{', '.join(index)}] += {printer.text(term.value)}", "  ")
    for check in program.checks:
        emit("check", f"check {name(check.op)}[{check.extent}] = {printer.text(check.index)}")
    for anchor in program.anchors:
        emit("anchor", f"anchor {printer.text(anchor)}")
    return out


def _buffer(buffer: Buffer) -> str:
    return f"{name(buffer.name)}: {buffer.dtype}[{', '.join(map(str, buffer.shape))}]"


def _axes_of(program: Program, roots: Iterable[Expr]) -> set[tuple[str, str]]:
    def every() -> Iterator[Axis]:
        for e in topological(roots):
            yield from e.axes
            yield from (v for _, v in e.attrs if isinstance(v, Axis))
            yield from (a for _, v in e.attrs if isinstance(v, tuple) for a in v if isinstance(a, Axis))
        for step in program.steps:
            yield from _step_axes(step)
    return {(a.name, str(a.extent)) for a in every()}


def _step_axes(step: Step) -> Iterator[Axis]:
    if isinstance(step, Define):
        yield from step.axes
        return
    yield from (*step.streams, *step.grid)
    for c in step.carries:
        yield from (*c.over, *c.axes, *c.boundary)
    for e in step.emits:
        yield from e.axes


def _region_head(region: Region) -> str:
    head = f"region {name(region.name)} streams({axes_text(region.streams)}) grid({axes_text(region.grid)})"
    if region.tile:
        head += f" tile={region.tile}"
    return head + " reverse" * region.reverse


def _carry_head(c: Carry) -> str:
    head = f"{c.kind.value} {name(c.name)}[{axes_text(c.axes)}] over({axes_text(c.over)})"
    if c.relative_to is not None:
        head += f" relative_to={name(c.relative_to)}"
    options = (("exponent", c.exponent, 1), ("moment", c.moment, 0), ("level", c.level, 0))
    head += "".join(f" {k}={v!r}" for k, v, default in options if (type(v), v) != (type(default), default))
    head += f" storage={c.storage}" if c.storage else ""
    head += "" if c.final else " final=false"
    return head + (f" boundary=({axes_text(c.boundary)})" if c.boundary else "")


def parse_program(text: str) -> Program:
    """The program that `print_program` spelled so. TextError (with the line number) if the text is not one."""
    from fuse.ir.parse import parse_program as parse
    return parse(text)
