"""transformers' Trainer over a compiled model, and adapters on its head: what is trained is what eager mode trains."""
from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from tests.plain import quick_builds, without_inductor  # noqa: F401 (fixtures)
from tests.test_forms import error

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytestmark = pytest.mark.slow

WORDS, LENGTH = 97, 21
OPTIONS = {"min_virtual_bytes": 0, "strict": True, "require": ["softmax-over-vocabulary"]}


def tiny() -> torch.nn.Module:
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=WORDS, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=48,
        max_position_embeddings=64, use_cache=False, pad_token_id=0, bos_token_id=1, eos_token_id=2))


def rows() -> list[dict[str, Any]]:
    """Every row counts another number of labels, so that the mean over accumulated batches is not the mean of their means."""
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(3, WORDS, (8, LENGTH), generator=g)
    labels = ids.clone()
    for i, row in enumerate(labels):
        row[:2 * i] = -100
    return [{"input_ids": i, "labels": y} for i, y in zip(ids, labels, strict=True)]


def trained(model: torch.nn.Module, folder: Any, **settings: Any) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The losses that the Trainer logs, and the parameters after its steps."""
    args = transformers.TrainingArguments(
        output_dir=str(folder), max_steps=2, per_device_train_batch_size=2, use_cpu=True, report_to=[], save_strategy="no",
        learning_rate=1.0, lr_scheduler_type="constant", logging_steps=1, disable_tqdm=True, dataloader_pin_memory=False,
        optim="sgd", max_grad_norm=0.0, **settings)
    trainer = transformers.Trainer(model=model, args=args, train_dataset=rows())
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return losses, {n: p.detach().clone() for n, p in model.named_parameters()}


@pytest.mark.parametrize("settings, digits", [
    ({"gradient_accumulation_steps": 2}, 2.0 ** -18),
    ({"gradient_accumulation_steps": 2, "gradient_checkpointing": True}, 2.0 ** -18),
    ({"bf16": True}, 2.0 ** -6)], ids=["accumulation", "checkpointing", "bfloat16"])
def test_the_trainer(settings, digits, tmp_path, quick_builds, without_inductor):  # noqa: F811
    first, model = tiny(), tiny()
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    model.compile(backend="fuse", options=OPTIONS)
    counters.clear()
    losses, params = trained(model, tmp_path, **settings)
    want_losses, want = trained(first, tmp_path, **settings)
    assert counters["fuse"]["fused"] > 0
    assert len(losses) == 2 and losses == pytest.approx(want_losses, rel=digits)
    for name, value in want.items():
        assert error(params[name] - start[name], value - start[name]) < 8 * digits, name


def adapted(model: torch.nn.Module) -> torch.nn.Module:
    peft = pytest.importorskip("peft")
    torch.manual_seed(1)
    found = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=8, target_modules=["lm_head", "q_proj"]))
    for name, p in found.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.1)      # zeros would make the gradient of lora_A zero
    return found


def test_an_adapter_on_the_head(quick_builds, without_inductor):  # noqa: F811
    model = adapted(tiny())
    other = copy.deepcopy(model)
    batch = {k: torch.stack([r[k] for r in rows()]) for k in ("input_ids", "labels")}
    torch.compile(model, backend="fuse", options=OPTIONS)(**batch).loss.backward()
    other(**batch).loss.backward()
    grads = {n: p.grad for n, p in model.named_parameters()}
    assert sum("lm_head.lora" in n and g is not None for n, g in grads.items()) == 2
    for name, p in other.named_parameters():
        assert (p.grad is None) == (grads[name] is None), name
        assert p.grad is None or error(grads[name], p.grad) < 2.0 ** -18, name
