// All runs: which one needs a look?

import { get, serviceNow } from "./api.js";
import { announce, h, keyed, rowKeys, setText } from "./dom.js";
import { age, count, moment, percent } from "./format.js";
import { Live } from "./live.js";
import { isHeld, nextSort, problemNote, ratioBar, showRatio, showSort, showState, sortHeader, stateBadge } from "./parts.js";
import { amend, format, runLink, withQuery } from "./router.js";
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
const STATES = ["active", "silent", "finished", "failed"];
const PAGE = 200;
const MOST = 500;
export const MOST_COMPARED = 6;

export class RunsView {
  constructor(route) {
    this.limit = PAGE;
    this.chosen = new Set();
    this.states = new Map();
    this.element = h("div", { class: "view" });
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
    this.summary = h("p", { class: "summary" });
    this.filter = h("input", { type: "search", id: "filter", placeholder: "Filter: name, project, layer\u2026", "aria-label": "Filter runs", autocomplete: "off", spellcheck: "false" });
    this.filter.addEventListener("input", () => this.amend({ q: this.filter.value }));
    this.state = h("select", { "aria-label": "State" }, h("option", { value: "", text: "any state" }), ...STATES.map((name) => h("option", { value: name, text: name })));
    this.state.addEventListener("change", () => this.amend({ state: this.state.value }));
    this.compare = h("a", { class: "primary button", text: "Compare" });
    this.head = h("tr", {}, h("th", { scope: "col", class: "col-pick" }, h("span", { class: "visually-hidden", text: "Compare" })),
      ...COLUMNS.map(([key, label, style]) => sortHeader(label, key, () => this.amend({ sort: nextSort(this.sort, key, ["name", "state"]) }), { class: style })));
    this.body = h("tbody");
    rowKeys(this.body, "a");
    this.body.addEventListener("keydown", (event) => this.key(event));
    this.none = h("p", { class: "hint", hidden: true, text: "No run matches the filter." });
    this.more = h("button", { type: "button", class: "quiet", hidden: true, text: "Show older runs", on: { click: () => this.extend() } });
    const tools = h("div", { class: "tools" }, this.filter, this.state, this.compare);
    const table = h("table", { class: "runs" }, h("caption", { class: "visually-hidden", text: "Runs" }), h("thead", {}, this.head), this.body);
    this.table = h("section", {}, h("div", { class: "view-head" }, h("h1", { text: "Runs" }), this.summary, tools), h("div", { class: "table-box" }, table), this.none, this.more);
    this.waiting = h("p", { class: "hint", text: "Asking the service\u2026" });
    this.element.append(this.waiting);
  }

  update(route) {
    this.query = route.query;
    this.sort = route.query.get("sort") ?? "";
    if (this.filter.value !== (route.query.get("q") ?? "")) this.filter.value = route.query.get("q") ?? "";
    this.state.value = route.query.get("state") ?? "";
    showSort(this.head, this.sort);
    if (this.answer) this.show();
  }

  amend(changes) {
    const route = { view: "runs", query: withQuery(this.query, changes) };
    amend(route);
    this.update(route);
  }

  extend() {
    this.limit = MOST;
    this.live.now();
  }

  async load(signal) {
    const answer = await get("runs", { limit: this.limit }, signal);
    this.troubled = false;
    if (answer === this.answer) return;
    this.answer = answer;
    this.tellChanges(answer.items);
    this.show();
  }

  failed(problem) {
    this.troubled = true;
    if (!this.answer) this.element.replaceChildren(problemNote(problem, "This list"));
  }

  /** Speak when a run changes its state, breaches or breaks for the first time. */
  tellChanges(items) {
    for (const run of items) {
      const before = this.states.get(run.run);
      this.states.set(run.run, run);
      if (!before) continue;
      if (before.state !== run.state) announce(`Run ${run.name || run.run} is ${run.state}.`);
      else if (!before.breaches && run.breaches) announce(`Run ${run.name || run.run}: first breach.`);
      else if (!before.nonfinite_layers && run.nonfinite_layers) announce(`Run ${run.name || run.run}: a layer is not finite.`);
    }
  }

  show() {
    const { items, next } = this.answer;
    if (!items.length) {
      this.welcome ??= welcome();
      if (this.element.firstChild !== this.welcome) this.element.replaceChildren(this.welcome);
      return;
    }
    if (this.element.firstChild !== this.table) this.element.replaceChildren(this.table);
    const shown = sorted(items.filter((run) => this.passes(run)), this.sort);
    keyed(this.body, shown, (run) => run.run, (run) => this.row(run), (row, run) => this.updateRow(row, run));
    this.none.hidden = shown.length > 0;
    this.more.hidden = !next || this.limit >= MOST;
    setText(this.summary, this.counts(items, next));
    this.showChosen(items);
  }

