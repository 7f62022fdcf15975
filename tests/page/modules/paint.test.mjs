// Where a value lies on the colors of a heatmap.

import assert from "node:assert/strict";
import { test } from "node:test";

const { ratioPaint, spanPaint } = await import("../../../snc_service/ui/static/charts/paint.js");

test("the colors go from 0 to 1, and a ratio of 1 is where they jump", () => {
  for (const { colors } of [ratioPaint(), spanPaint([1, 2])]) {
    const places = colors.map(([place]) => place);
    assert.deepEqual([places[0], places.at(-1)], [0, 1]);
    assert.deepEqual(places, [...places].sort((a, b) => a - b));
    for (const [, ink] of colors) assert.match(ink, /^#[0-9a-f]{6}$/);
  }
  assert.equal(ratioPaint().colors.filter(([place]) => place === 0.5).length, 2);
});

test("a breach is on the other side of the jump than a ratio of 1", () => {
  const { place } = ratioPaint();
  assert.equal(place(0), 0);
  assert.ok(place(1) < 0.5);
  assert.ok(place(1 + 1e-12) > 0.5);
  assert.equal(place(2), 1);
  assert.equal(place(1e9), 1);
  assert.equal(place(null), null);
});

test("a larger ratio never has a lower place", () => {
  const { place } = ratioPaint();
  for (let value = 0; value < 3; value += 0.01) assert.ok(place(value + 0.01) >= place(value));
});

test("a span up to tenfold is linear, a wider one goes by powers", () => {
  assert.equal(spanPaint([1, 3]).place(2), 0.5);
  assert.equal(spanPaint([1, 10]).place(5.5), 0.5);
  const wide = spanPaint([1, 100]).place;
  assert.ok(Math.abs(wide(10) - 0.5) < 1e-12);
  assert.deepEqual([wide(1), wide(100)], [0, 1]);
});

test("values outside a span have the colors of its ends", () => {
  for (const span of [[1, 3], [1, 100]]) {
    const { place } = spanPaint(span);
    assert.deepEqual([place(0.5), place(0), place(-7), place(1e6), place(null)], [0, 0, 0, 1, null]);
  }
});

test("a span of one value has one color", () => {
  const { place, low, high } = spanPaint([2, 2]);
  assert.deepEqual([place(2), place(1), place(9)], [0.5, 0.5, 0.5]);
  assert.deepEqual([low, high], ["2.000", "2.000"]);
});
