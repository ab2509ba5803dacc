"""The page of `fuse inspect --html`: what it holds, its matrices, and that a browser shows it."""
from __future__ import annotations

import json
import math
import re
import shutil
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from fuse.cli import main
from fuse.ir.expr import Axis, Buffer, const, make, read, reduce_, sum_, where
from fuse.ir.size import Size
from fuse.page import Record, highlight, render
from fuse.page.highlight import marked
from fuse.page.interaction import Interaction, affine_in, interaction, span
from fuse.page.record import streams_of
from fuse.page.render import data
from fuse.report import explain

MODEL = '''
import torch, torch.nn as nn, torch.nn.functional as F

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(16, 48)
    def forward(self, x):
        q, k, v = (t.unflatten(-1, (2, 8)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        p = (q @ k.transpose(-1, -2) / 3).softmax(-1)
        return x + (p @ v).transpose(1, 2).flatten(2)

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(16, 101)
    def forward(self, x, y):
        for block in self.blocks:
            x = block(x)
        logits = self.head(x).flatten(0, 1)
        wide = F.linear(x[0], self.head.weight).softmax(-1)    # <script>alert("its text stays text")</script>
        return F.cross_entropy(logits, y), wide

def fuse_example():
    torch.manual_seed(0)
    return Model(), (torch.randn(2, 64, 16), torch.randint(0, 101, (128,)))
'''


@pytest.fixture(scope="module", autouse=True)
def sources_alone():
    """Kernels are written, but not built: nothing here launches one. What is planned is forgotten afterwards."""
    with pytest.MonkeyPatch.context() as patch:
        library = SimpleNamespace(fuse_kernel=SimpleNamespace(), fuse_workspace=SimpleNamespace())
        patch.setattr("fuse.codegen.cpu.library", lambda source: library)
        patch.setattr("fuse.runtime.ops._executables", {})
        patch.setattr(sys, "path", list(sys.path))
        yield


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """(the file of the page, its text, its data)"""
    folder = tmp_path_factory.mktemp("page")
    (folder / "model.py").write_text(MODEL)
    assert main(["inspect", f"{folder}/model.py", "--html", f"{folder}/page.html", "--option", "min_virtual_bytes=0"]) == 0
    text = (folder / "page.html").read_text()
    return folder / "page.html", text, json.loads(re.search(r'id="data">(.*?)</script>', text, re.S)[1])


# ---- what the page holds ------------------------------------------------------------------------------------------

def test_the_page_needs_nothing_but_itself(page):
    _, text, _ = page
    assert len(text) < 2_000_000
    assert "default-src 'none'" in text and "sourceMappingURL" not in text and "{{" not in text.partition("<style>")[0]
    own = text.partition("cytoscape")[0]
    assert not re.search(r'<(?:script|img|iframe)[^>]+src=|<link[^>]+href="(?!data:)|@import|url\(', own)
    assert text.count("</script>") == 5, "nobody's text ends a script"


def test_every_operation_stands_in_one_group_and_every_edge_joins_two_operations(page):
    (graph,), regions = page[2]["graphs"], page[2]["regions"]
    ids, groups = {n["id"] for n in graph["nodes"]}, {g["id"]: g for g in graph["groups"]}
    assert len(ids) == len(graph["nodes"]) and all(set(edge) <= ids for edge in graph["edges"])
    for group in groups.values():
        assert group["count"] == sum(n["group"] == group["id"] for n in graph["nodes"]) > 0
    assert {g["id"] for g in groups.values() if g["region"] is not None} == {r["id"] for r in regions}
    assert not any("_parameters_" in n["name"] for n in graph["nodes"])
    assert any("_parameters_weight_" in p for n in graph["nodes"] for p in n["parameters"])
    assert {n["label"] for n in graph["nodes"] if n["input"]} == {"x", "y"}


def test_groups_have_no_cycle(page):
    from graphlib import TopologicalSorter

    (graph,) = page[2]["graphs"]
    group = {n["id"]: n["group"] for n in graph["nodes"]}
    above = {g: set() for g in group.values()}
    for source, target in graph["edges"]:
        if group[source] != group[target]:
            above[group[target]].add(group[source])
    order = list(TopologicalSorter(above).static_order())
    assert order.index("r0") < order.index("r1")


