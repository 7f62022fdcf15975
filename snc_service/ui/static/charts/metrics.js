// What the colors of a heatmap can show, and which of it there is.

/** @type {Record<string, string>} */
export const METRICS = {
  ratio: "\u03c3 / threshold",
  after: "after the action",
  sigma: "\u03c3",
  growth: "\u03c3 / first \u03c3",
};

/**
 * Return the metric to show, {metric, hidden}: the requested one if possible, else the best one.
 * `limited`: there are thresholds; `acted`: some layer was rescaled to stay below its threshold.
 * @param {string | null} asked
 * @param {boolean} limited
 * @param {boolean} acted
 */
export function metricToShow(asked, limited, acted) {
  const hidden = limited ? (acted ? [] : ["after"]) : ["ratio", "after"];
  const best = limited ? (acted ? "after" : "ratio") : "sigma";
  const wish = asked ?? "";
  const possible = Object.hasOwn(METRICS, wish) && !hidden.includes(wish);
  return { metric: possible ? wish : best, hidden };
}

/**
 * Whether a metric is compared with 1, the threshold.
 * @param {string} metric
 */
export function isRatio(metric) {
  return metric === "ratio" || metric === "after";
}
