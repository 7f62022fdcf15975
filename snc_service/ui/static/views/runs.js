// The list of all runs, with those that need attention first.

import { get, serviceNow } from "../service/api.js";
import { h, keyed, rowKeys, setText } from "../document/dom.js";
import { countTone, isHeld, tellChange } from "./run_summary.js";
import { age, count, moment, percent } from "../document/format.js";
import { OpenIncidents } from "./incidents.js";
import { Live } from "../service/live.js";
import {
  nextSort, problemNote, ratioBar, showRatio, showSort, showState, sortHeader, stateBadge, waiting,
} from "../document/elements.js";
import { amend, format, MOST_COMPARED, runLink, withQuery } from "../document/router.js";
import { welcome } from "./welcome.js";

const COLUMNS = [
  ["state", "State", "col-state"],
  ["name", "Run", "col-run"],
  ["last_step", "Step", "num"],
  ["updated_at", "Last report", "num"],
  ["worst_ratio", "Worst \u03c3 / threshold", "col-worst"],
  ["breaches", "Breaches", "num"],
  ["rescales", "Rescales", "num"],
  ["nonfinite_layers", "Not finite", "num"],
  ["dropped_values", "Dropped", "num"],
  ["overhead", "Overhead", "num"],
];
const COUNTS = ["breaches", "rescales", "nonfinite_layers", "dropped_values"];
const TEXTS = ["name", "state"];
const STATES = ["active", "silent", "finished", "failed"];
const PAGE = 200;
const MOST = 500; // the service's largest page

export class RunsView {
  constructor(route) {
    this.limit = PAGE;
    /** @type {HTMLElement | null} */
    this.welcome = null;
    this.chosen = new Set();
    this.before = new Map();
    this.element = h("div", { class: "view" }, waiting());
    this.build();
    this.update(route);
    this.live = new Live((signal) => this.load(signal), 2000, (problem) => this.failed(problem));
    this.ages = setInterval(() => this.answer && !document.hidden && this.showAges(), 1000);
  }

  destroy() {
    this.live.stop();
    clearInterval(this.ages);
  }

  build() {
    this.incidents = new OpenIncidents();
    this.summary = h("p", { class: "summary" });
    this.filter = h("input", {
      type: "search",
      id: "filter",
      placeholder: "Filter: name, project, layer\u2026",
      "aria-label": "Filter runs",
      autocomplete: "off",
      spellcheck: "false",
      on: { input: () => this.amend({ q: this.filter.value }) },
    });
    const states = STATES.map((name) => h("option", { value: name, text: name }));
    this.state = h("select", {
      "aria-label": "State",
      on: { change: () => this.amend({ state: this.state.value }) },
    }, h("option", { value: "", text: "any state" }), ...states);
    this.compare = h("a", { class: "primary button", text: "Compare" });
    this.head = h("tr", {},
      h("th", { scope: "col", class: "col-pick" },
        h("span", { class: "visually-hidden", text: "Compare" })),
      ...COLUMNS.map(([key, label, look]) =>
        sortHeader(label, key, () => this.order(key), { class: look })));
    this.body = h("tbody", { on: { keydown: (event) => this.key(event) } });
    rowKeys(this.body, "a");
    this.none = h("p", { class: "hint", hidden: true, text: "No run matches the filter." });
    this.more = h("button", {
      type: "button",
      class: "quiet",
      hidden: true,
      text: "Show older runs",
      on: { click: () => this.extend() },
    });
    this.content = this.arrange();
  }

  arrange() {
    const tools = h("div", { class: "tools" }, this.filter, this.state, this.compare);
    const table = h("table", { class: "runs" },
      h("caption", { class: "visually-hidden", text: "Runs" }),
      h("thead", {}, this.head),
      this.body);
    return h("section", {},
      h("div", { class: "view-head" }, h("h1", { text: "Runs" }), this.summary, tools),
      this.incidents.element,
      h("div", { class: "table-box" }, table),
      this.none,
      this.more);
  }

  update(route) {
    this.query = route.query;
    this.sort = route.query.get("sort") ?? "";
    const words = route.query.get("q") ?? "";
    // Setting the same text again would move the caret.
    if (this.filter.value !== words) this.filter.value = words;
    this.state.value = route.query.get("state") ?? "";
    showSort(this.head, this.sort);
    if (this.answer) this.show();
  }

  amend(changes) {
    const route = { view: "runs", query: withQuery(this.query, changes) };
    amend(route);
    this.update(route);
  }

  order(key) {
    this.amend({ sort: nextSort(this.sort, key, TEXTS) });
  }

  extend() {
    this.limit = MOST;
    this.live.now();
  }

  async load(signal) {
    const answer = await get("runs", { limit: this.limit }, signal);
    for (const run of answer.items) {
      const before = this.before.get(run.run);
      if (before) tellChange(before, run, `Run ${run.name || run.run}`);
    }
    this.before = new Map(answer.items.map((run) => [run.run, run]));
    this.answer = answer;
    this.show();
    await this.incidents.load(signal);
  }

  failed(problem) {
    if (!this.answer) this.element.replaceChildren(problemNote(problem, "This list"));
  }

