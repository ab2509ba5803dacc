"""How strongly position j acts on position i: the matrix W of y_i = sum_j W_ij(X) v_j, of one example (arXiv 2512.15115).

W is exact where a result is affine in one thing the region reads, the values v: with v_j = [j == J] the result at i is W_iJ.
The form is explicit if W_ij is a formula of positions i and j, implicit if it comes out of a recurrence. Written as
sum_h f_h(i, j) V_h, with matrices V_h that act on the channels, W needs as many heads as its W_ij span dimensions.
"""
from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fuse.ir.evaluate import Evaluator
from fuse.ir.expr import FLOATS, Axis, Expr, IRError, const, iota, make, reads_of, substitute, topological, where
from fuse.ir.program import Output, Program
from fuse.ir.text import print_expr

MAX_ELEMENTS = 1 << 24    # of the largest value that is computed
MAX_WORK = 1 << 35        # products for the singular values
THROUGH = {"neg", "cast", "sum", "shift", "stop", "reshape"}    # linear ops of one argument


@dataclass(frozen=True)
class Interaction:
    """`weights[channel, i, j]`, float64, channels being whatever W varies along besides the positions.

    values     what is read as v, in the words of the IR; `operand` the index of the program's input it is read from
    channels   the extents of the channel axes; `example` the axis along which position 0 is looked at, if there is one
    heads      dimensions that the W_ij span; `nearly` as many as hold 99 % of their squared norm. None: not computed
    """

    values: str
    operand: int
    implicit: bool
    weights: Tensor
    channels: dict[str, int]
    example: str | None
    heads: int | None
    nearly: int | None


@dataclass(frozen=True)
class Frame:
    """`result` at position `row` is affine in `read` at position `column`; `example` is an axis of both to be held at 0."""

    result: Expr
    read: Expr
    row: Axis
    column: Axis
    example: Axis | None

    @property
    def implicit(self) -> bool:
        return self.row == self.column


def interaction(program: Program, env: Mapping[str, Tensor], streams: Iterable[str] = (),
                parameters: Container[str] = ()) -> Interaction | str:
    """The matrix of the first result that has one, or why there is none.

    `env` holds the inputs by name, `streams` are the names of the axes the region walks (none: any axis may be summed over),
    `parameters` the inputs that hold no positions.
    """
    sizes, names = dict(program.hints), set(streams)
    frame = next((f for o in program.outputs for f in _frames(o, names, parameters)), None)
    if frame is None:
        return "no result is linear in one thing that is read along the sequence"
    window = {frame.example: (0, 1)} if frame.example else {}
    try:
        probed, probe = _probed(frame)
        if max(_numel(e, sizes, window) for e in _computed(probed)) > MAX_ELEMENTS:
            return "the example is too large: run it with a shorter sequence"
        found = Evaluator(env, sizes, window, "float64").value(probed)
    except (IRError, RuntimeError) as error:
        return f"its program cannot be run on the example: {error}"
    kept = [a for a in probed.axes if a not in (frame.row, probe, frame.example)]
    order = [probed.axes.index(a) for a in (frame.example, *kept, frame.row, probe) if a in probed.axes]
    response = found.permute(order).reshape(-1, found.shape[probed.axes.index(frame.row)], found.shape[order[-1]])
    weights = (response[..., :-1] - response[..., -1:]).contiguous()    # the last probe is v = 0
    heads, nearly = span(weights)
    inputs = [b.name for b in program.inputs]
    return Interaction(print_expr(frame.read), inputs.index(frame.read["buffer"].name), frame.implicit, weights,
                       {a.name: a.extent.evaluate(sizes) for a in kept}, frame.example.name if frame.example else None,
                       heads, nearly)


