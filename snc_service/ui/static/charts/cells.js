// The cells of a heatmap: their values, and in words what one of them holds.

import { count, number, ratio } from "../document/format.js";
import { aligned, columns, growth, held } from "./matrix.js";

/** @typedef {import("./matrix.js").Answer} Answer */
/** @typedef {{row: number, column: number}} Cell */
/** @typedef {{first: number, last: number, layers: number, worst: string}} Row */

export class Cells {
  /**
   * `sigma` is an answer of the heatmap resource; `before` and `after` are those of sigma /
   * threshold before and after the steps' actions, null where no layer has a threshold.
   * @param {{sigma: Answer, before: Answer | null, after: Answer | null}} answers
   */
  constructor({ sigma, before, after }) {
    this.answer = sigma;
    /** @type {Row[]} what each row shows */
    this.rows = sigma.rows ?? sigma.layers.map((worst, i) => ({ first: i, last: i, layers: 1, worst }));
    const kept = (/** @type {(number | null)[][]} */ matrix) =>
      held(matrix, sigma, (row, i) => this.nonfinite(row, i));
    this.sigma = kept(sigma.max);
    this.ratio = kept(aligned(sigma, before));
    this.after = kept(aligned(sigma, after));
    this.grid = columns(sigma.steps, sigma.bucket_steps);
  }

  /** @param {string} metric */
  valuesOf(metric) {
    if (metric === "ratio") return this.ratio;
    if (metric === "after") return this.after;
    return metric === "sigma" ? this.sigma : growth(this.sigma);
  }

  /**
   * @param {number} row
   * @param {number} i
   */
  nonfinite(row, i) {
    return (this.answer.nonfinite?.[row]?.[i] ?? 0) > 0;
  }

  /**
   * Whether a cell holds values, and none of them is finite.
   * @param {number} row
   * @param {number} i
   */
  onlyNonfinite(row, i) {
    return this.answer.max[row][i] === null && this.nonfinite(row, i);
  }

  /**
   * Whether sigma is above the threshold in a cell.
   * @param {Cell} cell
   */
  isOver({ row, column }) {
    return (this.ratio[row]?.[this.grid.source[column]] ?? 0) > 1;
  }

  /**
   * The row of a layer, -1 if it is not to be told: of a shared row only the worst layer is known.
   * @param {string} layer
   */
  rowOf(layer) {
    return this.rows.findIndex(({ worst }) => worst === layer);
  }

  /** @param {number} row */
  title(row) {
    const { layers, worst } = this.rows[row];
    return layers === 1 ? worst : `${worst}, the worst of ${count(layers)} layers`;
  }

  /** @param {Cell} cell */
  sentence({ row, column }) {
    const { answer, grid } = this;
    const i = grid.source[column];
    if (answer.layers[row] === undefined || i === undefined) return this.summary();
    const first = grid.edges[column];
    const last = i < 0 ? grid.edges[column + 1] - 1 : first + answer.bucket_steps - 1;
    const many = `steps ${count(first)}\u2013${count(last)}${i < 0 ? "" : ", largest"}`;
    const steps = last > first ? many : `step ${count(first)}`;
    const values = i < 0 ? "not measured" : this.words(row, i);
    return [this.title(row), steps, values].join(" \u00b7 ");
  }

  /**
   * @param {number} row
   * @param {number} i
   */
  words(row, i) {
    const sigma = this.sigma[row][i];
    const [over, left] = [this.ratio[row][i] ?? 0, this.after[row][i]];
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

  /**
   * When a value was measured that a layer keeps while it waits for its turn.
   * @param {number} row
   * @param {number} i
   */
  since(row, i) {
    const values = this.answer.max[row];
    if (values[i] !== null) return "";
    const at = values.findLastIndex((value, j) => j < i && value !== null);
    return ` of step ${count(this.answer.steps[at])}`;
  }

  summary() {
    const { layers, steps, bucket_steps: bucket } = this.answer;
    const cell = bucket > 1 ? `the largest of ${count(bucket)} steps` : "one step";
    const all = this.answer.total ?? layers.length;
    const rows = all > layers.length ? `${count(all)} layers in ${count(layers.length)} rows` : `${count(all)} layers`;
    const size = `${rows} \u00d7 ${count(steps.length)} columns`;
    return `${size} \u00b7 each cell is ${cell}`;
  }
}
