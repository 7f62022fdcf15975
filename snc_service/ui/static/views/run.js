// One run: its state, its heatmap, its worst layers, the history of the chosen ones, what happened.

import { get, runPath } from "../service/api.js";
import { plotly } from "../charts/chart.js";
import { h, setText } from "../document/dom.js";
import { EventList, eventPoints } from "./events.js";
import { runFacts, tellChange } from "./run_summary.js";
import { moment } from "../document/format.js";
import { Heatmap, METRICS, metricToShow } from "../charts/heatmap.js";
import { byLayer, covered, hasValues, known, stepsOf } from "../service/history_queries.js";
import { LayerTable } from "./layers.js";
import { IncidentPanel } from "./incidents.js";
import { Legend } from "../charts/legend.js";
import { bucketAt, Lines, nonfinitePoints, thresholdLine } from "../charts/lines.js";
import { Live, restAfter } from "../service/live.js";
import { stepRange } from "../charts/matrix.js";
import { ForecastList, MOST_AHEAD, MOST_LEFT, OnsetList } from "./order.js";
import { Choice, Facts, panel, problemNote, showState, stateBadge, waiting } from "../document/elements.js";
import { PolicyPanel } from "./policy.js";
import { amend, go, withQuery } from "../document/router.js";
import { StepWindow } from "../charts/steps.js";
import { onTheme, seriesColor } from "../document/theme.js";