def span(weights: Tensor) -> tuple[int | None, int | None]:
    """(dimensions that the matrices W_ij = diag over channels span, as many as hold 99 % of the squared norm).

    The first counts singular values above the rounding errors of float64, as torch.linalg.matrix_rank does.
    """
    channels = weights.shape[0]
    table = weights.reshape(channels, -1)
    if channels * channels * table.shape[1] > MAX_WORK or not table.isfinite().all():
        return None, None
    values = torch.linalg.svdvals(torch.linalg.qr(table.T, mode="r")[1]) if channels > 1 else table.norm(dim=1)
    largest = float(values.max())
    if largest == 0:
        return 0, 0
    energy = values.square().cumsum(0) / values.square().sum()
    floor = largest * max(table.shape) * torch.finfo(torch.float64).eps
    return int((values > floor).sum()), int((energy < 0.99).sum()) + 1


# ---- what is linear in what ---------------------------------------------------------------------------------------

def affine_in(root: Expr, leaf: Expr) -> bool:
    """Is `root` proved to be affine in `leaf`, and does it depend on it?"""
    degree: dict[Expr, int | None] = {}
    for node in topological([root]):
        degree[node] = 1 if node is leaf else _degree(node, [degree[a] for a in node.args])
    return degree[root] == 1


def _degree(node: Expr, args: list[int | None]) -> int | None:
    """0: does not depend on the leaf, 1: affine in it, None: anything else."""
    if not any(a != 0 for a in args):
        return 0
    if None in args:
        return None
    if node.op in ("add", "sub") or node.op in THROUGH:
        return 1
    if node.op == "mul":
        return 1 if sum(a or 0 for a in args) == 1 else None
    fixed = {"div": args[1:], "where": args[:1], "scan": args[:1], "pick": args[1:]}.get(node.op, args)
    return None if any(fixed) else 1


def _frames(output: Output, streams: set[str], parameters: Container[str]) -> Iterator[Frame]:
    """The ways in which a result mixes positions of something it is affine in."""
    if len(output.terms) != 1 or output.buffer.dtype not in FLOATS:
        return
    (term,) = output.terms
    result = term.value
    for read in reads_of([result]):
        if read.dtype in FLOATS and read["buffer"].name not in parameters and affine_in(result, read):
            dimensions = [i["axis"] for i in term.index if i.op == "iota"]
            frame = _frame(result, read, dimensions, streams)
            if frame is not None:
                yield frame


def _frame(result: Expr, read: Expr, dimensions: list[Axis], streams: set[str]) -> Frame | None:
    """None unless `read` has one position of its own, or shares the one that a recurrence walks; every other axis must be a
    channel, that is one which the result has as well."""
    summed = [a for a in read.axes if a not in result.axes]
    own = [a for a in result.axes if a not in read.axes]
    walked = {e["axis"] for e in topological([result]) if e.op == "scan"}
    if len(summed) == 1 and not walked:
        shared = [a for a in dimensions if a in read.axes]
        example = shared[0] if len(shared) > 1 else None
        return Frame(result, read, own[0], summed[0], example) if len(own) == 1 and _in(summed[0], streams) else None
    along = [a for a in dimensions if a in walked and a in read.axes]
    if summed or own or len(along) != 1:
        return None
    shared = [a for a in dimensions if a in read.axes and a != along[0]]
    return Frame(result, read, along[0], along[0], shared[0] if len(shared) > 1 else None)


def _in(axis: Axis, streams: set[str]) -> bool:
    return not streams or axis.name in streams


def _probed(frame: Frame) -> tuple[Expr, Axis]:
    """The result for v_j = [j == J], with the axis J; J = the number of positions means v = 0."""
    probe = Axis(f"{frame.column.name}.probe", frame.column.extent + 1)
    here = make("eq", iota(frame.column), iota(probe))
    one = const(1, frame.read.dtype)
    return substitute(frame.result, {frame.read: where(here, one, 0)}), probe


def _computed(root: Expr) -> Iterator[Expr]:
    """What is evaluated as a tensor: not the products that a dot adds up, nor what is only read."""
    dots = {e.args[0] for e in topological([root]) if e.op == "sum" and e.args[0].op == "mul"}
    return (e for e in topological([root]) if e not in dots and e.op != "read")


def _numel(e: Expr, sizes: Mapping[str, int], window: Container[Axis]) -> int:
    total = 1
    for axis in e.axes:
        total *= 1 if axis in window else axis.extent.evaluate(sizes)
    return total
