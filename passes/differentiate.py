"""differentiate: reverse mode on the expression graph, one VJP row per op; nobody writes a backward kernel.

    out = f(X)   ->   grad.X = sum over reads X[idx] of  (cotangent of that read), placed at idx

The gradients are linear in the cotangents: those of a single scalar are found for the cotangent 1 and scaled at the end.

An axis the cotangent has and the argument lacks was broadcast: it is summed away, by name. Gradients of low-precision
inputs are kept in the compute dtype and rounded once, when they are stored.
"""
from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from fuse.ir.expr import COMPLEXES, FLOATS, Buffer, Expr, IRError, cast, const, make, sum_, topological
from fuse.ir.ops import OPS
from fuse.ir.program import Output, Program, Term

LOW = ("bfloat16", "float16")


def compute_dtype(dtype: str) -> str:
    return "float32" if dtype in LOW else dtype


def differentiate(program: Program, wrt: Collection[str]) -> Program:
    """Adds one cotangent input `ct.OUT` per differentiable output and one output `grad.X` per input in `wrt`.

    IRError if an op on the way has no VJP: a row of the table lacks it. Outputs that do not depend on `wrt` get no cotangent.
    """
    active = _active(program, wrt)
    cotangents: dict[Expr, Expr] = {}
    smooth = [o for o in program.outputs if o.buffer.dtype in FLOATS + COMPLEXES and any(t.value in active for t in o.terms)]
    seeds = [Buffer(f"ct.{o.buffer.name}", o.buffer.dtype, o.buffer.shape) for o in smooth]
    scalar = make("read", buffer=seeds[0]) if len(seeds) == 1 and not seeds[0].shape else None
    for out, seed in zip(smooth, seeds, strict=True):
        for term in out.terms:
            value = make("read", *term.index, buffer=seed) if scalar is None else const(1, seed.dtype)
            _add(cotangents, term.value, cast(value, compute_dtype(seed.dtype)), active)
    gradients: dict[str, list[Term]] = {name: [] for name in wrt}
    for node in reversed(topological(active)):
        if node not in active or node not in cotangents:
            continue
        if node.op == "read":
            g = cotangents[node]
            gradients[node["buffer"].name].append(Term(node.args, g if scalar is None else cast(scalar, g.dtype) * g))
        else:
            _propagate(node, cotangents, active)
    inputs = {b.name: b for b in program.inputs}
    grads = tuple(Output(replace(inputs[name], name=f"grad.{name}"), tuple(terms), gradient_of=name)
                  for name, terms in gradients.items() if terms)
    return replace(program, inputs=program.inputs + tuple(seeds), outputs=program.outputs + grads,
                   cotangents=tuple(s.name for s in seeds))


LOCALLY_CONSTANT = ("floor", "sign", "argmax", "isnan", "stop", "eq", "ne", "lt", "le")


def _active(program: Program, wrt: Collection[str]) -> dict[Expr, None]:
    """The expressions through which an output depends on `wrt`, in topological order."""
    active: dict[Expr, None] = {}
    for node in topological(t.value for o in program.outputs for t in o.terms):
        if node.op == "read":
            if node["buffer"].name in wrt:
                active[node] = None
        elif node.op in LOCALLY_CONSTANT or node.dtype not in FLOATS + COMPLEXES:
            continue
        elif any(a in active for a in node.args):
            if not OPS[node.op].vjp:
                raise IRError(f"{node.op} has no derivative")
            active[node] = None
    return active


def _propagate(node: Expr, cotangents: dict[Expr, Expr], active: dict[Expr, None]) -> None:
    g = cotangents[node]
    if node.op == "cast" and node.dtype in FLOATS and node.args[0].dtype in FLOATS:
        _add(cotangents, node.args[0], cast(g, compute_dtype(node.args[0].dtype)), active)
        return
    for arg, rule in zip(node.args, OPS[node.op].vjp, strict=True):
        if rule is not None and arg in active:
            _add(cotangents, arg, _unbroadcast(node, arg, rule(node, g)), active)


def _unbroadcast(node: Expr, arg: Expr, g: Expr) -> Expr:
    """Sums over what `arg` was broadcast along to meet the other arguments, and over nothing that `arg` has."""
    spread = {a for other in node.args for a in other.axes} | set(node.axes)
    return sum_(g, *(a for a in spread if not arg.has(a)))


def _add(cotangents: dict[Expr, Expr], node: Expr, g: Expr, active: dict[Expr, None]) -> None:
    if node in active:
        cotangents[node] = cotangents[node] + g if node in cotangents else g
