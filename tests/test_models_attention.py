"""Attention inside real models: transformers' own code with eager attention, built from small configurations.

Each layer's attention is one region and the head with its loss another; what the model gives and the gradient of every
parameter are judged by float64, as in test_forms.
"""
from __future__ import annotations

import copy
import linecache
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from fuse import backend
from fuse.report import GraphReport
from tests.frontend.tracing import Float64
from tests.plain import quick_builds, without_aot, without_inductor  # noqa: F401 (fixtures)
from tests.test_attention import float64_by_default
from tests.test_forms import SLACK

transformers = pytest.importorskip("transformers")

WORDS, LENGTH = 97, 21
OPTIONS = {"min_virtual_bytes": 0, "strict": True}
HEAD = "softmax-over-vocabulary"


@dataclass(frozen=True)
class Case:
    """`attention`: the regions that its layers become; `head`: whether the loss is over a vocabulary."""

    make: Callable[[float], torch.nn.Module]      # of the probability of dropout
    inputs: Callable[[], dict[str, Any]]
    attention: int = 2
    head: bool = True


def ids(length: int = LENGTH, seed: int = 0) -> torch.Tensor:
    return torch.randint(1, WORDS, (2, length), generator=torch.Generator().manual_seed(seed))


def padding(length: int = LENGTH) -> torch.Tensor:
    """The first sequence is shorter than the second."""
    return (torch.arange(length)[None] < torch.tensor([[length - 6], [length]])).long()


def bert(dropout: float) -> torch.nn.Module:
    return transformers.BertForMaskedLM(transformers.BertConfig(
        vocab_size=WORDS, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=64, hidden_dropout_prob=0.0, attention_probs_dropout_prob=dropout, attn_implementation="eager"))


def gpt2(dropout: float) -> torch.nn.Module:
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=WORDS, n_embd=32, n_layer=2, n_head=4, n_positions=64, n_inner=48, resid_pdrop=0.0, embd_pdrop=0.0,
        attn_pdrop=dropout, bos_token_id=0, eos_token_id=0, attn_implementation="eager"))
    model.loss_type = "ForCausalLM"      # without it transformers logs a warning, which breaks the graph before the loss
    return model


def gemma2(dropout: float) -> torch.nn.Module:
    """Grouped queries, capped scores, and a sliding window in every other layer."""
    return transformers.Gemma2ForCausalLM(transformers.Gemma2Config(
        vocab_size=WORDS, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        intermediate_size=48, max_position_embeddings=64, sliding_window=8, attention_dropout=dropout,
        attn_implementation="eager"))


def t5(dropout: float) -> torch.nn.Module:
    """A bias gathered from a table, shared by all layers of a stack; attention within two stacks and across."""
    return transformers.T5ForConditionalGeneration(transformers.T5Config(
        vocab_size=WORDS, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, relative_attention_num_buckets=8,
        relative_attention_max_distance=20, dropout_rate=dropout, decoder_start_token_id=0, attn_implementation="eager"))


def swin(dropout: float) -> torch.nn.Module:
    """Windows of 4 x 4 pixels, shifted and masked in every other layer, with a bias gathered from a table."""
    return transformers.SwinForImageClassification(transformers.SwinConfig(
        image_size=16, patch_size=2, embed_dim=8, depths=[2], num_heads=[2], window_size=4, mlp_ratio=1.5, num_labels=7,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=dropout, drop_path_rate=0.0, attn_implementation="eager"))


def image() -> dict[str, Any]:
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return {"pixel_values": pixels, "labels": torch.tensor([1, 3])}


CASES = {
    "bert": Case(bert, lambda: {"input_ids": ids(), "attention_mask": padding(), "labels": ids(seed=1)}),
    "gpt2": Case(gpt2, lambda: {"input_ids": ids(), "labels": ids(), "use_cache": False}),
    "gemma2": Case(gemma2, lambda: {"input_ids": ids(), "labels": ids(), "use_cache": False}),
    "t5": Case(t5, lambda: {"input_ids": ids(), "attention_mask": padding(), "labels": ids(23, seed=1), "use_cache": False},
               attention=6),
    "swin": Case(swin, image, head=False),
}


