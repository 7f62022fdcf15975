// The comparison of runs: numbers, loss and one layer on common axes, heatmaps on one scale.

import { get, runPath } from "../service/api.js";
import { along, heatmaps, histories, normOf } from "../service/chart_queries.js";
import { NumbersTable, title } from "./compare_numbers.js";
import { h, keyed, setText } from "../document/dom.js";
import { count } from "../document/format.js";
import { Heatmap } from "../charts/heatmap.js";
import { hasValues, known } from "../service/history_queries.js";
import { Lines, nonfinitePoints, thresholdLine, valueAt } from "../charts/lines.js";
import { Live, restAfter } from "../service/live.js";
import { extent, grewMost, growth } from "../charts/matrix.js";
import { METRICS, metricToShow } from "../charts/metrics.js";
import { Choice, panel, problemNote, swatch, waiting } from "../document/elements.js";
import { amend, go, MOST_COMPARED, withQuery } from "../document/router.js";
import { between, covered, stepRange, stepsOf } from "../charts/steps.js";
import { StepWindow } from "../charts/step_window.js";
import { onTheme, seriesColor } from "../document/theme.js";

const MARGIN = 84; // of figures without layer names
const FEW = 6; // runs whose heatmaps are large
const SMALL = { points: 160, layers: 120 }; // of each of many heatmaps

/**
 * A compared run: its record, and the answers to the queries of its charts.
 * @typedef {{name: string, place: number, item?: any, loss?: any, sigma?: any, before?: any,
 *   after?: any, history?: any, threshold?: any}} Compared
 */

export class CompareView {
  constructor(route) {
    this.names = [...new Set(route.runs)].slice(0, MOST_COMPARED);
    /** @type {Compared[]} */
    this.runs = this.names.map((name, place) => ({ name, place }));
    this.isMany = this.names.length > FEW;
    /** @type {number | null} */
    this.from = null;
    /** @type {number | null} */
    this.to = null;
    this.chartsAt = -Infinity;
    this.element = h("div", { class: "view" }, waiting());
    this.build();
    this.update(route);
    this.live = new Live((signal) => this.load(signal), 2000, (problem) => this.failed(problem));
    this.unTheme = onTheme(() => this.ready && this.showCharts());
  }

  destroy() {
    this.live.stop();
    this.unTheme();
    for (const part of this.parts()) part.destroy();
  }

  parts() {
    return [this.loss, this.layer, ...this.heatmaps];
  }

  build() {
    const zoom = (from, to) => this.zoom(from, to);
    const handlers = { zoom, point: (step) => this.point(step) };
    const select = (layer) => this.amend({ layer });
    this.steps = new StepWindow(zoom);
    this.metric = new Choice("What the colors show", METRICS, (metric) => this.amend({ metric }));
    this.scale = new Choice("Scale", ["linear", "log"], (scale) => this.amend({ scale }));
    this.loss = new Lines("Loss of the runs", handlers);
    this.layer = new Lines("\u03c3 of one layer in the runs", handlers);
    this.picker = h("select", { "aria-label": "Layer", class: "layer-picker" });
    this.picker.addEventListener("change", () => select(this.picker.value));
    this.heatmaps = this.names.map(
      (name) => new Heatmap(`Run ${name}, layers by steps`, { ...handlers, select }),
    );
    this.numbers = new NumbersTable();
    this.readouts = { loss: h("p", { class: "readout" }), layer: h("p", { class: "readout" }) };
    this.titles = this.names.map((name) => h("h3", {}, swatch(), h("span", { text: name })));
    const instead = "These runs have no sigma: \u03c3 stands for the Frobenius norm.";
    this.normNote = h("p", { class: "hint", hidden: true, text: instead });
    this.content = this.arrange();
  }

