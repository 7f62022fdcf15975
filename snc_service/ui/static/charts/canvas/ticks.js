// Where an axis has its ticks, and what they say.

/** @typedef {{at: number, text: string}} Tick */

const grouped = new Intl.NumberFormat("en-US");

/**
 * Ticks at round numbers from `low` to `high`, about `most` of them and never more than that; only
 * whole numbers if `whole`.
 * @param {number} low
 * @param {number} high
 * @param {number} most at least 2
 * @param {boolean} [whole]
 * @returns {Tick[]}
 */
export function linearTicks(low, high, most, whole = false) {
  const span = high - low;
  if (!(span > 0) || !Number.isFinite(span)) return [{ at: low, text: plain(low, 0) }];
  const rough = span / (most - 1);
  const decade = 10 ** Math.floor(Math.log10(rough));
  const leads = [0.5, 1, 2, 5, 10];
  const least = leads.findIndex((times) => times * decade >= rough * (1 - 1e-9));
  const sizes = leads.slice(0, (least < 0 ? leads.length - 1 : least) + 1).reverse().map((times) => times * decade)
    .map((size) => (whole ? Math.max(1, Math.round(size)) : size));
  // One tick says nothing about a scale: a smaller size, if that is not too many.
  const within = (/** @type {number} */ one) => Math.floor(high / one + 1e-9) - Math.ceil(low / one - 1e-9) + 1;
  const size = sizes.find((one) => within(one) >= 2 && within(one) <= most) ?? sizes[0];
  const digits = Math.max(0, -Math.floor(Math.log10(size) + 1e-9));
  /** @type {Tick[]} */
  const found = [];
  for (let i = Math.ceil(low / size - 1e-9); i * size <= high + size * 1e-9; i += 1) {
    // The product, not a sum: sums would drift off the round numbers.
    const at = i * size + 0; // and no minus zero
    found.push({ at, text: plain(at, digits) });
  }
  return found;
}

/**
 * Ticks of a logarithmic axis: powers of ten, and 2 and 5 between them where there are few.
 * @param {number} low above 0
 * @param {number} high
 * @param {number} most
 * @returns {Tick[]}
 */
export function logTicks(low, high, most) {
  const [first, last] = [Math.floor(Math.log10(low)), Math.ceil(Math.log10(high))];
  const every = Math.max(1, Math.ceil((last - first + 1) / most));
  const leads = last - first <= 2 ? [1, 2, 5] : [1];
  /** @type {Tick[]} */
  const found = [];
  for (let power = first; power <= last; power += every) {
    for (const lead of leads) {
      const at = lead * 10 ** power;
      if (at >= low * (1 - 1e-9) && at <= high * (1 + 1e-9)) found.push({ at, text: plain(at, Math.max(0, -power)) });
    }
  }
  return found.length >= 2 ? found : linearTicks(low, high, Math.max(most, 2));
}

/**
 * @param {number} value
 * @param {number} digits after the point
 */
function plain(value, digits) {
  const size = Math.abs(value);
  if (size >= 1e7 || digits > 4) {
    return value === 0 ? "0" : value.toExponential(1).replace(".0e", "e").replace("e+", "e");
  }
  return digits ? value.toFixed(digits) : grouped.format(Math.round(value));
}
