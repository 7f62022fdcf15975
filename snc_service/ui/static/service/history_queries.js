// Asking for histories: what was never reported is not there, and that hides nothing else.

import { spacing, waits } from "../charts/matrix.js";

/** The answer, or null where the run has no such metric, scalar or layer. */
export async function known(answer) {
  try {
    return await answer;
  } catch (problem) {
    if (problem.status === 404 || problem.status === 422) return null;
    throw problem;
  }
}

/** An answer over several layers as one history per layer, by name. */
export function byLayer(answer) {
  const { steps, bucket_steps, layers } = answer ?? { layers: [] };
  return new Map(layers.map((one) => [one.layer, ownSteps({ ...one, steps, bucket_steps })]));
}

/** A history without the steps at which its layer only waited: a longer silence is one null. */
function ownSteps(history) {
  const { steps, mean, nonfinite, bucket_steps: bucket } = history;
  const usual = spacing(steps, bucket);
  const there = steps.map((_, i) => i).filter((i) => mean[i] !== null || (nonfinite?.[i] ?? 0) > 0);
  // The place of each value, and before one that follows a silence, -1.
  const silent = (i, k) => k > 0 && !waits(steps[there[k - 1]], steps[i], usual);
  const kept = there.flatMap((i, k) => (silent(i, k) ? [-1, i] : [i]));
  const part = (values) => values?.length ? kept.map((i) => (i < 0 ? null : values[i])) : values;
  const columns = ["mean", "min", "max", "nonfinite"].map((name) => [name, part(history[name])]);
  const own = kept.map((i, k) => (i < 0 ? steps[kept[k - 1]] + bucket : steps[i]));
  return { ...history, ...Object.fromEntries(columns), steps: own };
}

/** Whether a heatmap holds any value at all. */
export function hasValues(heatmap) {
  return Boolean(heatmap?.max.some((row) => row.some((value) => value !== null)));
}

/**
 * The steps that answers cover together: [first, last + 1], null if there are none.
 * @returns {[number, number] | null}
 */
export function covered(answers) {
  const ends = answers
    .filter((answer) => answer?.steps.length)
    .map(({ steps, bucket_steps: bucket }) => [steps[0], steps[steps.length - 1] + bucket]);
  if (!ends.length) return null;
  return [Math.min(...ends.map(([first]) => first)), Math.max(...ends.map(([, end]) => end))];
}

/** Parameters `from` and `to` of an address as whole steps, null where there are none. */
export function stepsOf(query) {
  const whole = (text) => (text !== null && /^\d{1,15}$/.test(text) ? Number(text) : null);
  const [from, to] = [whole(query.get("from")), whole(query.get("to"))];
  return from !== null && to !== null && to > from ? { from, to } : { from: null, to: null };
}
