// One run: state, heatmap, worst layers, the histories of the chosen layers, events.

import { get, runPath } from "../service/api.js";
import { along, heatmaps, histories, normOf } from "../service/chart_queries.js";
import { AboutPanel } from "./run/about.js";
import { ChosenLayers } from "../charts/chosen.js";
import { h, setText } from "../document/dom.js";
import { EventList } from "./run/events.js";
import { tellChange } from "./run_summary.js";
import { LayerSearch } from "./run/find.js";
import { Heatmap } from "../charts/heatmap.js";
import { RunHead } from "./run/head.js";
import { HistoryPanel } from "./run/history.js";
import { hasValues } from "../service/history_queries.js";
import { LayerTable } from "./run/layers.js";
import { IncidentPanel } from "./incidents.js";
import { Live, restAfter } from "../service/live.js";
import { RunStream } from "../service/stream.js";
import { METRICS, metricToShow } from "../charts/metrics.js";
import { forecastOrder, MOST_AHEAD, MOST_LEFT, onsetOrder } from "./run/order.js";
import { OrderPanel } from "./run/order_panel.js";
import { Choice, panel, problemNote, waiting } from "../document/elements.js";
import { PolicyPanel } from "./run/policy.js";
import { archive, edit, remove } from "./run_actions.js";
import { amend, go, withQuery } from "../document/router.js";
import { between, covered, stepRange, stepsOf } from "../charts/steps.js";
import { StepWindow } from "../charts/step_window.js";
import { onTheme, seriesColor } from "../document/theme.js";