const HISTORY = "History of the chosen layers and loss: arrow keys move along the steps";
const BEFORE = "\u03c3 is measured before a step\u2019s action; a rescale then brings it down.";
const MOST_CHOSEN = 8;
const CHOSEN_AT_FIRST = 3;
const LOSS_PLACE = 7; // among the colors of the series
const EVENTS = 100;
const POINTS = 500;
const ROWS = 500;

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
    this.chartsAt = -Infinity;
    this.element = h("div", { class: "view" }, waiting());
    this.build();
    this.update(route);
    this.live = new Live((signal) => this.load(signal), 1000, (problem) => this.failed(problem));
    this.ages = setInterval(() => this.item && !document.hidden && this.showFacts(), 1000);
    this.unTheme = onTheme(() => this.recolor());
  }

  destroy() {
    this.live.stop();
    clearInterval(this.ages);
    this.unTheme();
    this.heatmap.destroy();
    this.lines.destroy();
  }

  build() {
    const zoom = (from, to) => this.zoom(from, to);
    const point = (step) => this.point(step);
    const select = (layer) => this.select(layer);
    this.badge = stateBadge();
    this.title = h("h1");
    this.sub = h("p", { class: "summary" });
    this.facts = new Facts("State of the run");
    this.notice = h("p", { class: "notice", role: "status", hidden: true });
    this.steps = new StepWindow(zoom);
    this.metric = new Choice("What the colors show", METRICS, (metric) => this.amend({ metric }));
    this.heatmap = new Heatmap("Layers by steps", { zoom, point, select });
    this.scale = new Choice("Scale", ["linear", "log"], (scale) => this.amend({ scale }));
    this.legend = new Legend(select);
    const key = (event) => this.key(event);
    this.hint = h("p", { class: "hint", hidden: true, text: BEFORE });
    this.lines = new Lines(HISTORY, { zoom, point, key });
    this.table = new LayerTable({ select, ask: () => this.refresh() });
    const show = { go: (event) => this.showEvent(event) };
    this.eventList = new EventList(show);
    this.incidents = new IncidentPanel(this.run, show);
    this.onset = new OnsetList(show);
    this.forecast = new ForecastList(show);
    this.onsetBox = panel("area-onset", "Which layer went first", [], this.onset.element);
    this.forecastBox = panel("area-forecast", "Next to reach their threshold", [], this.forecast.element);
    for (const box of [this.onsetBox, this.forecastBox]) box.hidden = true;
    this.incidentBox = panel("area-incidents", "Incidents", [], this.incidents.element);
    this.policy = new PolicyPanel(this.run, () => this.refresh());
    this.content = this.arrange();
  }

  arrange() {
    const tools = [this.metric.element, this.steps.element];
    const history = [this.legend.element, this.hint, h("div", {}, this.lines.element)];
    return [
      h("div", { class: "view-head" }, this.title, this.badge, this.sub),
      this.notice,
      this.facts.element,
      h("div", { class: "grid" },
        h("div", { class: "column" },
          panel("area-heatmap", "Layers \u00d7 steps", tools, this.heatmap.element),
          panel("area-history", "History", [this.scale.element], ...history),
          this.onsetBox,
          this.forecastBox),
        h("div", { class: "column" },
          this.incidentBox,
          panel("area-layers", "Worst layers", [], this.table.element),
          panel("area-events", "Events", [], this.eventList.element),
          panel("area-policy", "Policy", [], this.policy.element))),
    ];
  }

  /** Take over what the address says; anything that changes the charts asks for them anew. */
  update(route) {
    this.query = route.query;
    Object.assign(this, stepsOf(route.query));
    const layers = [...new Set(route.query.getAll("layer"))].slice(0, MOST_CHOSEN);
    if (layers.length || route.query.has("none")) this.choose(layers);
    if (this.item) this.refresh();
  }

  /** Layers keep their colors while others come and go. */
  choose(layers) {
    const before = this.places ?? new Map();
    const taken = new Set(layers.map((layer) => before.get(layer)));
    const free = [...Array(MOST_CHOSEN).keys()].filter((place) => !taken.has(place));
    this.places = new Map(layers.map((layer) => [layer, before.get(layer) ?? free.shift()]));
  }

  get chosen() {
    return [...(this.places?.keys() ?? [])];
  }

  ink(layer) {
    return seriesColor(this.places.get(layer));
  }

  amend(changes) {
    const route = { view: "run", runs: [this.run], query: withQuery(this.query, changes) };
    amend(route);
    this.update(route);
  }

  /** Ask for everything shown again, now. */
  refresh() {
    this.version = null;
    this.chartsAt = -Infinity;
    this.live.now();
  }

  zoom(from, to) {
    const steps = to > from ? { from, to } : { from: null, to: null };
    go({ view: "run", runs: [this.run], query: withQuery(this.query, steps) });
  }

  escape() {
    if (this.from !== null) this.zoom(null, null);
  }

  select(layer) {
    const others = this.chosen.filter((name) => name !== layer);
    const next = others.length < this.chosen.length ? others : [...others, layer];
    this.amend({ layer: next.slice(-MOST_CHOSEN), none: next.length ? null : "1" });
  }

  showEvent(event) {
    if (event.layer && !this.chosen.includes(event.layer)) this.select(event.layer);
    this.point(event.step);
    const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    this.lines.element.scrollIntoView({ block: "nearest", behavior: calm ? "auto" : "smooth" });
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
    // The first time, nothing is known: ask for all of it at once.
    const tables = this.item ? null : this.loadTables(signal);
    tables?.catch(() => {}); // reported below, or by the run itself
    const item = await get(runPath(this.run), {}, signal);
    if (this.item) tellChange(this.item, item, "This run");
    this.item = item;
    if (!this.content[0].isConnected) this.element.replaceChildren(...this.content);
    this.showFacts();
    if (item.version !== this.version) {
      await (tables ?? this.loadTables(signal));
      this.showTables();
      this.showFacts();
      this.version = item.version;
      this.stale = true;
      plotly().catch(() => {});
    }
    await this.incidents.load(signal);
    this.incidentBox.hidden = this.incidents.items.length === 0;
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
    if (!this.places && this.layers.items.length) {
      this.choose(this.layers.items.slice(0, CHOSEN_AT_FIRST).map((item) => item.layer));
    }
  }

  showTables() {
    const inks = new Map(this.chosen.map((layer) => [layer, this.ink(layer)]));
    this.table.show(this.layers.items, this.layers.total, inks);
    this.eventList.show(this.events.items, Boolean(this.events.next));
  }

  async loadCharts(signal) {
    this.stale = false;
    const begin = performance.now();
    const span = { from_step: this.from, to_step: this.to, points: POINTS };
    const layer = this.chosen;
    const ask = (path, parameters) =>
      known(get(runPath(this.run, path), { ...span, ...parameters }, signal));
    const along = (metric) => (layer.length ? ask("/history", { metric, layer }) : null);
    const acted = this.item.rescales > 0;
    const ahead = this.item.state === "active";
    const [sigma, before, after, history, thresholds, loss, onset, forecast] = await Promise.all([
      ask("/heatmap", { metric: "sigma", layers: ROWS }),
      ask("/heatmap", { metric: "ratio", layers: ROWS }),
      acted ? ask("/heatmap", { metric: "ratio_after", layers: ROWS }) : null,
      along("sigma"),
      along("threshold"),
      ask("/scalars/loss/history", {}),
      get(runPath(this.run, "/onset"), { limit: MOST_LEFT }, signal),
      ahead ? get(runPath(this.run, "/forecast"), { limit: MOST_AHEAD }, signal) : null,
    ]);
    this.onsetBox.hidden = !this.onset.show(onset);
    this.forecastBox.hidden = !this.forecast.show(forecast);
    const [histories, limits] = [byLayer(history), byLayer(thresholds)];
    this.data = { sigma, before, after, history: histories, thresholds: limits, loss };
    this.policy.preview(sigma?.layers ?? []);
    const asking = (performance.now() - begin) / 1000;
    await this.showCharts();
    const drawing = this.heatmap.chart.seconds + this.lines.chart.seconds;
    this.chartsAt = performance.now() + 1000 * restAfter(asking, drawing);
  }

  async showCharts() {
    const { sigma, before, after, history, thresholds, loss } = this.data;
    const asked = this.query.get("metric");
    const { metric, hidden } = metricToShow(asked, hasValues(before), Boolean(after));
    this.metric.show(metric, hidden);
    this.hint.hidden = !after;
    const log = this.query.get("scale") === "log";
    this.scale.show(log ? "log" : "linear");
    const steps = covered([sigma, loss]) ?? [0, 10];
    const growing = this.item.state === "active";
    const range = this.from === null ? stepRange(...steps, growing) : [this.from, this.to];
    this.steps.show(this.from, this.to, steps);
    const selected = this.chosen.map((layer) => ({
      layer,
      ink: this.ink(layer),
      history: history.get(layer),
      threshold: thresholds.get(layer),
    }));
    this.legend.show(selected);
    await this.drawLines(selected.filter((one) => one.history), loss, range, log);
    if (!sigma) this.heatmap.say("No \u03c3 has arrived yet.");
    else await this.heatmap.draw({ sigma, before, after }, { metric, range, selected });
  }

  async drawLines(selected, loss, range, log) {
    const scalar = loss?.steps.length ? [{ ink: seriesColor(LOSS_PLACE), history: loss }] : [];
    if (!selected.length && !scalar.length) {
      this.lines.say("Choose a layer in the table or in the heatmap.");
      return;
    }
    const thresholds = selected.filter((one) => one.threshold?.steps.length).map(thresholdLine);
    const panels = [
      { title: "\u03c3", height: 230, log, lines: [...selected, ...thresholds] },
      { title: "loss", height: 110, log, lines: scalar },
    ].filter(({ lines }) => lines.length);
    const all = [...selected, ...scalar];
    const bad = all.flatMap(({ history, ink }) => nonfinitePoints(history, ink));
    const rails = [
      { title: "events", points: eventPoints(this.events.items) },
      { title: "not finite", points: bad },
    ];
    await this.lines.draw({ panels, rails, range });
  }

  /** The step under the pointer, in every figure and in the legend. */
  point(step) {
    this.at = step === null ? null : Math.floor(step);
    this.heatmap.chart.moveCursor(step);
    this.lines.moveCursor(step);
    this.legend.at(this.at, this.data?.loss);
  }

  key(event) {
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const { history: layers, loss } = this.data ?? {};
    const history = loss?.steps.length ? loss : layers?.values().next().value;
    if (!move || !history?.steps.length) return;
    const at = this.at ?? null;
    // The first key shows the newest step, the next ones move.
    const i = bucketAt(history, at) + (at === null ? 0 : move * (event.shiftKey ? 10 : 1));
    this.point(history.steps[Math.min(Math.max(i, 0), history.steps.length - 1)]);
    event.preventDefault();
  }

  recolor() {
    if (this.data) this.showCharts();
    if (this.layers) this.showTables();
  }

  showFacts() {
    const { run, name, project, created_at: created } = this.item;
    showState(this.badge, this.item.state);
    setText(this.title, name || run);
    const parts = [project, name && name !== run ? run : "", `started ${moment(created)}`];
    setText(this.sub, parts.filter(Boolean).join(" \u00b7 "));
    this.facts.show(runFacts(this.item, this.policy.current));
  }
}
