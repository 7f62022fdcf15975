// Open incidents in few lines, none of the critical ones hidden.

import assert from "node:assert/strict";
import { test } from "node:test";

import { lines, MOST_ALONE, placeOfHead } from "../../../snc_service/ui/static/views/runs/incident_groups.js";

const one = (run, rule, severity = "warning", more = {}) =>
  ({ incident: 1, run, rule, severity, layer: null, acknowledged_at: null, ...more });
const several = (number, rule, severity) =>
  Array.from({ length: number }, (_, i) => one(`r${i}`, rule, severity));

test("silent runs are one line that leads to all of them", () => {
  assert.deepEqual(lines(several(67, "run_silent")),
    [{ severity: "warning", text: "67 runs silent", run: null, query: "state:silent" }]);
});

test("each critical incident has a line, and the first line is critical", () => {
  const found = lines([...several(3, "nonfinite", "critical"), ...several(70, "run_silent")]);
  assert.deepEqual(found.map(({ text }) => text),
    ["r0: nonfinite", "r1: nonfinite", "r2: nonfinite", "70 runs silent"]);
});

test("of very many critical incidents the rest is counted, none is dropped", () => {
  const found = lines(several(40, "nonfinite", "critical"));
  assert.equal(found.length, MOST_ALONE);
  assert.equal(found.at(-1).text, `${40 - MOST_ALONE + 1} more critical`);
  assert.equal(found.at(-1).query, "incident:critical");
});

test("what is acknowledged is counted and does not hide what is not", () => {
  const seen = { acknowledged_at: "2026-01-01T00:00:00Z" };
  const found = lines([one("a", "nonfinite", "critical", seen), one("b", "breach", "warning", { layer: "fc" })]);
  assert.deepEqual(found.map(({ text }) => text), ["b: breach, fc", "1 acknowledged"]);
});

test("a run that failed is not said to have finished", () => {
  const [line] = lines([one("a", "run_finished", "warning")]);
  assert.equal(line.text, "a: run failed");
});

test("what made an incident critical is named beside what it began with", () => {
  const events = [{ rule: "breach", severity: "warning" }, { rule: "nonfinite", severity: "critical" }];
  const [line] = lines([one("a", "breach", "critical", { layer: "fc", events })]);
  assert.equal(line.text, "a: breach, fc, then nonfinite");
  const [plain] = lines([one("a", "nonfinite", "critical", { events: events.slice(1) })]);
  assert.equal(plain.text, "a: nonfinite");
});

test("a critical incident has the name of what came long after a warning that lingers", () => {
  const events = [
    { rule: "breach", severity: "warning", step: 10, layer: "fc" },
    { rule: "sigma_jump", severity: "critical", step: 400, layer: "out" }];
  const [line] = lines([one("a", "sigma_jump", "critical", { layer: "out", step: 400, events })]);
  assert.equal(line.text, "a: sigma jump, out");
  assert.equal(placeOfHead(one("a", "sigma_jump", "critical", { layer: "out", step: 400, events })), 1);
});
