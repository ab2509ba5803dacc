"""The text form: round trips to the identical objects, stays readable, refuses what is not a program."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuse.ir.expr import Axis, Buffer, Expr, cast, const, iota, make, read, size, sum_, where
from fuse.ir.parse import TextError
from fuse.ir.program import Program
from fuse.ir.size import Size
from fuse.ir.text import parse_program, print_expr, print_program
from tests.ir.examples import EXAMPLES, K, Q, axis, d, i, j, output


def round_trip(program: Program) -> str:
    text = print_program(program)
    again = parse_program(text)
    assert again == program and all(a is b for a, b in zip(again.roots(), program.roots(), strict=True))
    assert print_program(again) == text
    return text


@pytest.mark.parametrize("name", EXAMPLES)
def test_programs_with_regions(name: str):
    round_trip(EXAMPLES[name])


def test_the_form():
    scores = sum_(cast(read(Buffer("x", "bfloat16", (i.extent, Size.of(4))), i, d), "float32") * read(K, j, d), d)
    loss = sum_(make("lse", scores, axes=(j,)) - make("pick", scores, const(3, "int64"), axis=j), i)
    program = Program((Buffer("x", "bfloat16", (i.extent, Size.of(4))), K), (output("loss", loss),), anchors=(scores,))
    assert (
        round_trip(program)
        == """\
program
axis d: 4
axis i: I
axis j: J
input x: bfloat16[I, 4]
input K: float32[J, 4]
output loss: float32[]
  %0 = sum{d}(cast{float32}(x[i, d]) * K[j, d])
  [] += sum{i}(lse{j}(%0) - pick{j}(%0, 3))
