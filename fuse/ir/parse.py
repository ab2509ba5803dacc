"""The reader of the text form; `fuse.ir.text` describes the form and writes it."""
from __future__ import annotations

import json
import re
from typing import Any, NamedTuple, NoReturn

from fuse.ir.expr import Axis, Buffer, Expr, IRError, make
from fuse.ir.ops import OPS, REDUCTIONS
from fuse.ir.program import Carry, Check, Define, Emit, Kind, Output, Program, Region, Step, Term
from fuse.ir.size import Size
from fuse.ir.text import INFIX

TOKEN = re.compile(r"""\s*(?:(?P<comment>\#.*)|(?P<number>-?(?:\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|inf|nan)(?![\w.]))
    |(?P<name>[A-Za-z_][\w.$]*)|(?P<quoted>"(?:[^"\\]|\\.)*")|(?P<value>%\w+)|(?P<size><[^<>=]*>)
    |(?P<mark>\+=|==|!=|<=|[-+*/<&|(){}\[\],:=]))""", re.VERBOSE)
SIZE = re.compile(r"([+-]?)((?:\w+\*)*\w+)")
SYMBOLS = {symbol: (op, level) for op, (symbol, level) in INFIX.items()}


class TextError(IRError):
    """The text is not a program; the message starts with the line number."""


class Token(NamedTuple):
    kind: str
    text: str


class Line:
    """The tokens of one line and a position in them."""

    def __init__(self, number: int, text: str):
        self.number, self.tokens, self.at = number, list[Token](), 0
        position, text = 0, text.rstrip()
        while position < len(text):
            match = TOKEN.match(text, position)
            if match is None:
                self.fail(f"cannot read {text[position:].strip()[:20]!r}")
            position = match.end()
            if match.lastgroup != "comment":
                self.tokens.append(Token(match.lastgroup or "", match[match.lastgroup or 0]))

    def fail(self, message: str) -> NoReturn:
        raise TextError(f"line {self.number}: {message}")

    def peek(self) -> str:
        return self.tokens[self.at].text if self.at < len(self.tokens) else ""

    def kind(self) -> str:
        return self.tokens[self.at].kind if self.at < len(self.tokens) else "end"

    def take(self) -> str:
        if self.at >= len(self.tokens):
            self.fail("the line ends too early")
        self.at += 1
        return self.tokens[self.at - 1].text

    def accept(self, text: str) -> bool:
        if self.kind() in ("mark", "name") and self.peek() == text:
            self.at += 1
            return True
        return False

    def expect(self, text: str) -> None:
        if not self.accept(text):
            self.fail(f"expected {text!r}, got {self.peek() or 'the end of the line'!r}")

    def end(self) -> None:
        if self.at < len(self.tokens):
            self.fail(f"unexpected {self.peek()!r}")

    def name(self) -> str:
        if self.kind() not in ("name", "quoted"):
            self.fail(f"expected a name, got {self.peek() or 'the end of the line'!r}")
        quoted = self.kind() == "quoted"
        text = self.take()
        return json.loads(text) if quoted else text

    def list(self, read: Any, close: str) -> list[Any]:
        """Comma-separated items up to `close`."""
        items: list[Any] = []
        while not self.accept(close):
            if items:
                self.expect(",")
            items.append(read())
        return items

    def number_(self) -> int | float:
        if self.kind() != "number":
            self.fail(f"expected a number, got {self.peek() or 'the end of the line'!r}")
        text = self.take()
        return int(text) if re.fullmatch(r"-?\d+", text) else float(text)

    def extent(self) -> Size:
        """A size polynomial: tokens up to a delimiter."""
        text = ""
        while self.kind() != "end" and self.peek() not in (",", "]"):
            if text[-1:].isalnum() and self.peek()[0].isalnum():
                self.fail(f"unexpected {self.peek()!r}")
            text += self.take()
        return self.polynomial(text)

    def polynomial(self, text: str) -> Size:
        if not re.fullmatch(r"[+-]?(\w+\*)*\w+([+-](\w+\*)*\w+)*", text):
            self.fail(f"{text!r} is not an extent")
        total = Size({})
        for sign, monomial in SIZE.findall(text):
            term = Size.of(-1 if sign == "-" else 1)
            for factor in monomial.split("*"):
                if factor[0].isdigit() and not factor.isdigit():
                    self.fail(f"{factor!r} is neither a number nor a symbol")
                term = term * (int(factor) if factor.isdigit() else Size.of(factor))
            total = total + term
        return total


