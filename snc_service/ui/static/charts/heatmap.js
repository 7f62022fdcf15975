// Layers x steps: every layer of a run in one picture, however many there are.

import { Chart, leftMargin, stepAxis } from "./chart.js";
import { h, setText } from "../document/dom.js";
import { count, number, plotlyText, ratio, shortName } from "../document/format.js";
import { aligned, columnAt, columns, extent, growth, held, stretches } from "./matrix.js";
import { color } from "../document/theme.js";

// Cividis (Nunez, Anderton, Renslow 2018): even in lightness, the same to color-blind eyes.
const CIVIDIS = [
  "#00224e", "#123570", "#3b496c", "#575d6d", "#707173",
  "#8a8678", "#a59c74", "#c3b369", "#e1cc55", "#fee838",
];
// Above the threshold: from just over it (where a held layer stands) to twice and more.
const BREACH = ["#f59331", "#d9480f", "#8f1d14"];
// Marks stand on every color of the scales, in both themes.
const [MARK, MARK_EDGE] = ["#ffffff", "#16181d"];
const MARK_LINES = { diamond: "rgba(22, 24, 29, 0.6)" }; // held is yellow, where white is not seen
const MOST_MARKS = 1500;
const KEYS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
export const METRICS = {
  ratio: "\u03c3 / threshold",
  after: "after the action",
  sigma: "\u03c3",
  growth: "\u03c3 / first \u03c3",
};

/**
 * Which metric to show, {metric, hidden}: the one asked for if it can be, else the best there is.
 * `limited`: there are thresholds; `acted`: something was rescaled to stay under them.
 */
export function metricToShow(asked, limited, acted) {
  const hidden = limited ? (acted ? [] : ["after"]) : ["ratio", "after"];
  const best = Object.keys(METRICS).find((name) => !hidden.includes(name));
  const possible = Object.hasOwn(METRICS, asked ?? "") && !hidden.includes(asked);
  return { metric: possible ? asked : acted && limited ? "after" : best, hidden };
}

/** `handlers`: those of `Chart`, and `select(layer)` at a click or Enter. */
export class Heatmap {
  constructor(title, handlers) {
    this.handlers = handlers;
    this.readout = h("p", { class: "readout", "aria-live": "off" });
    this.scale = new Scale();
    const keys = "arrow keys move through layers and steps, Enter draws the layer";
    this.chart = new Chart(`${title}: ${keys}`, {
      zoom: handlers.zoom,
      point: (step, y) => this.point(step, y),
      pick: (step, y) => this.pick(y),
      key: (event) => this.key(event),
    });
    const parts = [this.chart.element, this.readout, this.scale.element];
    this.element = h("div", { class: "heatmap" }, ...parts);
    this.cell = null;
  }

  destroy() {
    this.chart.destroy();
  }

  say(sentence) {
    this.chart.say(sentence);
  }

  /**
   * Draw `sigma`, an answer of the heatmap resource; `before` and `after` are those of sigma /
   * threshold before and after the steps' actions, null where no layer has a threshold.
   * `limits` [low, high] replaces the span of the colors.
   */
  draw({ sigma, before, after }, { metric, range, selected = [], limits = null }) {
    this.answer = sigma;
    const kept = (matrix) => held(matrix, sigma, (r, i) => this.nonfinite(r, i));
    this.ratio = kept(aligned(sigma, before));
    this.after = kept(aligned(sigma, after));
    this.sigma = kept(sigma.max);
    const shown = { ratio: this.ratio, after: this.after, sigma: this.sigma };
    this.metric = metric;
    this.shown = shown[metric] ?? growth(this.sigma);
    this.grid = columns(sigma.steps, sigma.bucket_steps);
    this.selected = selected;
    if (!sigma.layers.length || !sigma.steps.length) {
      this.chart.say("No sigma has arrived yet.");
      return Promise.resolve();
    }
    const isRatio = metric === "ratio" || metric === "after";
    this.paint = isRatio ? ratioPaint() : spanPaint(limits ?? extent(this.shown));
    this.scale.show(metric, this.paint);
    this.describe();
    return this.chart.draw((width) => this.figure(width, range));
  }

  figure(width, range) {
    const rows = this.answer.layers.length;
    const height = Math.min(Math.max(rows * 18, 96), 520);
    const data = [this.cells(height / rows), ...this.broken(), ...this.marks(height / rows)];
    const layout = {
      height: height + 42,
      xaxis: stepAxis(range),
      yaxis: this.rowAxis(rows, height, width),
      shapes: this.selectionMarks(),
    };
    return { data, layout };
  }

  cells(rowHeight) {
    const { edges, source } = this.grid;
    return {
      type: "heatmap",
      x: edges,
      y0: 0,
      dy: 1,
      z: this.shown.map((row) => source.map((i) => (i < 0 ? null : this.paint.place(row[i])))),
      zmin: 0,
      zmax: 1,
      colorscale: this.paint.colors,
      showscale: false,
      hoverinfo: "skip",
      ygap: rowHeight >= 10 ? 1 : 0,
    };
  }

