// The list of all runs, found and sorted by the service, with those that need attention first.

import { get } from "../service/api.js";
import { h, keyed, quietButton, rowKeys, setText } from "../document/dom.js";
import { tellChange } from "./run_summary.js";
import { count } from "../document/format.js";
import { OpenIncidents } from "./incidents.js";
import { Live } from "../service/live.js";
import { nextSort, problemNote, showSort, waiting } from "../document/elements.js";
import { amend, format, MOST_COMPARED, withQuery } from "../document/router.js";
import { archive, remove, tag } from "./run_actions.js";
import { columnsWith, configPaths, fill, headers, newRow, offered } from "./runs/columns.js";
import { termOf, withTerm } from "./runs/run_query.js";
import { welcome } from "./welcome.js";

const TEXT_ORDERS = ["name", "project", "state"];
const STATES = ["active", "silent", "finished", "failed"];
const FIRST_ORDER = "-attention";
const PAGE = 200;
const MOST = 500; // the service's largest page
const TYPED = 250; // ms without a key before the service is asked
const HELP = [
  ["project:gpt tag:base*", "project and tags; * stands for any letters"],
  ["state:failed ended:nonfinite", "also active, silent, finished; ended:breach"],
  ["config.lr=0.01 config.optim:adam*", "values of the config, nested names with dots"],
  ["loss<2 ratio>1 duration>2h step>1000", "numbers; also breaches, rescales, incidents, overhead"],
  ["layer:*qkv*", "runs that have such a layer"],
  ["incident:critical archived:any", "open incidents; the archive, left out otherwise"],
  ["-tag:debug \"two words\"", "a minus negates, quotes keep words together"],
];

export class RunsView {
  constructor(route) {
    this.limit = PAGE;
    /** @type {HTMLElement | null} */
    this.welcome = null;
    this.chosen = new Map(); // run -> its newest record
    this.before = new Map();
    this.shown = [];
    this.element = h("div", { class: "view" }, waiting());
    this.build();
    this.update(route);
    this.live = new Live((signal) => this.load(signal), 2000, (problem) => this.failed(problem));
    this.ages = setInterval(() => this.answer && !document.hidden && this.showRows(), 1000);
  }

  destroy() {
    this.live.stop();
    clearInterval(this.ages);
    clearTimeout(this.typing);
  }

  build() {
    this.incidents = new OpenIncidents();
    this.summary = h("p", { class: "summary" });
    this.problem = h("p", { class: "form-problem", role: "alert" });
    this.filter = h("input", {
      type: "search",
      id: "filter",
      placeholder: "Search: words, project:x tag:y state:failed config.lr=0.01 layer:*qkv*",
      "aria-label": "Search runs",
      "aria-describedby": "query-help",
      autocomplete: "off",
      spellcheck: "false",
      on: { input: () => this.typed() },
    });
    this.selectors = {
      project: this.selector("project", "Project", "any project"),
      tag: this.selector("tag", "Tag", "any tag"),
      state: this.selector("state", "State", "any state"),
    };
    this.offerStates();
    this.columnBox = h("div", { class: "menu-box" });
    this.columnMenu = menu("Columns", this.columnBox);
    const help = HELP.flatMap(([text, meaning]) => [
      h("dt", {}, h("code", { text })), h("dd", { text: meaning }),
    ]);
    this.help = menu("Syntax", h("dl", { class: "menu-box query-help", id: "query-help", tabindex: "0" }, ...help));
    this.compare = h("a", { class: "primary button", text: "Compare" });
    const doing = (what) => async () => {
      if (await what([...this.chosen.values()])) this.done();
    };
    this.actions = [
      quietButton("Tag\u2026", doing(tag)),
      this.archiveButton = quietButton("Archive\u2026", doing(archive)),
      quietButton("Delete\u2026", doing(remove)),
      quietButton("Clear selection", () => this.clear()),
    ];
    this.chosenText = h("span", { class: "summary" });
    this.selection = h("div", { class: "selection", role: "group", "aria-label": "Selected runs" },
      this.chosenText, this.compare, ...this.actions);
    this.head = h("tr");
    this.body = h("tbody", { on: { keydown: (event) => this.key(event) } });
    rowKeys(this.body, "a");
    this.none = h("p", { class: "hint", hidden: true, text: "No run matches the search." });
    this.more = quietButton("Show more runs", () => this.extend(), { hidden: true });
    this.content = this.arrange();
  }

