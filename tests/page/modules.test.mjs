// The page's modules that need no document, by themselves: `node --test tests/page/`.

import assert from "node:assert/strict";
import { test } from "node:test";

const page = "../../snc_service/ui/static";
const { globToRegExp, matches } = await import(`${page}/document/glob.js`);
const text = await import(`${page}/document/format.js`);
const router = await import(`${page}/document/router.js`);
const matrix = await import(`${page}/charts/matrix.js`);
const { covered, stepRange } = await import(`${page}/charts/steps.js`);

test("a glob matches as the policy's does", () => {
  // [pattern, name, matches]; Python's fnmatch.fnmatchcase gives the same answers.
  const cases = [
    ["*", "a.b", true],
    ["fc?.weight", "fc1.weight", true],
    ["fc?.weight", "fc10.weight", false],
    ["FC*", "fc1", false],
    ["[ab].w", "b.w", true],
    ["[!ab].w", "b.w", false],
    ["[!ab].w", "c.w", true],
    ["[]].w", "].w", true],
    ["a[", "a[", true],
    ["a.b", "axb", false],
    ["(a|b)+", "(a|b)+", true],
    ["a*", "a\nb", true],
  ];
  for (const [pattern, name, expected] of cases) {
    assert.equal(globToRegExp(pattern).test(name), expected, `${pattern} on ${name}`);
  }
});

test("a slice is also matched by the name of its weight", () => {
  assert.ok(matches("*.in_proj_weight", "attn.in_proj_weight[q]"));
  assert.ok(matches("*[[]q]", "attn.in_proj_weight[q]"));
  assert.ok(!matches("*[[]k]", "attn.in_proj_weight[q]"));
});

test("numbers have four significant digits and null is none", () => {
  assert.equal(text.number(1.23456), "1.235");
  assert.equal(text.number(0), "0");
  assert.equal(text.number(123456), "1.23e5");
  assert.equal(text.number(0.000123), "1.23e-4");
  for (const missing of [null, undefined, NaN, Infinity]) {
    assert.equal(text.number(missing), text.MISSING);
  }
});

test("a ratio never reads as if it lay on the other side of 1", () => {
  for (let i = -2000; i <= 2000; i += 1) {
    const value = 1 + i * 1e-6;
    const said = text.ratio(value);
    const shown = said === "1.00+" ? 1.0001 : said === "0.99+" ? 0.9999 : Number(said);
    assert.equal(shown > 1, value > 1, `${value} reads ${said}`);
  }
});

test("spans, shares and shapes are short", () => {
  assert.deepEqual([0, 59, 60, 3599, 3600, 86400].map(text.span),
    ["0 s", "59 s", "1 min", "59 min", "1 h", "1 d"]);
  assert.deepEqual([0, 0.0005, 0.012, 0.5].map(text.percent), ["0.00 %", "0.05 %", "1.2 %", "50 %"]);
  assert.equal(text.shape([3, 4]), "3\u00d74");
  assert.equal(text.age("2026-01-01T00:00:00Z", Date.parse("2026-01-01T02:00:00Z")), "2 h ago");
});

test("a short name keeps the end, which says most", () => {
  assert.equal(text.shortName("fc.weight", 20), "fc.weight");
  assert.equal(text.shortName("blocks.11.attn.query.weight", 12), "\u2026attn.query");
  for (let length = 2; length < 30; length += 1) {
    assert.ok([...text.shortName("blocks.11.attn.query.weight", length)].length <= length);
  }
});

test("markup in a name is text for plotly.js", () => {
  assert.equal(text.plotlyText("<b>&amp;"), "&lt;b&gt;&amp;amp;");
});

test("an address is read as it was written, whatever the names hold", () => {
  for (const name of ["a", "a/b", "50%", "#x?y", "\u00e4 \u{1f600}", ".."]) {
    const link = router.runLink(name);
    assert.deepEqual(router.parse(link).runs, [name], link);
    assert.equal(router.parse(link).view, "run");
  }
  assert.equal(router.parse("#/runs/%E0%A4%A").view, "unknown");
  assert.equal(router.parse("").view, "runs");
  const route = { view: "compare", runs: ["a", "b"], query: new URLSearchParams("layer=x&from=3") };
  const back = router.parse(router.format(route));
  assert.deepEqual([back.view, back.runs, back.query.toString()],
    ["compare", ["a", "b"], "layer=x&from=3"]);
});

