"""Train a small Llama three ways - eager, torch.compile, torch.compile with fuse - and compare speed, memory and loss.

    python examples/train_lm.py
    python examples/train_lm.py --device cuda --dtype bfloat16 --batch 16 --seq 1024
    python examples/train_lm.py --arms eager,fuse --steps 50 --json result.json

The model is transformers' own LlamaForCausalLM, made from a configuration; the text is what every Python carries.
Nothing is downloaded. Each arm runs in a fresh process with empty compile caches, the same seed and the same batches,
so that its peak memory and its compile time are its own.
"""
from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict

try:
    import torch
    import transformers

    from arms import CONSOLE, MIB, Result, add_arguments, checked, print_results, run, run_in_fresh_process, settings, train
    from corpus import load_tokens
except ImportError as error:
    sys.exit(f"{error}. The demo needs more packages than fuse itself: pip install 'torch-fuse[demo]', or `make demo`.")

VOCABULARY = 32_000


def build_model(options: argparse.Namespace, vocabulary: int = VOCABULARY) -> torch.nn.Module:
    transformers.logging.set_verbosity_error()
    config = transformers.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=options.hidden,
        intermediate_size=options.hidden * 8 // 3,
        num_hidden_layers=options.layers,
        num_attention_heads=max(1, options.hidden // 64),
        max_position_embeddings=options.seq,
        attn_implementation="sdpa",
    )
    model = transformers.LlamaForCausalLM(config)
    return model.to(options.device, getattr(torch, options.dtype)).train()


def batches(options: argparse.Namespace, tokens: torch.Tensor) -> Iterator[torch.Tensor]:
    """[batch, seq] windows of the corpus, at the same places for every arm."""
    places = torch.Generator().manual_seed(1)
    for _ in range(options.steps):
        starts = torch.randint(len(tokens) - options.seq, (options.batch,), generator=places)
        yield torch.stack([tokens[start : start + options.seq] for start in starts.tolist()]).to(options.device)


def loss_function(model: torch.nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    def loss_of(x: torch.Tensor) -> torch.Tensor:
        # Only the loss leaves: what leaves a compiled function has to be stored, and the logits are the largest value.
        return model(input_ids=x, labels=x, use_cache=False).loss

    return loss_of


def step() -> tuple[Callable[[torch.Tensor], torch.Tensor], tuple[torch.Tensor]]:
    """What is compiled, for `fuse inspect examples/train_lm.py:step`."""
    options = parse([])
    tokens = torch.randint(VOCABULARY, (options.batch, options.seq), device=options.device)
    return loss_function(build_model(options)), (tokens,)


def train_arm(arm: str, options: argparse.Namespace) -> Result:
    torch.manual_seed(0)
    model = build_model(options)
    tokens = torch.from_numpy(load_tokens(VOCABULARY)).long()
    return train(arm, loss_function(model), model.parameters(), ((x,) for x in batches(options, tokens)), options)


def compare(options: argparse.Namespace) -> int:
    rows, logits = options.batch * options.seq, options.batch * options.seq * VOCABULARY * 4
    CONSOLE.print(f"{rows} tokens x {VOCABULARY} words a step: the logits alone are {logits / MIB:.0f} MiB in float32.")
    load_tokens(VOCABULARY)
    results = {arm: result for arm in options.arms if (result := run_in_fresh_process(arm))}
    if results:
        print_results(results)
    if options.json:
        versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        arms = {arm: asdict(result) for arm, result in results.items()}
        options.json.write_text(json.dumps({"settings": settings(options), "versions": versions, "arms": arms}, indent=1))
    return 0 if len(results) == len(options.arms) else 1


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = {"steps": 12, "batch": 8, "seq": 256, "hidden": 256, "layers": 4}
    add_arguments(parser, sizes)
    return checked(parser, parser.parse_args(arguments), sizes)


if __name__ == "__main__":
    sys.exit(run(parse(), compare, train_arm))
