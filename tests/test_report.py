"""Reports: what they say, where it is counted, and what a region is called."""
from __future__ import annotations

import json
import logging

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.utils import counters

import fuse
from fuse.formula import Formula
from fuse.ir.expr import Axis, Buffer, const, dot, iota, lse, make, read, sum_, where
from fuse.ir.kinds import kind_of, kinds_of
from fuse.ir.program import Carry, Kind, Output, Program, Region, Term
from fuse.ir.size import Size
from fuse.passes import PIPELINE, Context, compile_program
from fuse.reasons import Miss, size_text
from fuse.report import SCHEMA_VERSION, GraphReport, Report
from fuse.report_text import profile_text
from tests import stand_in

N, V, D = 37, 101, 16


@pytest.fixture
def kernels(monkeypatch):
    return stand_in.install(monkeypatch)


def step(h, W, y):
    return F.cross_entropy(F.linear(h, W), y)


def data():
    return torch.randn(N, D, requires_grad=True), torch.randn(V, D, requires_grad=True), torch.randint(0, V, (N,))


def line_of(text):
    with open(__file__) as file:
        return next(i for i, line in enumerate(file, 1) if text in line)


def test_explain_names_the_region_and_its_place(kernels):
    report = fuse.explain(step, *data())
    region, = report.regions
    assert region.kinds == ("softmax-over-vocabulary",) and region.where == f"{__file__}:{line_of('return F.cross_entropy')}"
    assert region.bytes_saved == N * V * 4 and region.flops == 2 * N * V * D * 3    # slab: S, dS W, dS h
    assert region.streams == ("a2:101",) and region.inputs[0] == "x0: float32[37, 16]"
    assert not report.misses and not report.graph_breaks


def test_explain_lists_refusals(kernels):
    def refused(h, W, y):
        return F.cross_entropy(h @ W.T, y)
    report = fuse.explain(refused, *data())
    assert [m.code for m in report.misses] == ["NOT_A_REDUCTION"] and not report.regions
    text = str(report)
    assert "DECLINED  NOT_A_REDUCTION" in text and "hint" in text
    assert f"{__file__}:{line_of('F.cross_entropy(h @ W.T, y)')}   return F.cross_entropy(h @ W.T, y)" in text


def test_explain_counts_and_compiles_nothing_else(kernels, monkeypatch):
    from fuse import backend

    monkeypatch.setattr(backend, "finish", lambda *_, **__: pytest.fail("compiled"))
    fuse.explain(step, *data())
    assert not counters["fuse"]


def test_explain_takes_modules_and_what_is_compiled_already(kernels):
    class Head(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.head = torch.nn.Linear(D, V, bias=False)

        def forward(self, h, y):
            return F.cross_entropy(self.head(h), y)
    h, _, y = data()
    for module in (Head(), torch.compile(Head()), torch.compile(Head().forward)):
        assert len(fuse.explain(module, h, y).regions) == 1
    assert len(fuse.explain(torch.compile(step), *data()).regions) == 1


def test_explain_reports_graph_breaks(kernels):
    def broken(h, W, y):
        h = h * 2
        torch._dynamo.graph_break()
        return step(h, W, y)
    report = fuse.explain(broken, *data())
    assert len(report.graphs) == 2 and len(report.graph_breaks) == 1
    assert f"graph break: {__file__}:{line_of('torch._dynamo.graph_break()')}: " in str(report)
    assert "Developer debug context" not in str(report)


def test_equal_refusals_are_one_and_what_is_merely_small_comes_last():
    small, other = Miss("TOO_SMALL", "model.py:3", "4 bytes"), Miss("ESCAPES", "model.py:7", "logits")
    lines = [line.strip() for line in str(Report([GraphReport(misses=[small, other, small])])).splitlines()]
    assert [line for line in lines if "DECLINED" in line] == ["DECLINED  ESCAPES", "DECLINED  TOO_SMALL (2 times)"]
    assert "at         model.py:7" in lines, "a file that cannot be read is named all the same"


def test_a_graph_without_large_values_says_so():
    assert "no value in it is much larger" in str(Report([GraphReport(nodes=3)]))


def test_a_module_called_from_nowhere_is_named():
    model = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.Linear(64, 8))
    misses = fuse.explain(model, torch.randn(32, 8)).misses
    assert misses[0].where == "module 0 (Linear)"


def test_explain_passes_on_what_the_function_raises(kernels):
    def wrong(h, W, y):
        raise LookupError("mine")
    with pytest.raises(Exception, match="mine"):
        fuse.explain(wrong, *data())