class Parser:
    def __init__(self, text: str):
        self.lines = [line for i, raw in enumerate(text.splitlines(), 1) if (line := Line(i, raw)).tokens]
        self.axes: dict[str, Axis] = {}
        self.buffers: dict[str, Buffer] = {}
        self.values: dict[str, Expr] = {}
        self.inputs: list[Buffer] = []
        self.cotangents: list[str] = []
        self.steps: list[Step] = []
        self.outputs: list[Output] = []
        self.anchors: list[Expr] = []
        self.checks: list[Check] = []

    # ---- statements -----------------------------------------------------------------------------------------------

    def program(self) -> Program:
        if not self.lines or self.lines[0].peek() != "program":
            raise TextError(f"line {self.lines[0].number if self.lines else 1}: expected 'program'")
        self.lines[0].take()
        self.lines[0].end()
        self.lines = self.lines[1:]
        while self.lines:
            line = self.lines.pop(0)
            self.statement(line)
            line.end()
        return Program(tuple(self.inputs), tuple(self.outputs), tuple(self.steps), tuple(self.cotangents),
                       tuple(self.anchors), tuple(self.checks))

    def statement(self, line: Line) -> None:
        if self.binding(line):
            return
        word = line.take()
        statements = {"axis": self.axis_, "input": self.input, "cotangents": self.cotangent, "stored": self.stored,
                      "define": self.define, "region": self.region, "output": self.output, "anchor": self.anchor,
                      "check": self.check}
        if word not in statements:
            line.fail(f"expected one of {', '.join(statements)} or a %value, got {word!r}")
        statements[word](line)

    def binding(self, line: Line) -> bool:
        if line.kind() != "value":
            return False
        name = line.take()
        line.expect("=")
        if name in self.values:
            line.fail(f"{name} is already defined")
        self.values[name] = self.expression(line)
        return True

    def axis_(self, line: Line) -> None:
        name = line.name()
        line.expect(":")
        if name in self.axes:
            line.fail(f"axis {name} is already declared")
        self.axes[name] = Axis(name, line.extent())

    def buffer(self, line: Line) -> Buffer:
        name = line.name()
        line.expect(":")
        dtype = line.name()
        line.expect("[")
        return Buffer(name, dtype, tuple(line.list(line.extent, "]")))

    def input(self, line: Line) -> None:
        self.inputs.append(self.declared(line))

    def stored(self, line: Line) -> None:
        self.declared(line)

    def declared(self, line: Line) -> Buffer:
        buffer = self.buffer(line)
        if buffer.name in self.buffers:
            line.fail(f"buffer {buffer.name} is already declared")
        self.buffers[buffer.name] = buffer
        return buffer

    def cotangent(self, line: Line) -> None:
        self.cotangents.append(line.name())
        while line.accept(","):
            self.cotangents.append(line.name())

    def named_axes(self, line: Line, opening: str, closing: str) -> tuple[Axis, ...]:
        line.expect(opening)
        return tuple(line.list(lambda: self.axis(line), closing))

    def axis(self, line: Line) -> Axis:
        name = line.name()
        if name not in self.axes:
            line.fail(f"unknown axis {name}")
        return self.axes[name]

    def define(self, line: Line) -> None:
        name, axes = line.name(), self.named_axes(line, "[", "]")
        line.expect("=")
        self.steps.append(Define(name, self.expression(line), axes))

    def region(self, line: Line) -> None:
        name = line.name()
        line.expect("streams")
        streams = self.named_axes(line, "(", ")")
        line.expect("grid")
        grid = self.named_axes(line, "(", ")")
        tile = self.number_of(line, "tile")
        reverse = line.accept("reverse")
        line.expect("{")
        line.end()
        carries, emits = [], []
        while True:
            if not self.lines:
                line.fail(f"region {name} is not closed")
            inner = self.lines.pop(0)
            if inner.accept("}"):
                inner.end()
                break
            if self.binding(inner):
                pass
            elif inner.peek() == "emit":
                emits.append(self.emit(inner))
            else:
                carries.append(self.carry(inner))
            inner.end()
        self.steps.append(Region(name, streams, grid, tuple(carries), tuple(emits), reverse, tile))

    def carry(self, line: Line) -> Carry:
        word = line.take()
        if word not in [k.value for k in Kind]:
            line.fail(f"expected a carry ({', '.join(k.value for k in Kind)}) or emit, got {word!r}")
        name, axes = line.name(), self.named_axes(line, "[", "]")
        line.expect("over")
        over = self.named_axes(line, "(", ")")
        options: dict[str, Any] = {}
        readers: dict[str, Any] = dict.fromkeys(("exponent", "moment", "level", "eps"), line.number_)
        readers |= dict.fromkeys(("scale", "entry"), lambda: self.expression(line)) | {"final": lambda: line.take() == "true"}
        readers |= {"relative_to": line.name, "storage": line.name, "boundary": lambda: self.named_axes(line, "(", ")")}
        while not line.accept("="):
            key = line.take()
            if key not in readers:
                line.fail(f"unknown option {key!r} of a carry")
            line.expect("=")
            options[key] = readers[key]()
        return Carry(name, Kind(word), self.expression(line), over, axes, **options)

    def number_of(self, line: Line, option: str) -> int:
        if line.accept(option):
            line.expect("=")
            return int(line.number_())
        return 0

    def emit(self, line: Line) -> Emit:
        line.take()
        name, axes = line.name(), self.named_axes(line, "[", "]")
        level = self.number_of(line, "level")
        line.expect("=")
        return Emit(name, self.expression(line), axes, level)

    def output(self, line: Line) -> None:
        buffer = self.buffer(line)
        of = line.name() if line.accept("gradient_of") else None
        terms = []
        while self.lines and (self.lines[0].peek() == "[" or self.lines[0].kind() == "value"):
            term = self.lines.pop(0)
            if not self.binding(term):
                term.expect("[")
                index = tuple(term.list(lambda t=term: self.expression(t), "]"))
                term.expect("+=")
                terms.append(Term(index, self.expression(term)))
            term.end()
        self.outputs.append(Output(buffer, tuple(terms), of))

    def anchor(self, line: Line) -> None:
        self.anchors.append(self.expression(line))

    def check(self, line: Line) -> None:
        op = line.name()
        line.expect("[")
        extent = line.extent()
        line.expect("]")
        line.expect("=")
        self.checks.append(Check(op, self.expression(line), extent))

    # ---- expressions ----------------------------------------------------------------------------------------------

    def expression(self, line: Line, level: int = 0) -> Expr:
        left = self.primary(line)
        while line.kind() == "mark" and line.peek() in SYMBOLS:
            op, binding = SYMBOLS[line.peek()]
            if binding <= level:
                break
            line.take()
            left = self.build(line, op, [left, self.expression(line, binding)], {})
        return left

    def build(self, line: Line, op: str, args: list[Expr], attrs: dict[str, Any]) -> Expr:
        try:
            return make(op, *args, **attrs)
        except IRError as error:
            line.fail(str(error))
        except (KeyError, TypeError, AttributeError):
            line.fail(f"{op} cannot have the attributes {', '.join(attrs) or 'none'}")

    def primary(self, line: Line) -> Expr:
        kind = line.kind()
        if line.accept("("):
            inner = self.expression(line)
            line.expect(")")
            return inner
        if kind == "number":
            value = line.number_()
            return self.constant(line, value, "int64" if isinstance(value, int) else "float32")
        if kind == "value":
            name = line.take()
            return self.values[name] if name in self.values else line.fail(f"{name} is not defined")
        if kind == "name" and line.peek() in ("true", "false"):
            return self.constant(line, line.take() == "true", "bool")
        name = line.name()
        if line.accept("["):
            index = line.list(lambda: self.expression(line), "]")
            if name not in self.buffers:
                line.fail(f"unknown buffer {name}")
            return self.build(line, "read", index, {"buffer": self.buffers[name]})
        if kind == "name" and line.peek() in ("{", "("):
            return self.call(line, name)
        if name not in self.axes:
            line.fail(f"unknown axis {name}")
        return make("iota", axis=self.axes[name])

    def constant(self, line: Line, value: Any, dtype: str) -> Expr:
        return make("const", value=value, dtype=line.name() if line.accept(":") else dtype)

    def call(self, line: Line, op: str) -> Expr:
        if op not in OPS:
            line.fail(f"unknown op {op!r}")
        attrs = self.attributes(line, op) if line.accept("{") else {}
        line.expect("(")
        return self.build(line, op, line.list(lambda: self.expression(line), ")"), attrs)

    def attributes(self, line: Line, op: str) -> dict[str, Any]:
        """`{v, reverse=true}`: first the axes (or the dtype of a cast), then `name=value`."""
        first: list[str] = []
        named: dict[str, Any] = {}

        def item() -> None:
            word = line.name()
            if line.accept("="):
                named[word] = self.value(line)
            elif named:
                line.fail(f"expected a value for {word!r}")
            else:
                first.append(word)
        line.list(item, "}")
        if op in ("cast", "const"):
            return {"dtype": first[0] if first else None, **named}
        several = op in REDUCTIONS
        if not first and not several:
            return named
        unknown = [n for n in first if n not in self.axes]
        if unknown:
            line.fail(f"unknown axis {unknown[0]}")
        axes = tuple(self.axes[n] for n in first)
        if not several and len(axes) != 1:
            line.fail(f"{op} takes one axis")
        return {"axes": axes, **named} if several else {"axis": axes[0], **named}

    def value(self, line: Line) -> Any:
        if line.kind() == "number":
            return line.number_()
        if line.kind() == "quoted":
            return line.name()
        if line.kind() == "size":
            return line.polynomial(line.take()[1:-1])
        if line.accept("("):
            return tuple(line.list(lambda: self.axis(line), ")"))
        if line.accept("&"):
            name = line.name()
            return self.buffers[name] if name in self.buffers else line.fail(f"unknown buffer {name}")
        if line.accept("complex"):
            line.expect("(")
            return complex(*line.list(line.number_, ")"))
        return line.take() == "true" if line.peek() in ("true", "false") else self.axis(line)


def parse_program(text: str) -> Program:
    return Parser(text).program()
