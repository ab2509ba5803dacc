// The graph of one capture, drawn by cytoscape and laid out by dagre. A group - a region, or what lies between regions - is
// one box until it is opened; then its operations stand inside it.
"use strict";

const LARGE = 700;    // boxes and edges that take seconds to lay out

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

class Picture {
  // graph: {groups, nodes, edges}; kindOf(region number) -> its kind; events: {region(id), over(data, event), out(), busy(yes)}
  constructor(container, graph, kindOf, events) {
    this.graph = graph;
    this.kindOf = kindOf;
    this.events = events;
    this.groups = new Map(graph.groups.map(g => [g.id, g]));
    this.nodes = new Map(graph.nodes.map(n => [n.id, n]));
    this.opened = new Set();
    this.chosen = new Set();
    this.pen = document.createElement("canvas").getContext("2d");
    this.cy = cytoscape({ container, style: this.style(), minZoom: 0.02, maxZoom: 3, boxSelectionEnabled: false, autounselectify: true });
    this.cy.on("tap", "node", event => this.tapped(event.target.data()));
    this.cy.on("mouseover", "node", event => events.over(event.target.data(), event.originalEvent));
    this.cy.on("mousemove", "node", event => events.over(event.target.data(), event.originalEvent));
    this.cy.on("mouseout drag pan zoom", () => events.out());
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.cy.style(this.style()));
  }

  tapped(data) {
    if (data.region) this.events.region(data.region);
    else if (this.groups.has(data.id)) this.toggle(data.id);
  }

  toggle(group) {
    if (!this.opened.delete(group)) this.opened.add(group);
    this.draw(group);
  }

  showAll(everything) {
    this.opened = new Set(everything ? this.groups.keys() : []);
    this.draw();
  }

  // The box a node is drawn in: its own if its group is open or holds nothing else, the group's otherwise.
  shownAs(node) {
    const group = this.groups.get(node.group);
    return this.opened.has(group.id) || (group.count === 1 && group.region === null) ? node.id : group.id;
  }

  elements() {
    const found = [], drawn = new Set();
    for (const group of this.graph.groups) {
      if (group.count === 1 && group.region === null) continue;
      found.push({ data: this.opened.has(group.id) ? this.frame(group) : this.box(group) });
    }
    for (const node of this.graph.nodes) {
      if (this.shownAs(node) !== node.id) continue;
      const parent = this.opened.has(node.group) ? node.group : undefined;
      found.push({ data: { id: node.id, parent, label: node.label, type: node.input ? "input" : "operation", ...this.sized(node.label, "11px") } });
    }
    for (const [from, to] of this.graph.edges) {
      const source = this.shownAs(this.nodes.get(from)), target = this.shownAs(this.nodes.get(to)), id = `${source}>${target}`;
      if (source === target || drawn.has(id)) continue;
      drawn.add(id);
      found.push({ data: { id, source, target } });
    }
    return found;
  }

  box(group) {
    const kind = group.region === null ? undefined : this.kindOf(group.region), name = kind ?? group.label;
    const below = kind ? group.label : `${group.count} operations`;
    return { id: group.id, region: kind && group.id, kind, label: `${name}\n${below}`, type: kind ? "region" : "between", ...this.sized(name, kind ? "600 13px" : "12px", below) };
  }

  frame(group) {
    const kind = group.region === null ? undefined : this.kindOf(group.region);
    return { id: group.id, region: kind && group.id, kind, label: kind ?? group.label, type: "frame" };
  }

  sized(text, size, below = "") {
    this.pen.font = `${size} ${colour("sans")}`;
    const width = Math.max(this.pen.measureText(text).width, this.pen.measureText(below).width);
    return { w: Math.max(44, Math.ceil(width) + 24), h: below ? 46 : 26 };
  }

  // Hundreds of boxes take seconds to lay out: the page says so first.
  draw(keep) {
    const elements = this.elements();
    if (elements.length < LARGE) return this.arrange(elements, keep);
    this.events.busy(true);
    setTimeout(() => { this.arrange(elements, keep); this.events.busy(false); }, 30);
  }

  arrange(elements, keep) {
    const before = keep && this.cy.$id(keep).renderedPosition();
    this.cy.batch(() => {
      this.cy.elements().remove();
      this.cy.add(elements);
      this.mark(this.chosen);
    });
    this.cy.layout({ name: "dagre", rankDir: "TB", nodeSep: 18, rankSep: 30, edgeSep: 10, animate: false, fit: false,
      useDagreEdgeControlPoints: true, automaticDagreEdgeStyle: false }).run();
    if (!before) return this.fit();
    const inside = this.cy.$id(keep).children();    // the first of them comes to stand where the box was
    const first = inside.nonempty() ? inside.min(node => node.position("y")).ele : this.cy.$id(keep);
    const after = first.renderedPosition();
    this.cy.panBy({ x: before.x - after.x, y: before.y - after.y });
  }

  // The whole graph if its words can still be read, else its beginning.
  fit(whole = false) {
    this.cy.resize();
    this.cy.fit(undefined, 24);
    if (this.cy.zoom() > 1.15) this.cy.zoom(1.15);
    else if (!whole && this.cy.zoom() < 0.55) this.cy.zoom(Math.min(0.8, Math.max(0.3, (this.cy.width() - 48) / this.cy.elements().boundingBox().w)));
    this.cy.center();
    if (!whole) this.cy.panBy({ x: 0, y: 24 - this.cy.elements().renderedBoundingBox().y1 });
  }

  zoom(factor) {
    this.cy.zoom({ level: this.cy.zoom() * factor, renderedPosition: { x: this.cy.width() / 2, y: this.cy.height() / 2 } });
  }

  // Outlines these regions, and moves to the first of them if none can be seen.
  choose(ids) {
    this.mark(new Set(ids));
    const found = this.cy.nodes(".chosen"), seen = this.cy.extent();
    const visible = found.some(n => n.position("x") > seen.x1 && n.position("x") < seen.x2 && n.position("y") > seen.y1 && n.position("y") < seen.y2);
    if (found.nonempty() && !visible) this.cy.center(found[0]);
  }

  mark(ids) {
    this.chosen = ids;
    this.cy.nodes().removeClass("chosen");
    for (const id of ids) this.cy.$id(id).addClass("chosen");
  }

  // Outlines the operations that stand at one line of the user's source.
  markLine(where) {
    const boxes = this.graph.nodes.filter(n => n.where === where).map(n => this.shownAs(n));
    this.choose(boxes);
  }

  style() {
    const ofKind = data => colour(data.data("kind"));
    const text = { label: "data(label)", "font-family": colour("sans"), "text-valign": "center", "text-halign": "center", "text-wrap": "wrap", "line-height": 1.3 };
    return [
      { selector: "node", style: { ...text, shape: "round-rectangle", "font-size": 11, color: colour("ink"),
        "background-color": colour("card"), "border-width": 1, "border-color": colour("edge") } },
      { selector: "node[w]", style: { width: "data(w)", height: "data(h)" } },
      { selector: "node[type='input']", style: { "background-color": colour("sunk"), "border-style": "dashed", color: colour("soft") } },
      { selector: "node[type='between']", style: { "background-color": colour("sunk"), "font-size": 12 } },
      { selector: "node[type='region']", style: { "background-color": ofKind, "border-width": 0, color: colour("on-kind"), "font-size": 13, "font-weight": 600 } },
      { selector: "node[type='frame']", style: { "background-color": colour("sunk"), "background-opacity": 0.6, "text-valign": "top", "text-margin-y": -4, "font-size": 12, color: colour("soft"),
        "text-background-color": colour("card"), "text-background-opacity": 0.85, "text-background-padding": 2, padding: 14 } },
      { selector: "node[type='frame'][kind]", style: { "background-color": ofKind, "background-opacity": 0.13, "border-color": ofKind, "border-width": 2, color: ofKind, "font-weight": 600 } },
      { selector: "node.chosen", style: { "outline-width": 3, "outline-color": colour("accent"), "outline-offset": 3 } },
      { selector: "edge", style: { width: 1.2, "line-color": colour("edge"), "target-arrow-color": colour("edge"), "target-arrow-shape": "triangle", "arrow-scale": 0.8,
        "curve-style": "unbundled-bezier", "edge-distances": "intersection",
        "control-point-weights": edge => edge.scratch("controlPointWeights") ?? [0.5],
        "control-point-distances": edge => edge.scratch("controlPointDistances") ?? [0] } },
    ];
  }
}
