// One run: its state, its heatmap, its worst layers, the history of the chosen ones, what happened.

import { get, runPath, serviceNow } from "./api.js";
import { announce, h, setText } from "./dom.js";
import { EventList, eventPoints } from "./events.js";
import { age, count, MISSING, moment, percent, ratio } from "./format.js";
import { Heatmap, METRICS } from "./heatmap.js";
import { byLayer, covered, hasValues, known, stepsOf } from "./histories.js";
import { LayerTable, MOST_LAYERS } from "./layers.js";
import { Legend } from "./legend.js";
import { bucketAt, Lines, nonfinitePoints } from "./lines.js";
import { Live } from "./live.js";
import { stepRange } from "./matrix.js";
import { Choice, Facts, isHeld, problemNote, showState, stateBadge } from "./parts.js";
import { PolicyPanel } from "./policy.js";
import { amend, go, withQuery } from "./router.js";
import { StepWindow } from "./steps.js";
import { onTheme, seriesColor } from "./theme.js";

const MOST_CHOSEN = 8;
const CHOSEN_AT_FIRST = 3;
const CHART_SECONDS = 5;
const EVENTS = 100;
const POINTS = 500;

export class RunView {
  constructor(route) {
    [this.run] = route.runs;
    this.layerItems = [];
    this.names = [];
    this.events = [];
    this.chartsAt = -Infinity;
    this.element = h("div", { class: "view" }, h("p", { class: "hint", text: "Asking the service\u2026" }));
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
    this.badge = stateBadge();
    this.title = h("h1");
    this.sub = h("p", { class: "summary" });
    this.facts = new Facts("State of the run");
    this.notice = h("p", { class: "notice", role: "status", hidden: true });
    const zoom = (from, to) => this.zoom(from, to);
    this.steps = new StepWindow(zoom);
    this.heatmap = new Heatmap("Layers by steps", { zoom, point: (step) => this.point(step), select: (layer) => this.select(layer) });
    this.metric = new Choice("What the colors show", METRICS, (metric) => this.amend({ metric }));
    this.scale = new Choice("Scale of the history", { linear: "linear", log: "log" }, (scale) => this.amend({ scale }));
    this.legend = new Legend((layer) => this.select(layer));
    this.lines = new Lines("History of the chosen layers and loss: arrow keys move along the steps", { zoom, point: (step) => this.point(step), key: (event) => this.key(event) });
    this.table = new LayerTable({ select: (layer) => this.select(layer), ask: () => this.refresh() });
    this.eventList = new EventList({ go: (event) => this.showEvent(event) });
    this.policy = new PolicyPanel(this.run, () => this.names, () => this.refresh());
    this.content = this.arrange();
  }

