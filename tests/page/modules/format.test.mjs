// Numbers, times and names as people read them.

import assert from "node:assert/strict";
import { test } from "node:test";

const text = await import("../../../snc_service/ui/static/document/format.js");
const NONE = [null, undefined, NaN, Infinity, -Infinity];

test("numbers have four significant digits, and beyond 9999 a power of ten", () => {
  const cases = [
    [1.23456, "1.235"], [0, "0"], [-0, "0"], [1, "1.000"], [-0.5, "-0.5000"], [0.001, "0.001000"],
    [0.000123, "1.23e-4"], [9999.4, "9999"], [9999.5, "1.00e4"], [12345, "1.23e4"],
    [123456, "1.23e5"], [-123456, "-1.23e5"], [1e300, "1.00e300"], [5e-324, "4.94e-324"],
  ];
  for (const [value, expected] of cases) assert.equal(text.number(value), expected);
});

test("a number is read back to half a unit of its last digit, in at most nine letters", () => {
  for (let power = -30; power < 30; power += 0.37) {
    const value = 10 ** power;
    const said = text.number(value);
    assert.ok(Math.abs(Number(said) - value) <= 0.005 * value, `${value} reads ${said}`);
    assert.ok(said.length <= 9, said);
  }
});

test("what is null or not finite reads as a dash", () => {
  for (const missing of NONE) {
    for (const name of ["number", "count", "ratio", "percent"]) {
      assert.equal(text[name](missing), text.MISSING, `${name} of ${missing}`);
    }
  }
});

test("counts have commas", () => {
  assert.deepEqual([0, 999, 1000, 1234567, -1234].map(text.count),
    ["0", "999", "1,000", "1,234,567", "-1,234"]);
});

test("a ratio reads as more than 1 if and only if it is", () => {
  for (let i = -2000; i <= 2000; i += 1) {
    const value = 1 + i * 1e-6;
    const said = text.ratio(value);
    const shown = said === "1.00+" ? 1.0001 : Number(said);
    assert.equal(shown > 1, value > 1, `${value} reads ${said}`);
  }
});

test("large ratios have fewer digits", () => {
  assert.deepEqual([0, 0.5, 1, 9.99, 12.34, 999.9, 1000, 1e7].map(text.ratio),
    ["0.00", "0.50", "1.00", "9.99", "12.3", "999.9", "1.00e3", "1.00e7"]);
});

test("shares have two significant digits", () => {
  assert.deepEqual([0, 0.0005, 0.012, 0.094, 0.0995, 0.5, 1].map(text.percent),
    ["0.00 %", "0.05 %", "1.2 %", "9.4 %", "10 %", "50 %", "100 %"]);
});

test("a span has one unit, rounded down, and is never negative", () => {
  assert.deepEqual([-5, 0, 59.9, 60, 3599, 3600, 86399, 86400, 8640000].map(text.span),
    ["0 s", "0 s", "59 s", "1 min", "59 min", "1 h", "23 h", "1 d", "100 d"]);
});

test("an age goes by the clock that is handed in", () => {
  const noon = Date.parse("2026-01-01T12:00:00Z");
  assert.equal(text.age("2026-01-01T10:00:00Z", noon), "2 h ago");
  assert.equal(text.age("2026-01-01T13:00:00Z", noon), "0 s ago");
});

test("a time that is none reads as a dash", () => {
  for (const bad of [null, undefined, "", "yesterday"]) {
    assert.equal(text.age(bad, 0), text.MISSING, `age of ${bad}`);
  }
  assert.equal(text.age("2026-01-01T10:00:00Z", NaN), text.MISSING);
  for (const bad of ["", "yesterday", NaN]) {
    assert.equal(text.clock(bad), text.MISSING, `clock of ${bad}`);
    assert.equal(text.moment(bad), text.MISSING, `moment of ${bad}`);
  }
});

test("a shape is its sizes", () => {
  assert.equal(text.shape([3, 4]), "3\u00d74");
  assert.equal(text.shape([5]), "5");
  for (const none of [[], null, undefined]) assert.equal(text.shape(none), "");
});

test("a short name keeps the end, which says most", () => {
  assert.equal(text.shortName("fc.weight", 20), "fc.weight");
  assert.equal(text.shortName("fc.weight", 5), "fc");
  assert.equal(text.shortName("blocks.11.attn.query.weight", 12), "\u2026attn.query");
  assert.equal(text.shortName("", 3), "");
});

test("a short name is as short as it must be, whatever the name holds", () => {
  const names = ["blocks.11.attn.query.weight", "\u{1f600}".repeat(50), "x".repeat(100_000), "a.b/".repeat(50)];
  for (const name of names) {
    for (let length = 1; length < 30; length += 1) {
      const said = text.shortName(name, length);
      assert.ok([...said].length <= length, `${said} in ${length}`);
      assert.ok(said.isWellFormed?.() ?? true, "no letter is cut in two");
    }
  }
});

test("a run that failed reads as failed, every other event by its rule", () => {
  assert.equal(text.eventName({ rule: "run_finished", severity: "warning" }), "run failed");
  assert.equal(text.eventName({ rule: "run_finished", severity: "info" }), "run finished");
  assert.equal(text.eventName({ rule: "sigma_vs_init", severity: "warning" }), "sigma vs init");
});

test("a duration has two units at most", () => {
  assert.deepEqual([0, 59, 61, 3600, 7500, 90_000, null].map(text.duration),
    ["0 s", "59 s", "1 min 1 s", "1 h", "2 h 5 min", "1 d 1 h", text.MISSING]);
});

test("a rule is read without its underscores", () => {
  assert.equal(text.ruleName("sigma_vs_init"), "sigma vs init");
  assert.equal(text.ruleName("breach"), "breach");
  assert.equal(text.ruleName(""), "");
});