def test_of_a_language_model_the_head_is_fused_and_its_gated_layer_is_not_worth_it():
    """At the widths of a model of a billion parameters; nothing is allocated."""
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(vocab_size=32000, hidden_size=2048, intermediate_size=5632, num_hidden_layers=1,
                                      num_attention_heads=16, num_key_value_heads=8)
    with torch.device("meta"):
        model, x = transformers.LlamaForCausalLM(config), torch.zeros(1, 1024, dtype=torch.long)
    report = fuse.explain(lambda x: model(input_ids=x, labels=x, use_cache=False).loss, x, fuse_options={"target": "cpu"})
    region, = report.regions
    assert region.kinds == ("softmax-over-vocabulary",) and region.bytes_saved == 1024 * 32000 * 4
    assert [m.code for m in report.misses] == ["NOT_WORTH_IT"] and "8192 flops" in str(report)


def test_the_table_and_the_dictionary_say_the_same(kernels):
    report = fuse.explain(step, *data(), fuse_options={"min_virtual_bytes": 0})
    found = json.loads(json.dumps(report.to_dict()))
    assert found["schema"] == SCHEMA_VERSION
    region = found["graphs"][0]["regions"][0]
    assert region["bytes_saved"] == N * V * 4 and region["kinds"] == ["softmax-over-vocabulary"]
    text = str(report)
    assert "1 graph, 1 fused, 0 declined" in text and "14.6 KiB" in text and region["where"] in text


def test_a_report_tells_how_each_kernel_walks():
    """The real target: tile extents are those that were asked for."""
    report = fuse.explain(step, *data(), fuse_options={"min_virtual_bytes": 0, "schedule": "recompute",
                                                      "tile": {"row": 8, "col": 24}})
    region, = json.loads(json.dumps(report.to_dict()))["graphs"][0]["regions"]
    forward, backward = region["walks"]
    assert region["target"] == "cpu" and (forward["direction"], backward["direction"]) == ("forward", "backward")
    assert all(w["schedule"].startswith("recompute, tiles of row 8 x col 24, threads ") for w in (forward, backward))
    assert "tiles of row 8 x col 24" in str(report) and "fuse_kernel" in forward["source"]
    assert [[c["kind"] for c in w["carries"]] for w in (forward, backward)] == [["lse", "sum"], ["sum", "sum"]]
    assert forward["sweeps"] == 1 and backward["text"].startswith("region region1 streams(")
    assert region["seconds"].keys() == {*(name for name, _ in PIPELINE), "kernels"}
    assert report.graphs[0].seconds.keys() == {"find", "plan", "splice"}
    (use,) = report.regions[0].walks[0].resources()
    assert use["arch"] == "cpu" and sum(use["instructions"].values()) > 0


def test_bytes_and_flops_are_formulas_in_the_sizes_of_the_model(kernels):
    inputs = dict(zip(("l_h_", "l_w_", "l_y_"), ((N, D), (V, D), (N,)), strict=True))
    for dynamic in (False, True):
        region, = fuse.explain(step, *data(), fuse_dynamic=dynamic).regions
        places = {symbol: place.split() for symbol, place in region.sizes.items()}      # 'dimension 0 of l_h_'
        values = {symbol: inputs[words[3]][int(words[1])] for symbol, words in places.items()}
        assert bool(values) is dynamic
        assert eval(region.bytes_formula, dict(values)) == region.bytes_saved == N * V * 4
        assert sum(eval(w.flops_formula, dict(values)) for w in region.walks) == region.flops == 2 * N * V * D * 3
    assert f"= {N}*{V}*4 bytes" in str(fuse.explain(step, *data()))


def test_a_formula_keeps_its_factors_and_adds_what_is_alike():
    n, v = Size.of("n"), Size.of("v")
    total = Formula.product(2, [n, v + 1]) + Formula.product(4, [n, v + 1]) + Formula.product(1, [Size.of(1), v]) + Formula()
    assert str(total) == "6*n*(v+1) + v" and total.evaluate({"n": 3, "v": 4}) == 94
    assert str(Formula()) == "0" and Formula().evaluate({}) == 0


def test_equal_layers_are_shown_once_and_share_their_plan(kernels):
    def layers(h, W, y):
        return sum(step(h * k, W, y) for k in range(1, 4))
    report = fuse.explain(layers, *data())
    assert len(report.regions) == 3 and len({r.key for r in report.regions}) == 1
    assert str(report).count("FUSED") == 1 and "softmax-over-vocabulary (3 times)" in str(report)
    assert [bool(r.seconds) for r in report.regions] == [True, False, False]
    assert "2 of 3 regions share the plan of an equal one" in profile_text(report)


