"""The generated text: reviewed as golden files, free of names, and what is refused instead."""
from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fuse.codegen import Schedule, compile_region
from fuse.codegen.cpu import TARGET
from fuse.codegen.cpu.spell import OPS
from fuse.codegen.lower import lower
from fuse.codegen.tile import Affine, Load, TileProgram, Value
from fuse.ir.expr import Axis, Buffer, Expr, const, dot, make, read, rename_axes, rewrite
from fuse.ir.ops import OPS as ALL_OPS
from fuse.ir.program import Carry, Emit, Kind, Region, carry_part
from fuse.ir.size import Size
from fuse.reasons import Miss, Refused
from tests.codegen.regions import BY_NAME, CASES, Case, b, d, j, logits, t, v, value

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "cpu"
SHOWN = [("statistics", "recompute", "float32"), ("in_one_go", "slab", "float32"), ("both_gradients", "recompute", "bfloat16"),
         ("attention", "recompute", "bfloat16"), ("contrast", "recompute", "float32"), ("cascade", "recompute", "float32")]


def source(region: Region, kind: str = "recompute") -> str:
    return TARGET.source(region, Schedule(kind))


@pytest.mark.parametrize(("name", "kind", "dtype"), SHOWN, ids=lambda x: x)
def test_golden(name: str, kind: str, dtype: str, request: pytest.FixtureRequest) -> None:
    text, path = source(BY_NAME[name].region(dtype), kind), GOLDEN / f"{name}.{kind}.{dtype}.cpp"
    if request.config.getoption("--update-golden"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert path.read_text() == text, "the generated code changed: read the difference, then run with --update-golden"


def filtered(region: Region) -> Region:
    """The region with a gradient filter on its matrix products."""
    walked = {*region.grid, *region.streams}
    return replace(region, carries=tuple(
        replace(c, eps=2.0 ** -12, scale=const(1, c.body.dtype)) if c.kind is Kind.SUM and set(c.axes) - walked else c
        for c in region.carries))


@pytest.mark.parametrize(("name", "kind"), [("in_one_go", "slab"), ("both_gradients", "recompute")])
def test_golden_filtered(name: str, kind: str, request: pytest.FixtureRequest) -> None:
    text, path = source(filtered(BY_NAME[name].region("float32")), kind), GOLDEN / f"{name}.filtered.cpp"
    if request.config.getoption("--update-golden"):
        path.write_text(text)
    assert path.read_text() == text


# ---- names ----------------------------------------------------------------------------------------------------------

def renamed(region: Region) -> Region:
    """The same region with other names for every axis, buffer and carry, and other size symbols."""
    taken: dict[str, Axis] = {}

    def axis(a: Axis) -> Axis:
        return taken.setdefault(a.name, Axis(f"{'zyxwvu'[len(taken) % 6]}{len(taken)}", symbols(a.extent)))

    def symbols(s: Size) -> Size:
        return Size({tuple(sorted(f"q_{x}" for x in m)): c for m, c in s.terms})

    for axes in (region.streams, region.grid, *(x.axes for x in (*region.carries, *region.emits))):
        for x in axes:
            axis(x)
    names = {c.name: f"other{k}" for k, c in enumerate(region.carries)}

    def expression(root: Expr) -> Expr:
        from fuse.ir.expr import rebuild, topological
        for node in topological([root]):
            for a in node.axes:
                axis(a)
            if node.op in ("sum", "max"):
                for a in node["axes"]:
                    axis(a)

        def rule(node: Expr) -> Expr | None:
            if node.op == "read":
                old = node["buffer"]
                return rebuild(node, node.args, buffer=Buffer(f"buffer_{old.name}", old.dtype, tuple(map(symbols, old.shape))))
            if node.op == "size":
                return make("size", extent=symbols(node["extent"]))
            if node.op == "carry":
                first, dotted, last = node["name"].partition(".")
                return rebuild(node, node.args, name=names[first] + dotted + last)
            return None
        return rewrite(rename_axes([root], {a: taken[a] for a in taken}), rule)[0]

    moved = lambda axes: tuple(map(axis, axes))  # noqa: E731
    carries = tuple(replace(c, name=names[c.name], body=expression(c.body), over=moved(c.over), axes=moved(c.axes),
                            relative_to=names.get(c.relative_to)) for c in region.carries)
    emits = tuple(replace(e, name=f"emit{k}", value=expression(e.value), axes=moved(e.axes)) for k, e in enumerate(region.emits))
    return replace(region, name="another", streams=moved(region.streams), grid=moved(region.grid), carries=carries, emits=emits)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_names_do_not_reach_the_text(case: Case) -> None:
    region = case.region()
    assert source(renamed(region)) == source(region)


def test_sizes_do_not_reach_the_text() -> None:
    def at(rows: Size, width: Size) -> str:
        n, k = Axis("n", rows), Axis("k", width)
        s = dot(value("x", "float32", n, k), value("w", "float32", v, k), k)
        return source(Region("r", (v,), (n,), (Carry("c", Kind.LSE, s, (v,), (n,)),)))
    assert at(Size.of(128), Size.of(64)) == at(Size.of("N") * 2 - 1, Size.of("K"))


# ---- the tile program -----------------------------------------------------------------------------------------------

def program(name: str, staged: bool = False) -> TileProgram:
    return lower(BY_NAME[name].region(), staged)


def test_roles_of_axes() -> None:
    attention = program("attention")
    assert [attention.axis(a).extent for a in attention.batch] == [Size.of("B"), Size.of("H")]
    assert [attention.axis(a).extent for a in attention.dims["row"]] == [Size.of("I")]
    assert not program("statistics").batch and len(program("statistics").dims["row"]) == 2
    assert not program("single_query").dims["row"] and len(program("triple").dims["col"]) == 2


def test_each_value_is_computed_where_it_varies() -> None:
    for case in CASES:
        for level in lower(case.region()).levels:
            assert all("col" not in s.out.dims for s in level.before)
            assert all("col" in s.out.dims for s in level.body)


def test_a_staged_program_computes_the_dot_once() -> None:
    once, twice = program("in_one_go", True), program("in_one_go")
    count = lambda p: [sum(type(s).__name__ == "Dot" for s in level.body) for level in p.levels]  # noqa: E731
    assert count(twice) == [1, 1] and count(once) == [1, 0]
    assert [v.scope for v in once.levels[0].stage] == ["tile"]
    with pytest.raises(Refused, match="nothing to stage"):
        program("statistics", True)


def test_an_index_that_may_leave_its_buffer_is_clamped() -> None:
    """Affine and proved inside: read directly. Data, or one past the end: clamped."""
    computed = {load.buffer: [isinstance(x, Value) for x in load.index] for load in program("shifted").loads}
    names = {slot.name: slot.source for slot in program("shifted").inputs}
    assert {names[k]: v for k, v in computed.items() if any(v)}.keys() == {"g", "W"}
    assert all(isinstance(x, Affine) for load in program("attention_backward").loads for x in load.index)
    assert isinstance(program("statistics").loads[0], Load)


# ---- refusals -------------------------------------------------------------------------------------------------------

S = logits("float32")
LSE = Carry("L", Kind.LSE, S, (v,), (b, t))
FINAL = carry_part(LSE, "final", ".m")
COLUMN = Carry("C", Kind.LSE, S, (b, t), (v,))
PREFIX = Carry("P", Kind.SUM, value("x", "float32", b, j), (j,), (b,))

def stored(dtype: str) -> Expr:
    return read(Buffer("z", dtype, (b.extent, v.extent)), b, v)


def rows(kind: Kind, body: Expr, **more) -> Region:
    return Region("r", (v,), (b,), (Carry("x", kind, body, (v,), (b,), **more),))


REFUSED = {
    "reverse": (Region("r", (v,), (b, t), (LSE,), reverse=True), "TARGET_LACKS"),
    "prefix": (Region("r", (j,), (b,), (PREFIX,), (
        Emit("e", make("carry", name="P", part="prefix", dtype="float32", axes=(j, b)), (b, j)),)), "TARGET_LACKS"),
    "column statistics read back": (Region("r", (v,), (b, t), (
        COLUMN, Carry("x", Kind.SUM, S - carry_part(COLUMN, "final", ".m"), (v,), (b, t), level=1))), "TARGET_LACKS"),
    "some rows": (Region("r", (v,), (b, t), (Carry("x", Kind.SUM, S, (b,), (t, v)),)), "TARGET_LACKS"),
    "some streams": (Region("r", (j, v), (b, t), (
        Carry("x", Kind.SUM, S * value("z", "float32", j), (j,), (b, t, v)),)), "TARGET_LACKS"),
    "inner lse": (rows(Kind.SUM, make("lse", value("z", "float32", b, d), axes=(d,))), "TARGET_LACKS"),
    "complex": (rows(Kind.SUM, stored("complex64")), "UNSUPPORTED_DTYPE"),
    "bfloat16 arithmetic": (rows(Kind.LSE, stored("bfloat16")), "UNSUPPORTED_DTYPE"),
    "an op": (rows(Kind.SUM, make("shift", stored("float32"), axis=v, by=1)), "TARGET_LACKS"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str) -> None:
    region, code = REFUSED[name]
    miss = compile_region(region, TARGET, {})
    assert isinstance(miss, Miss) and not miss and miss.code == code, miss


def test_a_slab_needs_a_second_level() -> None:
    with pytest.raises(Refused, match="nothing to stage"):
        TARGET.source(BY_NAME["statistics"].region(), Schedule("slab"))


def test_every_pointwise_op_is_spelled_or_known_to_be_missing() -> None:
    pointwise = {name for name, row in ALL_OPS.items() if row.pointwise}
    never = {"const", "iota", "size", "read", "carry", "stop", "bounded", "given",    # leaves and what is looked through
             "exp_sub", "sub_lse", "logaddexp"}                               # lowered before
    assert pointwise - never - OPS == {"conj", "real", "imag", "complex"}


