// Runs side by side: their numbers, loss on one axis, one layer on one axis, heatmaps on one scale.

import { get, runPath, serviceNow } from "./api.js";
import { h, keyed, setText } from "./dom.js";
import { age, count, MISSING, number, percent, ratio } from "./format.js";
import { Heatmap, METRICS } from "./heatmap.js";
import { byLayer, covered, hasValues, known, stepsOf } from "./histories.js";
import { Lines, nonfinitePoints, valueAt } from "./lines.js";
import { Live } from "./live.js";
import { extent, growth, stepRange } from "./matrix.js";
import { Choice, isHeld, problemNote, showState, stateBadge } from "./parts.js";
import { amend, go, runLink, withQuery } from "./router.js";
import { MOST_COMPARED } from "./runs.js";
import { StepWindow } from "./steps.js";
import { onTheme, seriesColor } from "./theme.js";

const POINTS = 500;
const CHART_SECONDS = 5;

const FACTS = [
  ["Step", (run) => count(run.item.last_step)],
  ["Loss, newest", (run) => (run.loss ? valueAt(run.loss, null) : MISSING)],
  ["Loss, lowest", (run) => number(lowest(run.loss))],
  ["Worst \u03c3 / threshold, newest", (run) => ratio(run.item.worst_ratio), (run) => (run.item.worst_ratio > 1 && !isHeld(run.item) ? "bad" : "")],
  ["Worst layer", (run) => run.item.worst_layer ?? MISSING],
  ["Breaches", (run) => count(run.item.breaches), (run) => (run.item.breaches && !isHeld(run.item) ? "bad" : "")],
  ["Rescales", (run) => count(run.item.rescales)],
  ["Not finite", (run) => count(run.item.nonfinite_layers), (run) => (run.item.nonfinite_layers ? "broken" : "")],
  ["Overhead", (run) => percent(run.item.overhead)],
  ["Last report", (run) => age(run.item.updated_at, serviceNow())],
];

export class CompareView {
  constructor(route) {
    this.names = route.runs.slice(0, MOST_COMPARED);
    this.runs = this.names.map((name, i) => ({ name, place: i }));
    this.chartsAt = -Infinity;
    this.element = h("div", { class: "view" }, h("p", { class: "hint", text: "Asking the service\u2026" }));
    this.build();
    this.update(route);
    this.live = new Live((signal) => this.load(signal), 2000, (problem) => this.failed(problem));
    this.unTheme = onTheme(() => this.ready && this.showCharts());
  }

  destroy() {
    this.live.stop();
    this.unTheme();
    for (const part of [this.loss, this.layer, ...this.heatmaps]) part.destroy();
  }

  build() {
    const zoom = (from, to) => this.zoom(from, to);
    const handlers = { zoom, point: (step) => this.point(step) };
    this.steps = new StepWindow(zoom);
    this.metric = new Choice("What the colors show", METRICS, (metric) => this.amend({ metric }));
    this.scale = new Choice("Scale", { linear: "linear", log: "log" }, (scale) => this.amend({ scale }));
    this.loss = new Lines("Loss of the runs", handlers);
    this.layer = new Lines("\u03c3 of one layer in the runs", handlers);
    this.picker = h("select", { "aria-label": "Layer", class: "layer-picker" });
    this.picker.addEventListener("change", () => this.amend({ layer: this.picker.value }));
    this.heatmaps = this.runs.map(({ name }) => new Heatmap(`Run ${name}, layers by steps`, { ...handlers, select: (layer) => this.amend({ layer }) }));
    this.head = h("tr");
    this.body = h("tbody");
    this.readouts = { loss: h("p", { class: "readout" }), layer: h("p", { class: "readout" }) };
    this.content = this.arrange();
  }

