"""Train a small Mamba three ways - eager, torch.compile, torch.compile with fuse - and compare them.

    python examples/mamba.py
    python examples/mamba.py --seq 512 --steps 50 --arms eager,fuse
    python examples/mamba.py --quick

The model is transformers' own MambaForCausalLM, made from a configuration; it predicts the next byte of the text that every
Python carries. Nothing is downloaded. Each arm runs in a fresh process with empty compile caches, the same seed and the
same batches. The exit code is 1 if an arm fails or if its losses are further from eager's than the bound that is printed.
"""
from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

try:
    import torch
    import transformers

    from arms import CONSOLE, Batch, Result, conclude, parsed_or_quick, run, run_in_fresh_process, train
    from corpus import load_bytes
except ImportError as error:
    sys.exit(f"{error}. The example needs more packages than fuse itself: pip install 'torch-fuse[demo]'.")

BOUND = 1e-3  # how far the losses of two arms may be from each other at any step
TEXT = 400_000  # bytes of it


def build_model(options: argparse.Namespace) -> torch.nn.Module:
    transformers.logging.set_verbosity_error()
    config = transformers.MambaConfig(vocab_size=256, hidden_size=options.hidden, state_size=options.states,
                                      num_hidden_layers=options.layers, use_cache=False)
    return transformers.MambaForCausalLM(config).to(options.device).train()


def batches(options: argparse.Namespace) -> Iterator[Batch]:
    """[batch, seq] windows of the text, at the same places for every arm."""
    places = torch.Generator().manual_seed(1)
    text = torch.from_numpy(load_bytes(TEXT).copy()).long()
    for _ in range(options.steps):
        starts = torch.randint(len(text) - options.seq, (options.batch,), generator=places)
        yield (torch.stack([text[start : start + options.seq] for start in starts.tolist()]).to(options.device),)


def train_arm(arm: str, options: argparse.Namespace) -> Result:
    torch.manual_seed(0)
    model = build_model(options)

    def loss_of(x: torch.Tensor) -> torch.Tensor:
        return model(input_ids=x, labels=x).loss  # only the loss leaves: what leaves has to be stored

    return train(arm, loss_of, model.parameters(), batches(options), options)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = {"steps": 6, "batch": 4, "seq": 256, "hidden": 128, "states": 16, "layers": 2}
    quick = {"steps": 3, "batch": 2, "seq": 12, "hidden": 16, "states": 4, "layers": 1}
    return parsed_or_quick(parser, sizes, quick, arguments, ("float32",))


def compare(options: argparse.Namespace) -> int:
    CONSOLE.print(f"{options.batch} sequences of {options.seq} bytes a step")
    return conclude({arm: run_in_fresh_process(arm) for arm in options.arms}, BOUND, options)


if __name__ == "__main__":
    sys.exit(run(parse(), compare, train_arm))
