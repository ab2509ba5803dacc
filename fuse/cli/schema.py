"""The JSON objects that `--json` prints. A shape is written as an example of itself:

    int, str, ...      a value of that type; float also accepts an integer
    [shape]            a list of such
    {"key": shape}     an object with exactly these keys
    {str: shape}       an object with any keys
    (shape, None)      one of several

`fuse.explain(...).to_dict()` has the same version. It grows whenever a key is added, renamed or removed.
"""
from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from fuse.report import SCHEMA_VERSION

__all__ = ["DOCUMENTS", "SCHEMA_VERSION", "page", "violations"]

MISS = {"code": str, "cause": str, "detail": str, "where": (str, None), "hint": str}
CARRY = {"name": str, "kind": str, "axes": [str], "over": [str], "level": int, "relative_to": (str, None), "dtype": str,
         "body": str}
WALK = {"name": str, "direction": str, "kind": str, "streams": [str], "grid": [str], "reverse": bool, "sweeps": int,
        "carries": [CARRY], "emits": [str], "flops": int, "flops_formula": str, "schedule": str, "eps": (float, None),
        "text": str, "source": str}
REGION = {"kinds": [str], "where": (str, None), "streams": [str], "inputs": [str], "outputs": [str], "bytes_saved": int,
          "bytes_formula": str, "bytes_stored": int, "flops": int, "sizes": {str: str}, "target": str, "walks": [WALK],
          "notes": [MISS], "seconds": {str: float}, "key": str}
GRAPH = {"nodes": int, "regions": [REGION], "misses": [MISS], "seconds": {str: float}}
RESOURCES = ({"kernel": str, "arch": str, "registers": int, "spills": int, "shared": int, "fits": bool},
             {"kernel": str, "arch": str, "vector_bits": int, "instructions": {str: int}})
REASON = {"code": str, "cause": str, "hint": str, "example": str, "instead": str}
ERROR = {"value": str, "arm": str, "error": (float, None), "limit": (float, None), "off": bool, "detail": str}
HEADER = {"schema": int, "command": str}

DOCUMENTS: dict[str, dict[str, Any]] = {
    "inspect": {**HEADER, "program": str, "graphs": [GRAPH], "graph_breaks": [str], "missing": [str],
                "after": {str: [str]}, "diff": {str: [str]}, "resources": [{str: [RESOURCES]}]},
    "verify": {**HEADER, "program": str, "off": [str], "errors": [ERROR], "regions": int, "reproducer": (str, None)},
    "explain": {**HEADER, **REASON},
    "reasons": {**HEADER, "reasons": [REASON]},
    "doctor": {**HEADER, "program": (str, None),
               "findings": [{"status": str, "check": str, "text": str, "hint": str}]},
    "cache": {**HEADER, "folder": str, "action": str,
              "entries": [{"key": str, "target": str, "bytes": int, "days": float, "compiler": str, "files": [str]}]},
}


def violations(value: Any, shape: Any, at: str = "") -> Iterator[str]:
    """Where `value` is not of the shape, and why; nothing if it is."""
    if isinstance(shape, tuple):
        if all(list(violations(value, choice, at)) for choice in shape):
            yield f"{at}: {value!r} is none of {len(shape)} shapes"
    elif isinstance(shape, list):
        if not isinstance(value, list):
            yield f"{at}: {value!r} is no list"
        else:
            for i, item in enumerate(value):
                yield from violations(item, shape[0], f"{at}[{i}]")
    elif isinstance(shape, dict):
        yield from _of_object(value, shape, at)
    elif shape is None:
        if value is not None:
            yield f"{at}: {value!r} is not null"
    elif type(value) is not shape and (shape, type(value)) != (float, int):
        yield f"{at}: {value!r} is no {shape.__name__}"


def _of_object(value: Any, shape: dict[Any, Any], at: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{at}: {value!r} is no object"
    elif str in shape:
        for key, item in value.items():
            yield from violations(item, shape[str], f"{at}.{key}")
    elif value.keys() != shape.keys():
        yield f"{at}: missing {sorted(shape.keys() - value.keys())}, unknown {sorted(value.keys() - shape.keys())}"
    else:
        for key, item in value.items():
            yield from violations(item, shape[key], f"{at}.{key}")


def page() -> str:
    """The shapes as they stand in docs/cli.md."""
    return "\n\n".join(f"### `fuse {name} --json`\n\n```\n{_spelled(shape)}\n```" for name, shape in DOCUMENTS.items())


def _spelled(shape: Any) -> str:
    return json.dumps(_plain(shape), indent=2).replace('"<', "").replace('>"', "")


def _plain(shape: Any) -> Any:
    if isinstance(shape, tuple):
        whole = [_plain(s) for s in shape]
        names = [w.strip("<>") for w in whole if isinstance(w, str)]
        return f"<{' or '.join(names)}>" if len(names) == len(whole) else {"either": whole[0], "or": whole[1]}
    if isinstance(shape, list):
        return [_plain(shape[0])]
    if isinstance(shape, dict):
        return {"..." if k is str else k: _plain(v) for k, v in shape.items()}
    return "<null>" if shape is None else f"<{shape.__name__}>"
