// The heatmap: layers x steps, all layers of a run in one figure.

import { Cells } from "./cells.js";
import { Chart, leftMargin, stepAxis } from "./chart.js";
import { csv } from "./canvas/export.js";
import { h, setText } from "../document/dom.js";
import { shortNames } from "../document/names.js";
import { columnAt, extent, stretches } from "./matrix.js";
import { isRatio } from "./metrics.js";
import { ratioPaint, spanPaint } from "./paint.js";
import { BROKEN, NOTHING, palette } from "./canvas/raster.js";
import { Scale } from "./scale.js";
import { color } from "../document/theme.js";

// Marks must be visible on every color of the scales, in both themes.
const [MARK, MARK_EDGE] = ["#ffffff", "#16181d"];
const MARK_LINES = { diamond: "rgba(22, 24, 29, 0.6)" }; // white is invisible on yellow, for held
const MOST_MARKS = 1500;
const KEYS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };

/**
 * `handlers`: those of `Chart`; `select(layer)` and, for rows that layers share, `rows(from, to)` and
 * `find(pattern)`, at a click or Enter.
 */
export class Heatmap {
  constructor(title, handlers) {
    this.handlers = handlers;
    this.readout = h("p", { class: "readout", "aria-live": "off" });
    this.scale = new Scale();
    const keys = "arrow keys move through layers and steps, Enter draws the layer";
    this.chart = new Chart(`${title}: ${keys}`, {
      zoom: handlers.zoom,
      rows: handlers.rows && ((from, to) => this.dragged(from, to)),
      csv: () => this.csv(),
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

  /** Say why there is nothing to draw; what colors would mean goes with them. */
  say(sentence) {
    this.chart.say(sentence);
    this.readout.hidden = this.scale.element.hidden = true;
  }

  /**
   * Draw the answers {sigma, before, after} that `Cells` takes; `limits` [low, high] replaces the
   * span of the colors.
   */
  draw(answers, { metric, range, selected = [], limits = null, axis = {}, began = false, small = false }) {
    this.cells = new Cells(answers);
    this.metric = metric;
    this.shown = this.cells.valuesOf(metric);
    this.selected = selected;
    this.axis = axis;
    this.began = began;
    this.small = small;
    const { layers, steps } = this.cells.answer;
    if (!layers.length || !steps.length) {
      this.say("No sigma has arrived yet.");
      return;
    }
    this.readout.hidden = this.scale.element.hidden = false;
    this.paint = isRatio(metric) ? ratioPaint() : spanPaint(limits ?? extent(this.shown));
    this.scale.show(metric, this.paint);
    this.describe();
    this.chart.draw((width) => this.figure(width, range));
  }

  figure(width, range) {
    const rows = this.cells.answer.layers.length;
    const height = this.small ? 150 : Math.min(Math.max(rows * 18, 96), 520);
    const data = [this.colors(), ...this.marks(height / rows)];
    const layout = {
      height: height + 42,
      xaxis: stepAxis(range, this.axis),
      yaxis: this.rowAxis(rows, height, width),
      shapes: this.selectionMarks(),
    };
    return { data, layout };
  }

  /** The cells as places on the scale of colors, and those with only non-finite values. */
  colors() {
    const { edges, source } = this.cells.grid;
    const columns = source.length;
    const places = new Float32Array(this.shown.length * columns).fill(NOTHING);
    this.shown.forEach((row, r) => {
      for (let c = 0; c < columns; c += 1) {
        const i = source[c];
        if (i < 0) continue;
        const place = this.paint.place(row[i]);
        if (place !== null) places[r * columns + c] = place;
        else if (this.cells.onlyNonfinite(r, i)) places[r * columns + c] = BROKEN;
      }
    });
    const colors = palette(this.paint.colors, color("nonfinite"));
    return { type: "cells", edges, places, rows: this.shown.length, colors };
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
    const breaches = stretches(rows, source.length, over, MOST_MARKS);
    // In a zoom, what is above its threshold at the first step may have begun long before.
    const before = breaches.filter(({ from }) => this.began && from === 0);
    const within = breaches.filter((one) => !before.includes(one));
    return [
      this.markTrace(stretches(rows, source.length, held, MOST_MARKS), "diamond", mode, size),
      this.markTrace(within, "triangle-up", mode, size),
      this.markTrace(before, "triangle-left", mode, size),
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
      type: "scatter", mode, x, y,
      line: { color: MARK_LINES[symbol] ?? MARK, width: 1 },
      marker: { symbol, size: sizes, color: MARK, line: { color: MARK_EDGE, width: 1 } },
    };
  }

  rowAxis(rows, height, width) {
    const every = Math.ceil((12 * rows) / height);
    const letters = Math.floor((leftMargin(width) - 18) / 6.3);
    // A row that layers share goes by the first of them.
    const short = shortNames(this.cells.answer.layers.map((label) => label.split(" \u2026 ")[0]), letters);
    const at = short.map((_, r) => r).filter((r) => r % every === 0);
    return {
      range: [rows - 0.5, -0.5],
      tickvals: at,
      ticktext: at.map((r) => short[r]),
      ticklabelstandoff: 7,
    };
  }

  selectionMarks() {
    return this.selected.flatMap(({ layer, ink }) => {
      const row = this.cells.rowOf(layer);
      return row < 0 ? [] : [{ ink, from: row - 0.45, to: row + 0.45 }];
    });
  }

  point(step, y) {
    const row = y === null ? -1 : Math.round(y);
    const column = step === null ? -1 : columnAt(this.cells?.grid.edges ?? [], step);
    this.cell = column >= 0 && this.cells.answer.layers[row] !== undefined ? { row, column } : null;
    this.describe();
    this.handlers.point?.(step);
  }

  /** A layer's own row chooses it; a row that several share is expanded. */
  pick(y) {
    const row = Math.round(y);
    const about = this.cells?.rows[row];
    if (about === undefined) return;
    if (about.layers === 1) this.handlers.select?.(about.worst);
    else if (about.last > about.first) this.handlers.rows?.(about.first, about.last);
    else this.handlers.find?.(this.cells.answer.layers[row]);
  }

  /** Rows by a drag over them, as the service numbers them. */
  dragged(from, to) {
    const { rows } = this.cells;
    const last = rows.length - 1;
    this.handlers.rows?.(rows[Math.min(Math.max(from, 0), last)].first, rows[Math.min(to, last)].last);
  }

  /** All cells: layer, the first step of the bucket, and the largest value in it. */
  csv() {
    const { layers, steps } = this.cells.answer;
    const rows = layers.flatMap((layer, r) => steps.map((step, i) => [layer, step, this.shown[r][i]]));
    return csv([["layer", "step", this.metric], ...rows]);
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
    const inFirst = this.cell?.column === 0 && this.began;
    const before = inFirst && this.cells.isOver(this.cell) ? " \u00b7 already at the first step shown" : "";
    setText(this.readout, this.cell ? this.cells.sentence(this.cell) + before : this.cells.summary());
  }
}

function clamp(value, low, high) {
  return Math.min(Math.max(value, low), high);
}