  /** Cells that hold only non-finite values have a flat color of their own. */
  broken() {
    const { edges, source } = this.grid;
    const holds = (r, i) => i >= 0 && this.nonfinite(r, i) && this.answer.max[r][i] === null;
    const z = this.answer.layers.map((_, r) => source.map((i) => (holds(r, i) ? 1 : null)));
    if (!z.some((row) => row.includes(1))) return [];
    const flat = [[0, color("nonfinite")], [1, color("nonfinite")]];
    return [{
      type: "heatmap", x: edges, y0: 0, dy: 1, z, zmin: 0, zmax: 1,
      colorscale: flat, showscale: false, hoverinfo: "skip",
    }];
  }

  nonfinite(row, i) {
    return (this.answer.nonfinite?.[row]?.[i] ?? 0) > 0;
  }

  /** Shapes besides colors: a triangle for a breach, a cross for NaN, a line while it lasts. */
  marks(rowHeight) {
    const { source } = this.grid;
    const rows = this.answer.layers.length;
    // Lines would cover rows that are hardly higher than themselves.
    const mode = rowHeight < 6 ? "markers" : "lines+markers";
    const above = (matrix, r, c) => source[c] >= 0 && (matrix[r][source[c]] ?? 0) > 1;
    const left = this.metric === "after" ? this.after : this.ratio;
    const over = (r, c) => above(left, r, c);
    const held = (r, c) => above(this.ratio, r, c) && !above(left, r, c);
    const bad = (r, c) => source[c] >= 0 && this.nonfinite(r, source[c]);
    const size = rowHeight < 6 ? 6 : Math.min(8, rowHeight * 0.55);
    return [
      this.markTrace(stretches(rows, source.length, held, MOST_MARKS), "diamond", mode, size),
      this.markTrace(stretches(rows, source.length, over, MOST_MARKS), "triangle-up", mode, size),
      this.markTrace(stretches(rows, source.length, bad, MOST_MARKS), "x", mode, size),
    ].filter((trace) => trace.x.length);
  }

  markTrace(found, symbol, mode, size) {
    const { edges } = this.grid;
    const [x, y, sizes] = [[], [], []];
    for (const { row, from, to } of found) {
      x.push((edges[from] + edges[from + 1]) / 2, (edges[to] + edges[to + 1]) / 2, null);
      y.push(row, row, null);
      sizes.push(size, 0, 0);
    }
    return {
      type: "scatter", mode, x, y, hoverinfo: "skip", connectgaps: false,
      line: { color: MARK_LINES[symbol] ?? MARK, width: 1 },
      marker: { symbol, size: sizes, color: MARK, line: { color: MARK_EDGE, width: 1 } },
    };
  }

  rowAxis(rows, height, width) {
    const every = Math.ceil((11 * rows) / height);
    const letters = Math.floor((leftMargin(width) - 18) / 6.3);
    const at = this.answer.layers.map((_, r) => r).filter((r) => r % every === 0);
    return {
      range: [rows - 0.5, -0.5],
      tickvals: at,
      ticktext: at.map((r) => plotlyText(shortName(this.answer.layers[r], letters))),
      showgrid: false,
      zeroline: false,
      fixedrange: true,
      ticks: "",
      ticklabelstandoff: 9,
    };
  }

  selectionMarks() {
    return this.selected.flatMap(({ layer, ink }) => {
      const row = this.answer.layers.indexOf(layer);
      const place = { xref: "paper", yref: "y", x0: -0.006, x1: -0.001 };
      const box = { ...place, y0: row - 0.45, y1: row + 0.45 };
      return row < 0 ? [] : [{ type: "rect", ...box, fillcolor: ink, line: { width: 0 } }];
    });
  }

  point(step, y) {
    const row = y === null ? -1 : Math.round(y);
    const column = step === null ? -1 : columnAt(this.grid?.edges ?? [], step);
    this.cell = column >= 0 && this.answer.layers[row] !== undefined ? { row, column } : null;
    this.describe();
    this.handlers.point?.(step);
  }

  pick(y) {
    const layer = this.answer?.layers[Math.round(y)];
    if (layer !== undefined) this.handlers.select?.(layer);
  }

  key(event) {
    const move = KEYS[event.key];
    const last = (this.grid?.source.length ?? 0) - 1;
    if (last < 0) return;
    if (move) {
      const { row, column } = this.cell ?? { row: 0, column: last };
      const jump = event.shiftKey ? 10 : 1;
      this.cell = {
        row: clamp(row + (this.cell ? move[0] * jump : 0), 0, this.answer.layers.length - 1),
        column: clamp(column + (this.cell ? move[1] * jump : 0), 0, last),
      };
      const { edges } = this.grid;
      this.handlers.point?.((edges[this.cell.column] + edges[this.cell.column + 1]) / 2);
      this.describe();
    } else if (event.key === "Enter" && this.cell) this.pick(this.cell.row);
    else return;
    event.preventDefault();
  }

