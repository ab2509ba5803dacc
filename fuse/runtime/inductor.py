"""What fuse tells Inductor about a graph it has edited: config patches and two passes of the graph.

Stamp          does nothing. Its uuid enters the keys of AOTAutograd's and Inductor's caches, which see neither the
               backward of a library op nor fuse's own source and would otherwise reuse a gradient from before a change.
SoftmaxGuard   softmax(x) -> -(-softmax(x)), bit for bit the same, wherever a contraction may read it. Before torch
               2.15 Inductor rewrites softmax(q k) v to scaled_dot_product_attention without looking at the axis of the
               softmax or at what a mask fills in (pytorch#196468, #195320). No config switches that off alone, but its
               patterns do not see through the double negation.
"""
from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from fuse.options import Options
from fuse.private import CustomGraphPass, inductor_config, mode_patches

aten = torch.ops.aten


@cache
def sources_digest() -> str:
    """Hash of fuse's own source files."""
    import fuse

    digest = hashlib.sha256()
    home = Path(fuse.__file__).parent
    roots = [home, *(Path(p) / name for p in fuse.__path__ for name in ("passes", "codegen") if Path(p) != home)]
    for path in sorted(p for root in roots for p in root.rglob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


class Stamp(CustomGraphPass):
    """A pass that does nothing but be part of the key."""

    def __init__(self, options: Options):
        self.options = options

    def __call__(self, graph: torch.fx.Graph) -> None:
        return None

    def uuid(self) -> str:
        return f"fuse-{sources_digest()}-{self.options.digest}"


class SoftmaxGuard(CustomGraphPass):
    """Keeps Inductor's attention patterns from matching."""

    def __call__(self, graph: torch.fx.Graph) -> None:
        for node in graph.find_nodes(op="call_function", target=aten.div.Tensor):
            above, below = node.args
            if getattr(above, "target", None) is aten.exp.default and above in getattr(below, "all_input_nodes", ()) \
                    and below.target is aten.sum.dim_IntList:
                _negate_twice(graph, node)

    def uuid(self) -> str:
        return "fuse-softmax-guard-1"


def _negate_twice(graph: torch.fx.Graph, node: torch.fx.Node) -> None:
    with graph.inserting_after(node):
        once = graph.call_function(aten.neg.default, (node,))
    with graph.inserting_after(once):
        twice = graph.call_function(aten.neg.default, (once,))
    kept = ("val", "tensor_meta", "stack_trace", "partitioner_tag")
    for new in (once, twice):
        new.meta.update({k: v for k, v in node.meta.items() if k in kept})
    node.replace_all_uses_with(twice, delete_user_cb=lambda user: user is not once)


def needs_softmax_guard() -> bool:
    return tuple(map(int, torch.__version__.split(".")[:2])) < (2, 15)


def patches(options: Options, *, edited: bool) -> dict[str, Any]:
    """The config patches for compile_fx: the user's mode, the guard, and the stamp if the graph was edited."""
    out, config = mode_patches(options.mode), inductor_config()
    if edited:
        out["post_grad_custom_post_pass"] = after(config.post_grad_custom_post_pass, Stamp(options))
    if needs_softmax_guard():
        out["joint_custom_pre_pass"] = after(config.joint_custom_pre_pass, SoftmaxGuard())
    return out


def after(users: Any, ours: CustomGraphPass) -> Any:
    """The user's own pass or passes, then ours."""
    if users is None:
        return ours
    if isinstance(users, (list, tuple)):
        return [*users, ours]
    return _Chain([users, ours])


class _Chain(CustomGraphPass):
    """Several passes as one: torch 2.11 and 2.12 take no list. No uuid, hence no caching, unless every pass has one."""

    def __init__(self, passes: Sequence[Any]):
        self.passes = passes

    def __call__(self, graph: torch.fx.Graph) -> None:
        for each in self.passes:
            each(graph)

    def uuid(self) -> Any:
        ids = [each.uuid() if hasattr(each, "uuid") else None for each in self.passes]
        return None if None in ids else tuple(ids)
