// Fills the page from its data: figures, bars, cards, and the picture of each graph.
"use strict";

const page = { data: JSON.parse(document.getElementById("data").textContent), pictures: [], shown: 0 };
const $ = id => document.getElementById(id);

function h(tag, properties, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties ?? {})) {
    if (name === "style" || name === "role" || name.includes("-")) element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children.flat(Infinity).filter(child => child !== null && child !== undefined && child !== false));
  return element;
}

function bytes(count) {
  let unit = 0;
  for (; count >= 1024 && unit < 4; unit++) count /= 1024;
  return `${unit ? count.toFixed(1) : count} ${["bytes", "KiB", "MiB", "GiB", "TiB"][unit]}`;
}

function flops(count) {
  const unit = count >= 1e12 ? ["T", 1e12] : count >= 1e9 ? ["G", 1e9] : ["M", 1e6];
  return `${(count / unit[1]).toPrecision(3)} ${unit[0]}FLOP`;
}

const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;
const dot = kind => h("span", { className: "dot", style: `background: var(--${kind})` });
const axis = text => text.slice(0, text.lastIndexOf(":"));
const twins = region => page.data.regions.filter(r => r.twin === region.id);
const place = where => where ? where.split("/").slice(-2).join("/") : "?";
const rows = (...pairs) => h("dl", { className: "rows" }, pairs.filter(([, value]) => value && value.length !== 0).map(
  ([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));

// ---- text with marked words ---------------------------------------------------------------------------------------

function words(index) {
  const { text, runs } = page.data.texts[index], found = [];
  let at = 0;
  for (const run of runs ? runs.split(" ") : []) {
    const [, kind, length] = /^([a-z]?)(\d+)$/.exec(run);
    found.push([kind, text.slice(at, at += Number(length))]);
  }
  return found;
}

const span = ([kind, word]) => kind ? h("span", { className: kind }, word) : word;
const code = index => h("pre", {}, words(index).map(span));

function excerpt(source) {
  const lines = [[]];
  for (const [kind, text] of words(source.text)) {
    text.split("\n").forEach((part, i) => {
      if (i) lines.push([]);
      if (part) lines.at(-1).push(span([kind, part]));
    });
  }
  return h("pre", { className: "excerpt" }, lines.map((line, i) => {
    const number = source.first + i;
    return [h("span", { className: number === source.line ? "meant" : "" }, h("span", { className: "number" }, String(number)), line), "\n"];
  }));
}

function folded(title, make) {
  const details = h("details", { className: "fold" }, h("summary", {}, title));
  details.addEventListener("toggle", () => details.append(make()), { once: true });
  return details;
}

// ---- memory -------------------------------------------------------------------------------------------------------

function track(parts, whole) {
  return h("div", { className: "track" }, parts.filter(([, size]) => size).map(([kind, size, title]) => h("span", {
    className: kind ? "" : "rest", title, style: `width: ${100 * size / whole}%${kind ? `; background: var(--${kind})` : ""}` })));
}

function bars(small, ...lines) {
  const whole = Math.max(...lines.map(([, parts]) => parts.reduce((sum, part) => sum + part[1], 0)));
  return h("div", { className: small ? "bars small" : "bars" }, lines.map(([name, parts]) => {
    const sum = parts.reduce((total, part) => total + part[1], 0);
    return [h("span", { className: "quiet" }, name), track(parts, whole), h("span", { className: "amount" }, bytes(sum))];
  }));
}

function byKind(size) {
  const sums = new Map();
  for (const region of page.data.regions) sums.set(region.kind, (sums.get(region.kind) ?? 0) + size(region));
  return [...sums].map(([kind, sum]) => [kind, sum, `${kind}: ${bytes(sum)}`]);
}

function fillMemory() {
  if (!page.data.regions.length) return;
  const results = page.data.regions.reduce((sum, r) => sum + r.stored, 0);
  $("memory").append(h("h3", { style: "margin-top: 0" }, "Bytes stored by what was fused"), bars(false,
    ["plain PyTorch", [...byKind(r => r.saved), [null, results, `results and statistics: ${bytes(results)}`]]],
    ["with fuse", [[null, results, `results and statistics: ${bytes(results)}`]]]));
}

// ---- one region ---------------------------------------------------------------------------------------------------

function regionCard(region) {
  const alike = twins(region), times = alike.length;
  const line = region.source ? words(region.source.text).map(w => w[1]).join("").split("\n")[region.source.line - region.source.first].trim() : "";
  const card = h("details", { className: "card region", id: region.id },
    h("summary", {}, dot(region.kind), h("b", {}, region.kind, " ", times > 1 && h("span", { className: "chip" }, `${times} times`)),
      h("span", { className: "amount" }, region.saved ? `${bytes(region.saved * times)} not stored` : ""),
      h("span", { className: "line" }, h("span", { className: "place" }, place(region.where)), h("code", {}, line))));
  card.addEventListener("toggle", () => {
    if (card.open && !card.querySelector(".inside")) card.append(inside(region, times));
    if (card.open) choose(region.id);
  });
  return card;
}

function inside(region, times) {
  const what = region.kinds.length > 1 ? region.kinds.join(", ") : "";
  return h("div", { className: "inside" },
    region.source && [h("h3", {}, "Your code"), excerpt(region.source)],
    h("h3", {}, times > 1 ? `Memory, each of ${times}` : "Memory"),
    bars(true, ["plain PyTorch", [[region.kind, region.saved, "not stored by fuse"], [null, region.stored, "results and statistics"]]],
      ["with fuse", [[null, region.stored, "results and statistics"]]]),
    h("h3", {}, "What it is"),
    rows(["kinds", what], ["not stored", region.saved ? h("span", {}, `${bytes(region.saved)} = `, h("code", {}, region.formula), " bytes") : ""],
      ["sizes", Object.entries(region.sizes).map(([name, at]) => `${name} is ${at}`).join("; ")],
      ["walks", region.streams.map(s => `${axis(s)}, ${s.slice(s.lastIndexOf(":") + 1)} positions`).join("; ")],
      ["reads", h("code", {}, region.inputs.join("   "))], ["gives", h("code", {}, region.outputs.join("   "))],
      ["forward", region.flops ? flops(region.flops) : ""], ["target", region.target]),
    region.interaction && [h("h3", {}, "Which position acts on which"), matrix(region)],
    region.expression !== null && [h("h3", {}, "Expression"), code(region.expression)],
    h("h3", {}, plural(region.walks.length, "kernel")), region.walks.map(walk),
    region.notes.length ? [h("h3", {}, "Notes"), region.notes.map(missCard)] : null);
}

function walk(w) {
  const grid = w.grid.length ? ` for each of ${w.grid.join(" x ")}` : "";
  const carries = w.carries.length > 0 && h("table", {}, h("thead", {}, h("tr", {}, ["carry", "kind", "kept for", "type", "sweep"].map(t => h("th", {}, t)))),
    h("tbody", {}, w.carries.map(c => h("tr", {}, h("td", { className: "mono" }, c.name),
      h("td", {}, c.relative_to ? `${c.kind} relative to ${c.relative_to}` : c.kind), h("td", { className: "mono" }, c.axes.map(axis).join(", ")),
      h("td", { className: "mono" }, c.dtype), h("td", {}, String(c.level + 1))))));
  return h("div", { className: "walk" }, h("h4", {}, h("code", {}, w.name), ` ${w.direction} ${w.kind}`),
    h("p", {}, `${plural(w.sweeps, "sweep")} along `, h("code", {}, w.streams.join(" x ")), h("span", { className: "quiet" }, `${grid}${w.reverse ? ", from the end" : ""}`)),
    carries, rows(["emits", w.emits.length ? h("code", {}, w.emits.map(e => e.split(" = ")[0]).join("  ")) : ""],
      ["work", w.flops ? h("span", {}, `${flops(w.flops)} = `, h("code", {}, w.flops_formula)) : ""], ["schedule", w.schedule],
      ["filter", w.eps === null ? "" : `may leave out what is below ${w.eps.toPrecision(3)} of its row's cotangent`]),
    folded("As a region of the IR", () => code(w.ir)), w.code !== null && folded(`Source, ${plural(w.lines, "line")}`, () => code(w.code)));
}

// ---- the matrix of interactions -----------------------------------------------------------------------------------

function decode(text) {
  const raw = Uint8Array.from(atob(text), c => c.charCodeAt(0)), view = new DataView(raw.buffer);
  return Float64Array.from({ length: raw.length / 2 }, (_, i) => view.getInt16(2 * i, true) / 32767);
}

function rgb(name) {
  const pen = document.createElement("canvas").getContext("2d");
  pen.fillStyle = colour(name);
  return [1, 3, 5].map(i => parseInt(pen.fillStyle.slice(i, i + 2), 16));
}

// Square roots, so that small weights can be seen; below zero in the colour of warnings.
function shade(value, [ground, above, below]) {
  const part = Math.sqrt(Math.abs(value)), end = value < 0 ? below : above;
  return ground.map((g, i) => Math.round(g + (end[i] - g) * part));
}

function paint(canvas, width, height, at) {
  const colours = ["card", "accent", "warn"].map(rgb), pen = canvas.getContext("2d"), image = pen.createImageData(width, height);
  [canvas.width, canvas.height] = [width, height];
  for (let i = 0; i < width * height; i++) image.data.set([...shade(at(i), colours), 255], 4 * i);
  pen.putImageData(image, 0, 0);
}

function channelName(found, index) {
  const names = Object.entries(found.channels).reverse().map(([name, extent]) => {
    const here = index % extent;
    index = Math.floor(index / extent);
    return `${name} = ${here}`;
  });
  return names.reverse().join(", ");
}

function matrix(region) {
  const found = region.interaction;
  if (typeof found === "string") return h("p", { className: "quiet" }, `No matrix: ${found}.`);
  const values = decode(found.digits), size = found.rows * found.columns, shown = found.largest.length;
  const canvas = h("canvas", { style: `--ratio: ${found.columns} / ${found.rows}` }), scale = h("canvas", { className: "scale" });
  const reading = h("p", { className: "quiet mono" }), largest = h("span", { className: "mono" }), least = h("span", { className: "mono" });
  let channel = 0;
  const draw = () => {
    const part = values.subarray(channel * size, (channel + 1) * size), signed = part.some(v => v < 0);
    paint(canvas, found.columns, found.rows, i => part[i]);
    paint(scale, 80, 1, i => signed ? i / 39.5 - 1 : i / 79);
    largest.textContent = found.largest[channel].toPrecision(3);
    least.textContent = signed ? `-${found.largest[channel].toPrecision(3)}` : "0";
    reading.textContent = "Point at an entry to read it.";
  };
  canvas.addEventListener("mousemove", event => {
    const i = Math.min(found.rows - 1, Math.floor(event.offsetY / canvas.clientHeight * found.rows));
    const j = Math.min(found.columns - 1, Math.floor(event.offsetX / canvas.clientWidth * found.columns));
    reading.textContent = `W[${i}, ${j}] = ${(values[channel * size + i * found.columns + j] * found.largest[channel]).toPrecision(3)}`;
  });
  const choice = shown > 1 && h("select", { "aria-label": "Channel", onchange: event => { channel = Number(event.target.value); draw(); } },
    found.largest.map((_, i) => h("option", { value: i }, channelName(found, i))));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  draw();
  return h("div", { className: "matrix" },
    h("figure", {}, h("span", { className: "vertical" }, `position i that is written, 0 to ${found.rows - 1}`), canvas,
      h("span", { className: "horizontal" }, `position j that is read, 0 to ${found.columns - 1}`)),
    h("div", { className: "words" },
      h("p", {}, "y", h("sub", {}, "i"), " = Σ", h("sub", {}, "j"), " W", h("sub", {}, "ij"), "(X) v", h("sub", {}, "j"), ", where v is ",
        h("code", {}, found.values), " of ", h("code", {}, found.from), ": the result is linear in it."),
      h("p", {}, h("b", {}, found.implicit ? "Implicit form. " : "Explicit form. "), found.implicit
        ? "The weights come out of a recurrence; no formula gives one of them alone." : "Each weight is a formula of positions i and j, up to its row's statistics."),
      heads(found), choice && h("p", {}, choice, shown < found.count && h("span", { className: "quiet" }, ` the first ${shown} of ${found.count}`)),
      h("p", {}, least, scale, largest), reading,
      h("p", { className: "quiet" }, "From the values that your call passed in", found.example ? `, at ${found.example} = 0` : "", ".")));
}

function heads(found) {
  if (found.heads === null) return h("p", {}, "Too large to count the heads that it needs.");
  const near = found.nearly < found.heads ? ` ${found.nearly} hold${found.nearly === 1 ? "s" : ""} 99 % of the squared weights.` : "";
  return h("p", {}, h("b", {}, `Needs ${plural(found.heads, "head")}. `), `The W`, h("sub", {}, "ij"),
    ` span ${plural(found.heads, "dimension")} over ${plural(found.count, "channel")}${Object.keys(found.channels).length ? "" : " (all features share one matrix)"}.${near}`);
}

// ---- refusals -----------------------------------------------------------------------------------------------------

function missCard(miss) {
  const card = h("div", { className: "card miss" },
    h("p", {}, h("span", { className: "code" }, miss.code), " ", miss.times > 1 && h("span", { className: "chip" }, `${miss.times} times`),
      h("span", { className: "quiet" }, ` ${place(miss.where)}`)),
    h("p", {}, miss.cause[0].toUpperCase() + miss.cause.slice(1), miss.detail && h("span", { className: "quiet" }, ` (${miss.detail})`), "."),
    h("p", {}, h("b", {}, "Hint: "), miss.hint, "."), miss.source && excerpt(miss.source));
  card.addEventListener("click", () => miss.where && page.pictures[page.shown]?.markLine(miss.where));
  return card;
}

// ---- the picture, and what belongs together -----------------------------------------------------------------------

// Opens the card of a region (by the id of any of its twins) and outlines all of them.
function choose(id, scroll = false) {
  const region = page.data.regions.find(r => r.id === id), card = $(region.twin);
  showTab("regions");
  showGraph(region.graph);
  if (!card.open) card.open = true;
  if (scroll) card.scrollIntoView({ block: "start" });
  page.pictures[page.shown].choose(twins({ id: region.twin }).map(r => r.id));
  history.replaceState(null, "", `#${id}`);
}

function showTab(name) {
  for (const tab of ["regions", "misses"]) {
    $(tab).hidden = tab !== name;
    $(`tab-${tab}`).setAttribute("aria-selected", String(tab === name));
  }
}

function showGraph(index) {
  const before = page.shown;
  page.shown = index;
  page.pictures[before]?.cy.container().setAttribute("hidden", "");
  [...$("graphs").children].forEach((button, i) => button.setAttribute("aria-selected", String(i === index)));
  if (!page.pictures[index]) {
    const container = h("div", { style: "position: absolute; inset: 0" });
    $("canvas").append(container);
    const byId = new Map(page.data.regions.map(r => [Number(r.id.slice(1)), r.kind]));
    page.pictures[index] = new Picture(container, page.data.graphs[index], number => byId.get(number), {
      region: id => choose(id, true), busy: yes => { $("busy").hidden = !yes; }, over, out });
    everything(page.data.graphs[index].nodes.length <= 40 || !page.data.graphs[index].groups.some(g => g.region !== null));
  }
  page.pictures[index].cy.container().removeAttribute("hidden");
}

function everything(yes) {
  $("everything").setAttribute("aria-pressed", String(yes));
  $("overview").setAttribute("aria-pressed", String(!yes));
  page.pictures[page.shown].showAll(yes);
}

function over(data, event) {
  const graph = page.data.graphs[page.shown], node = graph.nodes.find(n => n.id === data.id), group = graph.groups.find(g => g.id === data.id);
  const line = (text, name = "") => text && h("div", { className: name }, text);
  const region = data.region && page.data.regions.find(r => r.id === data.region);
  $("tip").replaceChildren(...(node
    ? [h("b", {}, node.label), line(`${node.name}: ${node.type}`, "mono"), line(node.module), line(node.where && place(node.where), "quiet"),
       line(node.parameters.length ? `with ${node.parameters.join(", ")}` : "", "quiet")]
    : [h("b", {}, region ? region.kind : group.label), line(region ? place(region.where) : "", "quiet"),
       line(region && region.saved ? `${bytes(region.saved)} not stored` : ""), line(`${plural(group.count, "operation")}; ${region ? "click to read about it" : "click to open or close"}`, "quiet")]
  ).filter(Boolean));
  $("tip").hidden = false;
  const { width, height } = $("tip").getBoundingClientRect();
  $("tip").style.left = `${Math.min(event.clientX + 16, innerWidth - width - 8)}px`;
  $("tip").style.top = `${Math.min(event.clientY + 16, innerHeight - height - 8)}px`;
}

function out() {
  $("tip").hidden = true;
}

function fill() {
  const { data } = page, order = new Map(data.graphs.flatMap(g => g.groups).map((g, i) => [g.id, i]));
  const first = data.regions.filter(r => r.twin === r.id).sort((a, b) => a.graph - b.graph || order.get(a.id) - order.get(b.id));
  const total = data.misses.reduce((sum, m) => sum + m.times, 0);
  const saved = data.regions.reduce((sum, r) => sum + r.saved, 0), operations = data.graphs.reduce((sum, g) => sum + g.nodes.length, 0);
  $("headline").textContent = data.headline;
  $("versions").textContent = data.versions;
  $("figures").append(...[["not stored", bytes(saved)], ["fused", data.regions.length], ["declined", total], ["operations", operations]].map(
    ([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, String(value)))));
  fillMemory();
  $("tab-regions").textContent = `Fused (${data.regions.length})`;
  $("tab-misses").textContent = `Declined (${total})`;
  $("regions").append(...data.breaks.map(text => h("div", { className: "break" }, `Graph break: ${text}`)),
    ...(first.length ? first.map(regionCard) : [h("div", { className: "empty" }, "Nothing was fused.")]));
  $("misses").append(...(data.misses.length ? data.misses.map(missCard) : [h("div", { className: "empty" }, "Nothing was declined.")]));
  $("legend").append(...[...new Set(data.regions.map(r => r.kind))].map(kind => h("span", {}, dot(kind), kind)),
    h("span", {}, h("span", { className: "dot", style: "background: var(--sunk); border: 1px solid var(--edge)" }), "left to Inductor"));
  if (data.graphs.length > 1) {
    $("graphs").append(...data.graphs.map((_, i) => h("button", { role: "tab", onclick: () => showGraph(i) }, `Graph ${i}`)));
  }
  for (const tab of ["regions", "misses"]) $(`tab-${tab}`).onclick = () => showTab(tab);
  showTab(data.regions.length || !data.misses.length ? "regions" : "misses");
  $("overview").onclick = () => everything(false);
  $("everything").onclick = () => everything(true);
  $("closer").onclick = () => page.pictures[page.shown].zoom(1.3);
  $("farther").onclick = () => page.pictures[page.shown].zoom(1 / 1.3);
  $("whole").onclick = () => page.pictures[page.shown].fit(true);
  if (data.graphs.length) showGraph(0);
  else $("picture").replaceChildren(h("div", { className: "empty" }, data.headline));
  if (data.regions.some(r => `#${r.id}` === location.hash)) choose(location.hash.slice(1), true);
}

fill();
