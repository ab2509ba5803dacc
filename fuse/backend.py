"""The torch.compile backend: Dynamo's graph in, a callable out.

    options     checked by name
    find        what amplifies, imported as programs; the rest of the graph is left alone
    plan        passes, then kernels (fuse.runtime.plan)
    splice      the graph is edited in place: one op for each region
    Inductor    compiles what is left

A failure costs one region, with one warning; if Inductor cannot compile the edited graph it gets the untouched one; a
kernel that fails when it is launched is replaced by plain torch. `strict` raises instead.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch.fx import GraphModule, Node

from fuse import private
from fuse.log import FuseError, fail, miss_of
from fuse.options import Options
from fuse.reasons import Miss
from fuse.report import GraphReport, publish

# Higher-order ops whose body runs once where the op stands, under ordinary autograd.
TRANSPARENT = ("tag_activation_checkpoint", "wrap_activation_checkpoint", "wrap", "wrap_with_set_grad_enabled",
               "wrap_with_autocast", "invoke_subgraph")


def fuse(gm: GraphModule, example_inputs: Sequence[Any], *, mode: str | None = None,
         options: dict[str, Any] | None = None) -> Callable[..., Any]:
    """Compiles a Dynamo graph.

    OptionError for an unknown option; FuseError for a failure under `strict`, and if what `require` names is not fused.
    """
    chosen = Options.parse(options, mode)
    spare: list[GraphModule] = []
    report = GraphReport(nodes=len(gm.graph.nodes))
    try:
        escapes: list[Any] = []
        fuse_graph(gm, chosen, lambda: spare.append(private.untouched_copy(gm)), report, escapes)
        _check_required(report, chosen)
        whole = _detached(gm, escapes)
        compiled = whole(finish(gm, example_inputs, chosen, edited=bool(spare)))
    except Exception as error:
        if private.steers_dynamo(error) or isinstance(error, FuseError) or not spare:
            raise
        report.give_up(miss_of(error))
        fail(report.misses[-1], chosen.strict, "The whole graph is compiled without fuse.", error)
        compiled = finish(spare[0], example_inputs, chosen, edited=False)
    publish(report)    # at last: Dynamo may have restarted the analysis
    return compiled


def fuse_graph(gm: GraphModule, options: Options, before_edit: Callable[[], None] = lambda: None,
               report: GraphReport | None = None, escapes: list[Any] | None = None) -> GraphReport:
    """Fuses what can be fused in `gm`, in place, and adds it to the report.

    `before_edit` is called once, if anything is going to change. `escapes` receives the large values of fused regions that
    are outputs of the graph as well.
    """
    report = GraphReport(nodes=len(gm.graph.nodes)) if report is None else report
    escapes = [] if escapes is None else escapes
    planned = [(body, region) for body in bodies(gm) for region in _planned(body, options, report, body is gm)]
    if not planned:
        return report
    from fuse.frontend.splice import splice

    before_edit()
    moved: dict[Node, Node] = {}
    for body, region in planned:
        with report.timed("splice"):
            placed = splice(body.graph, region.inputs, region.exits, region.key, moved=moved, takes=region.takes,
                            gives=region.gives, covered=region.covered)
        if isinstance(placed, Miss):
            report.misses.append(placed)
        else:
            report.regions.append(region.report(body=list(bodies(gm)).index(body), nodes=placed.meta["replaced"]))
            escapes += region.imported.candidate.escapes
    for body in bodies(gm):
        body.recompile()
    return report


def _planned(body: GraphModule, options: Options, report: GraphReport, outermost: bool) -> Iterator[Any]:
    """The regions of one graph that have a plan and kernels; everything else becomes a Miss of the report."""
    from fuse.frontend import find

    try:
        with report.timed("find"):
            found, misses = find(body, options, outermost)
    except Exception as error:
        if private.steers_dynamo(error):
            raise
        found, misses = [], [miss_of(error)]
    for miss in misses:
        fail(miss, options.strict, "What it concerns is left to Inductor.")
    report.misses += misses
    for imported in found:
        from fuse.runtime.plan import plan_region  # only now: a graph in which nothing amplifies loads no sympy

        if options.fuel is not None and report.planned >= options.fuel:
            report.misses.append(Miss("FUEL", imported.where))
            continue
        with report.timed("plan"):
            region = plan_region(imported, options)
        if isinstance(region, Miss):
            report.misses.append(region)
        else:
            report.planned += 1
            yield region


def bodies(gm: GraphModule) -> Iterator[GraphModule]:
    """The graph and the bodies of its transparent higher-order ops, each once."""
    seen, todo = set[int](), [gm]
    while todo:
        module = todo.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        yield module
        for node in module.graph.nodes:
            if node.op == "call_function" and getattr(node.target, "__name__", "") in TRANSPARENT:
                inner = (getattr(module, str(a.target), None) for a in node.all_input_nodes if a.op == "get_attr")
                todo += [m for m in inner if isinstance(m, GraphModule)]


def _detached(gm: GraphModule, escapes: list[Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """What is done around the compiled graph, so that outputs that nobody differentiates cost no gradient."""
    if not escapes:
        return lambda compiled: compiled
    from fuse.frontend.detach import detach

    return detach(gm, escapes)


def finish(gm: GraphModule, example_inputs: Sequence[Any], options: Options, *, edited: bool) -> Callable[..., Any]:
    """Inductor, for everything fuse did not take; on a CPU without a compiler for it, PyTorch as it is."""
    from fuse.runtime.inductor import patches

    if private.lacks_compiler(example_inputs):
        fail(Miss("NO_COMPILER"), options.strict, "The rest runs op by op.")
        return gm.forward
    return private.inductor(gm, example_inputs, patches(options, edited=edited))


def _check_required(report: GraphReport, options: Options) -> None:
    fused = {kind for region in report.regions for kind in region.kinds}
    missing = [kind for kind in options.require if kind not in fused]
    if missing:
        why = [f"  {miss}" for miss in report.misses] or ["  nothing in this graph looks like it; is there a graph break?"]
        raise FuseError("\n".join([f"fuse: required but not fused: {', '.join(missing)}", *why]))


def reset() -> None:
    """Called by torch._dynamo.reset()."""
    import sys

    ops = sys.modules.get("fuse.runtime.ops")
    if ops is not None:
        ops.trim()


private.capture_row_selections()
private.ignore_what_is_logged_once()
fuse.reset = reset  # type: ignore[attr-defined]