@pytest.fixture
def reports(monkeypatch) -> list[GraphReport]:
    """What the backend did, one report a graph."""
    found: list[GraphReport] = []
    monkeypatch.setattr(backend, "publish", found.append)
    return found


def kinds(reports: list[GraphReport]) -> Counter[str]:
    """How many regions of each kind."""
    return Counter(kind for report in reports for region in report.regions for kind in region.kinds)


def refusals(reports: list[GraphReport], place: str = "attn_weights") -> list[str]:
    """Codes of what was declined on the lines that make attention's scores."""
    return [m.code for report in reports for m in report.misses if place in linecache.getline(*split(m.where))]


def split(where: str | None) -> tuple[str, int]:
    file, _, line = (where or ":0").rpartition(":")
    return file, int(line)


def run(model: torch.nn.Module, call: Callable[..., Any], inputs: dict[str, Any]) -> dict[str, torch.Tensor | None]:
    """What the call returns and, if it can be differentiated, the gradient of every parameter."""
    model.zero_grad()
    found = call(**inputs)
    outs = {f"output {i}": t for i, t in enumerate(found if isinstance(found, (tuple, list)) else [found])}
    if outs["output 0"].requires_grad:
        sum(o.sum() for o in outs.values()).backward()
        outs |= {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}
    return {name: t if t is None else t.detach() for name, t in outs.items()}


