// One run: state, heatmap, worst layers, the histories of the chosen layers, events.

import { get, runPath } from "../service/api.js";
import { plotly } from "../charts/chart.js";
import { along, heatmaps, histories } from "../service/chart_queries.js";
import { ChosenLayers } from "../charts/chosen.js";
import { h, setText } from "../document/dom.js";
import { EventList } from "./run/events.js";
import { tellChange } from "./run_summary.js";
import { Heatmap } from "../charts/heatmap.js";
import { RunHead } from "./run/head.js";
import { HistoryPanel } from "./run/history.js";
import { hasValues } from "../service/history_queries.js";
import { LayerTable } from "./run/layers.js";
import { IncidentPanel } from "./incidents.js";
import { Live, restAfter } from "../service/live.js";
import { METRICS, metricToShow } from "../charts/metrics.js";
import { forecastOrder, MOST_AHEAD, MOST_LEFT, onsetOrder } from "./run/order.js";
import { OrderPanel } from "./run/order_panel.js";
import { Choice, panel, problemNote, waiting } from "../document/elements.js";
import { PolicyPanel } from "./run/policy.js";
import { amend, go, withQuery } from "../document/router.js";
import { between, covered, stepRange, stepsOf } from "../charts/steps.js";
import { StepWindow } from "../charts/step_window.js";
import { onTheme, seriesColor } from "../document/theme.js";

const CHOSEN_AT_FIRST = 3;
const EVENTS = 100;

export class RunView {
  constructor(route) {
    /** @type {string} */
    this.run = route.runs[0];
    /** @type {{items: any[], next: string | null}} */
    this.events = { items: [], next: null };
    /** @type {any} */
    this.layers = null;
    /** @type {number | null} */
    this.from = null;
    /** @type {number | null} */
    this.to = null;
    this.chosen = new ChosenLayers();
    this.chartsAt = -Infinity;
    this.element = h("div", { class: "view" }, waiting());
    this.build();
    this.update(route);
    this.live = new Live((signal) => this.load(signal), 1000, (problem) => this.failed(problem));
    this.ages = setInterval(() => this.item && !document.hidden && this.showHead(), 1000);
    this.unTheme = onTheme(() => this.recolor());
  }

  destroy() {
    this.live.stop();
    clearInterval(this.ages);
    this.unTheme();
    this.heatmap.destroy();
    this.history.destroy();
  }

  build() {
    const zoom = (from, to) => this.zoom(from, to);
    const point = (step) => this.point(step);
    const select = (layer) => this.select(layer);
    this.head = new RunHead();
    this.notice = h("p", { class: "notice", role: "status", hidden: true });
    this.steps = new StepWindow(zoom);
    this.metric = new Choice("What the colors show", METRICS, (metric) => this.amend({ metric }));
    this.heatmap = new Heatmap("Layers by steps", { zoom, point, select });
    const scale = (name) => this.amend({ scale: name });
    this.history = new HistoryPanel({ zoom, point, scale, remove: select });
    this.table = new LayerTable({ select, ask: () => this.refresh() });
    const show = { go: (event) => this.showEvent(event) };
    this.eventList = new EventList(show);
    this.incidents = new IncidentPanel(this.run, show);
    this.onset = new OrderPanel("area-onset", "Which layer went first", show.go);
    this.forecast = new OrderPanel("area-forecast", "Next to reach their threshold", show.go);
    this.policy = new PolicyPanel(this.run, () => this.refresh());
    this.content = this.arrange();
  }

  arrange() {
    const tools = [this.metric.element, this.steps.element];
    return [
      this.head.element,
      this.notice,
      this.head.facts.element,
      h("div", { class: "grid" },
        h("div", { class: "column" },
          panel("area-heatmap", "Layers \u00d7 steps", tools, this.heatmap.element),
          this.history.element,
          this.onset.element,
          this.forecast.element),
        h("div", { class: "column" },
          this.incidents.element,
          panel("area-layers", "Worst layers", [], this.table.element),
          panel("area-events", "Events", [], this.eventList.element),
          panel("area-policy", "Policy", [], this.policy.element))),
    ];
  }

  /** Apply the address; reload the charts if anything about them changed. */
  update(route) {
    this.query = route.query;
    Object.assign(this, stepsOf(route.query));
    const layers = route.query.getAll("layer");
    if (layers.length || route.query.has("none")) this.chosen.choose(layers);
    if (this.item) this.refresh();
  }

  ink(layer) {
    return seriesColor(this.chosen.places.get(layer));
  }

  amend(changes) {
    const route = { view: "run", runs: [this.run], query: withQuery(this.query, changes) };
    amend(route);
    this.update(route);
  }

  /** Reload everything shown, now. */
  refresh() {
    this.version = null;
    this.chartsAt = -Infinity;
    this.live.now();
  }