  arrange() {
    const panel = (style, title, tools, ...children) => h("section", { class: `panel ${style}` }, h("div", { class: "panel-head" }, h("h2", { text: title }), ...tools), ...children);
    return [
      h("div", { class: "view-head" }, this.title, this.badge, this.sub),
      this.notice,
      this.facts.element,
      h("div", { class: "grid" },
        h("div", { class: "column" },
          panel("area-heatmap", "Layers \u00d7 steps", [this.metric.element, this.steps.element], this.heatmap.element),
          panel("area-history", "History", [this.scale.element], this.legend.element, h("div", {}, this.lines.element))),
        h("div", { class: "column" },
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
    const kept = layers.filter((layer) => before.has(layer));
    const free = [...Array(MOST_CHOSEN).keys()].filter((place) => !kept.some((layer) => before.get(layer) === place));
    this.places = new Map(layers.map((layer) => [layer, before.get(layer) ?? free.shift()]));
    this.chosen = layers;
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
    const narrow = from !== null && to !== null && to > from;
    go({ view: "run", runs: [this.run], query: withQuery(this.query, { from: narrow ? from : null, to: narrow ? to : null }) });
  }

  escape() {
    if (this.from !== null || this.to !== null) this.zoom(null, null);
  }

  select(layer) {
    const chosen = this.chosen ?? [];
    const next = chosen.includes(layer) ? chosen.filter((name) => name !== layer) : [...chosen, layer].slice(-MOST_CHOSEN);
    this.amend({ layer: next, none: next.length ? null : "1" });
  }

  showEvent(event) {
    const chosen = this.chosen ?? [];
    if (event.layer && !chosen.includes(event.layer)) this.select(event.layer);
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
    const item = await get(runPath(this.run), {}, signal);
    const before = this.item;
    this.item = item;
    if (!this.content[0].isConnected) this.element.replaceChildren(...this.content);
    this.showFacts();
    if (before) this.tellChanges(before, item);
    if (item.version !== this.version) {
      await this.loadTables(signal);
      this.version = item.version;
      this.stale = true;
    }
    if (this.stale && performance.now() >= this.chartsAt) await this.loadCharts(signal);
    this.notice.hidden = true;
  }

  tellChanges(before, item) {
    if (before.state !== item.state) announce(`The run is ${item.state}.`);
    else if (!before.breaches && item.breaches) announce("First breach of this run.");
    else if (!before.nonfinite_layers && item.nonfinite_layers) announce("A layer is not finite.");
  }

  async loadTables(signal) {
    const [layers, events] = await Promise.all([
      get(runPath(this.run, "/layers"), { sort: this.table.sort, limit: Math.min(this.table.limit, MOST_LAYERS) }, signal),
      get(runPath(this.run, "/events"), { limit: EVENTS }, signal),
      this.policy.load(signal),
    ]);
    this.layerItems = layers.items;
    this.layerTotal = layers.total;
    this.events = events.items;
    if (!this.chosen && layers.items.length) {
      this.choose(layers.items.slice(0, CHOSEN_AT_FIRST).map((item) => item.layer));
    }
    this.showTables(Boolean(events.next));
    this.showFacts();
  }

  showTables(more) {
    const inks = new Map((this.chosen ?? []).map((layer) => [layer, this.ink(layer)]));
    this.table.show(this.layerItems, this.layerTotal, inks);
    this.eventList.show(this.events, more);
  }

  async loadCharts(signal) {
    this.stale = false;
    const span = { from_step: this.from, to_step: this.to };
    const layer = this.chosen ?? [];
    const rows = { ...span, points: POINTS, layers: 500 };
    const lines = { ...span, points: POINTS, layer };
    const histories = (metric) => (layer.length ? known(get(runPath(this.run, "/history"), { metric, ...lines }, signal)) : null);
    const [sigma, ratios, history, thresholds, loss] = await Promise.all([
      known(get(runPath(this.run, "/heatmap"), { metric: "sigma", ...rows }, signal)),
      known(get(runPath(this.run, "/heatmap"), { metric: "ratio", ...rows }, signal)),
      histories("sigma"),
      histories("threshold"),
      known(get(runPath(this.run, "/scalars/loss/history"), { ...span, points: POINTS }, signal)),
    ]);
    this.data = { sigma, ratios, history: byLayer(history), thresholds: byLayer(thresholds), loss };
    this.names = sigma?.layers ?? [];
    this.policy.preview();
    await this.showCharts();
    // Never more than a tenth of the time for drawing.
    const cost = this.heatmap.chart.seconds + this.lines.chart.seconds;
    this.chartsAt = performance.now() + 1000 * Math.max(CHART_SECONDS, 10 * cost);
  }

  async showCharts() {
    const { sigma, ratios, history, thresholds, loss } = this.data;
    const limited = hasValues(ratios);
    const asked = this.query.get("metric");
    const metric = asked in METRICS && (asked !== "ratio" || limited) ? asked : limited ? "ratio" : "sigma";
    this.metric.show(metric, limited ? [] : ["ratio"]);
    const scale = this.query.get("scale") === "log" ? "log" : "linear";
    this.scale.show(scale);
    const range = this.range(sigma, loss);
    this.steps.show(this.from, this.to, covered([sigma, loss]) ?? range);
    const chosen = (this.chosen ?? []).map((layer) => ({ layer, ink: this.ink(layer), history: history.get(layer), threshold: thresholds.get(layer) }));
    this.legend.show(chosen);
    await this.drawLines(chosen.filter((one) => one.history), loss, range, scale);
    if (sigma) await this.heatmap.draw(sigma, limited ? ratios : null, { metric, range, selected: chosen });
    else this.heatmap.chart.say("No \u03c3 has arrived yet.");
  }

  drawLines(chosen, loss, range, scale) {
    if (!chosen.length && !loss?.steps.length) {
      this.lines.say(this.item.layers ? "Choose a layer in the table or in the heatmap." : "No values have arrived yet.");
      return Promise.resolve();
    }
    const log = scale === "log";
    const lines = chosen.flatMap(({ ink, history, threshold }) => [
      { ink, history },
      ...(threshold?.steps.length ? [{ ink, history: threshold, dash: "dash", band: false, width: 1.2, shape: "hv" }] : []),
    ]);
    const panels = [{ title: "\u03c3", height: 230, log, lines }];
    if (loss?.steps.length) panels.push({ title: "loss", height: 110, log, lines: [{ ink: seriesColor(7), history: loss }] });
    const bad = [...chosen, ...(loss ? [{ ink: seriesColor(7), history: loss }] : [])];
    const rails = [
      { title: "events", points: eventPoints(this.events) },
      { title: "not finite", points: bad.flatMap(({ history, ink }) => nonfinitePoints(history, ink)) },
    ];
    return this.lines.draw({ panels, rails, range });
  }

  range(sigma, loss) {
    if (this.from !== null && this.to !== null) return [this.from, this.to];
    const [first, end] = covered([sigma, loss]) ?? [0, 10];
    return stepRange(first, end, this.item.state === "active");
  }

  /** The step under the pointer, in every figure and in the legend. */
  point(step) {
    const whole = step === null ? null : Math.floor(step);
    this.heatmap.chart.moveCursor(step);
    this.lines.moveCursor(step);
    this.legend.at(whole, this.data?.loss);
    this.at = whole;
  }

  key(event) {
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const history = this.data?.history.values().next().value ?? this.data?.loss;
    if (!move || !history?.steps.length) return;
    const i = bucketAt(history, this.at ?? null) + (this.at === null || this.at === undefined ? 0 : move * (event.shiftKey ? 10 : 1));
    this.point(history.steps[Math.min(Math.max(i, 0), history.steps.length - 1)]);
    event.preventDefault();
  }

  recolor() {
    if (this.data) this.showCharts();
    if (this.item) this.showTables(!this.eventList.note.hidden);
  }

  showFacts() {
    const { item } = this;
    showState(this.badge, item.state);
    setText(this.title, item.name || item.run);
    setText(this.sub, [item.project, item.name && item.name !== item.run ? item.run : "", `started ${moment(item.created_at)}`].filter(Boolean).join(" \u00b7 "));
    const over = (item.worst_ratio ?? 0) > 1;
    const broken = item.nonfinite_layers > 0;
    const { current } = this.policy;
    const version = current?.policy_version;
    this.facts.show({
      Step: { value: count(item.last_step), detail: item.attempt > 0 ? `attempt ${item.attempt + 1}` : "" },
      "Last report": { value: age(item.updated_at, serviceNow()), tone: item.state === "silent" ? "warn" : "" },
      Layers: { value: count(item.layers) },
      "Worst \u03c3 / threshold": { value: `${over ? "\u25b2 " : ""}${ratio(item.worst_ratio)}`, tone: over ? (isHeld(item) ? "warn" : "bad") : "", detail: item.worst_layer ?? "" },
      Breaches: { value: count(item.breaches), tone: item.breaches && !isHeld(item) ? "bad" : "", detail: isHeld(item) ? "all rescaled" : "" },
      Rescales: { value: count(item.rescales) },
      "Not finite": { value: broken ? `\u2715 ${count(item.nonfinite_layers)}` : "0", tone: broken ? "broken" : "", detail: broken ? "layers" : "" },
      Dropped: { value: count(item.dropped_values), tone: item.dropped_values ? "warn" : "", detail: item.dropped_values ? "values" : "" },
      Overhead: { value: percent(item.overhead), detail: item.overhead === null || item.overhead === undefined ? "not reported" : "of step time" },
      Policy: { value: version ? `v${version}` : MISSING, detail: version ? `by ${current.author}` : "observe only" },
    });
  }
}
