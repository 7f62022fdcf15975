// Layer patterns. test_modules.py compares more of them with Python's fnmatch, which the policy uses.

import assert from "node:assert/strict";
import { test } from "node:test";

import { globToRegExp, matches } from "../../../snc_service/ui/static/document/glob.js";

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
    ["[0-2]", "1", true],
    ["[0-2]", "-", false],
    ["[0-2-]", "-", true],
    ["[1-1]", "1", true],
    ["a[", "a[", true],
    ["a.b", "axb", false],
    ["(a|b)+", "(a|b)+", true],
    ["a*", "a\nb", true],
    ["?", "\u{1f600}", true],
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

test("the empty pattern matches the empty name alone", () => {
  assert.ok(matches("", ""));
  assert.ok(!matches("", "a"));
  assert.ok(matches("*", ""));
  assert.ok(!matches("?", ""));
});

test("a hyphen outside of a set is a hyphen", () => {
  assert.ok(matches("my-block.*", "my-block.weight"));
  assert.ok(!matches("my-block.*", "my.block.weight"));
  assert.ok(matches("-", "-"));
});

test("a range that runs backwards holds no letter, and the rest of its set counts", () => {
  for (const name of ["a", "m", "z", "-"]) assert.ok(!matches("[z-a]", name), name);
  assert.ok(matches("[z-ak]", "k"));
  assert.ok(matches("[!z-a]", "m"));
});

test("a very long name is matched from its beginning to its end", () => {
  const long = "block.".repeat(20_000);
  assert.ok(matches("*.weight", `${long}weight`));
  assert.ok(!matches("*.weight", `${long}weight.`));
  assert.ok(!matches("?", long));
});

test("a pattern that the service would refuse as too long matches nothing", () => {
  assert.ok(!matches("block.".repeat(100_000), "block."));
});

test("many stars are no riddle", () => {
  // Tried place by place, 100 stars over 300 letters have more ways than there are atoms.
  assert.ok(!matches(`${"*a".repeat(100)}*b`, "a".repeat(300)));
  assert.ok(matches(`${"*a".repeat(100)}*`, "a".repeat(300)));
  assert.ok(!matches(`${"*a".repeat(100)}*`, "a".repeat(99)));
  assert.ok(matches("**a***", "bab"));
});

test("what comes after a star may come more than once", () => {
  assert.ok(matches("*ab", "abab"));
  assert.ok(matches("*a*b*", "aab"));
  assert.ok(matches("a*ba*b", "abab"));
  assert.ok(!matches("a*ba*ba", "aba"));
});
