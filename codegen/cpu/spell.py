"""How C++ spells element types and pointwise ops. One row per op; functions ending in _ are those of fuse_cpu.h."""
from __future__ import annotations

from collections.abc import Callable, Sequence

CTYPE = {"float32": "float", "float64": "double", "bfloat16": "bf16", "float16": "f16", "int64": "int64_t", "int32": "int32_t",
         "int16": "int16_t", "int8": "int8_t", "uint8": "uint8_t", "bool": "bool"}
SIZEOF = {"float": 4, "double": 8, "bf16": 2, "f16": 2, "int64_t": 8, "int32_t": 4, "int16_t": 2, "int8_t": 1, "uint8_t": 1,
          "bool": 1, "int": 4}

LOWEST = {"bool": "false", "float": "float(-INF)", "double": "double(-INF)", "f16": "f16(-INF)", "bf16": "bf16(-INF)",
          "int64_t": "INT64_MIN", "int32_t": "INT32_MIN", "int16_t": "int16_t(INT16_MIN)", "int8_t": "int8_t(INT8_MIN)",
          "uint8_t": "uint8_t(0)"}


def infix(symbol: str) -> Callable[..., str]:
    return lambda a, b: f"({a} {symbol} {b})"


def call(name: str) -> Callable[..., str]:
    return lambda *args: f"{name}({', '.join(args)})"


# Ops that cost about as much as ten others, or keep a loop from being vectorised.
EXPENSIVE = frozenset("exp log log1p expm1 tanh sigmoid sqrt rsqrt sin cos erf pow div floordiv mod".split())

SPELLING: dict[str, Callable[..., str]] = {
    "neg": lambda a: f"(-{a})", "not": lambda a: f"(!{a})", "isnan": lambda a: f"({a} != {a})",
    "exp": call("exp_"), "log": call("log_"), "log1p": call("log1p_"), "expm1": call("expm1_"), "tanh": call("tanh_"),
    "sigmoid": call("sigmoid_"), "sqrt": call("std::sqrt"), "rsqrt": lambda a: f"(1 / std::sqrt({a}))", "abs": call("abs_"),
    "sign": call("sign_"), "sin": call("std::sin"), "cos": call("std::cos"), "erf": call("erf_"),
    "floor": call("std::floor"), "pow": call("std::pow"), "maximum": call("max_"), "minimum": call("min_"),
    "floordiv": call("floordiv_"), "mod": call("mod_"),
    "add": infix("+"), "sub": infix("-"), "mul": infix("*"), "div": infix("/"),
    "eq": infix("=="), "ne": infix("!="), "lt": infix("<"), "le": infix("<="),
    "and": infix("&"), "or": infix("|"),
    "where": call("select_"),
}
OPS = frozenset(SPELLING) | {"cast"}


def literal(value: float | int | bool, dtype: str) -> str:
    """A constant of C++ type CTYPE[dtype] that reads back to the same bits."""
    ctype = CTYPE[dtype]
    if dtype == "bool":
        return "true" if value else "false"
    if not isinstance(value, float):
        return f"{ctype}({value}{'' if abs(value) < 2 ** 31 else 'LL'})"
    if value != value:
        return f"{ctype}(__builtin_nan(\"\"))"
    if value in (float("inf"), float("-inf")):
        return f"{ctype}({'-' if value < 0 else ''}INF)"
    text = repr(value)
    return text if ctype == "double" else f"{text}f" if ctype == "float" else f"{ctype}({text}f)"


def power(base: str, exponent: float) -> str | None:
    """base ** exponent for the exponents that need no call; None for the others."""
    if exponent in (1.0, 2.0, 3.0, 4.0):
        return "(" + " * ".join([base] * int(exponent)) + ")"
    return {0.5: f"std::sqrt({base})", -1.0: f"(1 / {base})", -0.5: f"(1 / std::sqrt({base}))"}.get(exponent)


def point(op: str, args: Sequence[str], dtype: str, source: str, exponent: float | None = None) -> str:
    """The expression of a pointwise op. `source` is the dtype of its (last) argument; `exponent`: of a pow, if constant."""
    if op == "cast":
        return cast(args[0], source, dtype)
    if op == "pow" and exponent is not None:
        short = power(args[0], exponent)
        if short is not None:
            return short
    if source == "bool" and op in ("mul", "add", "maximum", "minimum"):
        return f"({args[0]} {'&' if op in ('mul', 'minimum') else '|'} {args[1]})"
    return SPELLING[op](*args)


def cast(x: str, source: str, dtype: str) -> str:
    if dtype == "bool":
        return f"({x} != 0)"
    narrow = ("bfloat16", "float16")
    if (source == "float64" and dtype in narrow) or (source in narrow and dtype not in ("float32", "float64")) \
            or (dtype in narrow and source not in ("float32", "float64")):
        x = f"float({x})"
    return f"{CTYPE[dtype]}({x})"
