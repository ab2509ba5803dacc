"""`fuse verify`: copies of a program, its truth in float64, errors against it, and the script that reproduces them."""
from __future__ import annotations

import functools
import json
import runpy
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fuse.cli import main
from fuse.cli.arms import Comparison, Error, cotangent, distance, errors, in_float64, leaves, named
from fuse.cli.program import Program
from fuse.cli.replace import Replaced, modules_of
from fuse.cli.reproduce import Unwritable, argument, imported, script
from fuse.cli.schema import DOCUMENTS, violations
from fuse.cli.verify import text
from tests import stand_in

PROGRAM = """
import torch
import torch.nn.functional as F

class Step:
    def __init__(self):
        torch.manual_seed(0)
        self.head = torch.nn.Linear(16, 101, bias=False)
        self.scale = torch.tensor(0.5)

    def loss(self, h, y):
        return F.cross_entropy(F.linear(h, self.head.weight), y) * self.scale

def fuse_example():
    torch.manual_seed(1)
    return Step().loss, (torch.randn(37, 16, requires_grad=True), torch.randint(0, 101, (37,)))

def random(): return lambda h: F.dropout(h), (torch.ones(99),)
def silent(): return lambda h: None, (torch.ones(9),)
def raises(): return lambda h: h @ h.new_zeros(3, 3), (torch.ones(9),)
"""


@pytest.fixture
def file(monkeypatch, tmp_path):
    """Inductor's arm is AOTAutograd alone; kernels are the reference path."""
    kernels = stand_in.install(monkeypatch)
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, *, backend, **kw: compile_(
        f, backend="aot_eager" if backend == "inductor" else backend, **kw))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(PROGRAM)
    return kernels


def run(capsys, *arguments):
    code = main(["verify", *arguments])
    out = capsys.readouterr()
    return code, out.out, out.err


# ---- the command ------------------------------------------------------------------------------------------------

def test_a_right_program_is_right_in_every_output_and_gradient(file, capsys, tmp_path):
    code, out, err = run(capsys, "mine.py", "--json")
    found = json.loads(out)
    assert code == 0 and not err and not list(violations(found, DOCUMENTS["verify"]))
    assert {(e["value"], e["arm"]) for e in found["errors"]} == {
        (value, arm) for value in ("output", "gradient of args[0]", "gradient of weight")
        for arm in ("eager", "inductor", "fuse")}
    assert found["off"] == [] and found["regions"] == 1 and all(e["error"] < 1e-5 for e in found["errors"])
    assert found["reproducer"] is None and not (tmp_path / "fuse_reproducer.py").exists()


def test_a_wrong_kernel_is_found_and_reproduced(file, capsys, monkeypatch, tmp_path):
    right = stand_in.run_region

    def wrong(region, env, sizes):
        out = right(region, env, sizes)
        return {name: value * (1 + 1e-3) if value.dim() == 2 else value for name, value in out.items()}    # gradients only
    monkeypatch.setattr(stand_in, "run_region", wrong)
    code, out, _ = run(capsys, "mine.py")
    assert code == 1 and "OFF  fuse: gradient of args[0]" in out and "OFF  fuse: gradient of weight" in out
    assert "OFF  fuse: output" not in out and "OFF  inductor" not in out and "wrote fuse_reproducer.py" in out
    (tmp_path / "mine.py").unlink()       # the script needs nothing of it
    assert "import mine" not in (tmp_path / "fuse_reproducer.py").read_text()
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(tmp_path / "fuse_reproducer.py"), run_name="__main__")
    assert ended.value.code == 1 and "OFF  fuse: gradient of args[0]" in capsys.readouterr().out
    monkeypatch.setattr(stand_in, "run_region", right)
    assert run(capsys, "fuse_reproducer.py")[0] == 0


def test_an_arm_that_raises_is_off(file, capsys):
    file.broken = True
    code, out, _ = run(capsys, "mine.py", "--no-reproducer")
    assert code == 1 and "OFF  fuse: it raised: " in out and "on fire" in out


def test_without_gradients(file, capsys):
    code, out, _ = run(capsys, "mine.py", "--no-train")
    assert code == 0 and "gradient" not in out


@pytest.mark.parametrize("name, message", [("random", "draws random numbers"), ("silent", "returns no tensor"),
                                           ("raises", "raised RuntimeError in float64")])
def test_what_cannot_be_compared(file, capsys, name, message):
    code, out, err = run(capsys, f"mine.py:{name}")
    assert code == 2 and not out and message in err.splitlines()[0]


