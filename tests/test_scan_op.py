"""fuse.scan: states, final state and gradients against a loop in float64, in eager mode and inside torch.compile."""
from __future__ import annotations

import pytest
import torch
from torch._dynamo.utils import counters

import fuse
from fuse.runtime import ops
from tests.frontend.tracing import WIDE
from tests.plain import quick_builds, without_aot  # noqa: F401 (fixtures)
from tests.test_forms import SLACK, error, outputs_and_gradients


def loop(a, b, initial=None, *, dim, reverse=False):
    a = a.expand(b.shape)
    h = torch.zeros_like(b.select(dim, 0)) if initial is None else initial
    states = [h] * b.shape[dim]
    for t in reversed(range(len(states))) if reverse else range(len(states)):
        states[t] = h = a.select(dim, t) * h + b.select(dim, t)
    return torch.stack(states, dim), h


def given(shape_a, shape_b, dim, *, dtype=torch.float32, initial=False):
    torch.manual_seed(0)
    a, b = torch.rand(shape_a).to(dtype), torch.randn(shape_b).to(dtype)
    if dtype.is_complex:
        a = a * torch.exp(6j * torch.rand(shape_a)).to(dtype)
    state = torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype
    made = [a, b, *([torch.randn_like(b.select(dim, 0)).to(state)] if initial else [])]
    return [x.detach().requires_grad_() for x in made]


def agrees(args, **options):
    """The errors of a single walk: a few roundings of the type in which states are returned."""
    got, seeds = outputs_and_gradients(lambda *args: fuse.scan(*args, **options), args)
    wide = [x.detach().to(WIDE.get(x.dtype, x.dtype)).requires_grad_() for x in args]
    seeds = [s.to(g.real.dtype).to(torch.float64) for s, g in zip(seeds, got, strict=False)]
    want, _ = outputs_and_gradients(lambda *args: loop(*args, **options), wide, seeds)
    for i, (g, w) in enumerate(zip(got, want, strict=True)):
        assert g.shape == w.shape and error(g, w) <= SLACK.get(args[0].dtype, 1e-12), (i, error(g, w))


@pytest.mark.parametrize("shape_a, shape_b, dim, initial, reverse", [
    ((2, 13, 3), (2, 13, 3), 1, True, False), ((3,), (2, 13, 3), -2, False, True), ((13, 1), (2, 13, 3), 1, True, True),
    ((), (7,), 0, False, False), ((1, 5), (4, 1, 5), 0, True, False)])
def test_shapes(shape_a, shape_b, dim, initial, reverse, quick_builds):  # noqa: F811
    agrees(given(shape_a, shape_b, dim, initial=initial), dim=dim, reverse=reverse)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64, torch.bfloat16, torch.float16])
def test_element_types(dtype, quick_builds):  # noqa: F811
    args = given((13, 3), (2, 13, 3), 1, dtype=dtype, initial=True)
    agrees(args, dim=1)
    states, final = fuse.scan(*args, dim=1)
    assert states.dtype is dtype and final.dtype is args[2].dtype


def test_a_real_coefficient_beside_complex_terms(quick_builds):  # noqa: F811
    a, b = given((3,), (5, 3), 0, dtype=torch.float64)[0], given((3,), (5, 3), 0, dtype=torch.complex128)[1]
    assert torch.autograd.gradcheck(lambda a, b: fuse.scan(a, b, dim=0), (a, b))
    complex_a, real_b = b.detach()[0].clone().requires_grad_(), b.detach().real.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: fuse.scan(a, b, dim=0), (complex_a, real_b))


def test_gradcheck(quick_builds):  # noqa: F811
    args = given((2, 4, 3), (2, 4, 3), 1, dtype=torch.float64, initial=True)
    assert torch.autograd.gradcheck(lambda *args: fuse.scan(*args, dim=1), args)


@pytest.mark.parametrize("wanted", [(True, False, False), (False, True, False), (False, False, True)])
def test_some_gradients(wanted, quick_builds):  # noqa: F811
    args = [x.requires_grad_(want) for x, want in zip(given((13, 3), (2, 13, 3), 1, initial=True), wanted, strict=True)]
    agrees_partly = fuse.scan(*args, dim=1)
    exact = [x.detach().double().requires_grad_(want) for x, want in zip(args, wanted, strict=True)]
    (leaf, wide), = [(x, e) for x, e in zip(args, exact, strict=True) if x.requires_grad]
    got, = torch.autograd.grad(agrees_partly[0].square().sum() + agrees_partly[1].sum(), leaf)
    states, final = loop(*exact, dim=1)
    want, = torch.autograd.grad(states.square().sum() + final.sum(), wide)
    assert error(got, want) <= SLACK[torch.float32]


def test_rotations_that_hardly_decay(quick_builds):  # noqa: F811
    """16384 steps with |a| = 0.9999: a single precision walk errs by 1e-5 of the largest state, no more than eager does."""
    torch.manual_seed(0)
    a = torch.polar(torch.full((4,), 0.9999), torch.rand(4) * 6.28)
    b = torch.randn(16384, 4, dtype=torch.complex64)
    states, final = fuse.scan(a, b, dim=0)
    exact, _ = loop(a.to(torch.complex128), b.to(torch.complex128), dim=0)
    eager, _ = loop(a, b, dim=0)
    assert error(states, exact) <= min(1e-5, 2 * error(eager, exact) + 2e-6) and torch.equal(final, states[-1])


