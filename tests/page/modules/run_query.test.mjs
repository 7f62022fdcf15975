// The parts of a query for runs, and what a selector makes of it.

import assert from "node:assert/strict";
import { test } from "node:test";

import { parts, termOf, withTerm } from "../../../snc_service/ui/static/views/runs/run_query.js";

test("a query parts at spaces outside quotes", () => {
  assert.deepEqual(parts('a  name:"two words" -tag:x'), ["a", 'name:"two words"', "-tag:x"]);
  assert.deepEqual(parts('name:"open end'), ['name:"open end']);
  assert.deepEqual(parts(""), []);
});

test("a selector reads its own part only", () => {
  assert.equal(termOf('x project:"a b" state:failed', "project"), "a b");
  assert.equal(termOf("-project:a", "project"), "");
});

test("a selector replaces its part where it stands, adds it at the end, and removes it", () => {
  assert.equal(withTerm("a project:x b", "project", "y"), "a project:y b");
  assert.equal(withTerm("a b", "tag", "two words"), 'a b tag:"two words"');
  assert.equal(withTerm("a project:x b", "project", ""), "a b");
  assert.equal(withTerm("", "state", "failed"), "state:failed");
});

test("what was written is read again, whatever the value", () => {
  for (const value of ["plain", "two words", "a:b", "x*y", "tab\tin", "-minus"]) {
    assert.equal(termOf(withTerm("other -tag:no", "tag", value), "tag"), value);
  }
});