@pytest.mark.slow
def test_through_inductor_and_kernels(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(PROGRAM)
    code, out, _ = run(capsys, "mine.py", "--option", "min_virtual_bytes=0", "--reproducer", "again.py")
    assert code == 0 and "ok   fuse errs no more than it may" in out and "took nothing" not in out
    with pytest.raises(SystemExit) as ended:
        runpy.run_path("again.py", run_name="__main__")
    assert ended.value.code == 0


# ---- copies -----------------------------------------------------------------------------------------------------

def doubled(t):
    return t.to(torch.float64, copy=True) if t.dtype.is_floating_point else t.clone()


def test_modules_arguments_and_closures_are_copied_and_stay_shared():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(7, 3), nn.Linear(3, 7, bias=False)
            self.head.weight = self.embed.weight
            self.norm, self.rope = nn.BatchNorm1d(3), torch.ones(3)

        def forward(self, x):
            return self.head(self.norm(self.embed(x)) * self.rope)
    model = Tied()

    ones = torch.ones(2)

    def step(x, scale=ones, *, shift=ones):
        return (helper(model, x) * scale + shift).sum()

    def helper(model, x):
        return model(x).sum()
    copies = Replaced(doubled)
    made = copies(functools.partial(step))
    (twin,) = modules_of(made)
    assert made(torch.tensor([1, 2])).dtype == torch.float64 and step(torch.tensor([1, 2])).dtype == torch.float32
    assert twin.head.weight is twin.embed.weight and isinstance(twin.head.weight, nn.Parameter) and twin is not model
    assert twin.norm.running_mean.dtype == torch.float64 and twin.rope.dtype == torch.float64
    assert made.func.__defaults__[0].dtype == made.func.__kwdefaults__["shift"].dtype == torch.float64
    assert copies(model) is twin and copies(F.linear) is F.linear and next(modules_of(step)) is model
    assert int(twin.norm.num_batches_tracked) == 1 and int(model.norm.num_batches_tracked) == 1, "each arm has buffers of its own"


def test_containers_methods_and_objects_are_copied():
    class Trainer:
        def __init__(self):
            self.weight = torch.ones(2, requires_grad=True)

        def step(self, x):
            return (self.weight * x["a"][0]).sum()
    trainer, copies = Trainer(), Replaced(doubled)
    made = copies(trainer.step)({"a": copies([torch.ones(2)])})
    assert made.dtype == torch.float64 and made.requires_grad and trainer.weight.dtype == torch.float32
    assert copies(trainer.weight) is copies(trainer).weight
    unfilled = Replaced(doubled)(recursive)
    assert unfilled(3) == 6


def recursive(n):
    return n + recursive(n - 1) if n else 0


def test_the_truth_is_in_float64_even_where_a_program_casts():
    def casts(x):
        assert torch.zeros(1).dtype == torch.float64
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = F.softmax(x.float() @ x.to(torch.float32).T, -1, dtype=torch.float32) @ x.bfloat16()
        return y, torch.ones_like(y, dtype=torch.float16), x.long()
    x = torch.randn(3, 3, dtype=torch.bfloat16)
    with in_float64():
        y, ones, whole = casts(x.double())
    assert y.dtype == ones.dtype == torch.float64 and whole.dtype == torch.int64 and torch.zeros(1).dtype == torch.float32


def test_the_truth_of_a_comparison_differs_from_eager_by_roundings():
    args = torch.randn(9, 8, requires_grad=True), torch.randn(8, 5)
    program = Program("p", lambda x, w: (x @ w).softmax(-1).sum(0), args, {}, None)
    comparison = Comparison(program, {}, False)
    truth, eager = comparison.truth(), comparison.run("eager")
    assert truth.keys() == eager.keys() == {"output", "gradient of args[0]"} and list(leaves(program)) == ["args[0]"]
    assert all(truth[n].dtype == torch.float64 and 0 < distance(eager[n], truth[n]) < 1e-6 for n in truth)


# ---- errors -----------------------------------------------------------------------------------------------------

def test_who_is_off():
    truth = {"y": torch.tensor([1.0, 2.0], dtype=torch.float64), "k": torch.tensor([1, 2])}
    good = {"y": torch.tensor([1.0, 2.0 + 1e-6]), "k": truth["k"]}
    cases = {"right": good, "slightly worse": {**good, "y": torch.tensor([1.0, 2.0 + 3e-6])},
             "wrong": {**good, "y": torch.tensor([1.0, 2.0 + 1e-4])}, "index": {**good, "k": torch.tensor([1, 1])},
             "nan": {**good, "y": torch.tensor([1.0, torch.nan])}, "shape": {**good, "y": torch.ones(3)},
             "less": {"y": good["y"]}}
    found = errors(truth, {"eager": good, **cases, "dead": ValueError("no\nmore")})
    assert sorted({e.arm for e in found if e.off}) == ["dead", "index", "less", "nan", "shape", "wrong"]
    assert found[-1] == Error("", "dead", None, None, True, "ValueError: no")
    shown = text(found, ["wrong"], 0)
    assert "OFF  dead: it raised: ValueError: no" in shown and "not finite OFF" in shown
    assert "took nothing of this program" in shown


def test_errors_are_relative_to_the_largest_value_and_infinities_must_agree():
    exact = torch.tensor([100.0, 0.0, -torch.inf], dtype=torch.float64)
    assert distance(torch.tensor([100.0, 1.0, -torch.inf]), exact) == 0.01
    assert distance(torch.tensor([100.0, 1.0, 3.0]), exact) is None and distance(exact[:2], exact) is None
    assert distance(torch.zeros(0), torch.zeros(0)) == 0.0 and distance(torch.tensor([1 + 1j]), torch.tensor([1 + 1j])) == 0.0


def test_half_types_may_err_by_roundings_of_their_own():
    truth = {"y": torch.tensor([1.0], dtype=torch.float64)}
    for dtype, error, off in ((torch.bfloat16, 0.0078125, False), (torch.bfloat16, 0.03125, True), (torch.float32, 1e-5, True)):
        found = errors(truth, {"eager": {"y": torch.ones(1, dtype=dtype)}, "fuse": {"y": torch.tensor([1 + error], dtype=dtype)}})
        assert found[-1].off is off


def test_values_are_named_by_their_place():
    result = {"loss": torch.ones(()), "more": [torch.ones(2), (3, torch.ones(1))]}
    assert [n for n, _ in named(result, "output")] == ["output.loss", "output.more[0]", "output.more[1][1]"]
    assert cotangent(torch.ones(())) == 1 and torch.equal(cotangent(torch.ones(4)), cotangent(torch.zeros(4)))


# ---- scripts ----------------------------------------------------------------------------------------------------

def test_inputs_are_written_out_or_drawn_alike():
    base = torch.randn(40, 30) * 3 + 5
    base[:10] = -torch.inf
    for x in (base.T, base[:, :1].expand(40, 7), torch.randint(3, 9, (200,)), torch.rand(20, 20) < 0.25,
              torch.tensor([1.5, torch.inf]), torch.randn(9, 9, dtype=torch.complex64), torch.tensor(2, dtype=torch.int32),
              base[20:].bfloat16().requires_grad_()):
        world = {}
        exec(script(Program("p", torch.sin, (torch.ones(1),), {}, None), []).partition("\nclass")[0], world)
        made = eval(argument(x), world)
        assert (made.shape, made.stride(), made.dtype, made.requires_grad) == (x.shape, x.stride(), x.dtype, x.requires_grad)
    assert made.mean().item() == pytest.approx(5, abs=0.5)


def test_graphs_with_bodies_and_constants_are_written():
    from torch.utils.checkpoint import checkpoint

    def f(x, w):
        return checkpoint(lambda a: (a @ w).sin(), x, use_reentrant=False).sum() + torch.tensor([1.0, 2.0]).sum()
    x, w = torch.randn(12, 8, requires_grad=True), torch.randn(8, 3, requires_grad=True)
    source = script(Program("p", f, (x, w), {}, None), ["--dynamic"])
    world = {}
    exec(source.partition("\nif __name__")[0], world)
    function, args = world["fuse_example"]()
    (given,) = args
    for again in (function, torch.compile(function, backend="aot_eager")):
        torch.testing.assert_close(again(*args)[0][0], f(*given))
    assert "'--dynamic'" in source


def test_what_cannot_be_written_is_said():
    with pytest.raises(Unwritable, match="not a function of torch"):
        imported("mine", main)
    assert imported("nan", float("nan")) is None and imported("pi", torch) == "import torch as pi"
    with pytest.raises(Unwritable, match="captured no graph"):
        script(Program("p", lambda: 3, (), {}, None), [])