  arrange() {
    const pictures = this.heatmaps.map((heatmap, i) =>
      h("section", { class: "picture" }, this.titles[i], heatmap.element));
    const tools = [this.scale.element, this.steps.element];
    const figure = (lines, readout) => [h("div", {}, lines.element), readout];
    return [
      h("div", { class: "view-head" },
        h("h1", { text: this.names.length === 1 ? "1 run" : `${this.names.length} runs, side by side` })),
      h("div", { class: "grid versus-grid" },
        panel(this.isMany ? "area-loss versus-wide" : "area-loss", "Loss", tools, ...figure(this.loss, this.readouts.loss)),
        panel(this.isMany ? "area-numbers versus-wide" : "area-numbers", "In numbers", [], this.numbers.element),
        panel("area-pictures", "Layers \u00d7 steps", [this.metric.element], this.normNote,
          h("div", { class: this.isMany ? "pictures many" : "pictures" }, ...pictures)),
        panel("area-layer", "\u03c3 of one layer", [this.picker],
          ...figure(this.layer, this.readouts.layer))),
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
    go({ view: "compare", runs: this.names, query: withQuery(this.query, between(from, to)) });
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
    if (this.ready && problem.status !== 404) return; // the bar shows that the service is down
    this.ready = false;
    this.element.replaceChildren(problemNote(problem, "What is to be compared"));
  }

  async load(signal) {
    const asked = this.names.map((name) => get(runPath(name), {}, signal));
    // A run that does not exist yet, or was deleted, leaves its place empty.
    const items = await Promise.all(asked.map(known));
    if (!items.some(Boolean)) await Promise.all(asked); // shows the service's own problem
    items.forEach((item, i) => {
      const before = this.runs[i].item;
      if (item?.version !== before?.version) this.stale = true;
      if (Boolean(item) !== Boolean(before)) this.chartsAt = -Infinity;
      this.runs[i].item = item;
    });
    if (!this.content[0].isConnected) this.element.replaceChildren(...this.content);
    this.numbers.show(this.runs);
    if (this.stale && performance.now() >= this.chartsAt) await this.loadCharts(signal);
  }

  async loadCharts(signal) {
    this.stale = false;
    const begin = performance.now();
    const queries = this.present().map((run) => ({ run, ask: along(run.name, this, signal) }));
    const norm = this.norm();
    this.normNote.hidden = norm === "sigma";
    await Promise.all(queries.map(async ({ run, ask }) => {
      const history = ask("/scalars/loss/history");
      const [loss, pictures] = await Promise.all([history, heatmaps(ask, true, this.isMany ? SMALL : {}, norm)]);
      Object.assign(run, { loss, ...pictures });
    }));
    this.pickLayer();
    await Promise.all(queries.map(({ run, ask }) => this.loadLayer(run, ask)));
    this.ready = true;
    this.numbers.show(this.runs);
    const asking = (performance.now() - begin) / 1000;
    this.showCharts();
    const drawing = this.parts().reduce((sum, part) => sum + part.chart.seconds, 0);
    this.chartsAt = performance.now() + 1000 * restAfter(asking, drawing);
  }

  present() {
    return this.runs.filter((run) => run.item);
  }

  /** What stands for sigma: one and the same in all runs, so that they can be compared. */
  norm() {
    const norms = this.present().map((run) => normOf(run.item));
    return norms.length && norms.every((norm) => norm === "frobenius") ? "frobenius" : "sigma";
  }

  async loadLayer(run, ask) {
    const layer = this.picked;
    [run.history, run.threshold] = [null, null];
    if (layer === null || !run.sigma?.layers.includes(layer)) return;
    Object.assign(run, (await histories(ask, [layer], this.norm())).get(layer));
  }

  /** Pick the requested layer, else the worst one of the first run that has one. */
  pickLayer() {
    const layers = [...new Set(this.runs.flatMap((run) => run.sigma?.layers ?? []))];
    const option = (layer) => h("option", { value: layer, text: layer });
    keyed(this.picker, layers, (layer) => layer, option, () => {});
    const worst = this.present().map((run) => run.item.worst_layer).find(Boolean);
    const first = this.runs.find((run) => run.sigma?.layers.length);
    const grown = first ? grewMost(first.sigma) : null;
    const wishes = [this.query.get("layer"), this.picked, worst, grown, layers[0]];
    this.picked = wishes.find((layer) => layer && layers.includes(layer)) ?? null;
    if (this.picked !== null) this.picker.value = this.picked;
  }

  showCharts() {
    const limited = this.runs.every((run) => !run.sigma || hasValues(run.before));
    const acted = this.present().some((run) => run.item.rescales > 0);
    const { metric, hidden } = metricToShow(this.query.get("metric"), limited, acted);
    this.metric.show(metric, hidden);
    const log = this.query.get("scale") === "log";
    this.scale.show(log ? "log" : "linear");
    const steps = covered(this.runs.flatMap((run) => [run.loss, run.sigma])) ?? [0, 10];
    const growing = this.runs.some((run) => run.item?.state === "active");
    const range = this.from === null ? stepRange(...steps, growing) : [this.from, this.to];
    this.steps.show(this.from, this.to, steps);
    this.point(null);
    this.drawLines(this.loss, { title: "loss", height: 220, log }, range, "loss");
    this.drawLines(this.layer, { title: "\u03c3", height: 200, log }, range, "history");
    const limits = metric === "ratio" ? null : this.limits(metric);
    for (const run of this.runs) this.drawHeatmap(run, { metric, range, limits });
  }

  drawHeatmap(run, options) {
    const [heatmap, head] = [this.heatmaps[run.place], this.titles[run.place]];
    head.firstChild.style.backgroundColor = seriesColor(run.place);
    setText(head.lastChild, title(run));
    if (!run.item) heatmap.say("This run is not here: it was deleted, or it has not begun.");
    else if (!run.sigma) heatmap.say("No \u03c3 has arrived yet.");
    else heatmap.draw(run, { ...options, small: this.isMany });
  }

  drawLines(chart, axis, range, key) {
    const lines = this.runs
      .filter((run) => run[key]?.steps.length)
      .map((run) => ({ name: title(run), ink: seriesColor(run.place), history: run[key], threshold: run.threshold }));
    if (!lines.length) {
      chart.say("None of these runs has reported it.");
      return;
    }
    const limits = key === "loss" ? [] : lines.filter((line) => line.threshold?.steps.length);
    const points = lines.flatMap(({ history, ink }) => nonfinitePoints(history, ink));
    chart.draw({
      panels: [{ ...axis, lines: [...lines, ...limits.map(thresholdLine)] }],
      rails: [{ title: "not finite", points }],
      range,
      margin: MARGIN,
    });
  }

  /** Return one color scale for all heatmaps: [low, high]. */
  limits(metric) {
    /** @param {Compared} run */
    const matrix = ({ sigma }) => (metric === "growth" ? growth(sigma.max) : sigma.max);
    const ends = this.runs.filter((run) => run.sigma).map((run) => extent(matrix(run)));
    if (!ends.length) return null;
    return [Math.min(...ends.map(([low]) => low)), Math.max(...ends.map(([, high]) => high))];
  }

  point(step) {
    const whole = step === null ? null : Math.floor(step);
    for (const part of this.parts()) part.chart.moveCursor(step);
    for (const [key, values] of [["loss", "loss"], ["layer", "history"]]) {
      const said = this.runs.map((run) => `${title(run)}: ${valueAt(run[values], whole)}`);
      const where = whole === null ? "newest" : `step ${count(whole)}`;
      setText(this.readouts[key], [where, ...said].join(" \u00b7 "));
    }
  }
}
