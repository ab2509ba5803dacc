"""What only a process of its own shows: caches on disk, the compiler on the PATH, logs, the order in which threads run.

Each process takes seconds, so that one serves several questions.
"""
from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fuse.report import SCHEMA_VERSION

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = """
import hashlib, sys, torch, torch.nn.functional as F
from torch._dynamo.backends.debugging import aot_eager
from torch._dynamo.utils import counters
import fuse
from fuse import private

if "inductor" not in sys.argv:
    private.inductor = lambda gm, inputs, patches: aot_eager(gm, inputs)
torch.manual_seed(0)
h, W, y = torch.randn(300, 16, requires_grad=True), torch.randn(1010, 16, requires_grad=True), torch.randint(0, 1010, (300,))
def step(h, W, y):
    return F.cross_entropy(F.linear(h.tanh(), W), y)
exact = [t.detach().double().requires_grad_() for t in (h, W)]
want = torch.autograd.grad(step(*exact, y), exact)
loss = torch.compile(step, backend="fuse", options={"min_virtual_bytes": 0})(h, W, y)
loss.backward()
print(h.grad.norm().item() / want[0].norm().item())
print(max(float((g.grad - w).abs().max() / w.abs().max()) for g, w in zip((h, W), want)))
print(counters["aot_autograd"]["autograd_cache_hit"], counters["fuse"]["fused"], fuse.__file__)
print(hashlib.sha256(b"".join(t.detach().numpy().tobytes() for t in (loss, h.grad, W.grad))).hexdigest())
torch.compile(lambda x: x @ x.T, backend="fuse")(torch.randn(1500, 3))
"""
FUSED, DECLINED = (next(i for i, line in enumerate(PROGRAM.splitlines(), 1) if text in line) for text in ("F.linear", "x @ x"))


@dataclass(frozen=True)
class Outcome:
    """`ratio`: the gradient against the true one; `error`: the largest, relative; `hits` of AOTAutograd's cache."""

    ratio: float
    error: float
    hits: int
    bits: str
    said: str


def start(folder: Path, *how: str, home: Path = ROOT, **environment: str) -> subprocess.Popen[str]:
    """The program, on its own caches of kernels, with the fuse that lies in `home`."""
    script = folder / "program.py"
    script.write_text(PROGRAM)
    return subprocess.Popen([sys.executable, str(script), *how], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env={**os.environ, "PYTHONPATH": str(home), "FUSE_CACHE_DIR": str(folder / "kernels"), **environment})


def outcome(process: subprocess.Popen[str], home: Path = ROOT) -> Outcome:
    out, said = process.communicate()
    assert process.returncode == 0, said
    ratio, error, hits, fused, file, bits = out.split()
    assert fused == "1" and Path(file).is_relative_to(home)
    return Outcome(float(ratio), float(error), int(hits), bits, said)