  arrange() {
    const { project, tag: tags, state } = this.selectors;
    const table = h("table", { class: "runs" },
      h("caption", { class: "visually-hidden", text: "Runs" }),
      h("thead", {}, this.head),
      this.body);
    return h("section", {},
      h("div", { class: "view-head" }, h("h1", { text: "Runs" }), this.summary),
      this.incidents.element,
      h("div", { class: "search", role: "search" },
        this.filter, project, tags, state, this.columnMenu, this.help),
      this.problem,
      this.selection,
      h("div", { class: "table-box" }, table),
      this.none,
      this.more);
  }

  selector(field, label, any) {
    const select = h("select", {
      "aria-label": label,
      on: { change: () => this.amend({ q: withTerm(this.filter.value, field, select.value) }) },
    }, h("option", { value: "", text: any }));
    return select;
  }

  offerStates() {
    offer(this.selectors.state, STATES, termOf(this.filter.value, "state"));
  }

  update(route) {
    this.query = route.query;
    this.sort = route.query.get("sort") ?? FIRST_ORDER;
    this.added = route.query.getAll("column");
    const words = route.query.get("q") ?? "";
    // Setting the same text again would move the caret.
    if (this.filter.value !== words) this.filter.value = words;
    for (const [field, select] of Object.entries(this.selectors)) {
      offer(select, [], termOf(words, field));
    }
    const columns = columnsWith(this.added);
    const keys = columns.map(({ key }) => key).join(" ");
    if (keys !== this.keys) {
      this.keys = keys;
      this.columns = columns;
      this.head.replaceChildren(
        h("th", { scope: "col", class: "col-pick" }, h("span", { class: "visually-hidden", text: "Select" })),
        ...headers(columns, (key) => this.order(key)));
      keyed(this.body, [], String, String, String);
    }
    showSort(this.head, this.sort);
    if (this.live) this.live.now();
  }

  amend(changes) {
    const route = { view: "runs", query: withQuery(this.query, changes) };
    amend(route);
    this.update(route);
  }

  typed() {
    clearTimeout(this.typing);
    this.typing = setTimeout(() => this.amend({ q: this.filter.value }), TYPED);
  }

  order(key) {
    const sort = key === "attention" ? FIRST_ORDER : nextSort(this.sort, key, TEXT_ORDERS);
    this.amend({ sort: sort === FIRST_ORDER ? null : sort });
  }

  extend() {
    this.limit += MOST;
    this.live.now();
  }

  async load(signal) {
    const q = this.query.get("q") || null;
    const ask = { q, sort: this.sort, config: configPaths(this.added) };
    const [items, summary] = await Promise.all([
      this.pages(ask, signal),
      get("run-summary", { q }, signal),
    ]);
    // A field is not complete while it is typed: what was found before stays until it is.
    setText(this.problem, "");
    for (const run of items) {
      const before = this.before.get(run.run);
      if (before) tellChange(before, run, `Run ${run.name || run.run}`);
    }
    this.before = new Map(items.map((run) => [run.run, run]));
    this.shown = items;
    this.answer = summary;
    this.show();
    await this.incidents.load(signal);
  }

  async pages(ask, signal) {
    const found = [];
    let cursor = null;
    do {
      const limit = Math.min(this.limit - found.length, MOST);
      const page = await get("runs", { ...ask, limit, cursor }, signal);
      found.push(...page.items);
      cursor = page.next;
    } while (cursor && found.length < this.limit);
    this.isMore = Boolean(cursor);
    return found;
  }

  failed(problem) {
    if (problem.status === 422 && this.query.get("q")) {
      if (!this.content.isConnected) this.element.replaceChildren(this.content);
      setText(this.problem, problem.message.replace(/^q /, "The search "));
    } else if (!this.answer) this.element.replaceChildren(problemNote(problem, "This list"));
  }

