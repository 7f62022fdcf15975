// The arithmetic of the layers x steps matrix.

import assert from "node:assert/strict";
import { test } from "node:test";

const matrix = await import("../../../snc_service/ui/static/charts/matrix.js");
const never = () => false;

test("a hole in the steps is a column of its own", () => {
  assert.deepEqual(matrix.columns([0, 1, 2, 10, 11], 1), {
    edges: [0, 1, 2, 3, 10, 11, 12],
    source: [0, 1, 2, -1, 3, 4],
  });
  assert.deepEqual(matrix.columns([], 1), { edges: [], source: [] });
});

test("one step is one column, as wide as its bucket", () => {
  assert.deepEqual(matrix.columns([5], 4), { edges: [5, 9], source: [0] });
  assert.deepEqual(matrix.columns([0], 1), { edges: [0, 1], source: [0] });
});

test("a column ends where the next one begins", () => {
  // Every second step but one: the usual spacing is 2, and 4 and 5 are nearer to each other.
  assert.deepEqual(matrix.columns([0, 2, 4, 5, 7], 1),
    { edges: [0, 2, 4, 5, 7, 9], source: [0, 1, 2, 3, 4] });
});

test("the usual spacing is the median gap, and a bucket at least", () => {
  assert.equal(matrix.spacing([0, 1, 2, 10], 1), 1);
  assert.equal(matrix.spacing([0, 5, 10, 11], 1), 5);
  assert.equal(matrix.spacing([0, 1, 2], 8), 8);
  assert.equal(matrix.spacing([7], 1), 1);
  assert.equal(matrix.spacing([], 3), 3);
});

test("a layer waits for fifty rows at most", () => {
  assert.ok(matrix.waits(0, 50, 1));
  assert.ok(!matrix.waits(0, 51, 1));
  assert.ok(matrix.waits(100, 600, 10));
  assert.ok(!matrix.waits(100, 601, 10));
});

test("the column of a step is the one whose edges enclose it", () => {
  const edges = [0, 1, 2, 3, 10, 11, 12];
  for (let step = -1; step <= 13; step += 0.5) {
    const expected = edges.findIndex((edge, i) => edge <= step && step < edges[i + 1]);
    assert.equal(matrix.columnAt(edges, step), expected, `step ${step}`);
  }
  for (const nowhere of [NaN, Infinity, -Infinity]) assert.equal(matrix.columnAt(edges, nowhere), -1);
  assert.equal(matrix.columnAt([], 1), -1);
});

test("a layer that waits for its turn keeps its value, a broken or silent one does not", () => {
  const answer = { steps: [0, 1, 2, 3, 100], bucket_steps: 1 };
  assert.deepEqual(matrix.held([[5, null, null, 7, null]], answer, never), [[5, 5, 5, 7, null]]);
  const broken = (row, column) => column === 1;
  assert.deepEqual(matrix.held([[5, null, null, 7, 8]], answer, broken), [[5, null, null, 7, 8]]);
});

test("what was never measured holds nothing, and zero and negative values are values", () => {
  const answer = { steps: [0, 1, 2], bucket_steps: 1 };
  assert.deepEqual(matrix.held([[null, null, null], [0, null, -1]], answer, never),
    [[null, null, null], [0, 0, -1]]);
  assert.deepEqual(matrix.held([], answer, never), []);
  assert.deepEqual(matrix.held([[]], { steps: [], bucket_steps: 1 }, never), [[]]);
});

test("growth is sigma over its first positive value", () => {
  assert.deepEqual(matrix.growth([[null, 2, 4], [0, null, 3], [null, null, null], [-1, 0, NaN]]),
    [[null, 1, 2], [0, null, 1], [null, null, null], [null, null, null]]);
  assert.deepEqual(matrix.growth([]), []);
});

test("another answer is laid out at the layers and steps of the first", () => {
  const one = { layers: ["a", "b"], steps: [1, 2] };
  const other = { layers: ["b"], steps: [2, 3], max: [[20, 30]] };
  assert.deepEqual(matrix.aligned(one, other), [[null, null], [null, 20]]);
  assert.deepEqual(matrix.aligned(one, null), [[null, null], [null, null]]);
  assert.deepEqual(matrix.aligned(one, { layers: [], steps: [], max: [] }), [[null, null], [null, null]]);
  assert.deepEqual(matrix.aligned({ layers: [], steps: [] }, other), []);
});

test("neighbouring cells are one stretch, up to the most that is asked for", () => {
  const cells = ["xx.x", "...x"];
  const marked = (row, column) => cells[row][column] === "x";
  const all = [{ row: 0, from: 0, to: 1 }, { row: 0, from: 3, to: 3 }, { row: 1, from: 3, to: 3 }];
  assert.deepEqual(matrix.stretches(2, 4, marked, 9), all);
  assert.deepEqual(matrix.stretches(2, 4, marked, 3), all);
  assert.deepEqual(matrix.stretches(2, 4, marked, 2), all.slice(0, 2));
  assert.deepEqual(matrix.stretches(2, 4, marked, 0), []);
  assert.deepEqual(matrix.stretches(0, 4, marked, 9), []);
  assert.deepEqual(matrix.stretches(2, 0, marked, 9), []);
});

test("the extent is of positive values only", () => {
  assert.deepEqual(matrix.extent([[null, 3], [0, -1], [7, 2]]), [2, 7]);
  assert.deepEqual(matrix.extent([[NaN, 4]]), [4, 4]);
  for (const nothing of [[], [[]], [[null, 0]], [[-2, NaN]]]) {
    assert.deepEqual(matrix.extent(nothing), [1, 1]);
  }
});

test("the layer that grew most is the one to look at, and one that broke before it", () => {
  const max = [[9, 9, 9], [1, 2, 3], [2, null, 4]];
  const answer = { layers: ["a", "b", "c"], steps: [0, 1, 2], bucket_steps: 1, max };
  assert.equal(matrix.grewMost(answer), "b");
  const nonfinite = [[0, 0, 0], [0, 0, 0], [0, 1, 1]];
  assert.equal(matrix.grewMost({ ...answer, nonfinite }), "c");
  assert.equal(matrix.grewMost({ layers: [], steps: [], bucket_steps: 1, max: [] }), null);
});
