"""The private parts of torch that fuse relies on, all in one place. Checked on torch 2.13.

    torch._dynamo.exc                            exceptions that steer Dynamo and must pass through
    torch._dynamo.utils.counters                 where torch's users look for counts
    OptimizedModule._orig_mod,                   what torch.compile was given
    _torchdynamo_orig_callable
    torch._dynamo.config.capture_dynamic_output_shape_ops    rows chosen by a mask stay in the graph         2.0
    torch._dynamo.config.ignore_logging_functions            a warning that is logged once does not end a graph
    torch._inductor.compile_fx.compile_fx        compiles what fuse did not take
    torch._inductor.list_mode_options            translates torch.compile's mode
    torch._inductor.cpp_builder.get_cpp_compiler whether Inductor can compile for the CPU at all
    torch._inductor.custom_graph_pass            a pass whose uuid enters the cache keys
    torch._inductor.config                       a user's own custom passes, to run beside ours
    torch._C._AutoDispatchBelowAutograd,         calls the op below autograd, as register_autograd does, where
    _ExcludeDispatchKeyGuard                     nothing is known to be a view either
    torch._C._DisableAutocast                    ambient autocast must not reach into fuse's own torch operations
    GraphModule.compile_subgraph_reason          why and where Dynamo ended a graph
    torch._assert_async                          an index out of range is found on the device
    torch._C._len_torch_function_stack           modes that may change what a function means
    torch._guards.tracing                        a trace of one node must not meet AOTAutograd's fake mode
    torch.fx.experimental.proxy_tensor           make_fx, which also records ops whole (pre_dispatch)
    torch._ops.OpOverload, HigherOrderOperator   what the target of a node is
    OpOverload._schema, _overloadname            its name, its arguments and which of them it writes to
    UntypedStorage._cdata                        which tensors share memory
    torch._logging.trace_structured              the report in tlparse
    GraphModule._param_name_to_source,           lost by deepcopy, wanted by AOTAutograd
    _source_to_user_stacks, Node._dynamo_source

Dynamo's own calls that enter and leave autocast, grad modes and torch.func levels are known by name in frontend/context.py.
"""
from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from torch._dynamo.exc import BackendCompilerFailed, TorchDynamoException
from torch._dynamo.utils import counters as torch_counters
from torch._inductor.custom_graph_pass import CustomGraphPass as _CustomGraphPass
from torch.fx import GraphModule

without_autocast = torch._C._DisableAutocast
_views = torch._C.DispatchKeySet(torch._C.DispatchKey.ADInplaceOrView)
OpOverload = torch._ops.OpOverload
HigherOrderOperator = torch._ops.HigherOrderOperator
CustomGraphPass = _CustomGraphPass
assert_on_device = torch._assert_async


@contextlib.contextmanager
def below_autograd() -> Iterator[None]:
    """No derivatives are recorded, and no views: what is made in here may be changed in place as a tensor of its own."""
    with torch._C._AutoDispatchBelowAutograd(), torch._C._ExcludeDispatchKeyGuard(_views):
        yield