  show() {
    const { items, next } = this.answer;
    if (!items.length) this.welcome ??= welcome();
    const wanted = items.length ? this.content : this.welcome;
    if (this.element.firstChild !== wanted) this.element.replaceChildren(wanted);
    const shown = sorted(items.filter((run) => this.passes(run)), this.sort);
    const update = (row, run) => this.updateRow(row, run);
    keyed(this.body, shown, (run) => run.run, (run) => this.row(run), update);
    this.none.hidden = shown.length > 0;
    this.more.hidden = !next || this.limit >= MOST;
    setText(this.summary, counts(items, next));
    this.showChosen();
  }

  passes(run) {
    const words = this.filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    const parts = [run.run, run.name, run.project, run.worst_layer, run.state, ...run.tags];
    const text = parts.join(" ").toLowerCase();
    const { value: state } = this.state;
    return (!state || run.state === state) && words.every((word) => text.includes(word));
  }

  row(run) {
    const pick = h("input", {
      type: "checkbox",
      "aria-label": `Compare ${run.name || run.run}`,
      on: { change: () => this.choose(run.run, pick.checked) },
    });
    const cell = (key, ...children) => {
      const [, label, look] = COLUMNS.find(([name]) => name === key);
      return h("td", { class: look, data: { key, label } }, ...children);
    };
    return h("tr", {},
      h("td", { class: "col-pick" }, pick),
      cell("state", stateBadge()),
      h("th", { scope: "row", class: "col-run" },
        h("a", { href: runLink(run.run), class: "run-name" }),
        h("span", { class: "run-detail" })),
      cell("last_step"),
      cell("updated_at"),
      cell("worst_ratio", ratioBar(), h("span", { class: "worst-layer" })),
      ...[...COUNTS, "overhead"].map((key) => cell(key)));
  }

  updateRow(row, run) {
    const part = (selector) => row.querySelector(selector);
    const id = run.name && run.name !== run.run ? run.run : "";
    showState(part(".badge"), run.state);
    setText(part(".run-name"), run.name || run.run);
    setText(part(".run-detail"), [run.project, id].filter(Boolean).join(" \u00b7 "));
    setText(part("[data-key=last_step]"), count(run.last_step));
    const broken = run.worst_ratio === null && run.nonfinite_layers > 0;
    showRatio(part(".ratio"), run.worst_ratio, { broken, held: isHeld(run) });
    setText(part(".worst-layer"), run.worst_layer ?? "");
    part(".worst-layer").title = run.worst_layer ?? "";
    for (const key of COUNTS) {
      const cell = part(`[data-key=${key}]`);
      setText(cell, count(run[key]));
      cell.dataset.tone = countTone(key, run);
    }
    setText(part("[data-key=overhead]"), percent(run.overhead));
    showAge(row, run);
  }

  showAges() {
    for (const [run, row] of this.body.keyedElements ?? []) showAge(row, this.before.get(run));
  }

  choose(run, chosen) {
    if (chosen) this.chosen.add(run);
    else this.chosen.delete(run);
    this.showChosen();
  }

  showChosen() {
    for (const run of this.chosen) {
      if (!this.before.has(run)) this.chosen.delete(run);
    }
    const number = this.chosen.size;
    const possible = number >= 2 && number <= MOST_COMPARED;
    const few = number ? `Compare ${number}` : "Compare";
    setText(this.compare, number > MOST_COMPARED ? `Compare at most ${MOST_COMPARED}` : few);
    if (possible) this.compare.href = format({ view: "compare", runs: [...this.chosen] });
    else this.compare.removeAttribute("href");
    this.compare.setAttribute("aria-disabled", String(!possible));
    this.compare.title = possible ? "" : `Select two to ${MOST_COMPARED} runs`;
  }

  key(event) {
    const box = event.target.closest("tr")?.querySelector("input");
    if (event.key !== "x" || !box || event.ctrlKey || event.metaKey || event.altKey) return;
    box.click();
    event.preventDefault();
  }
}

function showAge(row, run) {
  const cell = row.querySelector("[data-key=updated_at]");
  setText(cell, age(run.updated_at, serviceNow()));
  cell.title = moment(run.updated_at);
}

function counts(items, next) {
  const parts = STATES.map((state) => [items.filter((run) => run.state === state).length, state])
    .filter(([number]) => number)
    .map(([number, state]) => `${number} ${state}`);
  return `${next ? `the newest ${items.length}: ` : ""}${parts.join(" \u00b7 ")}`;
}

/** Return a sorted copy; missing values come last in both directions, no `sort` keeps the order. */
function sorted(items, sort) {
  if (!sort) return items;
  const down = sort.startsWith("-");
  const key = down ? sort.slice(1) : sort;
  return [...items].sort((one, other) => {
    const [a, b] = [sortValue(one, key), sortValue(other, key)];
    if (a === null || b === null) return Number(a === null) - Number(b === null);
    const order = typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b;
    return down ? -order : order;
  });
}

function sortValue(run, key) {
  if (key === "name") return run.name || run.run;
  if (key === "updated_at") return Date.parse(run.updated_at);
  return run[key] ?? null;
}