def test_equal_regions_are_described_once(page):
    regions, texts = page[2]["regions"], page[2]["texts"]
    first, second = [r for r in regions if r["kind"] == "attention"]
    assert first["twin"] == second["twin"] == first["id"] and "walks" in first and "walks" not in second
    assert first["saved"] == 2 * 2 * 64 * 64 * 4 and first["formula"] == "2*2*64*64*4" and first["stored"] >= 2 * 2 * 64 * 8 * 4
    shown = texts[first["source"]["text"]]["text"].splitlines()[first["source"]["line"] - first["source"]["first"]]
    assert "q @ k.transpose(-1, -2)" in shown
    assert "lse{" in texts[first["expression"]]["text"]
    (walk, *_) = first["walks"]
    assert {c["kind"] for c in walk["carries"]} == {"lse", "sum"} and walk["flops_formula"]
    assert texts[walk["code"]]["text"] and "region" in texts[walk["ir"]]["text"]


def test_a_miss_shows_the_users_line(page):
    (miss,) = [m for m in page[2]["misses"] if "wide =" in page[2]["texts"][(m["source"] or {"text": 0})["text"]]["text"]
               and m["source"]["line"] == MODEL.splitlines().index(next(x for x in MODEL.splitlines() if "wide =" in x)) + 1]
    assert miss["cause"] and miss["hint"] and miss["times"] == 1


def test_a_page_without_any_graph_says_so():
    record = Record()
    report = explain(lambda: 3, fuse_watch=record.watch)
    found = data(report, record, "nothing")
    assert found["graphs"] == found["regions"] == [] and "no graph" in found["headline"]
    assert "no graph" in render(report, record, "<nothing>") and "<nothing>" not in render(report, record, "<nothing>")


def test_a_checkpointed_body_stands_where_it_is_called():
    from torch.utils.checkpoint import checkpoint

    def loss(h, w, y):
        return checkpoint(lambda a: F.cross_entropy(a @ w, y), h.cos(), use_reentrant=False) * 2
    record = Record()
    args = torch.randn(8, 4, requires_grad=True), torch.randn(4, 33, requires_grad=True), torch.randint(0, 33, (8,))
    report = explain(loss, *args, fuse_options={"min_virtual_bytes": 0}, fuse_watch=record.watch)
    found = data(report, record, "checkpoint")
    (region,), (graph,) = found["regions"], found["graphs"]
    inside = {n["label"] for n in graph["nodes"] if n["group"] == region["id"]}
    assert {"matmul", "cross_entropy"} <= inside
    assert ["0:cos", next(n["id"] for n in graph["nodes"] if n["label"] == "matmul")] in graph["edges"]


def test_the_page_must_have_a_folder(tmp_path, capsys):
    (tmp_path / "model.py").write_text(MODEL)
    assert main(["inspect", f"{tmp_path}/model.py", "--html", f"{tmp_path}/none/page.html"]) == 2
    assert main(["inspect", f"{tmp_path}/model.py", "--html", str(tmp_path)]) == 2
    assert "there is no folder for" in (shown := capsys.readouterr().err) and "is a folder" in shown


@pytest.mark.parametrize("language", ["python", "cpp", "ir"])
def test_marked_text_is_the_text(language):
    text = "\n# one\nfloat32 f(x) = sum{a}(%1 * 2.5) // \"s\"\n\n"
    found = marked(text, language)
    lengths = [int(re.fullmatch(r"[a-z]?(\d+)", run)[1]) for run in found["runs"].split()]
    assert found["text"] == text and sum(lengths) == len(text) and len(lengths) > 3


def test_without_pygments_source_stays_plain(monkeypatch):
    monkeypatch.setitem(sys.modules, "pygments.lexers", None)
    monkeypatch.setattr(highlight, "_lexer", highlight._lexer.__wrapped__)
    assert marked("def f(): pass", "python")["runs"] == "13"


# ---- matrices -----------------------------------------------------------------------------------------------------

def found_in(function, args, dynamic=None):
    """The matrices of a function's regions."""
    record = Record()
    report = explain(function, *args, fuse_options={"min_virtual_bytes": 0}, fuse_dynamic=dynamic, fuse_watch=record.watch)
    return [interaction(r.program, record.environment(0, r), streams_of(r), record.parameters(0, r)) for r in report.regions]


