"""Where the op is placed in Dynamo's graph, what is removed, and what must not be."""
from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fuse.frontend.splice import find_place, mutated, splice
from fuse.reasons import Miss

N, V, D = 5, 11, 3


def capture(fn, *args):
    """Dynamo's graph of fn, with its metadata."""
    caught = []

    def keep(gm, _):
        caught.append(gm)
        return gm.forward
    torch.compile(fn, backend=keep, fullgraph=True)(*args)
    gm, = caught
    return gm


def head():
    return torch.randn(N, D, requires_grad=True), torch.randn(V, D, requires_grad=True), torch.randint(0, V, (N,))


def nodes(gm, *names):
    table = {n.name: n for n in gm.graph.nodes}
    return [table[n] for n in names]


def call_of(gm, target):
    return next(n for n in gm.graph.nodes if n.target in (target, getattr(target, "__name__", "")))


def loss_region(gm):
    """(inputs, exits) of linear + cross_entropy."""
    exit_ = call_of(gm, F.cross_entropy)
    linear = call_of(gm, torch._C._nn.linear)
    return [*linear.args[:2], exit_.args[1]], [exit_]


def targets(gm):
    return [getattr(n.target, "__name__", str(n.target)) for n in gm.graph.nodes if n.op.startswith("call")]


def spliced(fn, *args):
    gm = capture(fn, *args)
    result = splice(gm.graph, *loss_region(gm), key="k")
    gm.graph.lint()
    return gm, result


def test_the_call_takes_the_place_of_the_region():
    gm, call = spliced(lambda h, W, y: F.cross_entropy(F.linear(h * 2, W), y) + 1, *head())
    assert targets(gm) == ["mul", "forward.default", "getitem", "add"] or "forward" in targets(gm)[1]
    item = next(iter(call.users))
    value = item.meta["example_value"]
    assert value.shape == () and value.fake_mode is gm.graph.find_nodes(op="placeholder")[0].meta["example_value"].fake_mode
    assert call.meta["stack_trace"] and all(n.meta.get("stack_trace", "") is not None for n in gm.graph.nodes)


def test_an_input_that_another_region_has_taken_is_refused():
    gm = capture(lambda h, W, y: F.cross_entropy(F.linear(h.cos(), W), y), *head())
    inputs, exits = loss_region(gm)
    (cosine,) = nodes(gm, "cos")
    before = gm.graph.python_code("self").src
    other = gm.graph.call_function(torch.cos, (cosine.args[0],))
    gm.graph.erase_node(other)
    miss = splice(gm.graph, [*inputs, other], exits, key="k")
    assert isinstance(miss, Miss) and miss.code == "OTHER_USER" and "another region" in str(miss)
    assert gm.graph.python_code("self").src == before


def test_what_is_read_by_others_stays():
    gm, _ = spliced(lambda h, W, y: (F.cross_entropy(F.linear(h, W), y.clamp(max=3)), y.clamp(max=3) + 1), *head())
    assert targets(gm).count("clamp") == 2


def test_a_logits_reader_keeps_the_logits():
    def fn(h, W, y):
        logits = F.linear(h, W)
        return F.cross_entropy(logits, y), logits.relu()
    gm, _ = spliced(fn, *head())
    assert "linear" in targets(gm) and "cross_entropy" not in targets(gm)


def test_the_call_goes_before_a_write_to_an_input():
    def fn(h, W, y):
        x = h * 2
        logits = F.linear(x, W)
        x.add_(1)
        return F.cross_entropy(logits, y) + x.sum()
    gm, call = spliced(fn, *head())
    order = [n.target for n in gm.graph.nodes]
    assert order.index(call.target) < order.index("add_")


def test_a_write_between_is_refused():
    def fn(h, W, y):
        x = h * 2
        logits = F.linear(x, W)
        x.add_(1)
        return F.cross_entropy(logits, y + x.sum().long() * 0)
    gm = capture(fn, *head())
    before = str(gm.graph)
    miss = splice(gm.graph, *loss_region(gm), key="k")
    assert isinstance(miss, Miss) and miss.code == "MUTATION" and __file__ in miss.where
    assert str(gm.graph) == before


def test_a_write_through_a_view_counts():
    def fn(h, W, y):
        x = h * 2
        logits = F.linear(x, W)
        x.view(-1)[0] = 0.0
        return F.cross_entropy(logits, y + x.sum().long() * 0)
    gm = capture(fn, *head())
    assert splice(gm.graph, *loss_region(gm), key="k").code == "MUTATION"


