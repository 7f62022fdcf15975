// Names without their common beginning and end.

import assert from "node:assert/strict";
import { test } from "node:test";

import { common, shortNames } from "../../../snc_service/ui/static/document/names.js";

test("what all names share is cut in whole parts", () => {
  const names = ["model.layers.0.q.weight.original0", "model.layers.10.k.weight.original0"];
  assert.deepEqual(common(names), { prefix: "model.layers.", suffix: ".weight.original0" });
  assert.deepEqual(shortNames(names, 30), ["0.q", "10.k"]);
});

test("names that share letters but no part are whole", () => {
  assert.deepEqual(shortNames(["query.weight", "queue.bias"], 30), ["query.weight", "queue.bias"]);
});

test("no name becomes empty, and different names stay different", () => {
  for (const names of [["a.b", "a.b.c"], ["a", "a.b"], ["a.b.c", "b.c"], ["x.x", "x.x.x"], ["fc1.weight", "fc2.weight"]]) {
    const short = shortNames(names, 40);
    assert.ok(short.every(Boolean), String(short));
    assert.equal(new Set(short).size, names.length);
  }
});

test("a single name is itself", () => {
  assert.deepEqual(shortNames(["blocks.0.weight"], 40), ["blocks.0.weight"]);
});