test("parameters are set, repeated and removed without changing the others", () => {
  const query = new URLSearchParams("a=1&b=2&b=3");
  assert.equal(router.withQuery(query, { b: null, c: ["x", "y"], d: "" }).toString(), "a=1&c=x&c=y");
  assert.equal(query.toString(), "a=1&b=2&b=3");
});

test("a hole in the steps is a column of its own", () => {
  assert.deepEqual(matrix.columns([0, 1, 2, 10, 11], 1), {
    edges: [0, 1, 2, 3, 10, 11, 12],
    source: [0, 1, 2, -1, 3, 4],
  });
  assert.deepEqual(matrix.columns([], 1), { edges: [], source: [] });
});

test("the column of a step is the one whose edges enclose it", () => {
  const edges = [0, 1, 2, 3, 10, 11, 12];
  for (let step = -1; step <= 13; step += 0.5) {
    const expected = edges.findIndex((edge, i) => edge <= step && step < edges[i + 1]);
    assert.equal(matrix.columnAt(edges, step), expected, `step ${step}`);
  }
  assert.equal(matrix.columnAt([], 1), -1);
});

test("a layer that waits for its turn keeps its value, a broken or silent one does not", () => {
  const answer = { steps: [0, 1, 2, 3, 100], bucket_steps: 1 };
  const never = () => false;
  assert.deepEqual(matrix.held([[5, null, null, 7, null]], answer, never), [[5, 5, 5, 7, null]]);
  const broken = (row, column) => column === 1;
  assert.deepEqual(matrix.held([[5, null, null, 7, 8]], answer, broken), [[5, null, null, 7, 8]]);
});

test("growth is sigma over its first positive value", () => {
  assert.deepEqual(matrix.growth([[null, 2, 4], [0, null, 3], [null, null, null]]),
    [[null, 1, 2], [0, null, 1], [null, null, null]]);
});

test("another answer is laid out at the layers and steps of the first", () => {
  const one = { layers: ["a", "b"], steps: [1, 2] };
  const other = { layers: ["b"], steps: [2, 3], max: [[20, 30]] };
  assert.deepEqual(matrix.aligned(one, other), [[null, null], [null, 20]]);
  assert.deepEqual(matrix.aligned(one, null), [[null, null], [null, null]]);
});

test("neighbouring cells are one stretch, up to the most that is asked for", () => {
  const cells = ["xx.x", "...x"];
  const test_ = (row, column) => cells[row][column] === "x";
  const all = [{ row: 0, from: 0, to: 1 }, { row: 0, from: 3, to: 3 }, { row: 1, from: 3, to: 3 }];
  assert.deepEqual(matrix.stretches(2, 4, test_, 9), all);
  assert.deepEqual(matrix.stretches(2, 4, test_, 2), all.slice(0, 2));
});

test("the extent is of positive values only", () => {
  assert.deepEqual(matrix.extent([[null, 3], [0, -1], [7, 2]]), [2, 7]);
  assert.deepEqual(matrix.extent([[null, 0]]), [1, 1]);
});

test("the axis of a growing run ends at a round step at or above its last one", () => {
  assert.deepEqual(stepRange(0, 100, false), [0, 100]);
  for (let last = 1; last < 5000; last += 37) {
    const [first, end] = stepRange(0, last, true);
    assert.equal(first, 0);
    assert.ok(end > last && end <= 1.6 * last + 2, `${last} -> ${end}`);
  }
});

test("answers cover the steps from their first to one past their last", () => {
  const answers = [{ steps: [5, 9], bucket_steps: 4 }, null, { steps: [2], bucket_steps: 1 }];
  assert.deepEqual(covered(answers), [2, 13]);
  assert.equal(covered([null, { steps: [], bucket_steps: 1 }]), null);
});
