// The history of a run's chosen layers and of a scalar, with a legend that reads out their values.

import { Legend } from "../../charts/legend.js";
import { bucketAt, Lines, nonfinitePoints, thresholdLine } from "../../charts/lines.js";
import { counter, counterTicks, smoothed } from "../../charts/smooth.js";
import { h } from "../../document/dom.js";
import { Choice, panel } from "../../document/elements.js";
import { color, seriesColor } from "../../document/theme.js";
import { eventPoints } from "./events.js";

const LABEL = "History of the chosen layers and a scalar: arrow keys move along the steps";
const BEFORE = "\u03c3 is measured before a step\u2019s action; a rescale then brings it down.";
const SCALAR_PLACE = 7; // index in the colors of the series
const WEIGHTS = ["0", "0.6", "0.9", "0.97", "0.99"];
const ELAPSED = "step_seconds";
/** @type {[number, string][]} */
const UNITS = [[86_400, "days"], [3_600, "h"], [60, "min"]];

export class HistoryPanel {
  /** `handlers`: `zoom(from, to)`, `point(step)`, `remove(layer)`, `amend(changes)` of the address. */
  constructor({ zoom, point, remove, amend }) {
    this.point = point;
    this.legend = new Legend(remove);
    this.hint = h("p", { class: "hint", hidden: true, text: BEFORE });
    this.lines = new Lines(LABEL, { zoom, point, key: (event) => this.key(event) });
    this.choice = new Choice("Scale", ["linear", "log"], (scale) => amend({ scale }));
    const select = (label, name, none) => h("select", {
      "aria-label": label,
      on: { change: (event) => amend({ [name]: event.target.value === none ? null : event.target.value }) },
    });
    this.scalars = select("Scalar below", "scalar", "loss");
    this.weights = select("Smoothing", "smooth", "0");
    this.axes = select("Axis", "axis", "step");
    for (const weight of WEIGHTS) {
      this.weights.append(h("option", { value: weight, text: weight === "0" ? "not smoothed" : `smoothed ${weight}` }));
    }
    const tools = [this.scalars, this.weights, this.axes, this.choice.element];
    const parts = [this.legend.element, this.hint, h("div", {}, this.lines.element)];
    this.element = panel("area-history", "History", tools, ...parts);
    this.update(new URLSearchParams());
  }

  destroy() {
    this.lines.destroy();
  }

  /** Apply the address. */
  update(query) {
    const name = (key, usual) => (/^[a-z][a-z0-9_]{0,62}$/.test(query.get(key) ?? "") ? query.get(key) : usual);
    this.scalar = name("scalar", "loss");
    this.axis = name("axis", "step");
    this.weight = WEIGHTS.includes(query.get("smooth") ?? "") ? Number(query.get("smooth")) : 0;
    this.log = query.get("scale") === "log";
    this.weights.value = String(this.weight);
  }

  /**
   * Draw `chosen` [{layer, ink, history, threshold}] and the scalar `loss`, over the marks of
   * `events` and of planned changes. `counted`: the history of the axis, if it is not that of steps.
   * `acted`: an action changed weights, so what is drawn is the sigma before it.
   */
  show({ chosen, loss, counted, scalars, marks, events, range, acted }) {
    this.hint.hidden = !acted;
    this.offer(scalars);
    this.choice.show(this.log ? "log" : "linear");
    this.loss = loss && smoothed(loss, this.weight);
    this.stepAxis = this.axisOf(counted);
    this.shown = chosen.filter((one) => one.history).map((one) => ({ ...one, name: one.layer }));
    this.legend.name = this.scalar;
    this.legend.show(chosen);
    const ink = seriesColor(SCALAR_PLACE);
    const scalar = loss?.steps.length ? [{ name: this.scalar, ink, history: this.loss }] : [];
    if (!this.shown.length && !scalar.length) {
      this.lines.say("Choose a layer in the table or in the heatmap.");
      return;
    }
    const { log } = this;
    const thresholds = this.shown.filter((one) => one.threshold?.steps.length).map(thresholdLine);
    const panels = [
      { title: "\u03c3", height: 230, log, lines: [...this.shown, ...thresholds] },
      { title: this.scalar, height: 110, log, lines: scalar },
    ].filter(({ lines }) => lines.length);
    const bad = [...this.shown, ...scalar].flatMap((one) => nonfinitePoints(one.history, one.ink));
    const planned = marks.map(({ step }) => ({ step, ink: color("accent"), symbol: "square" }));
    const rails = [
      { title: "events", points: [...eventPoints(events), ...planned] },
      { title: "not finite", points: bad },
    ];
    this.lines.draw({ panels, rails, range, axis: this.stepAxis });
  }

  offer(scalars) {
    const axes = ["step", ...scalars].map((name) => [name, name === ELAPSED ? "by time" : `by ${name}`]);
    for (const [select, options, value] of [
      [this.scalars, (scalars.length ? scalars : ["loss"]).map((name) => [name, name]), this.scalar],
      [this.axes, axes, this.axis],
    ]) {
      const known = new Set([...select.options].map((option) => option.value));
      for (const [name, text] of [...options, [value, value]]) {
        if (!known.has(name)) select.append(h("option", { value: name, text }));
        known.add(name);
      }
      select.value = value;
    }
  }

  /** What the step axis says: its title, and its ticks if they are not those of steps. */
  axisOf(counted) {
    if (this.axis === "step") return {};
    const isElapsed = this.axis === ELAPSED;
    const points = counter(counted, isElapsed);
    if (points.steps.length < 2) return { title: `step (${this.axis} does not grow)` };
    const longest = points.values[points.values.length - 1];
    const [size, unit] = isElapsed ? UNITS.find(([seconds]) => longest >= 3 * seconds) ?? [1, "s"] : [1, ""];
    const scaled = { ...points, values: points.values.map((value) => value / size) };
    return {
      title: isElapsed ? `time spent in steps, ${unit}` : this.axis,
      ticks: (low, high, most) => counterTicks(scaled, low, high, most),
    };
  }

  /** Show where `step` is, and the values there; null for the newest. */
  moveCursor(step) {
    this.at = step === null ? null : Math.floor(step);
    this.lines.moveCursor(step);
    this.legend.at(this.at, this.loss);
  }

  key(event) {
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const history = this.loss?.steps.length ? this.loss : this.shown?.[0]?.history;
    if (!move || !history?.steps.length) return;
    const at = this.at ?? null;
    // The first key press shows the newest step, later ones move from it.
    const i = bucketAt(history, at) + (at === null ? 0 : move * (event.shiftKey ? 10 : 1));
    this.point(history.steps[Math.min(Math.max(i, 0), history.steps.length - 1)]);
    event.preventDefault();
  }

  scrollIntoView() {
    const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    this.lines.element.scrollIntoView({ block: "nearest", behavior: calm ? "auto" : "smooth" });
  }
}
