// What the charts of a run ask the service for.

import { get, runPath } from "./api.js";
import { byLayer, known } from "./history_queries.js";

const POINTS = 500;
const ROWS = 500;

/**
 * What stands for sigma in a run: the Frobenius norm, if that is all that was recorded.
 * @param {{metrics?: string[]}} item
 */
export function normOf({ metrics = [] }) {
  return metrics.includes("frobenius") && !metrics.includes("sigma") ? "frobenius" : "sigma";
}

/**
 * A function (path, parameters) that asks for a resource of `run` along the steps shown; the
 * answer is null where the run has nothing of it.
 */
export function along(run, { from, to }, signal) {
  const span = { from_step: from, to_step: to, points: POINTS };
  return (path, parameters = {}) =>
    known(get(runPath(run, path), { ...span, ...parameters }, signal));
}

/**
 * Sigma, and its ratio to the threshold before and after actions: `ask` is that of `along`, `which`
 * are the parameters that choose layers, `norm` is what stands for sigma (`normOf`).
 */
export async function heatmaps(ask, acted, which = {}, norm = "sigma") {
  const heatmap = (metric) => ask("/heatmap", { metric, layers: ROWS, ...which });
  const [sigma, before, after] = await Promise.all([
    heatmap(norm),
    heatmap("ratio"),
    acted ? heatmap("ratio_after") : null,
  ]);
  return { sigma, before, after };
}

/** Sigma, or `norm`, and threshold of each of `layers`, by its name: {history, threshold}. */
export async function histories(ask, layers, norm = "sigma") {
  if (!layers.length) return new Map();
  const history = (metric) => ask("/history", { metric, layer: layers });
  const answers = await Promise.all([history(norm), history("threshold")]);
  const [sigma, threshold] = answers.map(byLayer);
  return new Map(layers.map((layer) => [
    layer,
    { history: sigma.get(layer) ?? null, threshold: threshold.get(layer) ?? null },
  ]));
}