  zoom(from, to) {
    go({ view: "run", runs: [this.run], query: withQuery(this.query, between(from, to)) });
  }

  escape() {
    if (this.from !== null) this.zoom(null, null);
  }

  select(layer) {
    const layers = this.chosen.toggled(layer);
    this.amend({ layer: layers, none: layers.length ? null : "1" });
  }

  showEvent(event) {
    if (event.layer && !this.chosen.places.has(event.layer)) this.select(event.layer);
    this.point(event.step);
    this.history.scrollIntoView();
  }

  failed(problem) {
    if (problem.status === 404 || !this.item) {
      this.element.replaceChildren(problemNote(problem, `The run ${this.run}`));
      this.item = null;
      return;
    }
    this.notice.hidden = false;
    setText(this.notice, problem.message || String(problem));
  }

  async load(signal) {
    // At the first load nothing is known: request everything at once.
    const tables = this.item ? null : this.loadTables(signal);
    tables?.catch(() => {}); // reported below, or by the run itself
    const item = await get(runPath(this.run), {}, signal);
    if (this.item) tellChange(this.item, item, "This run");
    this.item = item;
    if (!this.content[0].isConnected) this.element.replaceChildren(...this.content);
    this.showHead();
    if (item.version !== this.version) {
      await (tables ?? this.loadTables(signal));
      this.showTables();
      this.showHead();
      this.version = item.version;
      this.stale = true;
      plotly().catch(() => {});
    }
    await this.incidents.load(signal);
    if (this.stale && performance.now() >= this.chartsAt) await this.loadCharts(signal);
    this.notice.hidden = true;
  }

  async loadTables(signal) {
    const { sort, limit } = this.table;
    [this.layers, this.events] = await Promise.all([
      get(runPath(this.run, "/layers"), { sort, limit }, signal),
      get(runPath(this.run, "/events"), { limit: EVENTS }, signal),
      this.policy.load(signal),
    ]);
    if (!this.chosen.made && this.layers.items.length) {
      this.chosen.choose(this.layers.items.slice(0, CHOSEN_AT_FIRST).map((item) => item.layer));
    }
  }

  showTables() {
    const inks = new Map(this.chosen.names.map((layer) => [layer, this.ink(layer)]));
    this.table.show(this.layers.items, this.layers.total, inks);
    this.eventList.show(this.events.items, Boolean(this.events.next));
  }

  async loadCharts(signal) {
    this.stale = false;
    const begin = performance.now();
    const ask = along(this.run, this, signal);
    const ahead = this.item.state === "active";
    const [pictures, lines, loss, onset, forecast] = await Promise.all([
      heatmaps(ask, this.item.rescales > 0),
      histories(ask, this.chosen.names),
      ask("/scalars/loss/history"),
      get(runPath(this.run, "/onset"), { limit: MOST_LEFT }, signal),
      ahead ? get(runPath(this.run, "/forecast"), { limit: MOST_AHEAD }, signal) : null,
    ]);
    this.onset.show(onsetOrder(onset));
    this.forecast.show(forecastOrder(forecast));
    this.data = { pictures, lines, loss };
    this.policy.preview(pictures.sigma?.layers ?? []);
    const asking = (performance.now() - begin) / 1000;
    await this.showCharts();
    const drawing = this.heatmap.chart.seconds + this.history.lines.chart.seconds;
    this.chartsAt = performance.now() + 1000 * restAfter(asking, drawing);
  }

  async showCharts() {
    const { pictures, lines, loss } = this.data;
    const { sigma, before } = pictures;
    const acted = Boolean(pictures.after);
    const { metric, hidden } = metricToShow(this.query.get("metric"), hasValues(before), acted);
    this.metric.show(metric, hidden);
    const steps = covered([sigma, loss]) ?? [0, 10];
    const growing = this.item.state === "active";
    const range = this.from === null ? stepRange(...steps, growing) : [this.from, this.to];
    this.steps.show(this.from, this.to, steps);
    const drawn = (layer) => ({ layer, ink: this.ink(layer), ...lines.get(layer) });
    const chosen = this.chosen.names.map(drawn);
    const log = this.query.get("scale") === "log";
    await this.history.show({ chosen, loss, events: this.events.items, range, log, acted });
    if (!sigma) this.heatmap.say("No \u03c3 has arrived yet.");
    else await this.heatmap.draw(pictures, { metric, range, selected: chosen });
  }

  /** Set the step under the pointer in every figure and in the legend. */
  point(step) {
    this.heatmap.chart.moveCursor(step);
    this.history.moveCursor(step);
  }

  showHead() {
    this.head.show(this.item, this.policy.current);
  }

  recolor() {
    if (this.data) this.showCharts();
    if (this.layers) this.showTables();
  }
}
