"""Library matrix products with float32 accumulation: slab[batch, m, k] times right[batch, k, n], or its sum over k."""
from __future__ import annotations

import torch
from torch import Tensor


def multiply(left: Tensor, right: Tensor | None, out: Tensor) -> None:
    """out = left @ right in out's element type, accumulated in float32; `right` None stands for ones."""
    if right is None:
        out.copy_(left.sum(2, keepdim=True, dtype=torch.float32))
    elif left.dtype == right.dtype == out.dtype:
        torch.bmm(left, right, out=out)
    else:
        out.copy_(product(left, right))


def accumulate(total: Tensor, left: Tensor, right: Tensor | None) -> None:
    """total += left @ right, total being float32."""
    if right is None:
        total += left.sum(2, keepdim=True, dtype=torch.float32)
    elif left.dtype == right.dtype == torch.float32:
        total.baddbmm_(left, right)
    else:
        total += product(left, right)


def product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right as float32, without rounding the result to the operands' type where the library can do that."""
    if not left.is_cuda or left.dtype != right.dtype:
        return left.float() @ right.float()
    if torch.version.hip is None:
        return torch.bmm(left, right, out_dtype=torch.float32)
    return torch.bmm(left, right).float()
