// Which metric the colors of a heatmap show.

import assert from "node:assert/strict";
import { test } from "node:test";

const { isRatio, METRICS, metricToShow } =
  await import("../../../snc_service/ui/static/charts/metrics.js");

test("unasked, it is the nearest to the threshold that there is", () => {
  assert.equal(metricToShow(null, false, false).metric, "sigma");
  assert.equal(metricToShow(null, false, true).metric, "sigma");
  assert.equal(metricToShow(null, true, false).metric, "ratio");
  assert.equal(metricToShow(null, true, true).metric, "after");
});

test("what cannot be shown is hidden", () => {
  assert.deepEqual(metricToShow(null, false, true).hidden, ["ratio", "after"]);
  assert.deepEqual(metricToShow(null, true, false).hidden, ["after"]);
  assert.deepEqual(metricToShow(null, true, true).hidden, []);
});

test("a wish is granted if it can be", () => {
  for (const name of Object.keys(METRICS)) assert.equal(metricToShow(name, true, true).metric, name);
  assert.equal(metricToShow("growth", false, false).metric, "growth");
  assert.equal(metricToShow("ratio", false, false).metric, "sigma");
  assert.equal(metricToShow("after", true, false).metric, "ratio");
});

test("a wish for what is no metric counts as none", () => {
  for (const bad of ["", "loss", "toString", "constructor", "__proto__", "x".repeat(100_000)]) {
    assert.equal(metricToShow(bad, true, false).metric, "ratio", bad.slice(0, 20));
  }
});

test("two of the metrics are compared with 1", () => {
  assert.deepEqual(Object.keys(METRICS).filter(isRatio), ["ratio", "after"]);
});
