// Numbers and times as people read them. What is null or not finite is never a number.

/** @typedef {number | null | undefined} Maybe */

export const MISSING = "\u2013";
const grouped = new Intl.NumberFormat("en-US");

/**
 * @param {Maybe} value
 * @returns {value is number}
 */
function finite(value) {
  return Number.isFinite(value);
}

/**
 * Four significant digits; three and a power of ten where plain digits would be long.
 * @param {Maybe} value
 */
export function number(value) {
  if (!finite(value)) return MISSING;
  const size = Math.abs(value);
  if (value === 0) return "0";
  // From 9999.5 on, four digits round to five places, which toPrecision writes as 1.000e+4.
  if (size >= 9999.5 || size < 1e-3) return value.toExponential(2).replace("e+", "e");
  return value.toPrecision(4);
}

/** @param {Maybe} value */
export function count(value) {
  return finite(value) ? grouped.format(value) : MISSING;
}

/**
 * A ratio above 1, a breach, never reads as 1: it is "1.00+" at least.
 * @param {Maybe} value
 */
export function ratio(value) {
  if (!finite(value)) return MISSING;
  if (value >= 1000) return value.toExponential(2).replace("e+", "e");
  const text = value >= 10 ? value.toFixed(1) : value.toFixed(2);
  return value > 1 && text === "1.00" ? "1.00+" : text;
}

/** @param {Maybe} fraction */
export function percent(fraction) {
  if (!finite(fraction)) return MISSING;
  const value = fraction * 100;
  const digits = value >= 9.95 ? 0 : value >= 0.095 ? 1 : 2;
  return `${value.toFixed(digits)} %`;
}

/** @type {[number, string][]} */
const SPANS = [[86400, "d"], [3600, "h"], [60, "min"]];

/**
 * Seconds as one unit: 7 s, 4 min, 3 h, 12 d.
 * @param {number} seconds
 */
export function span(seconds) {
  for (const [size, unit] of SPANS) {
    if (seconds >= size) return `${Math.floor(seconds / size)} ${unit}`;
  }
  return `${Math.max(0, Math.floor(seconds))} s`;
}

/**
 * Seconds in two units: 2 h 5 min.
 * @param {Maybe} seconds
 */
export function duration(seconds) {
  if (!finite(seconds)) return MISSING;
  const at = SPANS.findIndex(([size]) => seconds >= size);
  if (at < 0) return span(seconds);
  const [size] = SPANS[at];
  const rest = seconds % size;
  const [next] = SPANS[at + 1] ?? [1];
  return rest >= next ? `${span(seconds)} ${span(rest)}` : span(seconds);
}

/**
 * How long ago, by the service's clock.
 * @param {string | null | undefined} time
 * @param {number} now
 */
export function age(time, now) {
  const seconds = (now - Date.parse(time ?? "")) / 1000;
  return finite(seconds) ? `${span(seconds)} ago` : MISSING;
}

/** @param {string | number} time */
export function clock(time) {
  const date = new Date(time);
  return Number.isNaN(date.getTime()) ? MISSING : date.toLocaleTimeString([], { hour12: false });
}

/** @param {string | number} time */
export function moment(time) {
  const date = new Date(time);
  return Number.isNaN(date.getTime()) ? MISSING : date.toLocaleString([], { hour12: false });
}

/** @param {number[] | null | undefined} sizes */
export function shape(sizes) {
  return sizes && sizes.length ? sizes.join("\u00d7") : "";
}

/**
 * Shorten a layer's name to at most `length` letters. It drops `.weight` first and keeps the end
 * rather than the beginning. The cut is between parts of the name if one fits.
 * @param {string} name
 * @param {number} length at least 1
 */
export function shortName(name, length) {
  if ([...name].length <= length) return name;
  const parts = name.replace(/\.weight$/, "").split(/(?<=[./])/);
  let text = parts.join("");
  while ([...text].length > length && parts.length > 1) {
    parts.shift();
    text = `\u2026${parts.join("")}`;
  }
  const letters = [...text];
  if (letters.length <= length) return text;
  return `\u2026${letters.slice(letters.length - length + 1).join("")}`;
}

/**
 * The name of a rule as words: its underscores are spaces.
 * @param {string} rule
 */
export function ruleName(rule) {
  return rule.replaceAll("_", " ");
}

/**
 * What happened, in words: a run that failed does not read as finished.
 * @param {{rule: string, severity: string}} event
 */
export function eventName({ rule, severity }) {
  return rule === "run_finished" && severity !== "info" ? "run failed" : ruleName(rule);
}
