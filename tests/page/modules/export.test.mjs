// What is exported opens in a spreadsheet as what it is.

import assert from "node:assert/strict";
import { test } from "node:test";

import { cell, csv, csvOf } from "../../../snc_service/ui/static/charts/canvas/export.js";

test("names with commas, quotes and line breaks stay one cell", () => {
  assert.equal(csv([['a,"b"\nc', 1.5, null]]), '"a,""b""\nc",1.5,\r\n');
});

test("what would be a formula is text", () => {
  for (const name of ["=1+1", "+a", "-a", "@a", "\tx"]) assert.ok(cell(name).replace(/^"/, "").startsWith("'"));
  assert.equal(cell(-1.5), "-1.5");
});

test("the lines of a figure are rows; bands and markers are not", () => {
  const history = { steps: [1, 2], mean: [1, null], min: [0.5, null], max: [2, null] };
  const table = csvOf([{ name: "fc", history }, { history }, {}]);
  assert.equal(table, "line,step,mean,min,max\r\nfc,1,1,0.5,2\r\nfc,2,,,\r\n");
});
