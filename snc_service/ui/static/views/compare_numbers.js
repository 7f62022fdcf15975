// The numbers of runs side by side, one column per run.

import { serviceNow } from "../service/api.js";
import { valueAt } from "../charts/lines.js";
import { h, keyed, setText } from "../document/dom.js";
import { breakable, showState, stateBadge, swatch } from "../document/elements.js";
import { age, count, MISSING, number, percent, ratio } from "../document/format.js";
import { runLink } from "../document/router.js";
import { seriesColor } from "../document/theme.js";
import { leaves } from "./run/about.js";
import { countTone, isHeld } from "./run_summary.js";

// [label, value of a run, tone of it]; a run here is `Compared` of compare.js with its `item`.
const FACTS = [
  ["Step", ({ item }) => count(item.last_step)],
  ["Loss, newest", ({ loss }) => (loss ? valueAt(loss, null) : MISSING)],
  ["Loss, lowest", ({ loss }) => number(lowest(loss))],
  ["Worst \u03c3 / threshold, newest", ({ item }) => ratio(item.worst_ratio), ratioTone],
  ["Largest after the action", ({ after }) => ratio(largest(after))],
  ["Worst layer", ({ item }) => item.worst_layer ?? MISSING],
  ["Breaches", ...counted("breaches")],
  ["Rescales", ...counted("rescales")],
  ["Not finite", ...counted("nonfinite_layers")],
  ["Overhead", ({ item }) => percent(item.overhead)],
  ["Last report", ({ item }) => age(item.updated_at, serviceNow())],
];

const CONFIG = "config.";
const MOST_CONFIG = 60; // rows

export class NumbersTable {
  constructor() {
    this.head = h("tr");
    this.body = h("tbody");
    const table = h("table", { class: "versus" },
      h("caption", { class: "visually-hidden", text: "The runs in numbers" }),
      h("thead", {}, this.head),
      this.body);
    this.element = h("div", { class: "table-box" }, table);
  }

  /** `runs`: the same ones at each call, those that are not here without `item`. */
  show(runs) {
    const heads = [{ name: null }, ...runs];
    keyed(this.head, heads, ({ name }) => name, runHead, (cell, run) => {
      if (run.name === null) return;
      cell.firstChild.style.backgroundColor = seriesColor(run.place);
      setText(cell.querySelector("a"), title(run));
      showState(cell.querySelector(".badge"), run.item?.state ?? "not here");
    });
    const row = ([label]) => h("tr", {},
      h("th", { scope: "row", text: label }),
      ...runs.map(() => h("td")));
    const facts = [...FACTS, ...configFacts(runs)];
    keyed(this.body, facts, ([label]) => label, row, (cells, [label, value, tone]) => {
      cells.classList.toggle("differs", label.startsWith(CONFIG));
      runs.forEach((run, i) => {
        const cell = cells.children[i + 1];
        const text = run.item ? value(run) : MISSING;
        if (cell.textContent !== text) cell.replaceChildren(...breakable(text));
        cell.dataset.tone = (run.item && tone?.(run)) ?? "";
      });
    });
  }
}

/** A row for each config value that is not the same in all runs. */
function configFacts(runs) {
  const there = runs.filter((run) => run.item);
  const values = new Map(there.map((run) => [run.name, new Map(leaves(run.item.config))]));
  const paths = new Set([...values.values()].flatMap((config) => [...config.keys()]));
  const differs = (path) => new Set([...values.values()].map((config) => config.get(path))).size > 1;
  return [...paths].filter(differs).slice(0, MOST_CONFIG)
    .map((path) => [`${CONFIG}${path}`, ({ name }) => values.get(name)?.get(path) ?? MISSING]);
}

/**
 * A run by the name it was given, else by its id.
 * @param {{name: string, item?: any}} run
 */
export function title({ name, item }) {
  return item?.name || name;
}

function runHead({ name }) {
  if (name === null) return h("td");
  return h("th", { scope: "col" }, swatch(), h("a", { href: runLink(name) }), stateBadge());
}

function counted(key) {
  return [({ item }) => count(item[key]), ({ item }) => countTone(key, item)];
}

function ratioTone({ item }) {
  return item.worst_ratio > 1 && !isHeld(item) ? "bad" : "";
}

function largest(heatmap) {
  const values = (heatmap?.max ?? []).flat().filter((value) => value !== null);
  return values.length ? values.reduce((high, value) => Math.max(high, value)) : null;
}

function lowest(history) {
  const values = (history?.min ?? []).filter((value) => value !== null);
  return values.length ? values.reduce((low, value) => Math.min(low, value)) : null;
}
