"""Long convolutions by FFT whose kernel is a sum of exponentials are recurrences: diagonal state spaces, moving averages.

    y_t = sum_{s <= t} k_{t-s} u_s,   k_l = Re sum_n c_n exp(l x_n)
        = Re sum_n c_n h_{n,t},       h_{n,t} = exp(x_n) h_{n,t-1} + u_t

    y = irfft(rfft(u, n) * rfft(k, n), n)[..., :L]          n >= len(u) + len(k) - 1: nothing wraps around

That the kernel is one is read off its own expression at a symbolic lag (lags.py). Neither it nor a transform is stored.
"""
from __future__ import annotations

from torch import fx

from fuse.frontend.candidates import Candidate, dependents
from fuse.frontend.scope import Scope
from fuse.frontend.tables_reduce import FREE
from fuse.frontend.value import Value, called
from fuse.frontend.views import source
from fuse.ir.size import Size
from fuse.reasons import Miss


def find_convolutions(scope: Scope) -> tuple[list[Candidate], list[Miss]]:
    """Candidates for the graph's FFT convolutions; whether the kernel is a sum of exponentials, the import decides."""
    found = []
    for node in scope.graph.nodes:
        if called(node) == "fft_irfft":
            for user in list(node.users):
                candidate = _candidate(scope, user)
                if candidate is not None:
                    found.append(candidate)
    return found, []


def _candidate(scope: Scope, node: fx.Node) -> Candidate | None:
    y = scope.shadow.value(node)
    parts = _parts(y) if isinstance(y, Value) else None
    if parts is None:
        return None
    u, k, transforms = parts
    region = {node, *_lagged(scope, k.node)}
    for inner in sorted(transforms, key=scope.position.__getitem__, reverse=True):
        if set(inner.users) <= region | transforms:
            region.add(inner)
    scope.shadow.memo[node] = Value("convolved", {"input": u, "kernel": k}, y.dtype, y.shape, node, stored=True, grad=y.grad)
    return scope.candidate(region, [node])


def _lagged(scope: Scope, kernel: fx.Node) -> set[fx.Node]:
    """What the kernel is made of that depends on an `arange`, itself included."""
    above, todo = {kernel}, [kernel]
    while todo:
        new = [a for a in todo.pop().all_input_nodes if a not in above]
        above.update(new)
        todo += new
    lags = tuple(n for n in above if called(n) in FREE and n.op == "call_function")
    return above & dependents(lags)


def _parts(y: Value) -> tuple[Value, Value, set[fx.Node]] | None:
    """(u, k, the calls between) of irfft(rfft(u) * rfft(k))[..., :len(u)], if it is the causal convolution."""
    if y.op not in ("slice", "narrow") or int(y.args["dim"]) % len(y.shape) != len(y.shape) - 1 \
            or y.args.get("start") not in (0, None) or y.args.get("step") not in (1, None):
        return None
    back = source(y)
    product = back.args.get("self") if back.op == "fft_irfft" else None
    if not isinstance(product, Value) or product.op not in ("mul", "multiply"):
        return None
    sides = [product.args["self"], product.args["other"]]
    if not all(isinstance(s, Value) and s.op == "fft_rfft" and _plain(s, back) for s in sides) or not _plain(back, back):
        return None
    u, k = (source(s) for s in sides)
    if len(u.shape) < len(k.shape) or (len(u.shape) == len(k.shape) and _lags(u) and not _lags(k)):
        u, k = k, u
    n, length = back.args.get("n"), y.shape[-1]
    if not isinstance(n, (int, Size)) or not (Size.of(n) - u.shape[-1] - k.shape[-1] + 1).nonnegative():
        return None
    if u.shape[-1] != length or not (k.shape[-1] - length).nonnegative():
        return None
    return u, k, {back.node, product.node, *(s.node for s in sides)}


def _plain(v: Value, back: Value) -> bool:
    """A transform of the same length along the last dimension, with the usual norm."""
    return v.args.get("n") == back.args.get("n") and v.args.get("norm") in (None, "backward") \
        and int(v.args.get("dim", -1)) in (-1, len(v.shape) - 1)


def _lags(v: Value) -> bool:
    """Is v made from an `arange`, a few calls away?"""
    level = [v]
    for _ in range(12):
        level = [s for x in level if x.op is not None for s in x.sources()]
        if any(x.op == "arange" for x in level):
            return True
    return False