def all_three(model: torch.nn.Module, inputs: dict[str, Any], returned: Callable[[Any], Any],
              compiled: Callable[..., Any] | None = None) -> Iterator[tuple[str, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Name, eager, fused and float64 of everything that has a value. `returned` takes what leaves from what the model gives."""
    wide = copy.deepcopy(model).double()

    def call(**kw):
        return returned(model(**kw))
    eager = run(model, call, inputs)
    got = run(model, compiled or torch.compile(call, backend="fuse", options=OPTIONS), inputs)
    exact = {k: v.double() if isinstance(v, torch.Tensor) and v.is_floating_point() else v for k, v in inputs.items()}
    with Float64(), float64_by_default():
        want = run(wide, lambda **kw: returned(wide(**kw)), exact)
    for name, w in want.items():
        assert (got[name] is None) == (eager[name] is None) == (w is None), name
        if w is not None:
            assert got[name].dtype == eager[name].dtype, name
            yield name, eager[name].double(), got[name].double(), w


def judge(model: torch.nn.Module, inputs: dict[str, Any], returned: Callable[[Any], Any],
          compiled: Callable[..., Any] | None = None, **more: Any) -> None:
    """Each value of its own, relative to its largest entry. Where the truth is 0 (the bias of keys shifts a whole row of
    scores) relative to a millionth of the largest of all. `more` is for the model."""
    found = list(all_three(model, {**inputs, **more}, returned, compiled))
    largest = max(w.abs().max() for *_, w in found)
    for name, e, f, w in found:
        scale = max(w.abs().max(), 1e-6 * largest)
        errors = [float((x - w).abs().max() / scale) for x in (f, e)]
        assert errors[0] <= 2 * errors[1] + SLACK[torch.float32], f"{name}: {errors[0]:.1e}, eager {errors[1]:.1e}"


def made(name: str, dropout: float = 0.0) -> tuple[torch.nn.Module, dict[str, Any]]:
    torch.manual_seed(0)
    return CASES[name].make(dropout).train(), CASES[name].inputs()


def loss_of(out: Any) -> torch.Tensor:
    return out.loss


def logits_of(out: Any) -> torch.Tensor:
    return out.logits


QUICK = ("bert", "t5")
MOSTLY_SLOW = [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in CASES]


@pytest.mark.parametrize("name", CASES)
def test_a_training_step(name, reports, quick_builds, without_aot):  # noqa: F811
    judge(*made(name), loss_of)
    assert kinds(reports)["attention"] == CASES[name].attention and kinds(reports)[HEAD] == CASES[name].head
    assert not refusals(reports) and len(reports) == 1


@pytest.mark.parametrize("name", MOSTLY_SLOW)
def test_inference_in_spite_of_a_dropout(name, reports, quick_builds, without_aot):  # noqa: F811
    """In eval nothing is dropped. The logits are returned, so that they are stored."""
    model, inputs = made(name, 0.5)
    with torch.no_grad():
        judge(model.eval(), {k: v for k, v in inputs.items() if k != "labels" or name == "t5"}, logits_of)
    assert kinds(reports)["attention"] == CASES[name].attention and not kinds(reports)[HEAD]


@pytest.mark.parametrize("name", MOSTLY_SLOW)
def test_a_dropout_of_the_weights_is_declined(name, reports, without_aot):  # noqa: F811
    """Never left out: the numbers are eager's for the same seed, and others for another."""
    model, inputs = made(name, 0.5)
    compiled = torch.compile(lambda **kw: model(**kw).loss, backend="fuse", options=OPTIONS)

    def seeded(call, seed=5):
        def f(**kw):
            torch.manual_seed(seed)
            return call(**kw)
        return f
    got, want = (run(model, seeded(call), inputs) for call in (compiled, lambda **kw: model(**kw).loss))
    torch.testing.assert_close(got, want)
    assert run(model, seeded(compiled, 6), inputs)["output 0"] != got["output 0"]
    assert all(refusals([r]) == ["RANDOM"] * CASES[name].attention for r in reports) and not kinds(reports)["attention"]


@pytest.mark.parametrize("name", MOSTLY_SLOW)
def test_weights_that_are_returned(name, reports, quick_builds, without_aot):  # noqa: F811
    """They have to be stored: nothing to fuse, and the report says so. Swin returns those of the last layer alone."""
    count = []

    def returned(out):
        weights = out.attentions if name != "t5" else (*out.encoder_attentions, *out.decoder_attentions, *out.cross_attentions)
        count.append(len(weights))
        return (out.loss, *weights)
    judge(*made(name), returned, output_attentions=True)
    assert refusals(reports) == ["ESCAPES"] * count[0]
    assert kinds(reports)["attention"] == CASES[name].attention - count[0] and count[0] >= 1


@pytest.mark.parametrize("name", [name for name in MOSTLY_SLOW if "swin" not in getattr(name, "values", ())])
def test_loss_and_logits_as_the_model_returns_them(name, reports, quick_builds, without_aot):  # noqa: F811
    """The logits are stored, the loss is fused all the same; the gradient that arrives at the logits counts."""
    judge(*made(name), lambda out: (out.loss, out.logits))
    assert kinds(reports)[HEAD] == 1 and kinds(reports)["attention"] == CASES[name].attention
    assert not [m for r in reports for m in r.misses if m.code == "ESCAPES"]
    assert "STORED" in [n.code for r in reports for region in r.regions for n in region.notes]


def test_one_compile_for_every_length(reports, quick_builds, without_aot):  # noqa: F811
    model, inputs = made("bert")
    compiled = torch.compile(lambda **kw: model(**kw).loss, backend="fuse", dynamic=True, options=OPTIONS)
    for length in (LENGTH, 34, 47):
        inputs = {"input_ids": ids(length), "attention_mask": padding(length), "labels": ids(length, seed=1)}
        judge(model, inputs, loss_of, compiled=compiled)
    assert kinds(reports) == {"attention": 2, HEAD: 1}


@pytest.mark.parametrize("name", MOSTLY_SLOW)
def test_in_bfloat16(name, reports, quick_builds, without_aot):  # noqa: F811
    """After two layers a rounding is anywhere in a gradient: judged is the length of the error of all of them together."""
    model, inputs = made(name)
    inputs = {k: v.bfloat16() if v.__class__ is torch.Tensor and v.is_floating_point() else v for k, v in inputs.items()}
    found = [(e - w, f - w) for name, e, f, w in all_three(model.bfloat16(), inputs, loss_of)]
    eager, fused = (torch.cat([d.flatten() for d in side]).norm() for side in zip(*found, strict=True))
    assert fused <= 1.5 * eager
    assert kinds(reports)["attention"] == CASES[name].attention


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_under_inductor(name, reports):
    """All of it as users run it."""
    judge(*made(name), loss_of)
    assert kinds(reports)["attention"] == CASES[name].attention