def attend(q, k, v):
    return (q @ k.transpose(-1, -2) / math.sqrt(8)).softmax(-1) @ v


@pytest.mark.parametrize("dynamic", [None, True])
def test_attention_is_its_probabilities(dynamic):
    q, k, v = (torch.randn(2, 3, n, 8) for n in (41, 53, 53))
    (found,) = found_in(attend, (q, k, v), dynamic)
    assert isinstance(found, Interaction) and not found.implicit and found.operand == 2 and found.heads == 3
    expected = (q.double() @ k.double().transpose(-1, -2) / math.sqrt(8)).softmax(-1)[0]
    torch.testing.assert_close(found.weights, expected, rtol=1e-12, atol=1e-14)


def scan(x, dt, a, b, c):
    h = x.new_zeros(x.shape[1], a.shape[1])
    out = []
    for t in range(x.shape[0]):
        h = torch.exp(dt[t, :, None] * a) * h + dt[t, :, None] * b[t] * x[t, :, None]
        out.append((h * c[t]).sum(-1))
    return torch.stack(out)


@pytest.mark.parametrize("decays, heads", [(5, 5), (1, 1)])
def test_a_scan_is_implicit_and_needs_a_head_for_every_independent_channel(decays, heads):
    """Channels that share their decay and step share their matrix."""
    torch.manual_seed(0)
    x, b, c = torch.randn(12, 5), torch.randn(12, 4), torch.randn(12, 4)
    dt, a = torch.rand(12, decays).expand(12, 5).contiguous(), -torch.rand(decays, 4).expand(5, 4).contiguous()
    (found,) = found_in(scan, (x, dt, a, b, c))
    assert isinstance(found, Interaction) and found.implicit and found.heads == heads
    assert found.weights.triu(1).abs().max() == 0
    y = torch.einsum("cij,jc->ic", found.weights, x.double())
    torch.testing.assert_close(y, scan(*(t.double() for t in (x, dt, a, b, c))), rtol=1e-12, atol=1e-12)


def test_linear_attention_is_linear_in_what_it_sums_along_the_sequence():
    """It is linear in its queries and keys as well, but those sums are along the features."""
    q, k, v = (torch.randn(2, 60, 8) for _ in range(3))
    found = found_in(lambda q, k, v: (q @ k.transpose(-1, -2)) @ v, (q, k, v))
    for each in found:
        assert isinstance(each, Interaction) and each.operand == 2
        torch.testing.assert_close(each.weights[0], q[0].double() @ k[0].double().T, rtol=1e-12, atol=1e-12)


def test_affine_is_proved():
    i, j, d = Axis("i", Size.of(3)), Axis("j", Size.of(4)), Axis("d", Size.of(5))
    x = read(Buffer("x", "float32", (j.extent, d.extent)), j, d)
    y = read(Buffer("y", "float32", (i.extent, j.extent)), i, j)
    assert affine_in(sum_(y * x, j), x) and affine_in(sum_(y * x, j) + sum_(y, j), x) and affine_in(x / y - y, x)
    chosen = make("lt", y, const(0, "float32"))
    assert affine_in(where(chosen, x, 0), x) and affine_in(make("scan", y, x, axis=j, reverse=False), x)
    for refused in (x * x, y / x, reduce_("max", x, j), reduce_("lse", x, j), y, make("exp", x), where(make("lt", x, y), y, x),
                    make("scan", x, x, axis=j, reverse=False), (x + y) * sum_(x, j)):
        assert not affine_in(refused, x)


