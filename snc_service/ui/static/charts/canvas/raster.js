// The cells of a heatmap as pixels. A pixel that several cells share shows the worst of them.

export const NOTHING = -1; // the place of a cell without a value
export const BROKEN = 2; // of a cell with only values that are not finite

/**
 * For each of `size` pixels the first and last cell under it: [from, to] in pairs. `edges` are the
 * bounds of the cells, `low` and `high` what the first and the last pixel show of them.
 * @param {ArrayLike<number>} edges
 * @param {number} low
 * @param {number} high
 * @param {number} size
 */
export function cover(edges, low, high, size) {
  const spans = new Int32Array(2 * size).fill(-1);
  const cells = edges.length - 1;
  const step = (high - low) / size;
  let from = 0;
  for (let pixel = 0; pixel < size; pixel += 1) {
    const [begin, end] = [low + pixel * step, low + (pixel + 1) * step];
    while (from < cells && edges[from + 1] <= begin) from += 1;
    if (from >= cells || edges[from] >= end) continue;
    let to = from;
    while (to + 1 < cells && edges[to + 1] < end) to += 1;
    spans[2 * pixel] = from;
    spans[2 * pixel + 1] = to;
  }
  return spans;
}

/**
 * The pixels of `places` [rows x columns], row by row: the largest place under each pixel, as a
 * color of `colors`; the last color is that of `BROKEN`, and `NOTHING` stays transparent.
 * @param {Float32Array} places
 * @param {number} columns
 * @param {Int32Array} across of `cover` over the columns
 * @param {Int32Array} down of `cover` over the rows
 * @param {Uint32Array} colors
 */
export function pixels(places, columns, across, down, colors) {
  const [width, height] = [across.length / 2, down.length / 2];
  const image = new Uint32Array(width * height);
  const worst = new Float32Array(width);
  const shades = colors.length - 2;
  let [before, until] = [-2, -2];
  for (let y = 0; y < height; y += 1) {
    const [top, bottom] = [down[2 * y], down[2 * y + 1]];
    const line = y * width;
    if (top < 0) continue;
    if (top === before && bottom === until) {
      image.copyWithin(line, line - width, line);
      continue;
    }
    worst.fill(NOTHING);
    for (let row = top; row <= bottom; row += 1) pool(places, row * columns, across, worst);
    for (let x = 0; x < width; x += 1) {
      const place = worst[x];
      if (place === NOTHING) continue;
      image[line + x] = place === BROKEN ? colors[shades + 1] : colors[Math.round(place * shades)];
    }
    [before, until] = [top, bottom];
  }
  return image;
}

/**
 * @param {Float32Array} places
 * @param {number} begin of the row
 * @param {Int32Array} across
 * @param {Float32Array} worst
 */
function pool(places, begin, across, worst) {
  for (let x = 0; x < worst.length; x += 1) {
    for (let column = across[2 * x]; column >= 0 && column <= across[2 * x + 1]; column += 1) {
      const place = places[begin + column];
      if (place > worst[x]) worst[x] = place;
    }
  }
}

/**
 * A scale of colors [[place, "#rrggbb"], ...] as 256 pixels, and behind them that of `broken`.
 * @param {[number, string][]} scale
 * @param {string} broken
 */
export function palette(scale, broken) {
  const table = new Uint32Array(257);
  let at = 0;
  for (let i = 0; i < 256; i += 1) {
    const place = i / 255;
    while (at + 2 < scale.length && scale[at + 1][0] <= place) at += 1;
    const [[low, from], [high, to]] = [scale[at], scale[at + 1]];
    const part = high > low ? Math.min(Math.max((place - low) / (high - low), 0), 1) : 1;
    table[i] = mixed(parts(from), parts(to), part);
  }
  table[256] = mixed(parts(broken), parts(broken), 0);
  return table;
}

/** @param {string} ink */
function parts(ink) {
  const value = parseInt(ink.slice(1), 16);
  return [value >> 16, (value >> 8) & 255, value & 255];
}

/**
 * @param {number[]} from
 * @param {number[]} to
 * @param {number} part
 */
function mixed(from, to, part) {
  const [red, green, blue] = from.map((value, i) => Math.round(value + (to[i] - value) * part));
  return (255 << 24 | blue << 16 | green << 8 | red) >>> 0;
}
