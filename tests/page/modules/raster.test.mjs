// Cells as pixels: the worst cell under a pixel is never lost.

import assert from "node:assert/strict";
import { test } from "node:test";

import { BROKEN, cover, NOTHING, palette, pixels } from "../../../snc_service/ui/static/charts/canvas/raster.js";

const whole = (number) => Float64Array.from({ length: number + 1 }, (_, i) => i);
const colors = Uint32Array.from({ length: 257 }, (_, i) => i + 1);

function draw(places, rows, columns, height, width) {
  const across = cover(whole(columns), 0, columns, width);
  const down = cover(whole(rows), 0, rows, height);
  return pixels(Float32Array.from(places), columns, across, down, colors);
}

test("a cell of many pixels fills them", () => {
  const image = draw([0, 1, NOTHING, BROKEN], 2, 2, 4, 4);
  assert.deepEqual([...image], [1, 1, 256, 256, 1, 1, 256, 256, 0, 0, 257, 257, 0, 0, 257, 257]);
});

test("one hot cell among 1,000 x 1,000 is seen in 50 x 50 pixels, wherever it is", () => {
  for (let i = 0; i < 50; i += 1) {
    const places = new Float32Array(1_000_000).fill(0.2);
    places[Math.floor(Math.random() * places.length)] = 1;
    const across = cover(whole(1000), 0, 1000, 50);
    const image = pixels(places, 1000, across, across, colors);
    assert.ok(image.includes(256));
    assert.equal(image.filter((ink) => ink === 256).length, 1);
  }
});

test("a window shows its own cells only", () => {
  assert.deepEqual([...cover(whole(10), 4, 6, 2)], [4, 4, 5, 5]);
  assert.deepEqual([...cover(whole(2), -2, 4, 6)], [-1, -1, -1, -1, 0, 0, 1, 1, -1, -1, -1, -1]);
});

test("a palette has the colors of its scale at their places, and that of what is broken", () => {
  const table = palette([[0, "#000000"], [0.5, "#102030"], [0.5, "#ff0000"], [1, "#00ff00"]], "#9128b8");
  const parts = (ink) => [ink & 255, (ink >> 8) & 255, (ink >> 16) & 255, ink >>> 24];
  assert.deepEqual(parts(table[0]), [0, 0, 0, 255]);
  assert.deepEqual(parts(table[255]), [0, 255, 0, 255]);
  assert.ok(parts(table[127])[0] < 17);
  assert.ok(parts(table[128])[0] > 250);
  assert.deepEqual(parts(table[256]), [0x91, 0x28, 0xb8, 255]);
});
