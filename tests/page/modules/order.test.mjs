// The words of the lists of layers: who left its healthy band, who reaches its threshold next.

import assert from "node:assert/strict";
import { test } from "node:test";

import { beginning, forecastOrder, onsetOrder } from "../../../snc_service/ui/static/views/run/order.js";

const left = (layer, step, more = {}) =>
  ({ layer, step, alarm_step: step, rule: "sigma_jump", times_limit: 2, ...more });
const ahead = (more = {}) => ({
  layer: "fc", step: 1200, steps: 400, sigma: 2.4, threshold: 3, earliest_step: 1332,
  latest_step: 2020, ...more,
});

test("the first layer is told by its step, the later ones by how much later they were", () => {
  const items = [left("a", 1204), left("b", 1204), left("c", 1207), left("d", 3204)];
  const { entries } = onsetOrder({ items, total: 4, step: 1204 });
  assert.deepEqual(entries.map(({ value }) => value),
    ["step 1,204", "step 1,204", "+3", "+2,000"]);
});

test("a run that broke at its first step says step 0", () => {
  const { summary, entries } = onsetOrder({ items: [left("a", 0), left("b", 1)], total: 2, step: 0 });
  assert.deepEqual(entries.map(({ value }) => value), ["step 0", "+1"]);
  assert.equal(summary, "Layers as they left their healthy band, from step 0 on.");
});

test("a layer that was traced back says where its alarm was", () => {
  const items = [left("a", 201, { alarm_step: 236 })];
  const [entry] = onsetOrder({ items, total: 1, step: 201 }).entries;
  assert.equal(entry.value, "step 201");
  assert.equal(entry.detail, "sigma jump at 236, 2.00 \u00d7 its limit");
});

test("an incident begins where the onset does, if it is the incident of that onset", () => {
  const event = { step: 236, layer: "b", layers: 1 };
  const incident = { step: 236, events: [event] };
  const onset = { step: 201, alarm_step: 236, total: 3, items: [left("a", 201)] };
  assert.deepEqual(beginning(incident, onset), { step: 201, layer: "a", layers: 3 });
  for (const other of [null, { ...onset, alarm_step: 900 }, { ...onset, items: [] }]) {
    assert.equal(beginning(incident, other), event);
  }
  // An incident that began with the loss begins there.
  const loss = { step: 100, events: [{ step: 100, layer: null, layers: 0 }, event] };
  assert.equal(beginning(loss, onset).step, 100);
});

test("a list that is cut says how many there are", () => {
  const items = [left("a", 5), left("b", 6)];
  assert.equal(onsetOrder({ items, total: 1500, step: 5 }).summary,
    "Layers as they left their healthy band, from step 5 on, the first 2 of 1,500.");
  assert.ok(!onsetOrder({ items, total: 2, step: 5 }).summary.includes("first"));
});

test("the rule is in words, and how far a layer is beyond its limit", () => {
  const cases = [
    [{ rule: "sigma_vs_init", times_limit: 1.004 }, "sigma vs init, 1.00+ \u00d7 its limit"],
    [{ rule: "update_ratio", times_limit: 12.34 }, "update ratio, 12.3 \u00d7 its limit"],
    [{ times_limit: null }, "sigma jump, \u2013 \u00d7 its limit"],
    [{ times_limit: NaN }, "sigma jump, \u2013 \u00d7 its limit"],
  ];
  for (const [more, detail] of cases) {
    const { entries } = onsetOrder({ items: [left("a", 1, more)], total: 1, step: 1 });
    assert.equal(entries[0].detail, detail);
  }
});

test("where no layer left its band there are no entries", () => {
  assert.deepEqual(onsetOrder({ items: [], total: 0, step: null }).entries, []);
});

test("layers keep the order and the names that the service gave", () => {
  const names = ["z", "a", "m".repeat(100_000), "<b>&", "z"];
  const { entries } = onsetOrder({ items: names.map((name) => left(name, 1)), total: 5, step: 1 });
  assert.deepEqual(entries.map(({ layer }) => layer), names);
});

test("a forecast of one step says step", () => {
  assert.equal(forecastOrder({ items: [ahead({ steps: 1 })] }).entries[0].value, "in about 1 step");
});

test("a forecast names its span, its sigma and its threshold", () => {
  const { entries } = forecastOrder({ items: [ahead(), ahead({ layer: "head", steps: 1500 })] });
  assert.deepEqual(entries, [
    {
      layer: "fc", step: 1200, value: "in about 400 steps",
      detail: "\u03c3 2.400 of 3.000 \u00b7 step 1,332 to 2,020",
    },
    {
      layer: "head", step: 1200, value: "in about 1,500 steps",
      detail: "\u03c3 2.400 of 3.000 \u00b7 step 1,332 to 2,020",
    },
  ]);
});

test("a forecast without numbers shows dashes, one that was not asked for no entries", () => {
  const { entries } = forecastOrder({ items: [ahead({ sigma: null, threshold: NaN })] });
  assert.ok(entries[0].detail.startsWith("\u03c3 \u2013 of \u2013 "));
  assert.deepEqual(forecastOrder(null).entries, []);
  assert.deepEqual(forecastOrder({ items: [] }).entries, []);
});
