// The heatmap: layers x steps, all layers of a run in one figure.

import { Cells } from "./cells.js";
import { Chart, leftMargin, stepAxis } from "./chart.js";
import { h, setText } from "../document/dom.js";
import { plotlyText, shortName } from "../document/format.js";
import { columnAt, extent, stretches } from "./matrix.js";
import { isRatio } from "./metrics.js";
import { ratioPaint, spanPaint } from "./paint.js";
import { Scale } from "./scale.js";
import { color } from "../document/theme.js";

// Marks must be visible on every color of the scales, in both themes.
const [MARK, MARK_EDGE] = ["#ffffff", "#16181d"];
const MARK_LINES = { diamond: "rgba(22, 24, 29, 0.6)" }; // white is invisible on yellow, for held
const MOST_MARKS = 1500;
const KEYS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };

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
    /** @type {Cells | null} */
    this.cells = null;
    /** @type {import("./cells.js").Cell | null} */
    this.cell = null;
  }

  destroy() {
    this.chart.destroy();
  }

  say(sentence) {
    this.chart.say(sentence);
  }

  /**
   * Draw the answers {sigma, before, after} that `Cells` takes; `limits` [low, high] replaces the
   * span of the colors.
   */
  draw(answers, { metric, range, selected = [], limits = null }) {
    this.cells = new Cells(answers);
    this.metric = metric;
    this.shown = this.cells.valuesOf(metric);
    this.selected = selected;
    const { layers, steps } = this.cells.answer;
    if (!layers.length || !steps.length) {
      this.chart.say("No sigma has arrived yet.");
      return Promise.resolve();
    }
    this.paint = isRatio(metric) ? ratioPaint() : spanPaint(limits ?? extent(this.shown));
    this.scale.show(metric, this.paint);
    this.describe();
    return this.chart.draw((width) => this.figure(width, range));
  }

  figure(width, range) {
    const rows = this.cells.answer.layers.length;
    const height = Math.min(Math.max(rows * 18, 96), 520);
    const data = [this.colors(height / rows), ...this.broken(), ...this.marks(height / rows)];
    const layout = {
      height: height + 42,
      xaxis: stepAxis(range),
      yaxis: this.rowAxis(rows, height, width),
      shapes: this.selectionMarks(),
    };
    return { data, layout };
  }

  colors(rowHeight) {
    const { edges, source } = this.cells.grid;
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

  /** The flat color for cells with only non-finite values. */
  broken() {
    const { edges, source } = this.cells.grid;
    const { layers, max } = this.cells.answer;
    const holds = (r, i) => i >= 0 && this.cells.nonfinite(r, i) && max[r][i] === null;
    const z = layers.map((_, r) => source.map((i) => (holds(r, i) ? 1 : null)));
    if (!z.some((row) => row.includes(1))) return [];
    const flat = [[0, color("nonfinite")], [1, color("nonfinite")]];
    return [{
      type: "heatmap", x: edges, y0: 0, dy: 1, z, zmin: 0, zmax: 1,
      colorscale: flat, showscale: false, hoverinfo: "skip",
    }];
  }

  /** Marks besides colors: a triangle for a breach, a cross for NaN, a line for its duration. */
  marks(rowHeight) {
    const { source } = this.cells.grid;
    const { ratio, after } = this.cells;
    const rows = this.cells.answer.layers.length;
    // Lines would cover rows that are hardly higher than a line.
    const mode = rowHeight < 6 ? "markers" : "lines+markers";
    const above = (matrix, r, c) => source[c] >= 0 && (matrix[r][source[c]] ?? 0) > 1;
    const left = this.metric === "after" ? after : ratio;
    const over = (r, c) => above(left, r, c);
    const held = (r, c) => above(ratio, r, c) && !above(left, r, c);
    const bad = (r, c) => source[c] >= 0 && this.cells.nonfinite(r, source[c]);
    const size = rowHeight < 6 ? 6 : Math.min(8, rowHeight * 0.55);
    return [
      this.markTrace(stretches(rows, source.length, held, MOST_MARKS), "diamond", mode, size),
      this.markTrace(stretches(rows, source.length, over, MOST_MARKS), "triangle-up", mode, size),
      this.markTrace(stretches(rows, source.length, bad, MOST_MARKS), "x", mode, size),
    ].filter((trace) => trace.x.length);
  }

  markTrace(found, symbol, mode, size) {
    const { edges } = this.cells.grid;
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
    const { layers } = this.cells.answer;
    const at = layers.map((_, r) => r).filter((r) => r % every === 0);
    return {
      range: [rows - 0.5, -0.5],
      tickvals: at,
      ticktext: at.map((r) => plotlyText(shortName(layers[r], letters))),
      showgrid: false,
      zeroline: false,
      fixedrange: true,
      ticks: "",
      ticklabelstandoff: 9,
    };
  }

  selectionMarks() {
    return this.selected.flatMap(({ layer, ink }) => {
      const row = this.cells.answer.layers.indexOf(layer);
      const place = { xref: "paper", yref: "y", x0: -0.006, x1: -0.001 };
      const box = { ...place, y0: row - 0.45, y1: row + 0.45 };
      return row < 0 ? [] : [{ type: "rect", ...box, fillcolor: ink, line: { width: 0 } }];
    });
  }

  point(step, y) {
    const row = y === null ? -1 : Math.round(y);
    const column = step === null ? -1 : columnAt(this.cells?.grid.edges ?? [], step);
    this.cell = column >= 0 && this.cells.answer.layers[row] !== undefined ? { row, column } : null;
    this.describe();
    this.handlers.point?.(step);
  }

  pick(y) {
    const layer = this.cells?.answer.layers[Math.round(y)];
    if (layer !== undefined) this.handlers.select?.(layer);
  }

  key(event) {
    const move = KEYS[event.key];
    const last = (this.cells?.grid.source.length ?? 0) - 1;
    if (last < 0) return;
    if (move) {
      const { answer: { layers }, grid: { edges } } = this.cells;
      const { row, column } = this.cell ?? { row: 0, column: last };
      const jump = event.shiftKey ? 10 : 1;
      this.cell = {
        row: clamp(row + (this.cell ? move[0] * jump : 0), 0, layers.length - 1),
        column: clamp(column + (this.cell ? move[1] * jump : 0), 0, last),
      };
      this.handlers.point?.((edges[this.cell.column] + edges[this.cell.column + 1]) / 2);
      this.describe();
    } else if (event.key === "Enter" && this.cell) this.pick(this.cell.row);
    else return;
    event.preventDefault();
  }

  /** Describe the cell under the pointer in words. */
  describe() {
    if (!this.cells) return; // the pointer can leave before the first answer is here
    setText(this.readout, this.cell ? this.cells.sentence(this.cell) : this.cells.summary());
  }
}

function clamp(value, low, high) {
  return Math.min(Math.max(value, low), high);
}
