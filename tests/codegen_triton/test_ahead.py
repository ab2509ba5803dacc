"""Every kernel compiles for devices that are not here: no spills, shared memory within the device, no transposed dot.

    python -m pytest tests/codegen_triton/test_ahead.py -m slow -s      prints the table of registers
"""
from __future__ import annotations

import os

import pytest

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("Triton is interpreted in this process", allow_module_level=True)

from fuse.codegen.triton import Triton
from fuse.codegen.triton.ahead import SHARED_LIMIT, settled, transposed_dots
from fuse.codegen.triton.launch import Machine
from fuse.codegen.triton.schedule import part
from tests.codegen.regions import BY_NAME
from tests.codegen_triton import zoo

HEAD = dict(B=8, T=1025, V=50304, D=768)
HEADS = dict(B=8, H=16, Q=4096, L=4096, D=64)
DEVICES = ("sm80", "sm90", "sm100", "gfx942")


def compiled(region, sizes, arch):
    """The kernels that the launcher would end with. They must fit and transpose no dot."""
    schedule = Triton(Machine(arch, 100)).schedules(region, sizes)[0]
    schedule, found = settled(region, schedule, sizes, arch)
    rows = [launch.usage for launch in found]
    for k, row in enumerate(rows):
        mine = part(schedule, k)
        print(f"{region.name:16} {sizes.get('D')!s:5} {arch:7} {schedule.kind:12} {row.kernel} {mine.extent('row'):4} x "
              f"{mine.extent('col'):3} x {mine.extent('deep'):2} w{mine.knob('warps')}: {row.registers:3} registers, "
              f"{row.spills} B spilled, {row.shared / 1024:.0f} K shared{'' if row.fits else '  does not fit'}")
        assert not transposed_dots(row.assembly["ttir"]) and not transposed_dots(row.assembly["ttgir"])
        assert row.fits, row
    return rows


QUICK = [
    ("cross_entropy", dict(dtype="bfloat16"), HEAD, "sm90"),
    ("cross_entropy", dict(dtype="bfloat16"), HEAD, "gfx942"),
    ("accuracy", dict(dtype="float16", softcap=30.0), HEAD, "sm80"),
    ("gradients", dict(dtype="bfloat16"), HEAD, "sm90"),
    ("gradient_w", dict(dtype="bfloat16"), HEAD | dict(D=128), "sm90"),
    ("attention", dict(dtype="bfloat16"), HEADS, "sm90"),
    ("cross_entropy", dict(dtype="float32"), HEAD, "sm80"),
    ("flow", dict(dtype="bfloat16"), HEADS, "sm90"),
]


@pytest.mark.parametrize("name, kw, sizes, arch", QUICK)
def test_compiles(name, kw, sizes, arch):
    assert compiled(zoo.CASES[name](**kw).region, sizes, arch)


def test_offsets_beyond_32_bits_cost_no_registers():
    """What exceeds 32 bits is where a tile begins: one number, not a tile of them."""
    region, sizes = zoo.cross_entropy(dtype="bfloat16").region, dict(B=2, T=65, V=2 ** 20, D=4096)
    (large,), (small,) = (compiled(region, sizes | dict(V=v), "sm90") for v in (2 ** 20, 2 ** 15))
    assert "xi64>" not in "".join(line for line in large.assembly["ttir"].splitlines() if "arith.muli" in line)
    assert large.registers <= small.registers + 8


STATISTICS = ("cross_entropy", "smoothing", "entropy", "accuracy", "weighted", "divergence")
GRADIENTS = ("gradient_x", "gradient_w", "gradients", "two_levels")


@pytest.mark.slow
@pytest.mark.parametrize("arch", DEVICES)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("dim", [16, 64, 128, 256, 768])
@pytest.mark.parametrize("name", STATISTICS + GRADIENTS)
def test_heads_compile(name, dim, dtype, arch):
    for softcap in (0.0, 30.0) if name in ("cross_entropy", "gradients") else (0.0,):
        compiled(zoo.CASES[name](dtype=dtype, softcap=softcap).region, HEAD | dict(D=dim), arch)


@pytest.mark.slow
@pytest.mark.parametrize("arch", DEVICES)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("dim", [16, 64, 128, 256])
@pytest.mark.parametrize("name", ["attention", "attention_gradients", "flow"])
def test_heads_of_queries_compile(name, dim, dtype, arch):
    compiled(zoo.CASES[name](dtype=dtype).region, HEADS | dict(D=dim), arch)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(BY_NAME))
def test_shared_regions_compile(name):
    case = BY_NAME[name]
    sizes = {s: n if s in "BGH" else n * 16 for s, n in case.sizes.items()}
    compiled(case.region("bfloat16"), sizes, "sm90")


def test_a_transposed_dot_is_found():
    """The pattern that Hopper miscompiles, directly, through a loop and through arithmetic; a transposed load is fine."""
    found = list(transposed_dots("""
      %w = tt.load %p : tensor<64x64x!tt.ptr<bf16>>
      %wt = tt.trans %w {order = array<i32: 1, 0>}
      %s = scf.for %k = %a to %b step %c iter_args(%acc = %zero) -> (tensor<64x64xf32>) {
        %d = tt.dot %x, %wt, %acc
        scf.yield %d : tensor<64x64xf32>
      }
      %m = "tt.reduce"(%s) ({
        tt.reduce.return %r : f32
      }) : (tensor<64x64xf32>) -> tensor<64xf32>
      %fine = tt.trans %row {order = array<i32: 1, 0>}
      %e = math.exp %s : tensor<64x64xf32>
      %h = arith.truncf %e : tensor<64x64xf32> to tensor<64x64xbf16>
      %bad = tt.trans %h {order = array<i32: 1, 0>}
    """))
    assert len(found) == 1 and found[0].startswith("%bad")


def test_names_are_told_apart_where_scopes_end():
    """%s is a dot in one branch; a load of the same name in the other may be transposed."""
    assert not transposed_dots("""
      %r = scf.if %c -> (tensor<64x64xf32>) {
        %s = tt.dot %x, %w, %zero
        scf.yield %s : tensor<64x64xf32>
      } else {
        %s = tt.load %p : tensor<64x64x!tt.ptr<bf16>>
        %t = tt.trans %s {order = array<i32: 1, 0>} : tensor<64x64xbf16>
        scf.yield %t : tensor<64x64xf32>
      }
    """)


def test_limits_are_those_of_the_devices():
    assert {a: SHARED_LIMIT[a] >> 10 for a in DEVICES} == {"sm80": 163, "sm90": 227, "sm100": 227, "gfx942": 64}
