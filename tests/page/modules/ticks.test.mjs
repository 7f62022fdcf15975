// Ticks of an axis: round, within the axis, and never twice the same.

import assert from "node:assert/strict";
import { test } from "node:test";

import { linearTicks, logTicks } from "../../../snc_service/ui/static/charts/canvas/ticks.js";

const texts = (ticks) => ticks.map(({ text }) => text);

test("ticks are round numbers within the axis", () => {
  assert.deepEqual(texts(linearTicks(0, 2000, 6, true)), ["0", "500", "1,000", "1,500", "2,000"]);
  assert.deepEqual(texts(linearTicks(0, 1, 6)), ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]);
  assert.deepEqual(texts(linearTicks(-1, 1, 3)), ["-1", "0", "1"]);
});

test("few steps have whole ticks, none of them twice", () => {
  for (const last of [1, 2, 3, 4, 5, 7]) {
    const found = texts(linearTicks(0, last, 8, true));
    assert.equal(new Set(found).size, found.length);
    assert.ok(found.every((text) => /^\d+$/.test(text)), String(found));
  }
});

test("an axis of a narrow chart has more than its first tick", () => {
  assert.deepEqual(texts(linearTicks(0, 53, 2, true)), ["0", "50"]);
  assert.deepEqual(texts(linearTicks(0, 119, 3, true)), ["0", "100"]);
  assert.deepEqual(texts(linearTicks(13, 61, 3, true)), ["20", "40", "60"]);
});

test("whatever the axis: no more ticks than asked for, inside, rising, different", () => {
  for (let i = 0; i < 2000; i += 1) {
    const low = (Math.random() - 0.5) * 10 ** (Math.random() * 12 - 6);
    const high = low + 10 ** (Math.random() * 12 - 6);
    const ticks = linearTicks(low, high, 6);
    assert.ok(ticks.length <= 6, `${low} ${high}: ${ticks.length}`);
    const size = (high - low) * 1e-6;
    for (const { at } of ticks) assert.ok(at >= low - size && at <= high + size);
  }
});

test("a logarithmic axis has powers of ten", () => {
  assert.deepEqual(texts(logTicks(0.5, 2000, 8)), ["1", "10", "100", "1,000"]);
  assert.deepEqual(texts(logTicks(1, 10, 8)), ["1", "2", "5", "10"]);
  assert.ok(logTicks(2.1, 2.2, 5).length >= 2);
});
