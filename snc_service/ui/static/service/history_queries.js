// Queries of histories: one missing metric, scalar or layer does not hide the others.

import { spacing, waits } from "../charts/matrix.js";

/**
 * A history, as the service sends it: mean, min and max per bucket of steps; `nonfinite` counts the
 * values of a bucket that are not finite.
 * @typedef {(number | null)[]} Values
 * @typedef {{mean: Values, min: Values, max: Values, nonfinite?: number[]}} Columns
 * @typedef {Columns & {steps: number[], bucket_steps: number}} History
 */

/**
 * The answer, or null where the run has no such metric, scalar or layer.
 * @template T
 * @param {Promise<T>} answer
 * @returns {Promise<T | null>}
 */
export async function known(answer) {
  try {
    return await answer;
  } catch (/** @type {any} */ problem) {
    if (problem.status === 404 || problem.status === 422) return null;
    throw problem;
  }
}

/**
 * An answer over several layers as one history per layer, by name.
 * @param {{steps: number[], bucket_steps: number, layers: (Columns & {layer: string})[]} | null}
 *   answer
 */
export function byLayer(answer) {
  const { steps, bucket_steps, layers } = answer ?? { steps: [], bucket_steps: 1, layers: [] };
  return new Map(layers.map((one) => [one.layer, ownSteps({ ...one, steps, bucket_steps })]));
}

/**
 * A history without the steps at which its layer only waited: a longer silence is one null.
 * @param {History} history
 * @returns {History}
 */
function ownSteps(history) {
  const { steps, mean, min, max, nonfinite, bucket_steps: bucket } = history;
  const usual = spacing(steps, bucket);
  const there = steps.map((_, i) => i).filter((i) => mean[i] !== null || (nonfinite?.[i] ?? 0) > 0);
  // The index of each value, with -1 before a value that follows a gap.
  const kept = there.flatMap((i, k) =>
    k > 0 && !waits(steps[there[k - 1]], steps[i], usual) ? [-1, i] : [i]);
  const part = (/** @type {Values} */ values) => kept.map((i) => (i < 0 ? null : values[i]));
  return {
    ...history,
    steps: kept.map((i, k) => (i < 0 ? steps[kept[k - 1]] + bucket : steps[i])),
    mean: part(mean),
    min: part(min),
    max: part(max),
    nonfinite: nonfinite?.length ? kept.map((i) => (i < 0 ? 0 : nonfinite[i])) : nonfinite,
  };
}

/**
 * Whether a heatmap holds any value at all.
 * @param {{max: Values[]} | null} heatmap
 */
export function hasValues(heatmap) {
  return Boolean(heatmap?.max.some((row) => row.some((value) => value !== null)));
}
