"""Every code of the catalogue is provoked by a program of the kind users write, which runs right all the same."""
from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.distributed.tensor import Replicate, distribute_tensor, init_device_mesh

import fuse
from fuse import log
from fuse.codegen import build
from fuse.codegen.cpu.kernel import CpuKernel
from fuse.log import FAILURES, FuseWarning
from fuse.reasons import REASONS
from fuse.runtime import ops, plan
from tests.plain import quick_builds, without_inductor  # noqa: F401 (fixtures)

N, D, V = 24, 8, 96
OPTIONS: dict[str, Any] = {"min_virtual_bytes": 0}
PROGRAMS: dict[str, Callable[..., Any]] = {}
SPECIAL: dict[str, dict[str, Any]] = {"TOO_SMALL": {}, "NOT_WORTH_IT": {"min_virtual_bytes": 1}, "FUEL": {**OPTIONS, "fuel": 0}}


def data() -> list[Any]:
    torch.manual_seed(0)
    return [torch.randn(N, D, requires_grad=True), torch.randn(V, D, requires_grad=True), torch.randint(0, V, (N,))]


def provokes(code: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        PROGRAMS[code] = function
        return function
    return register


@provokes("ESCAPES")
def returns_the_probabilities(h, W, y):
    p = F.linear(h, W).softmax(-1)
    return F.nll_loss(p.log(), y), p


@provokes("STORED")
def returns_the_logits(h, W, y):
    logits = F.linear(h, W)
    return F.cross_entropy(logits, y), logits


@provokes("OTHER_USER")
def looks_for_the_best(h, W, y):
    logits = F.linear(h, W)
    return F.cross_entropy(logits, y) + logits.topk(3).values.mean()


@provokes("NOT_A_REDUCTION")
def normalises_the_other_way(h, W, y):
    logits = F.linear(h, W)
    return logits.softmax(0).amax(1).sum()


@provokes("NOT_A_SCAN")
def remembers_nonlinearly(h, W, y):
    state, states = h[0], []
    for t in range(6):
        state = torch.tanh(0.5 * state + h[t] * W[t])
        states.append(state)
    return torch.stack(states).sum()


@provokes("EXITS_TOO_BIG")
def mixes_the_classes(h, W, y):
    return F.linear(h, W).softmax(-1) @ torch.eye(V)


@provokes("TOO_SMALL")
@provokes("FUEL")
@provokes("NO_COMPILER")
@provokes("BUILD_FAILED")
@provokes("LAUNCH_FAILED")
@provokes("INTERNAL")
def ordinary(h, W, y):
    return F.cross_entropy(F.linear(h, W), y)


@provokes("NOT_WORTH_IT")
def hidden_layer(x, up, down):
    return F.linear(F.silu(F.linear(x, up)), down)


@provokes("UNSUPPORTED_OP")
def weighted_positives(h, W, y):
    logits = F.linear(h, W)
    return F.binary_cross_entropy_with_logits(logits, torch.zeros_like(logits), pos_weight=torch.full((V,), 2.0))


@provokes("UNSUPPORTED_DTYPE")
def complex_scores(h, W, y):
    return (h.to(torch.complex64) @ W.T.to(torch.complex64)).abs().sum(-1).mean()


@provokes("UNSUPPORTED_VIEW")
def rolled_through(h, W, y):
    return F.linear(h, W).roll(3).logsumexp(-1).mean()


@provokes("RANDOM")
def gumbel_noise(h, W, y):
    logits = F.linear(h, W)
    return F.cross_entropy(logits - torch.rand_like(logits).log().neg().log(), y)


@provokes("MUTATION")
def every_other_class(h, W, y):
    logits = F.linear(h, W)
    logits[:, ::2] = -1.0
    return logits.logsumexp(-1).mean()


@provokes("FUNCTORCH")
def mapped(h, W, y):
    return torch.vmap(lambda x, t: F.cross_entropy(F.linear(x, W), t))(h.view(2, -1, D), y.view(2, -1)).mean()


@provokes("DTENSOR")
def distributed(h, W, y):
    return F.cross_entropy(F.linear(h, W), y)


@provokes("UNBOUND_SIZE")
def the_first_classes(h, W, y, k=50):
    return F.linear(h, W)[:, :k].logsumexp(-1).mean()


@provokes("NOT_SEPARABLE")
def entropy_with_epsilon(h, W, y):
    p = F.linear(h, W).softmax(-1)
    return -(p * torch.log(p + 1e-6)).sum(-1).mean()


@provokes("TARGET_LACKS")
def running_sums(h, W, y):
    return F.linear(h, W).cumsum(-1).square().sum(-1).mean()


# ---- circumstances, where the program alone does not do it --------------------------------------------------------

@contextlib.contextmanager
def compiler_in(text: str, monkeypatch, tmp_path):
    """CXX names a script; without a text it names nothing."""
    path = tmp_path / "c++"
    if text:
        path.write_text("#!/bin/sh\n" + text)
        path.chmod(0o700)
    with monkeypatch.context() as patch:
        patch.setenv("CXX", str(path))
        patch.setenv("FUSE_CACHE_DIR", str(tmp_path / "cache"))
        patch.setattr(build, "_loaded", {})
        build.compiler.cache_clear()
        yield
    build.compiler.cache_clear()


@contextlib.contextmanager
def one_process():
    where = {"MASTER_ADDR": "localhost", "MASTER_PORT": "0", "RANK": "0", "WORLD_SIZE": "1"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in where.items():
            patch.setenv(name, value)
        torch.distributed.init_process_group("fake", rank=0, world_size=1, store=torch.distributed.HashStore())
        yield
        torch.distributed.destroy_process_group()


@contextlib.contextmanager
def dynamic_numbers():
    with torch._dynamo.config.patch(assume_static_by_default=False):
        yield


@contextlib.contextmanager
def replaced(owner: Any, name: str, error: Exception, monkeypatch):
    def broken(*_: Any, **__: Any) -> Any:
        raise error
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, broken)
        yield


CIRCUMSTANCES: dict[str, Callable[..., Any]] = {
    "NO_COMPILER": lambda m, p: compiler_in("", m, p),
    "BUILD_FAILED": lambda m, p: compiler_in('[ "$1" = --version ] && echo mine 1.0 || exit 1\n', m, p),
    "LAUNCH_FAILED": lambda m, p: replaced(CpuKernel, "prepare", RuntimeError("not enough memory"), m),
    "INTERNAL": lambda m, p: replaced(plan, "compile_program", ZeroDivisionError("a bug"), m),
    "DTENSOR": lambda m, p: one_process(),
    "UNBOUND_SIZE": lambda m, p: dynamic_numbers(),
}


@pytest.fixture
def setting(request, monkeypatch, tmp_path):
    """The circumstances of a code, in a process that has compiled nothing yet."""
    monkeypatch.setattr(ops, "_executables", {})
    monkeypatch.setattr(log, "_said", set())
    make = CIRCUMSTANCES.get(request.getfixturevalue("code"))
    with make(monkeypatch, tmp_path) if make else contextlib.nullcontext():
        yield


def arguments(code: str) -> list[Any]:
    args = data()
    if code == "NOT_WORTH_IT":
        return [torch.randn(150, 400), torch.randn(800, 400), torch.randn(400, 800)]
    if code == "DTENSOR":
        mesh = init_device_mesh("cpu", (1,))
        args = [distribute_tensor(t.detach(), mesh, [Replicate()]) for t in args]
    return [*args, 50] if code == "UNBOUND_SIZE" else args


def results(function: Callable[..., Any], args: list[Any]) -> list[torch.Tensor]:
    """The values, then the gradients."""
    torch.manual_seed(1)
    values = function(*args)
    values = list(values) if isinstance(values, tuple) else [values]
    leaves = [a for a in args if isinstance(a, torch.Tensor) and a.requires_grad]
    return values + list(torch.autograd.grad([v.sum() for v in values], leaves)) if leaves else values


# Codes that do not decline: the region is fused, and its report mentions them, or nothing is known before it runs.
NOTES, LATE = ("NOT_SEPARABLE", "NO_COMPILER", "STORED"), ("LAUNCH_FAILED",)


def test_the_table_is_the_catalogue() -> None:
    assert PROGRAMS.keys() == REASONS.keys()


def warns(code: str) -> Any:
    return pytest.warns(FuseWarning, match=code) if code in FAILURES else contextlib.nullcontext()


@pytest.mark.parametrize("code", [code for code in PROGRAMS if code not in LATE])
def test_the_report_names_code_and_line(code, setting, quick_builds) -> None:  # noqa: F811
    function = PROGRAMS[code]
    with warns(code):
        report = fuse.explain(function, *arguments(code), fuse_options=SPECIAL.get(code, OPTIONS))
    region = report.regions[0] if report.regions else None
    assert (region is not None) is (code in NOTES), str(report)
    misses = report.misses if region is None else region.notes
    assert [m.code for m in misses] == [code], str(report)
    file, _, line = (misses[0].where or region.where).rpartition(":")
    lines, first = inspect.getsourcelines(function)
    assert file == __file__ and first < int(line) < first + len(lines), misses[0].where
    assert code in str(report) and REASONS[code].cause in str(report)


@pytest.mark.parametrize("code", PROGRAMS)
def test_the_program_runs_all_the_same(code, setting, quick_builds, without_inductor) -> None:  # noqa: F811
    function, options = PROGRAMS[code], SPECIAL.get(code, OPTIONS)
    want = results(function, arguments(code))
    with warns(code):
        got = results(torch.compile(function, backend="fuse", options=options), arguments(code))
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w)