  arrange() {
    const panel = (style, title, tools, ...children) => h("section", { class: `panel ${style}` }, h("div", { class: "panel-head" }, h("h2", { text: title }), ...tools), ...children);
    const table = h("table", { class: "versus" }, h("caption", { class: "visually-hidden", text: "The runs in numbers" }), h("thead", {}, this.head), this.body);
    this.titles = this.runs.map(({ name }) => h("h3", {}, h("span", { class: "swatch", "aria-hidden": "true" }), h("span", { text: name })));
    const pictures = h("div", { class: "pictures" }, ...this.heatmaps.map((heatmap, i) => h("section", { class: "picture" }, this.titles[i], heatmap.element)));
    return [
      h("div", { class: "view-head" }, h("h1", { text: `${this.names.length} runs, side by side` })),
      h("div", { class: "grid versus-grid" },
        panel("area-loss", "Loss", [this.scale.element, this.steps.element], h("div", {}, this.loss.element), this.readouts.loss),
        panel("area-numbers", "In numbers", [], h("div", { class: "table-box" }, table)),
        panel("area-pictures", "Layers \u00d7 steps", [this.metric.element], pictures),
        panel("area-layer", "\u03c3 of one layer", [this.picker], h("div", {}, this.layer.element), this.readouts.layer)),
    ];
  }

  update(route) {
    this.query = route.query;
    Object.assign(this, stepsOf(route.query));
    if (this.ready) this.refresh();
  }

  amend(changes) {
    const route = { view: "compare", runs: this.names, query: withQuery(this.query, changes) };
    amend(route);
    this.update(route);
  }

  zoom(from, to) {
    const narrow = from !== null && to !== null && to > from;
    go({ view: "compare", runs: this.names, query: withQuery(this.query, { from: narrow ? from : null, to: narrow ? to : null }) });
  }

  escape() {
    if (this.from !== null) this.zoom(null, null);
  }

  refresh() {
    this.chartsAt = -Infinity;
    this.stale = true;
    this.live.now();
  }

  failed(problem) {
    if (problem.status === 404 || !this.ready) this.element.replaceChildren(problemNote(problem, "One of these runs"));
    if (problem.status === 404) this.ready = false;
  }

  async load(signal) {
    const items = await Promise.all(this.names.map((name) => get(runPath(name), {}, signal)));
    items.forEach((item, i) => {
      if (item.version !== this.runs[i].item?.version) this.stale = true;
      this.runs[i].item = item;
    });
    if (!this.content[0].isConnected) this.element.replaceChildren(...this.content);
    this.showNumbers();
    if (this.stale && performance.now() >= this.chartsAt) await this.loadCharts(signal);
  }

  async loadCharts(signal) {
    this.stale = false;
    const span = { from_step: this.from, to_step: this.to, points: POINTS };
    await Promise.all(this.runs.map(async (run) => {
      const ask = (rest, parameters) => known(get(runPath(run.name, rest), { ...span, ...parameters }, signal));
      [run.loss, run.sigma, run.ratios] = await Promise.all([
        ask("/scalars/loss/history", {}),
        ask("/heatmap", { metric: "sigma", layers: 500 }),
        ask("/heatmap", { metric: "ratio", layers: 500 }),
      ]);
    }));
    this.pickLayer();
    await Promise.all(this.runs.map(async (run) => {
      const ask = (metric) => known(get(runPath(run.name, "/history"), { ...span, metric, layer: this.picked }, signal));
      const here = this.picked !== null && run.sigma?.layers.includes(this.picked);
      [run.history, run.threshold] = here ? (await Promise.all([ask("sigma"), ask("threshold")])).map((answer) => byLayer(answer).get(this.picked)) : [null, null];
    }));
    this.ready = true;
    this.showNumbers();
    await this.showCharts();
    const cost = [...this.heatmaps, this.loss, this.layer].reduce((sum, part) => sum + part.chart.seconds, 0);
    this.chartsAt = performance.now() + 1000 * Math.max(CHART_SECONDS, 10 * cost);
  }

  /** The layer asked for, else the worst one of the first run that has one. */
  pickLayer() {
    const layers = [...new Set(this.runs.flatMap((run) => run.sigma?.layers ?? []))];
    keyed(this.picker, layers, (layer) => layer, (layer) => h("option", { value: layer, text: layer }), () => {});
    const asked = this.query.get("layer");
    const worst = this.runs.map((run) => run.item.worst_layer).find(Boolean);
    this.picked = [asked, this.picked, worst, layers[0]].find((layer) => layer && layers.includes(layer)) ?? null;
    if (this.picked !== null) this.picker.value = this.picked;
  }

