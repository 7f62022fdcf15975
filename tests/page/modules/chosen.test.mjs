// The layers whose history is drawn, and their colors.

import assert from "node:assert/strict";
import { test } from "node:test";

const { ChosenLayers, MOST_CHOSEN } = await import("../../../snc_service/ui/static/charts/chosen.js");
const eight = ["a", "b", "c", "d", "e", "f", "g", "h"];

function chosen(...layers) {
  const made = new ChosenLayers();
  made.choose(layers);
  return made;
}

test("layers keep their places while others come and go", () => {
  const layers = chosen("a", "b", "c");
  assert.deepEqual([...layers.places], [["a", 0], ["b", 1], ["c", 2]]);
  layers.choose(["c", "d", "a"]);
  assert.deepEqual([...layers.places], [["c", 2], ["d", 1], ["a", 0]]);
});

test("no two layers ever have the same place", () => {
  const layers = chosen(...eight);
  for (let i = 0; i < 200; i += 1) {
    layers.choose(layers.toggled(`layer ${(i * 7) % 13}`));
    const places = [...layers.places.values()];
    assert.equal(new Set(places).size, places.length);
    assert.ok(places.every((place) => place >= 0 && place < MOST_CHOSEN));
  }
});

test("a click adds a layer, a second one removes it", () => {
  assert.deepEqual(chosen("a").toggled("b"), ["a", "b"]);
  assert.deepEqual(chosen("a", "b").toggled("a"), ["b"]);
  assert.deepEqual(chosen("a").toggled("a"), []);
  assert.deepEqual(new ChosenLayers().toggled("a"), ["a"]);
});

test("a ninth layer takes the place of the oldest", () => {
  assert.equal(MOST_CHOSEN, 8);
  assert.deepEqual(chosen(...eight).toggled("i"), ["b", "c", "d", "e", "f", "g", "h", "i"]);
  assert.deepEqual(chosen(...eight, "i").names, eight);
});

test("a name that is given twice is one layer, however long it is", () => {
  const long = "x".repeat(100_000);
  assert.deepEqual(chosen(long, "a", long).names, [long, "a"]);
});

test("to choose no layer is a choice", () => {
  assert.equal(new ChosenLayers().made, false);
  assert.equal(chosen().made, true);
  assert.deepEqual(chosen().names, []);
});