  show() {
    const empty = !this.shown.length && !this.query.get("q") && !this.answer.projects.length;
    if (empty) this.welcome ??= welcome();
    const wanted = empty ? this.welcome : this.content;
    if (this.element.firstChild !== wanted) this.element.replaceChildren(wanted);
    const words = this.filter.value;
    offer(this.selectors.project, this.answer.projects, termOf(words, "project"));
    offer(this.selectors.tag, this.answer.tags, termOf(words, "tag"));
    this.selectors.tag.hidden = !this.answer.tags.length;
    this.showColumnMenu();
    this.showRows();
    this.none.hidden = this.shown.length > 0;
    this.more.hidden = !this.isMore;
    setText(this.summary, counts(this.answer, this.shown.length));
    this.showChosen();
  }

  showRows() {
    const make = (run) => newRow(run, this.columns, (name, on) => this.choose(name, on));
    keyed(this.body, this.shown, (run) => run.run, make, (row, run) => fill(row, run, this.columns));
  }

  showColumnMenu() {
    const toggle = (key, on) => {
      const others = this.added.filter((name) => name !== key);
      this.amend({ column: on ? [...others, key] : others });
    };
    const make = ([key, label]) => {
      const box = h("input", { type: "checkbox", on: { change: () => toggle(key, box.checked) } });
      return h("label", {}, box, label);
    };
    const update = (row, [key]) => {
      row.firstChild.checked = this.added.includes(key);
    };
    keyed(this.columnBox, offered(this.answer.config), ([key]) => key, make, update);
  }

  choose(name, chosen) {
    if (chosen) this.chosen.set(name, this.before.get(name));
    else this.chosen.delete(name);
    this.showChosen();
  }

  clear() {
    this.chosen.clear();
    for (const box of this.body.querySelectorAll("input:checked")) box.checked = false;
    this.showChosen();
  }

  done() {
    this.clear();
    this.live.now();
  }

  showChosen() {
    for (const name of this.chosen.keys()) {
      const run = this.before.get(name);
      if (run) this.chosen.set(name, run);
      else this.chosen.delete(name);
    }
    const number = this.chosen.size;
    const possible = number >= 2 && number <= MOST_COMPARED;
    this.selection.hidden = number === 0;
    setText(this.chosenText, `${count(number)} selected`);
    const most = number > MOST_COMPARED;
    setText(this.compare, most ? `Compare at most ${MOST_COMPARED}` : number > 1 ? `Compare ${number}` : "Compare");
    if (possible) this.compare.href = format({ view: "compare", runs: [...this.chosen.keys()] });
    else this.compare.removeAttribute("href");
    this.compare.setAttribute("aria-disabled", String(!possible));
    this.compare.title = possible ? "" : `Select two to ${MOST_COMPARED} runs`;
    const back = number > 0 && [...this.chosen.values()].every((run) => run.archived);
    setText(this.archiveButton, back ? "Bring back\u2026" : "Archive\u2026");
  }

  escape() {
    if (this.chosen.size) this.clear();
  }

  key(event) {
    const box = event.target.closest("tr")?.querySelector("input");
    if (event.key !== "x" || !box || event.ctrlKey || event.metaKey || event.altKey) return;
    box.click();
    event.preventDefault();
  }
}

/** A button that opens a box below it. */
function menu(label, box) {
  const element = h("details", { class: "menu" }, h("summary", { class: "button", text: label }), box);
  element.addEventListener("focusout", (event) => {
    const next = /** @type {Node | null} */ (event.relatedTarget);
    if (next && !element.contains(next)) element.open = false;
  });
  element.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || !element.open) return;
    element.open = false;
    element.querySelector("summary").focus();
    event.stopPropagation();
  });
  return element;
}

/** Add what a selector lacks of `values`, and choose `value` in it. */
function offer(select, values, value) {
  const known = new Set([...select.options].map((option) => option.value));
  for (const one of [...values, value]) {
    if (!known.has(one)) select.append(h("option", { value: one, text: one }));
    known.add(one);
  }
  if (select.value !== value) select.value = value;
}

function counts({ total, states }, shown) {
  const parts = STATES.filter((state) => states[state]).map((state) => `${count(states[state])} ${state}`);
  return `${shown < total ? `${count(shown)} of ${count(total)} shown: ` : ""}${parts.join(" \u00b7 ")}`;
}