def test_a_write_to_other_memory_does_not():
    def fn(h, W, y):
        x = h * 2
        other = h * 3
        logits = F.linear(x, W)
        other.add_(1)
        return F.cross_entropy(logits, y + other.sum().long() * 0)
    gm, call = spliced(fn, *head())
    assert not isinstance(call, Miss) and "add_" in targets(gm)


def test_a_result_needed_before_the_last_input_is_refused():
    def fn(h, W, y):
        logits = F.linear(h, W)
        z = logits.logsumexp(-1)
        labels = y + z.long() * 0
        return F.cross_entropy(logits, labels)
    gm = capture(fn, *head())
    linear, z, loss = (call_of(gm, t) for t in (torch._C._nn.linear, torch.logsumexp, F.cross_entropy))
    miss = find_place(gm.graph, [*linear.args[:2], loss.args[1]], [z, loss])
    assert isinstance(miss, Miss) and miss.code == "OTHER_USER"


def test_an_in_place_op_on_memory_of_the_region_goes_with_it():
    def fn(h, W, y):
        logits = F.linear(h, W)
        logits.mul_(2.0)
        return F.cross_entropy(logits, y)
    gm, _ = spliced(fn, *head())
    assert "mul_" not in targets(gm) and "linear" not in targets(gm)


def test_a_chained_in_place_op_on_memory_of_the_region_goes_with_it():
    gm, _ = spliced(lambda h, W, y: F.cross_entropy(F.linear(h, W).mul_(2.0), y), *head())
    assert "mul_" not in targets(gm) and "linear" not in targets(gm)


def test_an_in_place_op_that_somebody_sees_stays():
    def fn(h, W, y):
        logits = F.linear(h, W)
        logits.mul_(2.0)
        return F.cross_entropy(logits, y), logits.relu()
    gm, _ = spliced(fn, *head())
    assert "mul_" in targets(gm) and "linear" in targets(gm)


def test_a_write_to_a_result_is_applied_to_what_replaces_it():
    def fn(h, W, y):
        rows = F.cross_entropy(F.linear(h, W), y, reduction="none")
        rows.masked_fill_(y == 0, 0.0)
        return rows.sum()
    gm, call = spliced(fn, *head())
    item, = call.users
    assert "linear" not in targets(gm) and {u.target for u in item.users} == {"masked_fill_", "sum"}


def test_the_call_keeps_the_grad_mode_of_the_exits():
    def fn(h, W, y):
        with torch.no_grad():
            h2 = h * 2
            loss = F.cross_entropy(F.linear(h2, W), y)
        return h.sum() + loss
    gm, call = spliced(fn, *head())
    inside = [n.args[0] for n in list(gm.graph.nodes)[:list(gm.graph.nodes).index(call)] if "set_grad" in str(n.target)]
    assert inside == [False]


def test_casts_are_written_out():
    gm = capture(lambda h, W, y: F.cross_entropy(F.linear(h, W), y), *head())
    inputs, exits = loss_region(gm)
    call = splice(gm.graph, inputs, exits, "k", takes=("bfloat16", "float32", "int64"), gives=("bfloat16",))
    operands = call.args[0]
    assert operands[0].target == "to" and operands[0].args == (inputs[0], torch.bfloat16) and operands[1] is inputs[1]
    assert operands[0].meta["example_value"].dtype == call.meta["example_value"][0].dtype == torch.bfloat16
    back = next(iter(next(iter(call.users)).users))
    assert back.target == "to" and back.meta["example_value"].dtype == torch.float32
    gm.graph.lint()


def test_an_exit_without_a_gradient_is_detached():
    def fn(h, W, y):
        logits = F.linear(h, W)
        return F.cross_entropy(logits, y), logits.detach().logsumexp(-1)
    gm = capture(fn, *head())
    inputs, exits = loss_region(gm)
    lse = call_of(gm, torch.logsumexp)
    splice(gm.graph, inputs, [exits[0], lse], "k")
    assert targets(gm).count("detach") == 1 and "linear" not in targets(gm)


@pytest.mark.parametrize("text, writes", [("x.add_(1)", True), ("x.add(1)", False), ("x.__add__(1)", False),
                                          ("x.requires_grad_()", False), ("torch.relu_(x)", True),
                                          ("torch.add(x, 1, out=x)", True), ("F.relu(x, inplace=True)", True)])
def test_what_counts_as_a_write(text, writes):
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    name = text.partition("(")[0].rpartition(".")[2]
    if text.startswith("x."):
        node = graph.call_method(name, (x,))
    else:
        node = graph.call_function({"relu_": torch.relu_, "add": torch.add, "relu": F.relu}[name], (x,),
                                   {"out": x} if "out" in text else {"inplace": True} if "inplace" in text else {})
    assert (mutated(node) == [x]) is writes
