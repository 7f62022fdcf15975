// The cells of a heatmap, and what is said of them.

import assert from "node:assert/strict";
import { test } from "node:test";

const { Cells } = await import("../../../snc_service/ui/static/charts/cells.js");

// Thresholds are 2, so the ratios are 0.5, 1, 2 and 4; actions bring what is above 1 down to 1.
const layers = ["a", "b"];
const steps = [0, 1, 2, 10];
const sigma = {
  layers, steps, bucket_steps: 1,
  max: [[1, 2, 4, 8], [3, null, null, null]],
  nonfinite: [[0, 0, 0, 0], [0, 1, 0, 0]],
};
const before = { layers: ["a"], steps, bucket_steps: 1, max: [[0.5, 1, 2, 4]] };
const after = { layers: ["a"], steps, bucket_steps: 1, max: [[0.5, 1, 1, 1]] };
const cells = new Cells({ sigma, before, after });
const say = (row, column, of = cells) => of.sentence({ row, column });

test("a cell says its layer, its step, its values and what was done", () => {
  assert.equal(say(0, 0), "a \u00b7 step 0 \u00b7 \u03c3 1.000 \u00b7 threshold 2.000 \u00b7 ratio 0.50");
  assert.equal(say(0, 1), "a \u00b7 step 1 \u00b7 \u03c3 2.000 \u00b7 threshold 2.000 \u00b7 ratio 1.00");
  assert.equal(say(0, 2), "a \u00b7 step 2 \u00b7 \u03c3 4.000 \u00b7 threshold 2.000 \u00b7 ratio 2.00 " +
    "\u00b7 breach \u00b7 after the action 1.00");
});

test("a hole names its steps, and a broken layer says so until it is measured again", () => {
  assert.equal(say(0, 3), "a \u00b7 steps 3\u20139 \u00b7 not measured");
  assert.equal(say(1, 0), "b \u00b7 step 0 \u00b7 \u03c3 3.000");
  assert.equal(say(1, 1), "b \u00b7 step 1 \u00b7 not finite");
  assert.equal(say(1, 2), "b \u00b7 step 2 \u00b7 not measured");
});

test("a value that a waiting layer keeps names the step it is from", () => {
  const waiting = { layers: ["a"], steps: [4, 5, 6], bucket_steps: 1, max: [[5, null, 7]] };
  assert.equal(say(0, 1, new Cells({ sigma: waiting, before: null, after: null })),
    "a \u00b7 step 5 \u00b7 \u03c3 5.000 of step 4");
});

test("a bucket names its steps and that some of its values are not finite", () => {
  const wide = { layers: ["a"], steps: [0, 10], bucket_steps: 10, max: [[5, 6]], nonfinite: [[0, 2]] };
  const buckets = new Cells({ sigma: wide, before: null, after: null });
  assert.equal(say(0, 0, buckets), "a \u00b7 steps 0\u20139, largest \u00b7 \u03c3 5.000");
  assert.equal(say(0, 1, buckets),
    "a \u00b7 steps 10\u201319, largest \u00b7 \u03c3 6.000 \u00b7 some values not finite");
  assert.equal(buckets.summary(), "1 layers \u00d7 2 columns \u00b7 each cell is the largest of 10 steps");
});

test("outside of the cells it is the size of the whole", () => {
  const whole = "2 layers \u00d7 4 columns \u00b7 each cell is one step";
  assert.equal(cells.summary(), whole);
  for (const [row, column] of [[2, 0], [-1, 0], [0, 5], [0, -1], [NaN, NaN]]) {
    assert.equal(say(row, column), whole, `${row}, ${column}`);
  }
});

test("each metric has its values", () => {
  assert.deepEqual(cells.valuesOf("sigma"), [[1, 2, 4, 8], [3, null, null, null]]);
  assert.deepEqual(cells.valuesOf("growth"), [[1, 2, 4, 8], [1, null, null, null]]);
  assert.deepEqual(cells.valuesOf("ratio")[0], [0.5, 1, 2, 4]);
  assert.deepEqual(cells.valuesOf("after")[0], [0.5, 1, 1, 1]);
});

test("a run without layers or steps has no cells", () => {
  const none = { layers: [], steps: [], bucket_steps: 1, max: [], nonfinite: [] };
  const empty = new Cells({ sigma: none, before: null, after: null });
  assert.deepEqual([empty.grid.source, empty.valuesOf("sigma")], [[], []]);
  assert.equal(say(0, 0, empty), "0 layers \u00d7 0 columns \u00b7 each cell is one step");
});