  /** Say in words what the cell under the pointer holds. */
  describe() {
    setText(this.readout, this.cell ? this.sentence(this.cell) : this.summary());
  }

  sentence({ row, column }) {
    const { answer, grid } = this;
    const i = grid.source[column];
    if (answer.layers[row] === undefined || i === undefined) return this.summary();
    const first = grid.edges[column];
    const last = i < 0 ? grid.edges[column + 1] - 1 : first + answer.bucket_steps - 1;
    const many = `steps ${count(first)}\u2013${count(last)}${i < 0 ? "" : ", largest"}`;
    const steps = last > first ? many : `step ${count(first)}`;
    const values = i < 0 ? "not measured" : this.values(row, i);
    return [answer.layers[row], steps, values].join(" \u00b7 ");
  }

  values(row, i) {
    const sigma = this.sigma[row][i];
    const [over, left] = [this.ratio[row][i], this.after[row][i]];
    const bad = this.nonfinite(row, i) ? "not finite" : null;
    if (sigma === null) return bad ?? "not measured";
    const parts = [`\u03c3 ${number(sigma)}${this.since(row, i)}`];
    // The ratio is sigma over the smallest threshold in the cell, so this is that threshold.
    if (over > 0) parts.push(`threshold ${number(sigma / over)}`, `ratio ${ratio(over)}`);
    if (over > 1) parts.push("breach");
    if (left !== null && left < over) parts.push(`after the action ${ratio(left)}`);
    if (bad) parts.push(`some values ${bad}`);
    return parts.join(" \u00b7 ");
  }

  /** When a value was measured that a layer keeps while it waits for its turn. */
  since(row, i) {
    const values = this.answer.max[row];
    if (values[i] !== null) return "";
    const at = values.findLastIndex((value, j) => j < i && value !== null);
    return ` of step ${count(this.answer.steps[at])}`;
  }

  summary() {
    const { layers, steps, bucket_steps: bucket } = this.answer;
    const cell = bucket > 1 ? `the largest of ${count(bucket)} steps` : "one step";
    const size = `${count(layers.length)} layers \u00d7 ${count(steps.length)} columns`;
    return `${size} \u00b7 each cell is ${cell}`;
  }
}

/** What the colors and the marks mean. */
class Scale {
  constructor() {
    this.low = h("span");
    this.high = h("span");
    this.bar = h("span", { class: "scale-bar", "aria-hidden": "true" });
    this.absent = h("span");
    this.held = h("span", { class: "scale-part" },
      h("span", { class: "mark-held", "aria-hidden": "true", text: "\u25c6\u2500" }),
      "breach, rescaled");
    const breach = h("span", { class: "scale-breach", "aria-hidden": "true" });
    this.over = h("span", { class: "scale-over" }, breach, "\u2265 2");
    const part = (...children) => h("span", { class: "scale-part" }, ...children);
    const mark = (name, text) => h("span", { class: `mark-${name}`, "aria-hidden": "true", text });
    this.element = h("p", { class: "scale" },
      part(this.low, this.bar, this.high, this.over),
      part(mark("breach", "\u25b2\u2500"), "breach"),
      this.held,
      part(mark("nonfinite", "\u2715"), "not finite"),
      part(mark("absent", ""), this.absent));
  }

  show(metric, paint) {
    setText(this.low, paint.low);
    setText(this.high, paint.high);
    const isRatio = metric === "ratio" || metric === "after";
    this.over.hidden = !isRatio;
    this.held.hidden = metric !== "after";
    setText(this.absent, isRatio ? "no threshold, or not measured" : "not measured");
  }
}

/** Colors for a ratio: Cividis up to 1, then a color that Cividis does not have. */
function ratioPaint() {
  const under = CIVIDIS.map((ink, i) => [(i / (CIVIDIS.length - 1)) * 0.5, ink]);
  const over = BREACH.map((ink, i) => [0.5 + i * 0.25, ink]);
  const colors = [...under, ...over];
  // A ratio of exactly 1 is no breach: keep it on Cividis' side of the step in the scale.
  const place = (value) => {
    if (value === null) return null;
    return value <= 1 ? value * 0.4999 : Math.min(0.5001 + (value - 1) / 2, 1);
  };
  return { colors, place, low: "0", high: "1" };
}

/** Colors over a span of values, by powers where they differ by more than tenfold. */
function spanPaint([low, high]) {
  const colors = CIVIDIS.map((ink, i) => [i / (CIVIDIS.length - 1), ink]);
  const scale = high / low > 10 ? Math.log : (value) => value;
  const [from, to] = [scale(low), scale(high)];
  const place = (value) => {
    if (value === null) return null;
    if (to <= from) return 0.5;
    return value <= low ? 0 : Math.min((scale(value) - from) / (to - from), 1);
  };
  return { colors, place, low: number(low), high: number(high) };
}

function clamp(value, low, high) {
  return Math.min(Math.max(value, low), high);
}
