// What a history holds at a step.

import assert from "node:assert/strict";
import { test } from "node:test";

const { bucketAt, nonfinitePoints, valueAt } =
  await import("../../../snc_service/ui/static/charts/lines.js");
const exact = { steps: [0, 2, 4], mean: [1, null, 3], min: [1, null, 3], max: [1, null, 3], bucket_steps: 1 };

test("the bucket of a step is the last one that has begun", () => {
  assert.deepEqual([-1, 0, 1, 2, 3.5, 4, 99].map((step) => bucketAt(exact, step)), [-1, 0, 0, 1, 1, 2, 2]);
  assert.equal(bucketAt(exact, null), 2);
  assert.equal(bucketAt({ steps: [] }, null), -1);
  assert.equal(bucketAt({ steps: [] }, 3), -1);
  assert.equal(bucketAt(exact, NaN), -1);
});

test("the value of a step is in words", () => {
  assert.equal(valueAt(exact, 0), "1.000");
  assert.equal(valueAt(exact, null), "3.000");
  assert.equal(valueAt(exact, 2), "\u2013");
  assert.equal(valueAt(exact, -1), "\u2013");
  assert.equal(valueAt({ ...exact, nonfinite: [0, 1, 0] }, 2), "not finite");
  for (const none of [null, undefined]) assert.equal(valueAt(none, 0), "\u2013");
});

test("a bucket whose values differ says from where to where", () => {
  const wide = { steps: [0], mean: [2], min: [1], max: [3], bucket_steps: 10 };
  assert.equal(valueAt(wide, 5), "2.000 (1.000\u20133.000)");
  assert.equal(valueAt({ ...wide, min: [2], max: [2] }, 5), "2.000");
});

test("values that are not finite one after the other are one mark", () => {
  const marks = (nonfinite) => nonfinitePoints({ steps: [0, 1, 2, 3], nonfinite }, "#123456")
    .map(({ step, end }) => [step, end]);
  assert.deepEqual(marks([0, 1, 2, 0]), [[1, 2]]);
  assert.deepEqual(marks([1, 0, 0, 4]), [[0, 0], [3, 3]]);
  assert.deepEqual(marks([]), []);
  assert.deepEqual(marks(undefined), []);
});
