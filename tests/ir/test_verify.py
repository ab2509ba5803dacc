"""Each rule of the verifier: what it accepts, and a program that it must refuse."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from fuse.ir.expr import Axis, Buffer, Expr, IRError, Type, cast, const, iota, lse, make, read, sum_
from fuse.ir.program import Carry, Define, Emit, Kind, Output, Program, Region, Term, carry_part, stored
from fuse.ir.size import Size
from fuse.ir.verify import verify
from tests.ir.examples import EXAMPLES, SCORES, G, K, Q, axis, buffer, d, e, i, j, n, output, t

SOFTMAX, SCAN, PREFIX, ENTERED = (EXAMPLES[k] for k in ("softmax", "scan", "prefix", "boundaries"))
ENTRY = ENTERED.regions[1].carry("h2").entry
ONE = const(1, "float32")


@pytest.mark.parametrize("name", EXAMPLES)
def test_good_programs_pass(name: str):
    verify(EXAMPLES[name])


def test_programs_without_steps_pass():
    verify(Program((Q, K), (output("L", lse(SCORES, j), i),), anchors=(SCORES,)))
    verify(Program((), ()))


def with_step(program: Program, step: Region | Define, position: int = 0) -> Program:
    steps = list(program.steps)
    steps[position] = step
    return replace(program, steps=tuple(steps))


def carry(name: str, position: int = 0, program: Program = SOFTMAX, **changes: object) -> Program:
    """The program with one carry changed."""
    region = program.steps[position]
    carries = tuple(replace(c, **changes) if c.name == name else c for c in region.carries)
    return with_step(program, replace(region, carries=carries), position)


def region(position: int = 0, program: Program = SOFTMAX, **changes: object) -> Program:
    return with_step(program, replace(program.steps[position], **changes), position)


def more(*carries: Carry, program: Program = SOFTMAX) -> Program:
    return region(program=program, carries=(*program.steps[0].carries, *carries))


def outputs(*terms: Term, shape: tuple[Axis, ...] = (i,), dtype: str = "float32", of: str | None = None) -> Program:
    return replace(SOFTMAX, outputs=(Output(buffer("out", *shape, dtype=dtype), terms, of),))


def tampered(**changes: object) -> Program:
    """An expression that `make` would not build."""
    node = object.__new__(Expr)
    good = make("neg", read(Q, i, d))
    for slot in ("op", "args", "attrs", "type", "origin"):
        object.__setattr__(node, slot, changes.get(slot, getattr(good, slot)))
    return Program((Q,), (output("o", node, i, d),))


def read_part(name: str, part: str = "prefix", axes: tuple[Axis, ...] = (t, d, e), dtype: str = "float32") -> Program:
    node = make("carry", name=name, part=part, dtype=dtype, axes=axes)
    body = node if node.dtype == "float32" else cast(node, "float32")
    step = PREFIX.steps[0]
    return with_step(PREFIX, replace(step, emits=(*step.emits, Emit("extra", body, (t, d, e)))))


m = stored("c.m", "float32", (i,))
wrong_i = Axis("i", Size.of(9))
BODY = read(Q, i, d)
ONE = const(1, "float32")

BAD: dict[str, tuple[Callable[[], Program], str]] = {
    # expressions
    "unknown op": (lambda: tampered(op="nonsense"), "unknown op 'nonsense'"),
    "arity": (lambda: tampered(args=()), "neg takes 1 arguments, got 0"),
    "type": (lambda: tampered(type=Type("float64", (i, d))), "expected Type"),
    "type rule": (lambda: tampered(op="not"), "expected booleans"),
    "one extent": (
        lambda: Program((Q, G), (output("a", read(Q, i, d), i, d), output("b", read(G, wrong_i), wrong_i))),
        "axis i has extent 9",
    ),
    # names
    "twice an input": (lambda: replace(SOFTMAX, inputs=(Q, Q)), "the name Q is taken"),
    "cotangent": (lambda: replace(SOFTMAX, cotangents=("ct",)), "cotangent ct is not an input"),
    "twice a step": (lambda: replace(SOFTMAX, steps=SOFTMAX.steps * 2), "two steps"),
    "twice a store": (
        lambda: replace(SOFTMAX, steps=(Define("o", BODY, (i, d)), *SOFTMAX.steps)),
        "the name o is taken",
    ),
    "twice a carry": (lambda: more(SOFTMAX.steps[0].carries[1]), "two carries or emits are named o"),
    "twice an output": (lambda: replace(SOFTMAX, outputs=SOFTMAX.outputs[:1] * 2), "two outputs"),
    # reads
    "nobody stores it": (lambda: replace(SOFTMAX, steps=()), "neither an input nor stored"),
    "stored later": (
        lambda: replace(SOFTMAX, steps=(Define("x", m, (i,)), *SOFTMAX.steps)),
        "neither an input nor stored",
    ),
    "own store": (lambda: carry("o", body=read(buffer("c.m", i), i), axes=(i,)), "neither an input nor stored"),
    "another shape": (
        lambda: replace(SOFTMAX, inputs=(buffer("Q", d, i), *SOFTMAX.inputs[1:])),
        r"expected Q: float32\[4, I\]",
    ),
    "another type": (lambda: carry("o", storage="bfloat16"), "expected o: bfloat16"),
    # what may be left out
    "eps alone": (lambda: carry("o", relative_to=None, eps=0.1), "eps and scale go together"),
    "scale of a relative sum": (lambda: carry("o", eps=0.1, scale=ONE), "expected a plain SUM of floats"),
    "scale of a maximum": (lambda: carry("c", eps=0.1, scale=ONE), "expected a plain SUM of floats"),
    "eps of one": (lambda: carry("o", relative_to=None, eps=1.0, scale=ONE), "expected 0 <= eps < 1"),
    "type of a scale": (
        lambda: carry("o", relative_to=None, eps=0.1, scale=const(1, "float64")),
        "the scale has element type float64, expected float32",
    ),
    "scale per element": (
        lambda: carry("o", relative_to=None, eps=0.1, scale=SCORES),
        r"the scale varies along \(i, j\), expected axes of the grid \(i\) or of the streams \(j\)",
    ),
    "scale of its own level": (
        lambda: carry("o", relative_to=None, eps=0.1, scale=carry_part(SOFTMAX.steps[0].carry("c"), "final", ".m")),
        "expected a level below",
    ),
    # defines
    "define axes": (
        lambda: replace(SOFTMAX, steps=(Define("x", BODY, (i,)), *SOFTMAX.steps)),
        r"over \(i, d\) is stored over \(i\)",
    ),
    "define repeats": (lambda: replace(SOFTMAX, steps=(Define("x", BODY, (i, d, d)), *SOFTMAX.steps)), "repeat"),
    "virtual define": (
        lambda: replace(SOFTMAX, steps=(Define("x", SCORES, (i, j)), *SOFTMAX.steps), anchors=(SCORES,)),
        "virtual value",
    ),
    "carry outside": (
        lambda: outputs(Term((iota(i),), carry_part(SOFTMAX.steps[0].carry("o"), "final")), shape=(i,)),
        "outside a region",
    ),
    # regions
    "no stream": (lambda: region(streams=(), grid=(i, j)), "one stream at least"),
    "stream is grid": (lambda: region(grid=(i, j)), "must be disjoint"),
    "nothing": (lambda: region(carries=(), emits=()), "stores nothing"),
    # states at the boundaries of tiles
    "boundary of a sum": (lambda: carry("h1", boundary=(axis("x", 3), n)), "expected an AFFINE carry"),
    "too few tiles": (lambda: carry("h", program=ENTERED, boundary=(axis("x", 2), n)), "expected the tiles of 4 positions in 9"),
    "tiles of no length": (lambda: region(program=ENTERED, tile=0), "expected the tiles of 0 positions"),
    "tiles of an unknown length": (lambda: carry("h", program=SCAN, boundary=(axis("x", 3), n)), "expected the tiles"),
    "boundary without an axis": (lambda: carry("h", program=ENTERED, boundary=(axis("x", 3),)), r"has axes \(\), expected"),
    "boundary against the walk": (lambda: region(program=ENTERED, reverse=True), "expected a scan along the walk"),
    "entry along the walk": (lambda: region(1, ENTERED, reverse=False), "expected a scan against the walk"),
    "entry computed": (lambda: carry("h2", 1, ENTERED, entry=ENTRY + ENTRY), "the entry must be a read"),
    "entry for one tile": (
        lambda: carry("h2", 1, ENTERED, entry=read(ENTERED.inputs[2], const(0, "int64"), n)),
        "along the tiles of the stream",
    ),
    "entry of another type": (lambda: carry("h2", 1, ENTERED, entry=cast(ENTRY, "float64")), "must be a read of its float32"),
    # carries
    "over nothing": (lambda: carry("c", over=(), axes=(i, j)), "goes over"),
    "over a width": (lambda: carry("o", over=(e,), axes=(i,)), "goes over"),
    "axes and over": (lambda: carry("o", axes=(i, j, e)), "must be disjoint"),
    "forgets the grid": (lambda: more(Carry("x", Kind.SUM, read(K, j, d), (j,), (d,))), "ignores an axis"),
    "forgets the body": (lambda: carry("o", axes=(i,)), "the body varies along"),
    "negative level": (lambda: carry("top", level=-1), "negative"),
    "lse of integers": (lambda: carry("c", body=iota(j)), "must be a float"),
    "argmax over two": (lambda: carry("arg", over=(i, j), axes=()), "ARGMAX goes over one"),
    "affine body": (lambda: carry("h", program=SCAN, body=sum_(read(G, t), t) + read(G, t)), "must be a scan"),
    "affine over": (lambda: carry("h", program=SCAN, over=(axis("z"),)), "goes over"),
    "moment alone": (lambda: carry("h1", relative_to=None), "expected relative_to"),
    "relative to a sum": (lambda: carry("o", relative_to="h1"), "expected a SUM relative to an LSE"),
    "relative to nothing": (lambda: carry("o", relative_to="x"), "expected a SUM relative to an LSE"),
    "a maximum relative": (lambda: carry("top", relative_to="c"), "expected a SUM relative to an LSE"),
    "relative to later": (lambda: carry("c", level=1), "expected a lower or equal one"),
    "relative over": (lambda: more(Carry("x", Kind.SUM, BODY, (i,), (j, d), "c")), "whose maximum moves"),
    "relative type": (lambda: carry("o", body=const(1, "float64")), "expected float32 as c"),
    "negative exponent": (lambda: carry("half", exponent=-1), "must not be negative"),
    "binds the stream": (
        lambda: carry("top", body=SCORES - lse(SCORES, j)),
        r"lse binds \(j\), which the region walks",
    ),
    "foreign scan": (
        lambda: region(
            program=SCAN,
            carries=(Carry("x", Kind.SUM, SCAN.steps[0].carries[0].body, (t,), SCAN.steps[0].carries[0].axes),),
        ),
        "scan binds",
    ),
    # parts
    "no such carry": (lambda: read_part("nobody"), "does not have"),
    "no such suffix": (lambda: read_part("values.m"), "does not have"),
    "no such part": (lambda: read_part("values", "half"), "expected final, prefix or running"),
    "final too early": (lambda: read_part("values", "final", (d, e)), "expected a level below"),
    "running too early": (lambda: carry("weighted", program=PREFIX, level=2), "computed at level 2"),
    "prefix of a maximum": (
        lambda: carry("keys", program=PREFIX, kind=Kind.MAX),
        "expected an AFFINE carry or a plain SUM",
    ),
    "prefix axes": (lambda: read_part("values", axes=(d, e)), r"expected \(d, e, t\)"),
    "part type": (lambda: read_part("values", dtype="float64"), "expected float32"),
    "cycle": (
        lambda: carry("keys", program=PREFIX, body=carry_part(PREFIX.steps[0].carry("keys"), "prefix")),
        "cycle: keys -> keys",
    ),
    # emits
    "emit axes": (lambda: region(program=SCAN, emits=(Emit("y", ONE, ()),)), "expected all of"),
    "emit body": (
        lambda: region(program=SCAN, emits=(Emit("y", read(buffer("A", t, axis("n", 3)), t, axis("n", 3)), (t,)),)),
        "stored over",
    ),
    # outputs
    "rank": (lambda: outputs(Term((), m)), "0 indices, expected 1"),
    "index type": (lambda: outputs(Term((m,), m)), "must be int64"),
    "value type": (lambda: outputs(Term((iota(i),), iota(i))), "expected a float"),
    "gradient shape": (
        lambda: outputs(Term((iota(i),), m), of="Q"),
        r"the gradient of Q: float32\[I, 4\] has shape \[I\]",
    ),
    "virtual output": (
        lambda: replace(outputs(Term((iota(i), iota(j)), SCORES), shape=(i, j)), anchors=(SCORES,)),
        "virtual value",
    ),
}


@pytest.mark.parametrize("rule", BAD)
def test_bad_programs_are_refused(rule: str):
    build, message = BAD[rule]
    with pytest.raises(IRError, match=message):
        verify(build())


def test_a_fault_is_shown_in_its_neighbourhood():
    with pytest.raises(IRError) as error:
        verify(BAD["forgets the body"][0]())
    text = str(error.value)
    assert text.startswith("softmax: carry o: the body varies along (j, e), expected only (i, j)\n")
    assert "> region softmax streams(j) grid(i) {" in text and ">   sum o[i] over(j) relative_to=c = V[j, e]" in text


def test_a_program_that_cannot_be_printed_is_still_refused():
    with pytest.raises(IRError, match="cannot be printed"):
        verify(Program((Buffer("Q", "float32", (Size.of(3),)),) * 2, ("nothing",)))  # type: ignore[arg-type]