  async showCharts() {
    const limited = this.runs.every((run) => hasValues(run.ratios));
    const asked = this.query.get("metric");
    const metric = asked in METRICS && (asked !== "ratio" || limited) ? asked : limited ? "ratio" : "sigma";
    this.metric.show(metric, limited ? [] : ["ratio"]);
    const log = this.query.get("scale") === "log";
    this.scale.show(log ? "log" : "linear");
    const range = this.range();
    this.steps.show(this.from, this.to, covered(this.runs.flatMap((run) => [run.loss, run.sigma])) ?? range);
    this.point(null);
    await this.drawLines(this.loss, "loss", 220, log, range, (run) => [[run.loss]]);
    await this.drawLines(this.layer, "\u03c3", 200, log, range, (run) => [[run.history], [run.threshold, { dash: "dash", band: false, width: 1.2, shape: "hv" }]]);
    const limits = metric === "ratio" ? null : this.limits(metric);
    for (const [i, run] of this.runs.entries()) {
      this.titles[i].firstChild.style.backgroundColor = seriesColor(i);
      setText(this.titles[i].lastChild, title(run.item));
      if (run.sigma) await this.heatmaps[i].draw(run.sigma, hasValues(run.ratios) ? run.ratios : null, { metric, range, limits });
      else this.heatmaps[i].chart.say("No \u03c3 has arrived yet.");
    }
  }

  drawLines(chart, label, height, log, range, histories) {
    const lines = this.runs.flatMap((run, i) => histories(run).filter(([history]) => history?.steps.length).map(([history, more]) => ({ ink: seriesColor(i), history, ...more })));
    if (!lines.length) {
      chart.say("None of these runs has reported it.");
      return Promise.resolve();
    }
    const bad = lines.filter((line) => line.band !== false).flatMap(({ history, ink }) => nonfinitePoints(history, ink));
    return chart.draw({ panels: [{ title: label, height, log, lines }], rails: [{ title: "not finite", points: bad }], range, margin: 84 });
  }

  /** One color scale for all pictures. */
  limits(metric) {
    const ends = this.runs.filter((run) => run.sigma).map((run) => extent(metric === "growth" ? growth(run.sigma.max) : run.sigma.max));
    return ends.length ? [Math.min(...ends.map(([low]) => low)), Math.max(...ends.map(([, high]) => high))] : null;
  }

  range() {
    if (this.from !== null && this.to !== null) return [this.from, this.to];
    const [first, end] = covered(this.runs.flatMap((run) => [run.loss, run.sigma])) ?? [0, 10];
    return stepRange(first, end, this.runs.some((run) => run.item.state === "active"));
  }

  point(step) {
    const whole = step === null ? null : Math.floor(step);
    for (const chart of [this.loss.chart, this.layer.chart, ...this.heatmaps.map((heatmap) => heatmap.chart)]) chart.moveCursor(step);
    const where = whole === null ? "newest" : `step ${count(whole)}`;
    const values = (key) => this.runs.map((run) => `${title(run.item)}: ${run[key] ? valueAt(run[key], whole) : MISSING}`).join(" \u00b7 ");
    setText(this.readouts.loss, `${where} \u00b7 ${values("loss")}`);
    setText(this.readouts.layer, `${where} \u00b7 ${values("history")}`);
  }

  showNumbers() {
    keyed(this.head, [{ name: null }, ...this.runs], ({ name }) => name, ({ name, place }) => (name === null ? h("td") : h("th", { scope: "col" }, h("span", { class: "swatch", "aria-hidden": "true" }), h("a", { href: runLink(name) }), stateBadge())), (cell, run) => {
      if (run.name === null) return;
      cell.firstChild.style.backgroundColor = seriesColor(run.place);
      setText(cell.querySelector("a"), title(run.item));
      showState(cell.querySelector(".badge"), run.item.state);
    });
    keyed(this.body, FACTS, ([label]) => label, ([label]) => h("tr", {}, h("th", { scope: "row", text: label }), ...this.runs.map(() => h("td"))), (row, [, value, tone]) => {
      this.runs.forEach((run, i) => {
        const cell = row.children[i + 1];
        setText(cell, value(run));
        cell.dataset.tone = tone?.(run) ?? "";
      });
    });
  }
}

function title(item) {
  return item.name || item.run;
}

function lowest(history) {
  const values = (history?.min ?? []).filter((value) => value !== null);
  return values.length ? values.reduce((low, value) => Math.min(low, value)) : null;
}
