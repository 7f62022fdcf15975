// The address of a view, written and read.

import assert from "node:assert/strict";
import { test } from "node:test";

const router = await import("../../../snc_service/ui/static/document/router.js");

test("an address is read as it was written, whatever the names hold", () => {
  for (const name of ["a", "a/b", "50%", "#x?y", "\u00e4 \u{1f600}", "..", "x".repeat(100_000)]) {
    const link = router.runLink(name);
    assert.deepEqual(router.parse(link).runs, [name], link.slice(0, 50));
    assert.equal(router.parse(link).view, "run");
  }
  const route = { view: "compare", runs: ["a", "b"], query: new URLSearchParams("layer=x&from=3") };
  const back = router.parse(router.format(route));
  assert.deepEqual([back.view, back.runs, back.query.toString()],
    ["compare", ["a", "b"], "layer=x&from=3"]);
});

test("the start is the list of runs", () => {
  for (const start of ["", "#", "#/", "/", "#/?q=fc"]) assert.equal(router.parse(start).view, "runs", start);
  assert.equal(router.parse("#/?q=fc").query.get("q"), "fc");
  assert.equal(router.format({ view: "runs" }), "#/");
});

test("an address that names no view is unknown", () => {
  for (const bad of ["#/runs", "#/runs/", "#/runs/a/b", "#/compare", "#/other", "#/runs/%E0%A4%A"]) {
    assert.deepEqual([router.parse(bad).view, router.parse(bad).runs], ["unknown", []], bad);
  }
});

test("parameters are set, repeated and removed without changing the others", () => {
  const query = new URLSearchParams("a=1&b=2&b=3");
  assert.equal(router.withQuery(query, { b: null, c: ["x", "y"], d: "" }).toString(), "a=1&c=x&c=y");
  assert.equal(router.withQuery(query, { a: 0, b: [], e: undefined }).toString(), "a=0");
  assert.equal(query.toString(), "a=1&b=2&b=3");
});
