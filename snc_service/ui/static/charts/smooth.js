// Smoothing of a scalar, and an axis of time or of a counter in place of steps.

import { linearTicks } from "./canvas/ticks.js";

/** @typedef {import("../service/history_queries.js").History} History */

/**
 * A history whose mean is an exponential moving average with `weight` of the past per bucket,
 * corrected for its start. Its min and max stay: they are what was measured. A gap stays a gap.
 * @param {History} history
 * @param {number} weight from 0 (as it is) to below 1
 * @returns {History}
 */
export function smoothed(history, weight) {
  if (!(weight > 0)) return history;
  let [sum, total] = [0, 0];
  const mean = history.mean.map((value) => {
    if (value === null) return null;
    sum = weight * sum + (1 - weight) * value;
    total = weight * total + (1 - weight);
    return sum / total;
  });
  return { ...history, mean };
}

/**
 * What a counter says at each step, as [steps, values] that both grow. Elapsed seconds are added up
 * from seconds per step.
 * @param {History | null} history
 * @param {boolean} isElapsed
 * @returns {{steps: number[], values: number[]}}
 */
export function counter(history, isElapsed) {
  /** @type {{steps: number[], values: number[]}} */
  const found = { steps: [], values: [] };
  let sum = 0;
  (history?.steps ?? []).forEach((step, i) => {
    const value = history?.mean[i] ?? null;
    if (value === null) return;
    const next = history?.steps[i + 1] ?? step + (history?.bucket_steps ?? 1);
    const at = isElapsed ? sum : value;
    sum += value * (next - step);
    // A counter that goes back (a job resumed) goes on from where it was highest.
    if (found.values.length && at <= found.values[found.values.length - 1]) return;
    found.steps.push(step);
    found.values.push(at);
  });
  return found;
}

/**
 * Ticks at round values of a counter, placed at the steps where it had them; none outside of what
 * was measured, and none where a slow step would put many of them beside each other.
 * @param {{steps: number[], values: number[]}} counter
 * @param {number} low first step shown
 * @param {number} high last step shown
 * @param {number} most
 */
export function counterTicks({ steps, values }, low, high, most) {
  if (steps.length < 2) return [];
  const [from, to] = [valueAt(steps, values, low), valueAt(steps, values, high)];
  const apart = (high - low) / (2 * most);
  /** @type {{at: number, text: string}[]} */
  const ticks = [];
  for (const { at: value, text } of linearTicks(from, to, most)) {
    const at = valueAt(values, steps, value);
    if (at >= low && at <= high && !(at - (ticks.at(-1)?.at ?? -Infinity) < apart)) ticks.push({ at, text });
  }
  return ticks;
}

/**
 * The value at `x` on the line through points that grow; the first or last one outside.
 * @param {number[]} xs
 * @param {number[]} ys
 * @param {number} x
 */
function valueAt(xs, ys, x) {
  if (x <= xs[0]) return ys[0];
  for (let i = 1; i < xs.length; i += 1) {
    if (x <= xs[i]) return ys[i - 1] + (ys[i] - ys[i - 1]) * ((x - xs[i - 1]) / (xs[i] - xs[i - 1]));
  }
  return ys[ys.length - 1];
}
