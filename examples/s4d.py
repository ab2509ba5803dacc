"""Train a small S4D classifier three ways - eager, torch.compile, torch.compile with fuse - and compare them.

    python examples/s4d.py
    python examples/s4d.py --pixels 64 --steps 50 --arms eager,fuse
    python examples/s4d.py --quick

Which digit is it? scikit-learn's handwritten digits, enlarged, as sequences of pixels. The layer is the diagonal state-space
model S4D (arXiv 2206.11893) in plain PyTorch, as its authors write it: the kernel of the convolution is a sum of complex
exponentials of the lag, and the convolution goes through an FFT of twice the length. Nothing is downloaded. Each arm runs
in a fresh process with empty compile caches, the same seed and the same batches. The exit code is 1 if an arm fails or if
its losses are further from eager's than the bound that is printed.
"""
from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

try:
    import torch
    import torch.nn.functional as F
    from sklearn.datasets import load_digits
    from torch import Tensor, nn

    from arms import CONSOLE, Batch, Result, conclude, parsed_or_quick, run, run_in_fresh_process, train
except ImportError as error:
    sys.exit(f"{error}. The example needs more packages than fuse itself: pip install 'torch-fuse[demo]'.")

BOUND = 1e-3  # how far the losses of two arms may be from each other at any step


class S4D(nn.Module):
    """[B, H, L] -> [B, H, L]: H independent systems of N complex states, of which half are stored."""

    def __init__(self, hidden: int, states: int) -> None:
        super().__init__()
        shape = (hidden, states // 2)
        self.log_dt = nn.Parameter(torch.empty(hidden).uniform_(-6.9, -2.3))
        self.C = nn.Parameter(torch.view_as_real(torch.randn(shape, dtype=torch.cfloat)))
        self.log_A_real = nn.Parameter(torch.full(shape, 0.5).log())
        self.A_imag = nn.Parameter(torch.pi * torch.arange(states // 2).repeat(hidden, 1))
        self.D = nn.Parameter(torch.randn(hidden))

    def kernel(self, length: int) -> Tensor:
        """[H, L]: what an input adds to the output so many positions later, by a zero-order hold."""
        A = -torch.exp(self.log_A_real) + 1j * self.A_imag
        dtA = A * self.log_dt.exp()[:, None]
        C = torch.view_as_complex(self.C) * (torch.exp(dtA) - 1) / A
        powers = torch.exp(dtA[..., None] * torch.arange(length, device=A.device))
        return 2 * torch.einsum("hn,hnl->hl", C, powers).real

    def forward(self, u: Tensor) -> Tensor:
        length = u.shape[-1]
        k = torch.fft.rfft(self.kernel(length), n=2 * length)
        y = torch.fft.irfft(torch.fft.rfft(u, n=2 * length) * k, n=2 * length)[..., :length]
        return y + u * self.D[:, None]


class Block(nn.Module):
    def __init__(self, hidden: int, states: int) -> None:
        super().__init__()
        self.norm, self.s4d, self.out = nn.LayerNorm(hidden), S4D(hidden, states), nn.Linear(hidden, 2 * hidden)

    def forward(self, x: Tensor) -> Tensor:
        y = self.s4d(self.norm(x).transpose(1, 2)).transpose(1, 2)
        return x + F.glu(self.out(F.gelu(y)), dim=-1)


class Classifier(nn.Module):
    """Of pixels [B, L, 1] to the loss for digits [B]."""

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(1, options.hidden), nn.Linear(options.hidden, 10)
        self.blocks = nn.Sequential(*(Block(options.hidden, options.states) for _ in range(options.layers)))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self.head(self.blocks(self.embed(x)).mean(dim=1)), y)


def batches(options: argparse.Namespace) -> Iterator[Batch]:
    """Images of 8 x 8 pixels, enlarged, line by line; the same for every arm."""
    places = torch.Generator().manual_seed(1)
    found = load_digits()
    images, labels = torch.from_numpy(found.images).float()[:, None] / 16, torch.from_numpy(found.target).long()
    for _ in range(options.steps):
        chosen = torch.randint(len(labels), (options.batch,), generator=places)
        large = F.interpolate(images[chosen], size=(options.pixels, options.pixels), mode="bilinear")
        yield large.flatten(1)[..., None].to(options.device), labels[chosen].to(options.device)


def train_arm(arm: str, options: argparse.Namespace) -> Result:
    torch.manual_seed(0)
    model = Classifier(options).to(options.device).train()
    return train(arm, model, model.parameters(), batches(options), options)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = {"steps": 6, "batch": 8, "pixels": 32, "hidden": 64, "states": 64, "layers": 2}
    quick = {"steps": 3, "batch": 2, "pixels": 8, "hidden": 8, "states": 4, "layers": 1}
    return parsed_or_quick(parser, sizes, quick, arguments, ("float32",))


def compare(options: argparse.Namespace) -> int:
    CONSOLE.print(f"{options.batch} sequences of {options.pixels**2} pixels a step")
    return conclude({arm: run_in_fresh_process(arm) for arm in options.arms}, BOUND, options)


if __name__ == "__main__":
    sys.exit(run(parse(), compare, train_arm))
