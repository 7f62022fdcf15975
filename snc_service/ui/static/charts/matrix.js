// The layers x steps matrix: arithmetic without a screen.

/**
 * Column edges for steps that may have holes: {edges [C + 1], source [C]}. A hole wider than the
 * usual spacing becomes a column of its own whose source is -1, so no value is stretched over it.
 */
export function columns(steps, bucketSteps) {
  if (!steps.length) return { edges: [], source: [] };
  const width = spacing(steps, bucketSteps);
  const edges = [steps[0]];
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

/** How far apart steps usually are: the median, a bucket at least. */
export function spacing(steps, bucketSteps) {
  const gaps = steps.slice(1).map((step, i) => step - steps[i]).sort((a, b) => a - b);
  return Math.max(bucketSteps, gaps.length ? gaps[gaps.length >> 1] : 1);
}

// An idle layer waits for its turn for so many rows at most: who is silent for longer is gone.
const LONGEST_WAIT = 50;

/** Whether a layer without a value between two steps was only waiting for its turn. */
export function waits(before, after, usual) {
  return after - before <= LONGEST_WAIT * usual;
}

/**
 * A matrix in which layers that wait for their turn keep what they had; null where nothing was
 * measured for too long, and where `isBroken(row, column)`: what is not finite holds nothing.
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

/** The index of the column that holds `step`, -1 outside. */
export function columnAt(edges, step) {
  if (!edges.length || step < edges[0] || step >= edges[edges.length - 1]) return -1;
  let low = 0;
  let high = edges.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (edges[middle] <= step) low = middle;
    else high = middle;
  }
  return low;
}

/** The values of `other`, an answer too, at the layers and steps of `answer`; null elsewhere. */
export function aligned(answer, other) {
  const rows = new Map((other?.layers ?? []).map((layer, i) => [layer, other.max[i]]));
  const places = new Map((other?.steps ?? []).map((step, i) => [step, i]));
  return answer.layers.map((layer) => {
    const row = rows.get(layer) ?? [];
    return answer.steps.map((step) => row[places.get(step)] ?? null);
  });
}

/** sigma over the layer's first finite value. */
export function growth(sigma) {
  return sigma.map((row) => {
    const first = row.find((value) => value !== null && value > 0);
    return row.map((value) => (value === null || first === undefined ? null : value / first));
  });
}

/**
 * Runs of neighbouring cells for which `test(row, column)` holds: [{row, from, to}] in columns,
 * both ends included, at most `most` of them.
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

/** The smallest and largest finite positive value, [1, 1] if there is none. */
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

/**
 * The steps to show: from the first to the last, and for a run that goes on up to the next round
 * step, so that the axis stands still while lines grow into it.
 */
export function stepRange(first, last, growing) {
  const reach = Math.max(last - first, 1);
  if (!growing) return [first, first + reach];
  const decade = 10 ** Math.floor(Math.log10(reach));
  const lead = reach / decade;
  const grain = Math.max(1, (decade / 10) * (lead < 2 ? 1 : lead < 5 ? 2.5 : 5));
  return [first, first + Math.ceil((reach + 1) / grain) * grain];
}