def test_a_loss_and_a_pair_of_layers_have_no_matrix():
    class Two(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = torch.nn.Linear(6, 40), torch.nn.Linear(40, 6)

        def forward(self, x):
            return self.b(F.gelu(self.a(x)))

    def loss(h, w, y):
        return F.cross_entropy(h @ w, y)
    layers = found_in(Two(), (torch.randn(2, 9, 6),))
    losses = found_in(loss, (torch.randn(9, 4), torch.randn(4, 77), torch.randint(0, 77, (9,))))
    assert len(layers) == len(losses) == 1 and all(isinstance(f, str) for f in layers + losses)


def test_a_large_example_is_refused(monkeypatch):
    monkeypatch.setattr("fuse.page.interaction.MAX_ELEMENTS", 50 * 50)
    (found,) = found_in(attend, [torch.randn(1, 60, 8) for _ in range(3)])
    assert isinstance(found, str) and "too large" in found


def test_span_counts_independent_matrices():
    base = torch.randn(3, 7, 7, dtype=torch.float64)
    mixed = torch.einsum("ch,hij->cij", torch.randn(10, 3, dtype=torch.float64), base)
    assert span(mixed)[0] == 3 and span(base[:1])[0] == 1 and span(torch.zeros(2, 4, 4, dtype=torch.float64)) == (0, 0)
    assert span(torch.stack([base[0], base[0] * 1e-5 + base[1] * 1e-6])) == (2, 1)


# ---- in a browser -------------------------------------------------------------------------------------------------

FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--window-size=1400,1000")
MIDDLE = """
const picture = page.pictures[0], box = picture.cy.container().getBoundingClientRect();
const at = picture.cy.$id(arguments[0]).renderedPosition();
return [Math.round(box.x + at.x), Math.round(box.y + at.y)];
"""


@pytest.fixture(scope="module")
def browser(page, tmp_path_factory):
    """The page in Chromium, driven by selenium."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    shown = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    shown.get(page[0].as_uri())
    yield shown
    shown.quit()


def click(browser, region):
    from selenium.webdriver.common.action_chains import ActionChains

    browser.execute_script("scrollTo(0, 0)")
    x, y = browser.execute_script(MIDDLE, region)
    actions = ActionChains(browser)
    actions.w3c_actions.pointer_action.move_to_location(x, y)
    actions.w3c_actions.pointer_action.click()
    actions.perform()


def test_a_browser_shows_the_page(browser, page):
    data = page[2]
    assert browser.execute_script("return document.querySelectorAll('.card.region').length") \
        == len({r["twin"] for r in data["regions"]})
    boxes = browser.execute_script("return page.pictures[0].cy.nodes().map(n => n.id())")
    assert {r["id"] for r in data["regions"]} <= set(boxes) and len(boxes) < len(data["graphs"][0]["nodes"])
    browser.execute_script("document.getElementById('everything').click()")
    drawn = browser.execute_script("return page.pictures[0].cy.nodes().map(n => n.id())")
    assert {n["id"] for n in data["graphs"][0]["nodes"]} <= set(drawn)
    browser.execute_script("document.getElementById('overview').click()")


def test_a_click_on_a_region_opens_it(browser, page):
    first, second = [r["id"] for r in page[2]["regions"] if r["kind"] == "attention"]
    click(browser, second)
    card = browser.find_element("id", first)
    assert card.get_property("open") and "Explicit form" in card.text and "Needs 2 heads" in card.text
    assert "q @ k.transpose(-1, -2)" in card.find_element("css selector", ".meant").text
    chosen = browser.execute_script("return page.pictures[0].cy.nodes('.chosen').map(n => n.id())")
    assert set(chosen) == {first, second}
    source = card.find_element("css selector", ".walk .fold:last-child")
    source.find_element("css selector", "summary").click()
    assert len(source.find_elements("css selector", "pre span")) > 50, "its words are coloured"


def test_the_misses_stand_in_their_tab(browser):
    browser.find_element("id", "tab-misses").click()
    assert "ESCAPES" in browser.find_element("id", "misses").text
    assert browser.execute_script("return document.querySelectorAll('main script, main img').length") == 0


def test_dark_and_light_differ(browser):
    from selenium.webdriver.support.ui import WebDriverWait

    def grounds(_):
        return browser.execute_script("return [getComputedStyle(document.body).backgroundColor, "
                                      "page.pictures[0].cy.nodes()[0].style('background-color')]")

    def emulate(scheme):
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})
    emulate("light")
    is_light = "return matchMedia('(prefers-color-scheme: light)').matches"
    WebDriverWait(browser, 20).until(lambda _: browser.execute_script(is_light))
    light = grounds(browser)
    emulate("dark")
    WebDriverWait(browser, 20).until(lambda _: all(a != b for a, b in zip(light, grounds(_), strict=True)))


def test_the_console_stays_empty(browser):
    """The last test: whatever the others did."""
    assert browser.get_log("browser") == []
