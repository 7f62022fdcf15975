// From a value to a color: a scale up to the threshold and beyond it, or one over a span of values.

import { number } from "../document/format.js";

// Cividis (Nunez, Anderton, Renslow 2018): uniform in lightness, safe for color-blind readers.
const CIVIDIS = [
  "#00224e", "#123570", "#3b496c", "#575d6d", "#707173",
  "#8a8678", "#a59c74", "#c3b369", "#e1cc55", "#fee838",
];
// Above the threshold: from just above it, where held layers are, to twice and more.
const BREACH = ["#f59331", "#d9480f", "#8f1d14"];

/**
 * `colors`: [place, color] from 0 to 1; `place(value)`: where a value is on them; `low`, `high`:
 * the ends as text.
 * @typedef {{colors: [number, string][], place: (value: number | null) => number | null,
 *   low: string, high: string}} Paint
 */

/**
 * Colors for a ratio: Cividis up to 1, then a color that Cividis does not have.
 * @returns {Paint}
 */
export function ratioPaint() {
  // A ratio of exactly 1 is no breach: keep it on the Cividis side of the step in the scale.
  const place = (/** @type {number | null} */ value) => {
    if (value === null) return null;
    return value <= 1 ? value * 0.4999 : Math.min(0.5001 + (value - 1) / 2, 1);
  };
  const colors = [...spread(CIVIDIS, 0, 0.5), ...spread(BREACH, 0.5, 1)];
  return { colors, place, low: "0", high: "1" };
}

/**
 * Colors over a span of values, by powers where they differ by more than tenfold.
 * @param {[number, number]} span
 * @returns {Paint}
 */
export function spanPaint([low, high]) {
  const scale = high / low > 10 ? Math.log : (/** @type {number} */ value) => value;
  const [from, to] = [scale(low), scale(high)];
  const place = (/** @type {number | null} */ value) => {
    if (value === null) return null;
    if (to <= from) return 0.5;
    return value <= low ? 0 : Math.min((scale(value) - from) / (to - from), 1);
  };
  return { colors: spread(CIVIDIS, 0, 1), place, low: number(low), high: number(high) };
}

/**
 * @param {string[]} inks
 * @param {number} from
 * @param {number} to
 * @returns {[number, string][]}
 */
function spread(inks, from, to) {
  return inks.map((ink, i) => [from + (to - from) * (i / (inks.length - 1)), ink]);
}
