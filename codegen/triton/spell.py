"""How Triton spells each pointwise op: one row per op, and the helper functions that some rows call.

`{0}`, `{1}`, `{2}` are the operands. Everything is float32, an integer or a bool; a row must give the meaning of
`fuse.ir.ops`, nan and infinities included, and be at least as accurate as float32 eager.
"""
from __future__ import annotations

import math
import re

# exp(x) as exp2(x log2 e): one instruction more, and not the four that keep denormal results. The difference to a row's
# maximum is always taken before the product: folding both into one FMA costs all digits at a large offset.
LOG2E = math.log2(math.e)
SPELLINGS: dict[str, str] = {
    "neg": "-{0}",
    "exp": f"tl.exp2({{0}} * {LOG2E!r})",
    "log": "tl.log({0})",
    "log1p": "log1p({0})",
    "expm1": "expm1({0})",
    "tanh": "tanh({0})",
    "sigmoid": f"1.0 / (1.0 + tl.exp2({{0}} * {-LOG2E!r}))",
    "sqrt": "tl.sqrt_rn({0})",
    "rsqrt": "tl.rsqrt({0})",
    "abs": "tl.abs({0})",
    "sign": "tl.where({0} > 0, 1, tl.where({0} < 0, -1, 0)).to({0}.dtype)",
    "sin": "tl.sin({0})",
    "cos": "tl.cos({0})",
    "erf": "tl.erf({0})",
    "floor": "tl.floor({0})",
    "not": "{0} == 0",
    "isnan": "{0} != {0}",
    "stop": "{0}",
    "add": "{0} + {1}",
    "sub": "{0} - {1}",
    "mul": "{0} * {1}",
    "div": "{0} / {1}",
    "pow": "power({0}, {1})",
    "maximum": "tl.maximum({0}, {1}, propagate_nan=tl.PropagateNan.ALL)",
    "minimum": "tl.minimum({0}, {1}, propagate_nan=tl.PropagateNan.ALL)",
    "floordiv": "floordiv({0}, {1})",
    "mod": "{0} - floordiv({0}, {1}) * {1}",
    "eq": "{0} == {1}",
    "ne": "{0} != {1}",
    "lt": "{0} < {1}",
    "le": "{0} <= {1}",
    "and": "{0} & {1}",
    "or": "{0} | {1}",
    "where": "tl.where({0}, {1}, {2})",
}
SPELLED_BY_TYPE = frozenset({"cast"})     # see `cast`
COSTLY = frozenset({"tanh", "log1p", "expm1", "pow", "erf", "sin", "cos", "log", "floordiv", "mod"})
INTEGER_EXTREMA = frozenset({"maximum", "minimum"})

HELPERS: dict[str, str] = {
    "far": '''
@triton.jit
def far(position, stride):
    return tl.cast(position, tl.int64) * stride
''',
    "dot": '''
@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr, WIDEN: tl.constexpr):
    if WIDEN:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="ieee")
    return tl.dot(a, b, acc, input_precision=PRECISION)
''',
    # x - x^3/3 + ... below 1/4, where 1 - 2 / (exp(2x) + 1) cancels
    "tanh": '''
@triton.jit
def tanh(x):
    y = x * x
    series = 1.0 + y * (-1 / 3 + y * (2 / 15 + y * (-17 / 315 + y * (62 / 2835))))
    return tl.where(tl.abs(x) < 0.25, x * series, 1.0 - 2.0 / (tl.exp2(2.885390081777927 * x) + 1.0))
''',
    "log1p": '''
@triton.jit
def log1p(x):
    u = 1.0 + x
    return tl.where((u == 1.0) | (u == float("inf")), x, tl.log(u) * (x / (u - 1.0)))
''',
    "expm1": '''
@triton.jit
def expm1(x):
    u = tl.exp(x)
    y = x * (1.0 + x * (1 / 2 + x * (1 / 6 + x * (1 / 24 + x * (1 / 120 + x * (1 / 720))))))
    return tl.where(tl.abs(x) < 0.25, y, u - 1.0)
''',
    "power": '''
@triton.jit
def power(x, y):
    size = tl.where(tl.abs(x) == 1.0, 1.0, tl.exp2(y * tl.log2(tl.abs(x))))
    half = y * 0.5
    even = tl.floor(half) == half
    whole = tl.floor(y) == y
    negative = tl.where(whole, tl.where(even, size, -size), tl.where(x == float("-inf"), size, float("nan")))
    return tl.where((y == 0.0) | (x == 1.0), 1.0, tl.where(x < 0.0, negative, size))
''',
    "floordiv": '''
@triton.jit
def floordiv(a, b):
    q = a // b
    r = a - q * b
    return tl.where((r != 0) & ((r < 0) != (b < 0)), q - 1, q)
''',
    "nanmax": '''
@triton.jit
def nanmax(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)
''',
}
HEADER = "import triton\nimport triton.language as tl\n"

DTYPES = {"float32": "tl.float32", "bfloat16": "tl.bfloat16", "float16": "tl.float16", "int64": "tl.int64",
          "int32": "tl.int32", "int16": "tl.int16", "int8": "tl.int8", "uint8": "tl.uint8", "bool": "tl.int1"}
POINTERS = {"float32": "*fp32", "bfloat16": "*bf16", "float16": "*fp16", "int64": "*i64", "int32": "*i32",
            "int16": "*i16", "int8": "*i8", "uint8": "*u8", "bool": "*i1"}
FLOATS = ("float32", "bfloat16", "float16")


def literal(value: float | int | bool) -> str:
    """A constant as Triton source: float("inf") where repr would not parse, parentheses where a sign would bind wrong."""
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    return f"({value!r})" if not isinstance(value, bool) and value < 0 else repr(value)


def exp(x: str, k: float = 1.0) -> str:
    """exp(k x)."""
    return f"tl.exp2({x} * {literal(k * LOG2E)})"


def cast(x: str, source: str, target: str) -> str:
    """x of dtype `source` as `target`, with torch's meaning: to bool is `!= 0`, float to int truncates."""
    if target == "bool":
        return f"{x} != 0"
    return f"{x}.to({DTYPES[target]})"


def lowest(dtype: str) -> str:
    """The identity of max."""
    bits = {"int64": 64, "int32": 32, "int16": 16, "int8": 8}
    return literal(-2 ** (bits[dtype] - 1)) if dtype in bits else "0" if dtype in ("uint8", "bool") else literal(-math.inf)


def helpers_of(text: str) -> str:
    """The source of every helper that `text` calls."""
    return "".join(source for name, source in HELPERS.items() if re.search(rf"(?<![\w.]){name}\b(?=[(,)])", text))
