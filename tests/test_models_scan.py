"""State-space models and recurrences inside real models: transformers' own code, built from small configurations.

Each layer's recurrence is one region and the head with its loss another; the loss and the gradient of every parameter are
judged by float64, as in test_models_attention.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from tests.plain import quick_builds, without_aot  # noqa: F401 (fixtures)
from tests.test_models_attention import HEAD, OPTIONS, WORDS, all_three, ids, judge, kinds, loss_of, reports  # noqa: F401

transformers = pytest.importorskip("transformers")

LENGTH = 11
SMALL = {"vocab_size": WORDS, "hidden_size": 16, "num_hidden_layers": 2, "use_cache": False}


@dataclass(frozen=True)
class Case:
    """`scans` and `attention`: the regions that the layers become. `decay`: what names the parameters of the decay. `gain`: of
    the weights; transformers' own are so small that next to nothing would depend on the states."""

    make: Callable[[], torch.nn.Module]
    scans: int = 2
    attention: int = 0
    decay: str = "A_log"
    gain: float = 0.5


def mamba() -> torch.nn.Module:
    return transformers.MambaForCausalLM(transformers.MambaConfig(**SMALL, state_size=4, time_step_rank=3))


def falcon_mamba() -> torch.nn.Module:
    return transformers.FalconMambaForCausalLM(transformers.FalconMambaConfig(**SMALL, state_size=4, time_step_rank=3))


def jamba() -> torch.nn.Module:
    """A state-space layer and one of attention."""
    return transformers.JambaForCausalLM(transformers.JambaConfig(
        **SMALL, intermediate_size=24, num_attention_heads=4, num_key_value_heads=2, mamba_d_state=4, mamba_dt_rank=3,
        attn_layer_period=2, attn_layer_offset=1, num_experts=1, num_experts_per_tok=1, attn_implementation="eager"))


def zamba() -> torch.nn.Module:
    """Two heads with a scan each; every other layer has attention besides, whose weights are shared."""
    return transformers.ZambaForCausalLM(transformers.ZambaConfig(
        **SMALL | {"num_hidden_layers": 4}, intermediate_size=24, num_attention_heads=8, num_key_value_heads=8,
        attention_head_dim=4, mamba_d_state=4, mamba_dt_rank=3, n_mamba_heads=2,
        layers_block_type=["mamba", "hybrid", "mamba", "hybrid"], attn_implementation="eager"))


def recurrent_gemma() -> torch.nn.Module:
    """A Python loop over positions, whose input goes through a custom autograd.Function."""
    return transformers.RecurrentGemmaForCausalLM(transformers.RecurrentGemmaConfig(
        **SMALL, intermediate_size=48, num_attention_heads=2, lru_width=16, attention_window_size=8,
        block_types=["recurrent", "recurrent"]))


CASES = {
    "mamba": Case(mamba, gain=1.0),
    "falcon-mamba": Case(falcon_mamba),
    "jamba": Case(jamba, scans=1, attention=1),
    "zamba": Case(zamba, scans=8, attention=2),
    "recurrent-gemma": Case(recurrent_gemma, decay="recurrent_param"),
}
QUICK = ("mamba", "recurrent-gemma")
MOSTLY_SLOW = [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in CASES]


def made(name: str) -> tuple[torch.nn.Module, dict[str, Any]]:
    torch.manual_seed(0)
    model = CASES[name].make().train()
    for path, p in model.named_parameters():
        if p.dim() > 1 and not path.endswith("A_log"):
            torch.nn.init.normal_(p, std=CASES[name].gain * p.shape[-1] ** -0.5)
    return model, {"input_ids": ids(LENGTH), "labels": ids(LENGTH)}


def counts(name: str) -> dict[str, int]:
    found = {"scan": CASES[name].scans, "attention": CASES[name].attention, HEAD: 1}
    return {kind: n for kind, n in found.items() if n}


@pytest.mark.parametrize("name", MOSTLY_SLOW)
def test_a_training_step(name, reports, quick_builds, without_aot):  # noqa: F811
    model, inputs = made(name)
    judge(model, inputs, loss_of)
    gradients = {path: p.grad.abs().max() for path, p in model.named_parameters() if p.grad is not None}
    decays = [g for path, g in gradients.items() if path.endswith(CASES[name].decay)]
    assert decays and min(decays) > 1e-5 * max(gradients.values())      # what judge counts as 0 is a tenth of that
    assert kinds(reports) == counts(name) and len(reports) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_in_bfloat16(name, reports, quick_builds, without_aot):  # noqa: F811
    """Judged is the length of the error of all gradients together."""
    model, inputs = made(name)
    found = [(e - w, f - w) for _, e, f, w in all_three(model.bfloat16(), inputs, loss_of)]
    eager, fused = (torch.cat([d.flatten() for d in side]).norm() for side in zip(*found, strict=True))
    assert fused <= 1.5 * eager
    assert kinds(reports) == counts(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_under_inductor(name, reports):  # noqa: F811
    """All of it as users run it."""
    judge(*made(name), loss_of)
    assert kinds(reports) == counts(name)


def mamba2() -> torch.nn.Module:
    return transformers.Mamba2ForCausalLM(transformers.Mamba2Config(
        **SMALL, state_size=4, num_heads=4, head_dim=8, n_groups=2, chunk_size=8))


@pytest.mark.slow
def test_chunks_are_declined(reports, without_aot):  # noqa: F811
    """Mamba-2 as transformers writes it multiplies chunks by each other: no scan, and the report says why."""
    torch.manual_seed(0)
    judge(mamba2().train(), {"input_ids": ids(19), "labels": ids(19)}, loss_of)
    assert kinds(reports) == {HEAD: 1}
    assert [m.code for r in reports for m in r.misses if " of G" in str(m.detail)] == ["EXITS_TOO_BIG"] * 2