def memory_of(tensor: torch.Tensor) -> int:
    """Identity of the memory behind a tensor, equal for views of each other; -1 for a subclass that has none of its own."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):
        return -1


def schema_of(op: OpOverload) -> torch.FunctionSchema:
    return op._schema


def overload_of(op: OpOverload) -> tuple[str, str]:
    """('sum', 'dim_IntList') for aten.sum.dim_IntList."""
    return op._schema.name.split("::")[-1], op._overloadname


def function_modes() -> int:
    """How many torch function modes are active."""
    return int(torch._C._len_torch_function_stack())


def trace_node(function: Callable[..., Any], inputs: Sequence[Any], mode: Any) -> GraphModule:
    """The pre-dispatch ATen graph of `function(*inputs)` in the fake mode `mode`; composite ops stay whole.

    Sizes are compared as they were when Dynamo traced the same call: no guard is added.
    """
    from torch._guards import tracing
    from torch.fx.experimental.proxy_tensor import make_fx

    with contextlib.ExitStack() as stack:
        stack.enter_context(tracing(None))
        if mode.shape_env is not None:
            stack.enter_context(mode.shape_env.suppress_guards())
            stack.enter_context(mode.shape_env.ignore_fresh_unbacked_symbols())
        stack.enter_context(mode)
        return make_fx(function, tracing_mode="symbolic", pre_dispatch=True)(*inputs)


def steers_dynamo(error: BaseException) -> bool:
    """True for exceptions with which Dynamo controls itself (restart, skip the frame, shorten a traceback)."""
    return isinstance(error, TorchDynamoException) and not isinstance(error, BackendCompilerFailed)


def capture_row_selections() -> None:
    """Lets Dynamo record `h[mask]`: left at its default it would cut the graph between a head and its loss there."""
    import torch._dynamo

    torch._dynamo.config.capture_dynamic_output_shape_ops = True


def ignore_what_is_logged_once() -> None:
    """Leaves transformers' `logger.warning_once` out of graphs: it would cut GPT-2's between its head and its loss."""
    import logging

    import torch._dynamo

    once = getattr(logging.Logger, "warning_once", None)
    ignored = getattr(torch._dynamo.config, "ignore_logging_functions", None)    # absent from older torch
    if once is not None and ignored is not None:
        ignored.add(once)


def counters() -> Any:
    return torch_counters["fuse"]


def graph_breaks() -> dict[str, int]:
    """Reasons for graph breaks so far, with counts."""
    return dict(torch_counters["graph_break"])


def break_after(gm: GraphModule) -> dict[str, str]:
    """{why: the user's file:line} of the graph break that ended `gm`, if one did."""
    reason = getattr(gm, "compile_subgraph_reason", None)
    if reason is None or not reason.graph_break or not reason.user_stack:
        return {}
    frame = reason.user_stack[-1]
    return {reason.reason: f"{frame.filename}:{frame.lineno}"}


def uncompiled(fn: Any) -> Any:
    """The function or module behind torch.compile's wrapper."""
    return getattr(fn, "_orig_mod", None) or getattr(fn, "_torchdynamo_orig_callable", None) or fn


def inductor_config() -> Any:
    from torch._inductor import config

    return config


def mode_names() -> list[str]:
    from torch._inductor import list_mode_options

    return list(list_mode_options())


def mode_patches(mode: str | None) -> dict[str, Any]:
    """Inductor's config for a mode of torch.compile."""
    if mode is None:
        return {}
    from torch._inductor import list_mode_options

    return dict(list_mode_options(mode))


def inductor(gm: GraphModule, example_inputs: Sequence[Any], patches: dict[str, Any]) -> Callable[..., Any]:
    from torch._inductor.compile_fx import compile_fx

    return cast(Callable[..., Any], compile_fx(gm, example_inputs, config_patches=patches))


def lacks_compiler(example_inputs: Sequence[Any]) -> bool:
    """True if everything lives on the CPU and Inductor finds no C++ compiler."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    if {x.device.type for x in example_inputs if isinstance(x, torch.Tensor)} != {"cpu"}:
        return False
    try:
        return not get_cpp_compiler()
    except (InvalidCxxCompiler, OSError):
        return True


def untouched_copy(gm: GraphModule) -> GraphModule:
    """A deep copy that keeps what Dynamo attached to the module and to its placeholders."""
    twin = copy.deepcopy(gm)
    for name in ("_param_name_to_source", "_source_to_user_stacks"):
        if hasattr(gm, name):
            setattr(twin, name, getattr(gm, name))
    for old, new in zip(gm.graph.find_nodes(op="placeholder"), twin.graph.find_nodes(op="placeholder"), strict=True):
        if hasattr(old, "_dynamo_source"):
            new._dynamo_source = old._dynamo_source
    return twin


def trace_artifact(name: str, payload: Callable[[], dict[str, Any]]) -> None:
    """An artifact for TORCH_TRACE and tlparse; free when nobody listens."""
    from torch._logging import trace_structured  # type: ignore[attr-defined]

    trace_structured("artifact", metadata_fn=lambda: {"name": name, "encoding": "json"},
                     payload_fn=lambda: json.dumps(payload()))
