// Computations on the layers x steps matrix, without DOM.

/**
 * Values [layers, steps]; null: not measured, or not finite.
 * @typedef {(number | null)[][]} Matrix
 */

/**
 * An answer of the heatmap resource. `nonfinite` counts such values per cell; it is empty if there
 * are none.
 * @typedef {{layers: string[], steps: number[], bucket_steps: number, max: Matrix,
 *   nonfinite?: number[][], total?: number, total_rows?: number,
 *   rows?: {first: number, last: number, layers: number, worst: string}[]}} Answer
 */

/**
 * Return column edges for steps with gaps: {edges [C + 1], source [C]}. A gap wider than the usual
 * spacing becomes its own column with source -1, so no value is stretched over it.
 * @param {number[]} steps
 * @param {number} bucketSteps
 * @returns {{edges: number[], source: number[]}}
 */
export function columns(steps, bucketSteps) {
  if (!steps.length) return { edges: [], source: [] };
  const width = spacing(steps, bucketSteps);
  const edges = [steps[0]];
  /** @type {number[]} */
  const source = [];
  steps.forEach((step, i) => {
    if (step > edges[edges.length - 1]) {
      edges.push(step);
      source.push(-1);
    }
    const next = i + 1 < steps.length ? steps[i + 1] : Infinity;
    edges.push(Math.min(step + width, next));
    source.push(i);
  });
  return { edges, source };
}

/**
 * How far apart steps usually are: the median, a bucket at least.
 * @param {number[]} steps
 * @param {number} bucketSteps
 */
export function spacing(steps, bucketSteps) {
  const gaps = steps.slice(1).map((step, i) => step - steps[i]).sort((a, b) => a - b);
  return Math.max(bucketSteps, gaps.length ? gaps[gaps.length >> 1] : 1);
}

// The most rows that an idle layer waits for its turn; after more rows it counts as gone.
const LONGEST_WAIT = 50;

/**
 * Whether a layer without a value between two steps was only waiting for its turn.
 * @param {number} before
 * @param {number} after
 * @param {number} usual
 */
export function waits(before, after, usual) {
  return after - before <= LONGEST_WAIT * usual;
}

/**
 * Return a matrix in which idle layers keep their last value. Cells are null after too long a gap,
 * and where `isBroken(row, column)`: a non-finite value is not kept.
 * @param {Matrix} matrix
 * @param {{steps: number[], bucket_steps: number}} answer
 * @param {(row: number, column: number) => boolean} isBroken
 * @returns {Matrix}
 */
export function held(matrix, { steps, bucket_steps: bucket }, isBroken) {
  const usual = spacing(steps, bucket);
  return matrix.map((row, r) => {
    let newest = -1;
    return row.map((value, i) => {
      if (value !== null) newest = i;
      else if (isBroken(r, i)) newest = -1;
      return newest >= 0 && waits(steps[newest], steps[i], usual) ? row[newest] : null;
    });
  });
}

/**
 * The index of the column that holds `step`, -1 outside.
 * @param {number[]} edges
 * @param {number} step
 */
export function columnAt(edges, step) {
  if (!(step >= edges[0] && step < edges[edges.length - 1])) return -1;
  let low = 0;
  let high = edges.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (edges[middle] <= step) low = middle;
    else high = middle;
  }
  return low;
}

/**
 * The values of `other`, an answer too, at the layers and steps of `answer`; null elsewhere.
 * @param {{layers: string[], steps: number[]}} answer
 * @param {{layers: string[], steps: number[], max: Matrix} | null} other
 * @returns {Matrix}
 */
export function aligned(answer, other) {
  const rows = new Map((other?.layers ?? []).map((layer, i) => [layer, other?.max[i] ?? []]));
  const places = new Map((other?.steps ?? []).map((step, i) => [step, i]));
  return answer.layers.map((layer) => {
    const row = rows.get(layer) ?? [];
    return answer.steps.map((step) => row[places.get(step) ?? -1] ?? null);
  });
}

/**
 * sigma over the layer's first positive value.
 * @param {Matrix} sigma
 * @returns {Matrix}
 */
export function growth(sigma) {
  return sigma.map((row) => {
    const first = row.find((value) => value !== null && value > 0);
    return row.map((value) => (value === null || !first ? null : value / first));
  });
}

/**
 * The layer whose newest sigma is the most of its first one, a layer that is not finite before all
 * others; null without layers. Of a shared row, its worst layer.
 * @param {Answer} answer
 * @returns {string | null}
 */
export function grewMost({ layers, rows, max, nonfinite }) {
  const last = layers.length ? max[0].length - 1 : -1;
  const grown = growth(max).map((row, i) =>
    (nonfinite?.[i]?.[last] ?? 0) > 0 ? Infinity : row.findLast((value) => value !== null) ?? 0);
  const most = grown.indexOf(Math.max(...grown));
  return rows?.[most]?.worst ?? layers[most] ?? null;
}

/**
 * Return stretches of adjacent cells for which `test(row, column)` holds: [{row, from, to}] in
 * columns, both ends included, at most `most` of them.
 * @param {number} rows
 * @param {number} cols
 * @param {(row: number, column: number) => boolean} test
 * @param {number} most
 */
export function stretches(rows, cols, test, most) {
  const found = [];
  for (let row = 0; row < rows; row += 1) {
    let from = -1;
    for (let column = 0; column <= cols; column += 1) {
      const holds = column < cols && test(row, column);
      if (holds && from < 0) from = column;
      if (!holds && from >= 0) {
        if (found.length === most) return found;
        found.push({ row, from, to: column - 1 });
        from = -1;
      }
    }
  }
  return found;
}

/**
 * The smallest and largest positive value, [1, 1] if there is none.
 * @param {Matrix} matrix
 * @returns {[number, number]}
 */
export function extent(matrix) {
  let low = Infinity;
  let high = -Infinity;
  for (const row of matrix) {
    for (const value of row) {
      if (value === null || !(value > 0)) continue;
      if (value < low) low = value;
      if (value > high) high = value;
    }
  }
  return low <= high ? [low, high] : [1, 1];
}
