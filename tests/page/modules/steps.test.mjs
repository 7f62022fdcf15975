// Which steps are shown.

import assert from "node:assert/strict";
import { test } from "node:test";

const page = "../../../snc_service/ui/static";
const { between, covered, stepRange, stepsOf } = await import(`${page}/charts/steps.js`);
const { withQuery } = await import(`${page}/document/router.js`);

const ALL = { from: null, to: null };

test("two steps are a span if the second one is later", () => {
  assert.deepEqual(between(3, 5), { from: 3, to: 5 });
  assert.deepEqual(between(0, 1), { from: 0, to: 1 });
  for (const [from, to] of [[5, 3], [3, 3], [null, 5], [5, null], [null, null], [NaN, 5], [5, NaN]]) {
    assert.deepEqual(between(from, to), ALL, `${from} to ${to}`);
  }
});

test("an address names whole steps or none", () => {
  const read = (text) => stepsOf(new URLSearchParams(text));
  assert.deepEqual(read("from=0&to=7"), { from: 0, to: 7 });
  assert.deepEqual(read("from=007&to=8&layer=a"), { from: 7, to: 8 });
  // 10^15 - 1 < 2^53: the largest number of 15 digits is still exact.
  assert.deepEqual(read("from=1&to=999999999999999"), { from: 1, to: 999999999999999 });
  const bad = [
    "", "from=3", "to=3", "from=&to=", "from=-3&to=5", "from=1.5&to=5", "from=1e1&to=50", "from=NaN&to=5",
    "from=5&to=Infinity", "from=0x1&to=5", "from= 1&to=5", "from=5&to=5", "from=9&to=5",
    "from=1&to=1000000000000000",
  ];
  for (const text of bad) assert.deepEqual(read(text), ALL, text);
});

test("a span that is written to an address is read back", () => {
  for (const [from, to] of [[0, 1], [12, 345678], [7, 999999999999999]]) {
    assert.deepEqual(stepsOf(withQuery(new URLSearchParams(), between(from, to))), { from, to });
  }
});

test("answers cover the steps from their first to one past their last", () => {
  const answers = [{ steps: [5, 9], bucket_steps: 4 }, null, { steps: [2], bucket_steps: 1 }];
  assert.deepEqual(covered(answers), [2, 13]);
  assert.deepEqual(covered([{ steps: [7], bucket_steps: 1 }]), [7, 8]);
  for (const nothing of [[], [null], [undefined], [null, { steps: [], bucket_steps: 1 }]]) {
    assert.equal(covered(nothing), null);
  }
});

test("the axis of an ended run ends with its last step, and is never empty", () => {
  assert.deepEqual(stepRange(0, 100, false), [0, 100]);
  assert.deepEqual(stepRange(5, 5, false), [5, 6]);
  assert.deepEqual(stepRange(9, 4, false), [9, 10]);
});

test("the axis of a growing run ends at the next round step", () => {
  // The grain is 10, 25 or 50 hundredths of the power of ten: up to 200, up to 500, beyond.
  assert.deepEqual(stepRange(0, 100, true), [0, 110]);
  assert.deepEqual(stepRange(0, 200, true), [0, 225]);
  assert.deepEqual(stepRange(0, 250, true), [0, 275]);
  assert.deepEqual(stepRange(0, 500, true), [0, 550]);
  assert.deepEqual(stepRange(0, 700, true), [0, 750]);
  assert.deepEqual(stepRange(1000, 1100, true), [1000, 1110]);
  assert.deepEqual(stepRange(0, 1, true), [0, 2]);
  assert.deepEqual(stepRange(5, 5, true), [5, 7]);
  assert.deepEqual(stepRange(10, 5, true), [10, 12]);
});

test("the axis of a growing run stands still for a while, then it jumps ahead", () => {
  const ends = Array.from({ length: 100 }, (_, i) => stepRange(0, 100 + i, true)[1]);
  // Steps 100 to 199 in grains of 10: 110 for ten steps, and so on up to 200.
  assert.deepEqual(ends, Array.from({ length: 100 }, (_, i) => 110 + 10 * Math.floor(i / 10)));
});

test("the axis never ends before the last step and never shrinks", () => {
  let before = 0;
  for (let last = 1; last < 5000; last += 1) {
    const [first, end] = stepRange(0, last, true);
    assert.equal(first, 0);
    assert.ok(end > last && end <= 1.6 * last + 2, `${last} -> ${end}`);
    assert.ok(end >= before, `${last}: ${before} -> ${end}`);
    before = end;
  }
});