@pytest.mark.slow
def test_a_change_of_fuse_leaves_no_stale_gradient(tmp_path):
    """A pass is edited between processes that share all caches: what AOTAutograd kept would be the old gradient."""
    for name in ("fuse", "passes", "codegen", "pyproject.toml"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    for hits in (0, 1):
        found = outcome(start(tmp_path, "inductor", home=tmp_path), tmp_path)
        assert found.error < 1e-5 and found.hits == hits, "the second process is served from the cache"
    edited = tmp_path / "passes/differentiate.py"
    old, new = "cast(value, compute_dtype(seed.dtype))", "cast(value, compute_dtype(seed.dtype)) * 2"
    assert edited.read_text().count(old) == 1
    edited.write_text(edited.read_text().replace(old, new))
    found = outcome(start(tmp_path, "inductor", home=tmp_path), tmp_path)
    assert found.ratio == pytest.approx(2, rel=1e-5) and found.hits == 0


@pytest.mark.slow
def test_corrupt_cache_files_are_made_again(tmp_path):
    first = outcome(start(tmp_path))
    files = [p for p in (tmp_path / "kernels").rglob("*") if p.is_file()]
    assert {p.suffix for p in files} == {".cpp", ".so", ".json"}
    for damaged in (lambda data: data[:len(data) // 2], lambda data: bytes(255 - b for b in data)):
        for path in files:
            path.write_bytes(damaged(path.read_bytes()))
        again = outcome(start(tmp_path))
        assert again.bits == first.bits and first.error < 1e-5 and not again.said


def test_processes_may_share_an_empty_cache(tmp_path):
    found = [outcome(p) for p in [start(tmp_path), start(tmp_path)]]
    assert len({f.bits for f in found}) == 1 and not any(f.said for f in found)


def test_without_a_compiler_one_warning_and_the_same_numbers(tmp_path):
    """Neither fuse nor Inductor can build anything: the tiles and the rest run in plain torch."""
    found = outcome(start(tmp_path, "inductor", PATH=str(tmp_path), CXX=""))
    assert found.error < 1e-5
    assert found.said.count("FuseWarning") == 1 and "Install g++ or set CXX" in found.said


def artifacts(folder: Path) -> Iterator[tuple[str, str]]:
    """(name, payload) of the artifacts that tlparse would read: a line of JSON, then the payload, indented by a tab."""
    for path in folder.glob("*.log"):
        name, payload = "", list[str]()
        for line in [*path.read_text().splitlines(), ""]:
            if line.startswith("\t"):
                payload.append(line[1:])
                continue
            if name:
                yield name, "\n".join(payload)
            record = json.loads(line[line.index("{"):]) if "] {" in line else {}
            name, payload = record.get("artifact", {}).get("name", ""), []


def test_logs_and_traces_hold_the_report(tmp_path):
    """TORCH_LOGS=fuse: a line a graph; +fuse: each refusal as well; TORCH_TRACE: what tlparse shows."""
    place = f"{tmp_path / 'program.py'}:"
    said = outcome(start(tmp_path, TORCH_LOGS="fuse", TORCH_TRACE=str(tmp_path / "trace"))).said
    assert f"fused softmax-over-vocabulary at {place}{FUSED}; declined 0" in said and "fused nothing; declined 1" in said
    assert "ESCAPES" not in said and f"declined ESCAPES at {place}{DECLINED}" in outcome(start(tmp_path, TORCH_LOGS="+fuse")).said
    found = [json.loads(payload) for name, payload in artifacts(tmp_path / "trace") if name == "fuse_report"]
    assert len(found) == 2 and all(f["schema"] == SCHEMA_VERSION for f in found)
    region, = found[0]["regions"]
    assert region["kinds"] == ["softmax-over-vocabulary"] and region["bytes_saved"] == 300 * 1010 * 4
    assert [m["code"] for m in found[1]["misses"]] == ["ESCAPES"] and not found[1]["regions"]


REPEAT = """
import hashlib, sys, threading, torch, torch.nn.functional as F
from torch._dynamo.backends.debugging import aot_eager
from fuse import private

private.inductor = lambda gm, inputs, patches: aot_eager(gm, inputs)
torch.use_deterministic_algorithms(True)
torch.set_num_threads(4)
stop = threading.Event()
def disturb():
    x = torch.randn(300, 300)
    while not stop.is_set():
        x = (x @ x).tanh()
def step(h, W, y):
    return F.cross_entropy(F.linear(h, W), y)
noise = threading.Thread(target=disturb)
for schedule in "slab", "recompute":
    f = torch.compile(step, backend="fuse", options={"min_virtual_bytes": 0, "strict": True, "schedule": schedule})
    torch._dynamo.reset()
    for seed in range(3):
        torch.manual_seed(seed)
        h, W = torch.randn(531, 24, requires_grad=True), torch.randn(3001, 24, requires_grad=True)
        y = torch.randint(0, 3001, (531,))
        def once():
            loss = f(h, W, y)
            return loss.detach(), *torch.autograd.grad(loss, (h, W))
        first = once()
        if not noise.ident:
            noise.start()
        for _ in range(6):
            assert all(map(torch.equal, once(), first)), (schedule, seed)
        print(hashlib.sha256(b"".join(t.numpy().tobytes() for t in first)).hexdigest())
stop.set()
"""


@pytest.mark.slow
def test_results_repeat_bit_for_bit():
    """More threads than cores, beside another thread that computes; and in processes whose threads wait differently."""
    def bits(**environment: str) -> list[str]:
        done = subprocess.run([sys.executable, "-c", REPEAT], capture_output=True, text=True,
                              env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "4", **environment})
        assert done.returncode == 0, done.stderr
        return done.stdout.split()
    first = bits(OMP_WAIT_POLICY="passive")
    assert len(first) == 6 and len(set(first[:3])) == len(set(first[3:])) == 3
    assert bits(OMP_WAIT_POLICY="active", GOMP_SPINCOUNT="1000", OMP_PROC_BIND="close") == first
