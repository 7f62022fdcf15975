// Smoothing, and axes of time or of a counter.

import assert from "node:assert/strict";
import { test } from "node:test";

import { counter, counterTicks, smoothed } from "../../../snc_service/ui/static/charts/smooth.js";

const history = (steps, mean) => ({ steps, mean, min: mean, max: mean, bucket_steps: 1 });

test("a constant stays itself under any smoothing, from its first value on", () => {
  for (const weight of [0, 0.5, 0.99]) {
    const { mean } = smoothed(history([1, 2, 3], [4, 4, 4]), weight);
    mean.forEach((value) => assert.ok(Math.abs(value - 4) < 1e-12));
  }
});

test("an average is between what was, and a gap stays a gap", () => {
  const { mean } = smoothed(history([1, 2, 3, 4], [0, 1, null, 1]), 0.5);
  assert.equal(mean[2], null);
  assert.ok(Math.abs(mean[1] - 2 / 3) < 1e-12); // (0.25 * 0 + 0.5 * 1) / 0.75
  assert.ok(mean[3] > mean[1] && mean[3] < 1);
});

test("seconds per step add up to elapsed seconds, over buckets too", () => {
  const found = counter({ ...history([0, 10, 20], [2, 2, 3]), bucket_steps: 10 }, true);
  assert.deepEqual(found, { steps: [0, 10, 20], values: [0, 20, 40] });
});

test("a counter that goes back after a resumption goes on from where it was", () => {
  assert.deepEqual(counter(history([1, 2, 3, 4], [10, 20, 15, 30]), false),
    { steps: [1, 2, 4], values: [10, 20, 30] });
});

test("ticks stand at the steps where the counter was round", () => {
  const tokens = { steps: [0, 100], values: [0, 1000] };
  const ticks = counterTicks(tokens, 0, 100, 6);
  assert.deepEqual(ticks.map(({ at, text }) => [at, text]),
    [[0, "0"], [20, "200"], [40, "400"], [60, "600"], [80, "800"], [100, "1,000"]]);
  assert.deepEqual(counterTicks({ steps: [], values: [] }, 0, 1, 5), []);
});

test("ticks of a counter that runs through them in one step do not cover each other", () => {
  const slow = { steps: [0, 1, 100], values: [0, 50, 100] };
  const ticks = counterTicks(slow, 0, 100, 10);
  assert.equal(ticks[0].at, 0);
  for (let i = 1; i < ticks.length; i += 1) assert.ok(ticks[i].at - ticks[i - 1].at >= 5);
  assert.ok(ticks.length > 2);
});
