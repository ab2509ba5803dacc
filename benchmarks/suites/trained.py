"""The last hidden states of a model that has been trained for a while: a distribution over words as users have it.

The model and the text are those of examples/train_lm.py, which needs `pip install 'torch-fuse[demo]'`. Training takes minutes
on a CPU; what it leaves is kept in the user's cache folder.
"""
from __future__ import annotations

import json
import os
import sys
from argparse import Namespace
from pathlib import Path

import torch

from benchmarks.arms import Absent
from benchmarks.cases import Sizes
from benchmarks.measure import child

ROOT = Path(__file__).parents[2]
EXAMPLES = str(ROOT / "examples")      # behind benchmarks: both have an arms.py
BATCH = 8
SIZES = {"cpu": {"N": 2048, "d": 256, "V": 32000, "steps": 300}, "cuda": {"N": 16384, "d": 256, "V": 32000, "steps": 1000},
         "quick": {"N": 512, "d": 256, "V": 32000, "steps": 20}, "tiny": {"N": 32, "d": 64, "V": 256, "steps": 2}}


def inputs(sizes: Sizes) -> list[torch.Tensor]:
    """Last hidden states, the head's weight and the next words: [N, d], [V, d] and [N]. Absent without the demo's packages."""
    sys.path.append(EXAMPLES)
    from corpus import cache_folder

    kept = cache_folder() / f"trained-{'-'.join(f'{n}{v}' for n, v in sizes.items())}.pt"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        try:
            child(__file__, [str(kept), json.dumps(dict(sizes))], PYTHONPATH=str(ROOT))
        except RuntimeError as error:
            raise Absent(str(error).strip().splitlines()[-1]) from error
    loaded: list[torch.Tensor] = torch.load(kept, weights_only=True)
    return loaded


def states(sizes: Sizes) -> list[torch.Tensor]:
    """Trains on all batches but the last, which is what the trained model then sees."""
    sys.path.append(EXAMPLES)
    import corpus
    import train_lm

    words = sizes["V"]
    tokens = corpus.load_bytes(1 << 16) if words <= 256 else corpus.load_tokens(words)
    options = Namespace(hidden=sizes["d"], layers=4, seq=sizes["N"] // BATCH, batch=BATCH, steps=sizes["steps"], device="cpu",
                        dtype="float32")
    torch.manual_seed(0)
    model = train_lm.build_model(options, words)
    *seen, last = train_lm.batches(options, torch.from_numpy(tokens).long())
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    loss_of = torch.compile(train_lm.loss_function(model), backend="fuse")
    for x in seen:
        loss_of(x).backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        hidden = model.model(input_ids=last, use_cache=False).last_hidden_state
    return [hidden.flatten(0, 1), model.lm_head.weight.detach(), last.roll(-1, 1).flatten()]


if __name__ == "__main__":
    path = Path(sys.argv[1])
    torch.save(states(json.loads(sys.argv[2])), path.with_suffix(f".{os.getpid()}"))
    os.replace(path.with_suffix(f".{os.getpid()}"), path)
    print("null")