anchor %0
"""
    )


def test_what_may_be_left_out_is_text():
    softmax = EXAMPLES["softmax"]
    region = softmax.steps[0]
    plain = replace(region.carry("o"), relative_to=None, eps=2.0**-12, scale=read(Q, i, const(0, "int64")))
    carries = tuple(plain if c.name == "o" else c for c in region.carries)
    text = round_trip(replace(softmax, steps=(replace(region, carries=carries), *softmax.steps[1:])))
    assert "] over(j) eps=0.000244140625 scale=Q[i, 0] = " in text


def test_regions_read_like_equations():
    text = print_program(EXAMPLES["softmax"])
    assert "  %0 = where(j <= i, sum{d}(Q[i, d] * K[j, d]), -inf)\n  lse c[i] over(j) = %0\n" in text
    assert "  sum half[i, e] over(j) relative_to=c exponent=0.5 moment=2 = V[j, e]\n" in text


def test_expressions_print_with_their_shared_parts():
    x = make("exp", read(Q, i, d))
    assert repr(x * x + 1.0) == "%0 = exp(Q[i, d])\n%0 * %0 + 1.0"
    assert print_expr(read(Q, iota(i) + 1, iota(d) - size(Size.of("I") - 1))) == "Q[i + 1, d - size{extent=<I-1>}()]"


def test_operators_keep_their_structure():
    x, y, z = (read(Buffer(n, "float32", ())) for n in "xyz")
    for e in (
        x + (y + z),
        (x + y) + z,
        x - (y - z),
        x * (y + z),
        (x * y) / z,
        x / (y * z),
        -(x + y),
        -const(1.0, "float32"),
        x - const(-1, "float32"),
        x * -y,
        where(make("and", make("lt", x, y), make("or", make("eq", y, z), make("ne", x, z))), x, y),
        where(make("eq", make("lt", x, y), make("le", y, z)), x, 0),
    ):
        assert round_trip(Program((), (output("o", e),))) and "%" not in print_expr(e)


CONSTANTS = [
    const(v, t)
    for v, t in (
        (1, "int64"),
        (-1, "int64"),
        (1, "int32"),
        (1.0, "float32"),
        (-0.0, "float32"),
        (1e-30, "float64"),
        (math.inf, "float32"),
        (-math.inf, "float64"),
        (math.nan, "float32"),
        (True, "bool"),
        (2 + 3j, "complex64"),
        (0.1, "bfloat16"),
    )
] + [make("const", value=1, dtype="float32")]


@pytest.mark.parametrize("constant", CONSTANTS, ids=str)
def test_constants(constant: Expr):
    round_trip(Program((), (output("o", constant),)))


def test_odd_names_and_shapes():
    a, b = Axis("odd name", Size.of("T") * 2 - 1), axis("inf")
    x = Buffer('L["self"].weight', "float64", (a.extent, b.extent))
    program = Program(
        (x,),
        (output("out.0", read(x, a, b) * make("shift", read(x, a, b), axis=a, by=-1), a, b),),
        cotangents=('L["self"].weight',),
    )
    assert 'axis "odd name": -1+2*T' in round_trip(program).replace("2*T-1", "-1+2*T")


def test_origins_are_comments():
    node = make("erf", read(Q, i, d) * 7.25, origin="model.py:12")
    program = Program((Q,), (output("o", node * node, i, d),))
    assert "    # model.py:12" in round_trip(program)


leaves = st.sampled_from(
    [read(Q, i, d), read(K, j, d), cast(iota(i), "float32"), const(1.5, "float32"), const(-2, "float32")]
)


def extend(children: st.SearchStrategy[Expr]) -> st.SearchStrategy[Expr]:
    return st.one_of(
        st.builds(make, st.sampled_from(["add", "sub", "mul", "div", "maximum", "logaddexp"]), children, children),
        st.builds(make, st.sampled_from(["exp", "neg", "tanh", "stop"]), children),
        st.builds(lambda x, y: where(make("le", x, y), x, y), children, children),
        children.map(lambda x: sum_(x, *x.axes[:1])),
        children.map(lambda x: cast(cast(x, "float16"), "float32")),
        children.map(lambda x: make("scan", x, x, axis=x.axes[-1], reverse=True) if x.axes else x),
        children.map(lambda x: make("shift", x, axis=x.axes[0], by=-2) if x.axes else x),
    )


@given(st.lists(st.recursive(leaves, extend, max_leaves=30), min_size=1, max_size=3))
def test_any_expressions(values: list[Expr]):
    round_trip(
        Program((Q, K), tuple(output(f"o{k}", v, *v.axes) for k, v in enumerate(values)), anchors=tuple(values[:1]))
    )


HEAD = "program\naxis i: I\naxis d: 4\ninput Q: float32[I, 4]\n"


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("", 1, "expected 'program'"),
        ("function", 1, "expected 'program'"),
        (HEAD + "axis i: 3", 5, "already declared"),
        (HEAD + "axis k: 3 4", 5, "is not an extent|unexpected"),
        (HEAD + "axis k: 2T", 5, "neither a number nor a symbol|cannot read|is not an extent"),
        (HEAD + "input Q: float32[3]", 5, "already declared"),
        (HEAD + "anchor Q[i, k]", 5, "unknown axis k"),
        (HEAD + "anchor P[i]", 5, "unknown buffer P"),
        (HEAD + "anchor Q[i]", 5, "2 dimensions"),
        (HEAD + "anchor Q[i, d] +", 5, "expected a name"),
        (HEAD + "anchor Q[i, d] + 1", 5, "one dtype"),
        (HEAD + "anchor (Q[i, d]", 5, r"expected '\)'"),
        (HEAD + "anchor Q[i d]", 5, "expected ','"),
        (HEAD + "anchor swish(Q[i, d])", 5, "unknown op"),
        (HEAD + "anchor sum{k}(Q[i, d])", 5, "unknown axis"),
        (HEAD + "anchor scan{i, d}(Q[i, d], Q[i, d])", 5, "one axis"),
        (HEAD + "anchor shift{by=1, i}(Q[i, d])", 5, "expected a value"),
        (HEAD + "anchor cast(Q[i, d])", 5, "attributes"),
        (HEAD + "anchor %0", 5, "not defined"),
        (HEAD + "%0 = Q[i, d]\n%0 = Q[i, d]", 6, "already defined"),
        (HEAD + "anchor Q[i, d] ?", 5, "cannot read"),
        (HEAD + "\n\nnonsense", 7, "expected one of"),
        (HEAD + "region r streams(i) grid() {\n  sum s[d] over(i) = Q[i, d]", 5, "not closed"),
        (HEAD + "region r streams(i) grid() {\n  product s[d] over(i) = Q[i, d]\n}", 6, "expected a carry"),
        (HEAD + "region r streams(i) grid() {\n  sum s[d] over(i) size=3 = Q[i, d]\n}", 6, "unknown option"),
        (HEAD + "output o: float32[]\n  [] = 1.0", 6, r"expected '\+='"),
        (HEAD + "define x[i] = Q[i, d] extra", 5, "unexpected"),
    ],
)
def test_bad_text_is_refused(text: str, line: int, message: str):
    with pytest.raises(TextError, match=rf"(?s)^line {line}: .*({message})"):
        parse_program(text)