@pytest.mark.parametrize("shape", [(0, 4, 3), (2, 0, 3), (2, 4, 0)])
def test_nothing_to_do(shape, quick_builds):  # noqa: F811
    a, b, h = (torch.rand(s, requires_grad=True) for s in (shape, shape, (shape[0], shape[2])))
    states, final = fuse.scan(a, b, h, dim=1)
    assert states.shape == shape and (shape[1] or torch.equal(final, h))
    (states.sum() + final.sum()).backward()
    assert a.grad.shape == shape and h.grad.shape == h.shape


def test_lazy_conjugates_and_layouts(quick_builds):  # noqa: F811
    x = torch.randn(6, 5, dtype=torch.complex64)
    for a, b in ((x.conj(), x.mT.contiguous().mT), (x.conj().imag, x.real), (x[::2], x[1::2].conj())):
        torch.testing.assert_close(fuse.scan(a, b, dim=0), loop(a.resolve_conj().resolve_neg(), b.resolve_conj(), dim=0))


def test_results_may_be_changed_in_place(quick_builds):  # noqa: F811
    args = given((13, 3), (2, 13, 3), 1)
    states, final = fuse.scan(*args, dim=1)
    final.add_(1)
    assert torch.equal(final.detach() - 1, states[:, -1].detach())
    (final.sum() + fuse.scan(*args, dim=1)[0].mul_(2).sum()).backward()


@pytest.mark.parametrize("arguments, options, kind, message", [
    ((torch.ones(3), torch.ones(2, 3)), {"dim": 2}, IndexError, "dim=2"),
    ((torch.ones(4), torch.ones(2, 3)), {"dim": 0}, ValueError, "broadcast"),
    ((torch.ones(1, 1, 3), torch.ones(2, 3)), {"dim": 0}, ValueError, "broadcast"),
    ((torch.ones(3), torch.ones(2, 3), torch.ones(2)), {"dim": 0}, ValueError, "initial is of shape"),
    ((torch.ones(3), torch.ones(2, 3), torch.ones(3).double()), {"dim": 0}, TypeError, "initial is of torch.float64"),
    ((torch.ones(3), torch.ones(2, 3).long()), {"dim": 0}, TypeError, "b is of torch.int64"),
    ((0.5, torch.ones(2, 3)), {"dim": 0}, TypeError, "a must be a tensor"),
    ((torch.ones(3, device="meta"), torch.ones(2, 3)), {"dim": 0}, ValueError, "a is on meta"),
    ((torch.tensor(1.0), torch.tensor(1.0)), {"dim": 0}, IndexError, "dim=0")])
def test_what_makes_no_sense(arguments, options, kind, message):
    with pytest.raises(kind, match=message):
        fuse.scan(*arguments, **options)


def test_without_a_kernel(monkeypatch):
    """The walk runs tile by tile in plain torch."""
    from fuse.reasons import Miss
    from fuse.runtime import scan

    monkeypatch.setattr(scan, "compile_region", lambda *_: Miss("TARGET_LACKS", None, "scans"))
    monkeypatch.setattr(ops, "_executables", {})
    agrees(given((2, 13, 3), (2, 13, 3), 1, initial=True), dim=1)


def test_a_second_derivative_is_an_error(quick_builds):  # noqa: F811
    args = given((13, 3), (2, 13, 3), 1)
    gradient, = torch.autograd.grad(fuse.scan(*args, dim=1)[0].sum(), args[0], create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        gradient.sum().backward()


# ---- inside torch.compile -------------------------------------------------------------------------------------------

def layer(a, b, h):
    states, final = fuse.scan(a.sigmoid(), b * 2, h, dim=1)
    return (states * b).sum(-1), final


@pytest.mark.parametrize("backend", ["aot_eager", "fuse"])
def test_compiled_once_for_all_lengths(backend, quick_builds, without_aot):  # noqa: F811
    """Any backend takes the op; to fuse it is a region of its own program."""
    torch._dynamo.reset()
    counters.clear()
    options = {"options": {"min_virtual_bytes": 0, "strict": True}} if backend == "fuse" else {}
    compiled = torch.compile(layer, backend=backend, dynamic=True, fullgraph=True, **options)
    for length in (9, 21):
        args = given((2, length, 3), (2, length, 3), 1, initial=True)
        want, seeds = outputs_and_gradients(layer, args)
        got, _ = outputs_and_gradients(compiled, args, seeds)
        torch.testing.assert_close(got, want)
    assert counters["stats"]["unique_graphs"] == 1 and counters["fuse"]["fused"] == (backend == "fuse")


def test_a_key_says_how_its_executable_is_made(quick_builds, monkeypatch):  # noqa: F811
    """A compiled graph that comes from a cache on disk meets a process that has not made any."""
    args = given((13, 3), (2, 13, 3), 1)
    monkeypatch.setattr(ops, "_executables", {})
    want = fuse.scan(*args, dim=1)
    (key,) = ops._executables
    monkeypatch.setattr(ops, "_executables", {})
    for g, w in zip(torch.ops.fuse.forward([args[0][None], args[1]], key), want, strict=True):
        assert torch.equal(g, w)
