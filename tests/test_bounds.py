"""Indices out of range: fuse raises what eager raises, and never reads outside a buffer."""
from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from fuse.ir.expr import Axis, Buffer, IRError, const, iota, read
from fuse.ir.program import Check, Program
from fuse.ir.size import Size
from fuse.ir.text import parse_program, print_program
from fuse.ir.verify import verify
from tests.plain import plain_kernels, without_inductor  # noqa: F401 (fixtures)

ROWS, CLASSES = 5, 33

LOSSES = {
    "cross_entropy": lambda x, y: F.cross_entropy(x, y),
    "class_weights": lambda x, y: F.cross_entropy(x, y, torch.ones(CLASSES)),
    "nll_loss": lambda x, y: F.nll_loss(F.log_softmax(x, -1), y),
    "gather": lambda x, y: -F.log_softmax(x, -1).gather(-1, y[:, None]).mean(),
    "index": lambda x, y: -F.log_softmax(x, -1)[torch.arange(ROWS), y].mean(),
    "one_hot": lambda x, y: -(F.one_hot(y, CLASSES) * F.log_softmax(x, -1)).sum(-1).mean(),
}


def run(tail, label: int):
    torch._dynamo.reset()
    h, w = torch.randn(ROWS, 8, requires_grad=True), torch.randn(CLASSES, 8, requires_grad=True)
    y = torch.tensor([1, 2, label, 3, 4])
    compiled = torch.compile(lambda h, w, y: tail(F.linear(h, w), y), backend="fuse",
                             options={"min_virtual_bytes": 0, "strict": True, "require": ["softmax-over-vocabulary"]})
    return compiled(h, w, y), tail(F.linear(h, w), y)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("label", [CLASSES, CLASSES + 1000, -CLASSES - 1])
def test_a_label_out_of_range_raises_as_in_eager(name, label, plain_kernels, without_inductor):  # noqa: F811
    with pytest.raises((IndexError, RuntimeError)) as eager:
        LOSSES[name](torch.randn(ROWS, CLASSES), torch.tensor([1, 2, label, 3, 4]))
    with pytest.raises(eager.type, match=r"out of|num_classes"):
        run(LOSSES[name], label)


@pytest.mark.parametrize(("name", "label"), [*((n, CLASSES - 1) for n in LOSSES), ("index", -1), ("index", -CLASSES),
                                             ("cross_entropy", -100), ("nll_loss", -100)])
def test_labels_in_range_pass(name, label, plain_kernels, without_inductor):  # noqa: F811
    got, want = run(LOSSES[name], label)
    torch.testing.assert_close(got, want)


def test_checks_are_part_of_the_text() -> None:
    n, y = Axis("n", Size.of("N")), Buffer("y", "int64", (Size.of("N"),))
    program = Program((y,), (), checks=(Check("target", read(y, iota(n)), Size.of(7)),))
    assert "check target[7] = y[n]" in print_program(program)
    assert parse_program(print_program(program)) == program
    verify(program)
    with pytest.raises(IRError, match="expected an integer"):
        verify(replace(program, checks=(Check("target", const(1.0, "float32"), Size.of(7)),)))
