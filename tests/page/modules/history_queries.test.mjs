// What is made of answers of the history resources.

import assert from "node:assert/strict";
import { test } from "node:test";

const page = "../../../snc_service/ui/static";
const { byLayer, hasValues, known } = await import(`${page}/service/history_queries.js`);

/** An answer over steps 0 to `mean.length` - 1 with one layer. */
function answer(mean, nonfinite = []) {
  const layers = [{ layer: "fc", mean, min: mean, max: mean, nonfinite }];
  return { steps: mean.map((_, i) => i), bucket_steps: 1, layers };
}

test("what was never reported is null, and any other problem is raised", async () => {
  assert.equal(await known(Promise.resolve(7)), 7);
  assert.equal(await known(Promise.reject({ status: 404 })), null);
  assert.equal(await known(Promise.reject({ status: 422 })), null);
  for (const problem of [{ status: 500 }, { status: 0 }, new Error("a defect")]) {
    await assert.rejects(known(Promise.reject(problem)), (raised) => raised === problem);
  }
});

test("a layer that waits for its turn has a history of its own steps", () => {
  const own = byLayer(answer([1, null, 2, null, 3])).get("fc");
  assert.deepEqual(own.steps, [0, 2, 4]);
  for (const name of ["mean", "min", "max"]) assert.deepEqual(own[name], [1, 2, 3]);
});

test("a silence of more than fifty rows is one null after its last value", () => {
  const silent = (rows) => byLayer(answer([1, ...Array(rows - 1).fill(null), 2])).get("fc");
  assert.deepEqual([silent(50).steps, silent(50).mean], [[0, 50], [1, 2]]);
  assert.deepEqual([silent(51).steps, silent(51).mean], [[0, 1, 51], [1, null, 2]]);
});

test("a value that is not finite stays, with its count", () => {
  const own = byLayer(answer([1, null, null, 2], [0, 3, 0, 0])).get("fc");
  assert.deepEqual([own.steps, own.mean, own.nonfinite], [[0, 1, 3], [1, null, 2], [0, 3, 0]]);
});

test("no answer, no layer and no value make no history", () => {
  assert.equal(byLayer(null).size, 0);
  assert.equal(byLayer({ steps: [], bucket_steps: 1, layers: [] }).size, 0);
  assert.deepEqual(byLayer(answer([null, null])).get("fc").steps, []);
  assert.deepEqual(byLayer(answer([5])).get("fc").steps, [0]);
});

test("a heatmap has values unless every cell is null", () => {
  assert.ok(hasValues({ max: [[null], [null, 0]] }));
  assert.ok(hasValues({ max: [[-1]] }));
  for (const max of [[], [[]], [[null, null], [null]]]) assert.ok(!hasValues({ max }));
  assert.ok(!hasValues(null));
});
