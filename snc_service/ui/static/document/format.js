// Numbers and times as people read them. Null (not finite, or not measured) is never a number.

export const MISSING = "\u2013";
const grouped = new Intl.NumberFormat("en-US");

/** Four significant digits; powers of ten where plain digits would be long. */
export function number(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return MISSING;
  const size = Math.abs(value);
  if (value === 0) return "0";
  if (size >= 1e5 || size < 1e-3) return value.toExponential(2).replace("e+", "e");
  return value.toPrecision(4);
}

export function count(value) {
  return value === null || value === undefined ? MISSING : grouped.format(value);
}

/** A ratio that is below 1 never reads as 1 or more, and the other way round. */
export function ratio(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return MISSING;
  if (value >= 1000) return value.toExponential(2).replace("e+", "e");
  const text = value >= 10 ? value.toFixed(1) : value.toFixed(2);
  const crossed = Number(text) > 1 !== value > 1;
  if (!crossed) return text;
  return value > 1 ? "1.00+" : "0.99+";
}

export function percent(fraction) {
  if (fraction === null || fraction === undefined || !Number.isFinite(fraction)) return MISSING;
  const value = fraction * 100;
  const digits = value >= 9.95 ? 0 : value >= 0.095 ? 1 : 2;
  return `${value.toFixed(digits)} %`;
}

/** @type {[number, string][]} */
const SPANS = [[86400, "d"], [3600, "h"], [60, "min"]];

/** Seconds as one unit: 7 s, 4 min, 3 h, 12 d. */
export function span(seconds) {
  for (const [size, unit] of SPANS) {
    if (seconds >= size) return `${Math.floor(seconds / size)} ${unit}`;
  }
  return `${Math.max(0, Math.floor(seconds))} s`;
}

/** How long ago, by the service's clock. */
export function age(time, now) {
  if (!time) return MISSING;
  return `${span((now - Date.parse(time)) / 1000)} ago`;
}

export function clock(time) {
  const date = new Date(time);
  return Number.isNaN(date.getTime()) ? MISSING : date.toLocaleTimeString([], { hour12: false });
}

export function moment(time) {
  const date = new Date(time);
  return Number.isNaN(date.getTime()) ? MISSING : date.toLocaleString([], { hour12: false });
}

export function shape(sizes) {
  return sizes && sizes.length ? sizes.join("\u00d7") : "";
}

/**
 * A layer's name in at most `length` letters: its end says more than its beginning, and `.weight`
 * says least. It is cut between its parts where one of them fits.
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

/** The name of a rule as words: its underscores are spaces. */
export function ruleName(rule) {
  return rule.replaceAll("_", " ");
}

/** plotly.js reads tags and entities in its texts; names must stay what they are. */
export function plotlyText(name) {
  return name.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}