  counts(items, next) {
    const parts = STATES.map((state) => [items.filter((run) => run.state === state).length, state]);
    const text = parts.filter(([number]) => number).map(([number, state]) => `${number} ${state}`).join(" \u00b7 ");
    return next ? `the newest ${items.length}: ${text}` : text;
  }

  passes(run) {
    const state = this.state.value;
    const words = this.filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    const text = [run.run, run.name, run.project, run.worst_layer, run.state, ...(run.tags ?? [])].join(" ").toLowerCase();
    return (!state || run.state === state) && words.every((word) => text.includes(word));
  }

  row(run) {
    const pick = h("input", { type: "checkbox", "aria-label": `Compare ${run.name || run.run}`, data: { run: run.run } });
    pick.addEventListener("change", () => this.choose(run.run, pick.checked));
    const cell = (key, ...children) => {
      const [, label, style] = COLUMNS.find(([name]) => name === key);
      return h("td", { class: style, data: { key, label } }, ...children);
    };
    const name = h("a", { href: runLink(run.run), class: "run-name" });
    return h("tr", {}, h("td", { class: "col-pick" }, pick), cell("state", stateBadge()),
      h("th", { scope: "row", class: "col-run" }, name, h("span", { class: "run-detail" })),
      cell("last_step"), cell("updated_at"), cell("worst_ratio", ratioBar(), h("span", { class: "worst-layer" })),
      ...["breaches", "rescales", "nonfinite_layers", "dropped_values", "overhead"].map((key) => cell(key)));
  }

  updateRow(row, run) {
    showState(row.querySelector(".badge"), run.state);
    setText(row.querySelector(".run-name"), run.name || run.run);
    setText(row.querySelector(".run-detail"), [run.project, run.name && run.name !== run.run ? run.run : ""].filter(Boolean).join(" \u00b7 "));
    setText(row.querySelector("[data-key=last_step]"), count(run.last_step));
    showRatio(row.querySelector(".ratio"), run.worst_ratio, {
      broken: run.worst_ratio === null && run.nonfinite_layers > 0,
      held: isHeld(run),
    });
    setText(row.querySelector(".worst-layer"), run.worst_layer ?? "");
    row.querySelector(".worst-layer").title = run.worst_layer ?? "";
    for (const key of ["breaches", "rescales", "nonfinite_layers", "dropped_values"]) {
      const cell = row.querySelector(`[data-key=${key}]`);
      setText(cell, count(run[key]));
      cell.dataset.tone = tone(key, run);
    }
    setText(row.querySelector("[data-key=overhead]"), percent(run.overhead));
    this.showAge(row, run);
  }

  showAges() {
    const items = new Map(this.answer.items.map((run) => [run.run, run]));
    for (const [run, row] of this.body.keyedElements ?? []) {
      if (items.has(run)) this.showAge(row, items.get(run));
    }
  }

  showAge(row, run) {
    const cell = row.querySelector("[data-key=updated_at]");
    setText(cell, age(run.updated_at, serviceNow()));
    cell.title = moment(run.updated_at);
  }

  choose(run, chosen) {
    if (chosen) this.chosen.add(run);
    else this.chosen.delete(run);
    this.showChosen(this.answer.items);
  }

  showChosen(items) {
    const here = new Set(items.map((run) => run.run));
    for (const run of this.chosen) {
      if (!here.has(run)) this.chosen.delete(run);
    }
    const number = this.chosen.size;
    const possible = number >= 2 && number <= MOST_COMPARED;
    setText(this.compare, number > MOST_COMPARED ? `Compare at most ${MOST_COMPARED}` : number ? `Compare ${number}` : "Compare");
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

function tone(key, run) {
  if (!run[key]) return "none";
  if (key === "breaches") return isHeld(run) ? "" : "bad";
  return { nonfinite_layers: "broken", dropped_values: "warn" }[key] ?? "";
}

/** Sort a copy; without a value comes last in either direction, no order keeps the service's. */
function sorted(items, sort) {
  if (!sort) return items;
  const down = sort.startsWith("-");
  const key = down ? sort.slice(1) : sort;
  const value = (run) => (key === "name" ? run.name || run.run : key === "updated_at" ? Date.parse(run.updated_at) : run[key]);
  return [...items].sort((one, other) => {
    const [a, b] = [value(one), value(other)];
    if ((a ?? null) === null || (b ?? null) === null) return ((a ?? null) === null) - ((b ?? null) === null);
    const order = typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b;
    return down ? -order : order;
  });
}
