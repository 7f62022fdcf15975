// Line charts of histories: panels over one step axis, and rails of marks above them.

import { Chart, stepAxis } from "./chart.js";
import { MISSING, number } from "../document/format.js";
import { color } from "../document/theme.js";

const RAIL = 17;
const GAP = 14;
const BOTTOM = 34;

/**
 * A panel is `{title, height, log, lines}`. A line is `{name, ink, history, dash?, band?}` with a
 * history as answered by the service; `name` is what it is called in an exported table. A rail is `{title, points}` with points `{step, end?, ink, symbol}`;
 * `end` draws a line up to that step. `margin`: the left margin, if no heatmap is above.
 */
export class Lines {
  constructor(title, handlers) {
    this.chart = new Chart(title, handlers);
    this.element = this.chart.element;
  }

  destroy() {
    this.chart.destroy();
  }

  draw({ panels, rails = [], range, margin = null, axis = {} }) {
    return this.chart.draw(() => {
      const { data, layout } = figure(panels, rails, range, axis);
      if (margin !== null) layout.margin = { l: margin, r: 12, t: 8, b: BOTTOM };
      return { data, layout };
    });
  }

  say(sentence) {
    this.chart.say(sentence);
  }

  moveCursor(step) {
    this.chart.moveCursor(step);
  }
}

/** The line of a layer's threshold: dashed, constant until the next value, in the layer's color. */
export function thresholdLine({ name, ink, threshold }) {
  return { name: `${name} threshold`, ink, history: threshold, dash: "dash", band: false, width: 1.2, shape: "hv" };
}

function figure(panels, rails, range, along) {
  const height = rails.length * RAIL + panels.reduce((sum, panel) => sum + panel.height + GAP, 0);
  const layout = { height: height + 8 + BOTTOM, titles: [] };
  const data = [];
  let top = 0;
  if (rails.length) {
    layout.yaxis9 = railAxis(rails, 1 - (rails.length * RAIL) / height);
    data.push(...rails.flatMap((rail, i) => railTraces(rail, rails.length - 1 - i)));
    top = rails.length * RAIL + GAP / 2;
  }
  panels.forEach((panel, i) => {
    const axis = i ? `y${i + 1}` : "y";
    // Rounding must not move the last panel below the paper.
    const domain = [Math.max(1 - (top + panel.height) / height, 0), 1 - top / height];
    const scale = panel.log ? { type: "log" } : { type: "linear", rangemode: "tozero" };
    layout[`yaxis${i ? i + 1 : ""}`] = { domain, ...scale };
    layout.titles.push({ text: panel.title, y: (domain[0] + domain[1]) / 2 });
    data.push(...panel.lines.flatMap((line) => traces(line, axis)));
    top += panel.height + GAP;
  });
  layout.xaxis = stepAxis(range, along);
  return { data, layout };
}

function railAxis(rails, bottom) {
  return {
    domain: [bottom, 1],
    range: [-0.5, rails.length - 0.5],
    tickvals: rails.map((_, i) => rails.length - 1 - i),
    ticktext: rails.map((rail) => rail.title),
    ticklabelstandoff: 6,
  };
}

function railTraces({ points }, y) {
  const common = { type: "scatter", yaxis: "y9" };
  const lasting = points.filter((point) => point.end > point.step).map((point) => ({
    ...common,
    mode: "lines",
    x: [point.step, point.end],
    y: [y, y],
    line: { color: point.ink, width: 2 },
  }));
  const marks = {
    ...common,
    mode: "markers",
    x: points.map((point) => point.step),
    y: points.map(() => y),
    marker: {
      symbol: points.map((point) => point.symbol),
      color: points.map((point) => point.ink),
      size: 9,
      line: { color: color("well"), width: 1 },
    },
  };
  return [...lasting, marks];
}

function traces(line, yaxis) {
  const { ink, history, dash = "solid", band = true, width = 1.6, shape = "linear" } = line;
  const { steps, mean, min, max, bucket_steps: bucket } = history;
  const common = { type: "scatter", x: steps, yaxis };
  const found = [];
  if (band && bucket > 1) {
    // Buckets without min or max are left out of the band; the line itself shows the gap.
    const whole = steps.map((_, i) => i).filter((i) => min[i] !== null && max[i] !== null);
    const [low, high] = [whole.map((i) => min[i]), whole.map((i) => max[i])];
    const x = whole.map((i) => steps[i]);
    found.push({ ...common, mode: "band", x, y: high, low, high, fill: "band", fillcolor: faded(ink) });
  }
  const { name } = line;
  found.push({ ...common, name, history, y: mean, mode: "lines", line: { color: ink, width, dash, shape } });
  const alone = steps.map((_, i) => i).filter((i) => isolated(mean, i) || steps.length <= 40);
  if (alone.length && dash === "solid") {
    const [x, y] = [alone.map((i) => steps[i]), alone.map((i) => mean[i])];
    found.push({ ...common, x, y, mode: "markers", marker: { color: ink, size: 4 } });
  }
  return found;
}

/** Return whether a value has gaps on both sides, where a line would not show it. */
function isolated(values, i) {
  return values[i] !== null && (values[i - 1] ?? null) === null && (values[i + 1] ?? null) === null;
}

function faded(ink) {
  const value = parseInt(ink.slice(1), 16);
  return `rgba(${value >> 16}, ${(value >> 8) & 255}, ${value & 255}, 0.18)`;
}

/** Return the index of the bucket with `step` (null: the newest), -1 if there is none. */
export function bucketAt(history, step) {
  const { steps } = history;
  if (step === null || step === undefined) return steps.length - 1;
  let low = -1;
  let high = steps.length;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (steps[middle] <= step) low = middle;
    else high = middle;
  }
  return low;
}

/** Return the value of a history at `step`, in words. */
export function valueAt(history, step) {
  const i = history ? bucketAt(history, step) : -1;
  if (i < 0) return MISSING;
  if (history.mean[i] === null) return history.nonfinite?.[i] > 0 ? "not finite" : MISSING;
  const text = number(history.mean[i]);
  const spread = history.bucket_steps > 1 && history.max[i] > history.min[i];
  return spread ? `${text} (${number(history.min[i])}\u2013${number(history.max[i])})` : text;
}

/** Mark the start of each non-finite stretch of a history, with a line to its end. */
export function nonfinitePoints(history, ink) {
  const bad = (i) => (history.nonfinite?.[i] ?? 0) > 0;
  const found = [];
  history.steps.forEach((step, i) => {
    if (!bad(i)) return;
    if (i && bad(i - 1)) found[found.length - 1].end = step;
    else found.push({ step, end: step, ink, symbol: "x" });
  });
  return found;
}