def test_kernels_for_a_gpu_can_be_looked_at_without_one():
    pytest.importorskip("triton")
    frozen = [t.detach() for t in data()]
    region, = fuse.explain(step, *frozen, fuse_options={"min_virtual_bytes": 0, "arch": "sm_80"}).regions
    assert region.target == "triton" and "tl.load" in region.walks[0].source
    uses = region.walks[0].resources()
    assert {u["arch"] for u in uses} == {"sm80"} and all(u["registers"] > 0 and u["fits"] for u in uses)


def test_there_is_a_snapshot_after_every_pass(kernels):
    region, = fuse.explain(step, *data()).regions
    assert list(region.snapshots) == ["import", *(name for name, _ in PIPELINE)]
    assert "pick" in region.snapshots["import"]() and "region" in region.snapshots[PIPELINE[-1][0]]()


def test_the_backend_says_once_what_it_fused(kernels, caplog):
    with caplog.at_level(logging.INFO, logger="fuse"):
        torch.compile(step, backend="fuse")(*data())
        torch.compile(lambda x: x + 1, backend="fuse")(torch.ones(3))
    lines = [r.getMessage() for r in caplog.records if r.name.startswith("fuse")]
    assert lines == [f"fused softmax-over-vocabulary at {__file__}:{line_of('return F.cross_entropy')}; declined 0"]
    assert counters["fuse"] == {"fused": 1, "declined": 0}


@pytest.mark.parametrize("count, text", [(0, "0 bytes"), (1023, "1023 bytes"), (1024, "1.0 KiB"), (3 << 20, "3.0 MiB"),
                                         (5 << 40, "5.0 TiB"), (5 << 50, "5120.0 TiB")])
def test_sizes_are_readable(count, text):
    assert size_text(count) == text


# ---- kinds ------------------------------------------------------------------------------------------------------

I, J, E, K = (Axis(n, Size.of(m)) for n, m in (("i", 13), ("j", 37), ("e", 5), ("k", 7)))
Q, KEY, VAL, Y = (Buffer("q", "float32", (I.extent, K.extent)), Buffer("key", "float32", (J.extent, K.extent)),
                  Buffer("val", "float32", (J.extent, E.extent)), Buffer("y", "int64", (I.extent,)))
SCORES = dot(read(Q, I, K), read(KEY, J, K), K)
WEIGHTS = make("exp_sub", SCORES, lse(SCORES, J))


def labels(*values):
    outputs = tuple(Output(Buffer(f"out{i}", x.dtype, tuple(a.extent for a in x.axes)),
                           (Term(tuple(iota(a) for a in x.axes), x),)) for i, x in enumerate(values))
    return kinds_of(compile_program(Program((Q, KEY, VAL, Y), outputs, anchors=(SCORES,)), Context()).forward)


@pytest.mark.parametrize("values, kind", [
    ((sum_(WEIGHTS * read(VAL, J, E), J),), "attention"),
    ((sum_(WEIGHTS * read(VAL, J, E), J), lse(SCORES, J)), "attention"),
    ((lse(SCORES, J) - make("pick", SCORES, read(Y, I), axis=J),), "softmax-over-vocabulary"),
    ((sum_(WEIGHTS * SCORES, J),), "softmax-over-vocabulary"),    # an entropy brings in no axis of its own
    ((sum_(SCORES * read(VAL, J, E), J),), "linear-attention"),
    ((sum_(make("sigmoid", SCORES), J),), "contraction"),
    ((sum_(make("log", WEIGHTS + 1e-3), J),), "softmax-over-vocabulary"),
])
def test_what_a_region_is_called(values, kind):
    assert labels(*values)[0] == kind


def test_a_scan_is_a_carry_whose_coefficient_is_not_one():
    def region(a):
        body = make("scan", a, read(Buffer("b", "float32", (J.extent,)), J), axis=J, reverse=False)
        return Region("r", (J,), (), (Carry("h", Kind.AFFINE, body, (J,), ()),))
    decay = read(Buffer("a", "float32", (J.extent,)), J)
    assert kind_of(region(decay)) == "scan" and kind_of(region(const(1, "float32"))) != "scan"


def test_several_sweeps_without_a_contraction_are_a_cascade():
    first = Carry("s", Kind.SUM, read(VAL, J, E), (J,), (E,))
    final = make("carry", name="s", part="final", dtype="float32", axes=(E,))
    body = where(make("lt", final, read(VAL, J, E)), read(VAL, J, E), 0)
    assert kind_of(Region("r", (J,), (E,), (first, Carry("t", Kind.SUM, body, (J,), (E,), level=1)))) == "cascade"