const CHOSEN_AT_FIRST = 3;
const EVENTS = 100;
const UNHEARD = 20_000; // ms between two looks while a stream tells of changes
const TOLD_LAYERS = 50; // of the layers in one message of the stream
const ASKED = 1000; // without a stream

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
    this.policyUntil = -Infinity;
    this.element = h("div", { class: "view" }, waiting());
    this.build();
    this.update(route);
    this.live = new Live((signal) => this.load(signal), ASKED, (problem) => this.failed(problem));
    this.stream = new RunStream(
      this.run, (update) => this.pushed(update), () => this.live.now(),
    );
    this.ages = setInterval(() => this.item && !document.hidden && this.showHead(), 1000);
    this.unTheme = onTheme(() => this.recolor());
  }

  destroy() {
    this.live.stop();
    this.stream.stop();
    clearInterval(this.ages);
    this.unTheme();
    this.heatmap.destroy();
    this.history.destroy();
  }

  build() {
    const zoom = (from, to) => this.zoom(from, to);
    const point = (step) => this.point(step);
    const select = (layer) => this.select(layer);
    this.head = new RunHead({
      acknowledge: () => this.refresh(),
      edit: () => this.change(edit),
      archive: () => this.change((item) => archive([item])),
      remove: async () => {
        if (await remove([this.item])) location.hash = "#/";
      },
    });
    this.search = new LayerSearch({
      amend: (changes) => this.amend(changes),
      go: (changes) => this.goTo(changes),
    });
    this.notice = h("p", { class: "notice", role: "status", hidden: true });
    const instead = "This run has no sigma: \u03c3 stands for the Frobenius norm.";
    this.normNote = h("p", { class: "hint", hidden: true, text: instead });
    this.steps = new StepWindow(zoom);
    this.metric = new Choice("What the colors show", METRICS, (metric) => this.amend({ metric }));
    this.heatmap = new Heatmap("Layers by steps", {
      zoom,
      point,
      select,
      rows: (from, to) => this.goTo({ rows: `${from}-${to}` }),
      find: (pattern) => this.goTo({ find: pattern, experts: "0", rows: null }),
    });
    this.history = new HistoryPanel({ zoom, point, amend: (changes) => this.amend(changes), remove: select });
    this.table = new LayerTable({ select, ask: () => this.refresh() });
    const show = { go: (event) => this.showEvent(event) };
    this.eventList = new EventList(show);
    this.incidents = new IncidentPanel(this.run, show);
    this.onset = new OrderPanel("area-onset", "Which layer went first", show.go);
    this.forecast = new OrderPanel("area-forecast", "Next to reach their threshold", show.go);
    this.about = new AboutPanel(this.run, {
      edit: () => this.change(edit),
      go: (step) => this.showEvent({ step, layer: null }),
    });
    this.policy = new PolicyPanel(this.run, () => this.refresh());
    this.content = this.arrange();
  }

  arrange() {
    const tools = [this.metric.element, this.steps.element];
    return [
      this.head.element,
      this.notice,
      this.head.verdict,
      this.head.facts.element,
      h("div", { class: "grid" },
        h("div", { class: "column" },
          panel("area-heatmap", "Layers \u00d7 steps", tools, this.normNote, this.search.element, this.heatmap.element),
          this.history.element,
          this.about.element,
          panel("area-policy", "Policy", [], this.policy.element)),
        h("div", { class: "column" },
          this.onset.element,
          this.forecast.element,
          this.incidents.element,
          panel("area-layers", "Worst layers", [], this.table.note, this.table.element),
          panel("area-events", "Events", [], this.eventList.element))),
    ];
  }

  /** Apply the address; reload the charts if anything about them changed. */
  update(route) {
    this.query = route.query;
    Object.assign(this, stepsOf(route.query));
    const layers = route.query.getAll("layer");
    this.search.update(route.query);
    this.history.update(route.query);
    this.pinned = layers.length > 0 || route.query.has("none");
    if (this.pinned) this.chosen.choose(layers);
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

  goTo(changes) {
    go({ view: "run", runs: [this.run], query: withQuery(this.query, changes) });
  }

  zoom(from, to) {
    this.goTo(between(from, to));
  }

  escape() {
    if (this.from !== null) this.zoom(null, null);
    else if (this.search.rows) this.goTo({ rows: null });
  }

  async change(what) {
    if (await what(this.item)) this.refresh();
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
    const news = this.item ? this.news : null;
    this.news = null;
    this.unheard = false;
    // A new metric or scalar is in the whole record only.
    const item = news ? { ...this.item, ...news.run } : await get(runPath(this.run), {}, signal);
    if (this.item) tellChange(this.item, item, "This run");
    this.item = item;
    if (!this.content[0].isConnected) this.element.replaceChildren(...this.content);
    this.showHead();
    if (item.version !== this.version) {
      await (tables ?? this.loadTables(signal, news));
      this.showTables();
      this.showHead();
      this.version = item.version;
      this.stale = true;
      }
    this.about.show(this.item);
    await Promise.all([this.incidents.load(signal), this.about.load(signal)]);
    this.live.interval = this.stream.isOpen ? UNHEARD : ASKED;
    if (this.stale && performance.now() >= this.chartsAt) await this.loadCharts(signal);
    if (this.stale) this.later();
    this.notice.hidden = true;
  }

  /** Keep what the stream told, and show it. */
  pushed(update) {
    // Messages that no load has taken yet add up; one after a broken connection tells nothing of it.
    const before = this.news?.events ?? [];
    this.news = update.isFirst || this.unheard ? null : { ...update, events: [...update.events, ...before] };
    this.unheard = this.news === null;
    this.live.now();
  }

  /** Draw what is not drawn yet as soon as charts may be drawn again. */
  later() {
    clearTimeout(this.waiting);
    const wait = Math.max(this.chartsAt - performance.now(), 0) + 20;
    if (Number.isFinite(wait)) this.waiting = setTimeout(() => this.live.now(), wait);
  }

  /** `news`: what the stream told, which holds all of it as a rule. */
  async loadTables(signal, news = null) {
    const { sort, limit } = this.table;
    const match = this.search.match || null;
    const told = news && sort === "-ratio" && limit <= TOLD_LAYERS && !match;
    const known = told && news.layers.length && performance.now() < this.policyUntil;
    [this.layers, this.events] = await Promise.all([
      told ? { items: news.layers, total: news.run.layers }
        : get(runPath(this.run, "/layers"), { sort, limit, match }, signal),
      news ? this.merged(news.events) : get(runPath(this.run, "/events"), { limit: EVENTS }, signal),
      known ? null : this.policy.load(signal),
    ]);
    if (!known) this.policyUntil = performance.now() + UNHEARD;
    if (!this.pinned) this.follow(this.layers.items, sort === "-ratio");
  }

  /** The events with new ones, the newest first. */
  merged(fresh) {
    const old = new Set(this.events.items.map(({ id }) => id));
    const items = [...fresh.filter(({ id }) => !old.has(id)), ...this.events.items];
    return { items: items.slice(0, EVENTS), next: this.events.next ?? (items.length > EVENTS ? "" : null) };
  }

  /**
   * Draw the worst layers until somebody chooses others: a layer that fails now takes the place of
   * one that does not, and nothing moves for less.
   */
  follow(items, areWorstFirst) {
    const worst = items.slice(0, CHOSEN_AT_FIRST).map((item) => item.layer);
    const listed = new Set(items.map((item) => item.layer));
    const failing = (item) => (item.ratio ?? 0) > 1 || item.nonfinite.includes("sigma");
    const missed = areWorstFirst &&
      items.slice(0, CHOSEN_AT_FIRST).some((item) => failing(item) && !this.chosen.places.has(item.layer));
    const gone = this.search.match !== this.followed || this.chosen.names.some((layer) => !listed.has(layer));
    if (!this.chosen.made || missed || (gone && this.search.match)) this.chosen.choose(worst);
    this.followed = this.search.match;
  }

  showTables() {
    const inks = new Map(this.chosen.names.map((layer) => [layer, this.ink(layer)]));
    const norm = normOf(this.item);
    this.normNote.hidden = norm === "sigma";
    this.table.show(this.layers.items, this.layers.total, inks, norm);
    this.eventList.show(this.events.items, Boolean(this.events.next));
  }

  async loadCharts(signal) {
    this.stale = false;
    const begin = performance.now();
    const ask = along(this.run, this, signal);
    const ahead = this.item.state === "active";
    const { scalar, axis } = this.history;
    const [pictures, lines, loss, counted, onset, forecast] = await Promise.all([
      heatmaps(ask, this.item.rescales > 0, this.search.asked, normOf(this.item)),
      histories(ask, this.chosen.names, normOf(this.item)),
      ask(`/scalars/${encodeURIComponent(scalar)}/history`),
      axis === "step" ? null : ask(`/scalars/${encodeURIComponent(axis)}/history`),
      get(runPath(this.run, "/onset"), { limit: MOST_LEFT }, signal),
      ahead ? get(runPath(this.run, "/forecast"), { limit: MOST_AHEAD }, signal) : null,
    ]);
    this.onset.show(onsetOrder(onset));
    this.incidents.tellOnset(onset);
    this.forecast.show(forecastOrder(forecast));
    this.data = { pictures, lines, loss, counted };
    this.search.show(pictures.sigma);
    this.policy.preview((pictures.sigma?.rows ?? []).map(({ worst }) => worst));
    const asking = (performance.now() - begin) / 1000;
    this.showCharts();
    const drawing = this.heatmap.chart.seconds + this.history.lines.chart.seconds;
    this.chartsAt = performance.now() + 1000 * restAfter(asking, drawing);
  }

  showCharts() {
    const { pictures, lines, loss, counted } = this.data;
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
    const { scalars } = this.item;
    const marks = this.about.annotations ?? [];
    this.history.show({ chosen, loss, counted, scalars, marks, events: this.events.items, range, acted });
    const axis = this.history.stepAxis;
    if (sigma && !sigma.layers.length && this.search.match) this.heatmap.say("No layer matches the search.");
    else if (!sigma) this.heatmap.say("No \u03c3 has arrived yet.");
    else this.heatmap.draw(pictures, { metric, range, selected: chosen, axis, began: this.from !== null });
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
