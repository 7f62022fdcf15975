// The history of a run's chosen layers and of its loss, with a legend that reads out their values.

import { Legend } from "../../charts/legend.js";
import { bucketAt, Lines, nonfinitePoints, thresholdLine } from "../../charts/lines.js";
import { h } from "../../document/dom.js";
import { Choice, panel } from "../../document/elements.js";
import { seriesColor } from "../../document/theme.js";
import { eventPoints } from "./events.js";

const LABEL = "History of the chosen layers and loss: arrow keys move along the steps";
const BEFORE = "\u03c3 is measured before a step\u2019s action; a rescale then brings it down.";
const LOSS_PLACE = 7; // index in the colors of the series

export class HistoryPanel {
  /** `handlers`: `zoom(from, to)`, `point(step)`, `remove(layer)`, `scale(name)`. */
  constructor({ zoom, point, remove, scale }) {
    this.point = point;
    this.legend = new Legend(remove);
    this.hint = h("p", { class: "hint", hidden: true, text: BEFORE });
    this.lines = new Lines(LABEL, { zoom, point, key: (event) => this.key(event) });
    this.scale = new Choice("Scale", ["linear", "log"], scale);
    const parts = [this.legend.element, this.hint, h("div", {}, this.lines.element)];
    this.element = panel("area-history", "History", [this.scale.element], ...parts);
  }

  destroy() {
    this.lines.destroy();
  }

  /**
   * Draw `chosen` [{layer, ink, history, threshold}] and `loss`, over the marks of `events`.
   * `acted`: an action changed weights, so what is drawn is the sigma before it.
   */
  async show({ chosen, loss, events, range, log, acted }) {
    this.hint.hidden = !acted;
    this.scale.show(log ? "log" : "linear");
    this.loss = loss;
    this.shown = chosen.filter((one) => one.history);
    this.legend.show(chosen);
    const scalar = loss?.steps.length ? [{ ink: seriesColor(LOSS_PLACE), history: loss }] : [];
    if (!this.shown.length && !scalar.length) {
      this.lines.say("Choose a layer in the table or in the heatmap.");
      return;
    }
    const thresholds = this.shown.filter((one) => one.threshold?.steps.length).map(thresholdLine);
    const panels = [
      { title: "\u03c3", height: 230, log, lines: [...this.shown, ...thresholds] },
      { title: "loss", height: 110, log, lines: scalar },
    ].filter(({ lines }) => lines.length);
    const all = [...this.shown, ...scalar];
    const bad = all.flatMap(({ history, ink }) => nonfinitePoints(history, ink));
    const rails = [
      { title: "events", points: eventPoints(events) },
      { title: "not finite", points: bad },
    ];
    await this.lines.draw({ panels, rails, range });
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
