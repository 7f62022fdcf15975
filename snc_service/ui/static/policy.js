// The policy in force: who set it, what it says, and a form to change it while the run goes on.

import { getPolicy, putPolicy } from "./api.js";
import { announce, h, setText } from "./dom.js";
import { count, moment } from "./format.js";
import { matches } from "./glob.js";

const ACTIONS = ["observe", "rescale", "cap", "stop"];

/** The panel of one run; `layers()` gives the names that patterns are tried on. */
export class PolicyPanel {
  constructor(run, layers, onSaved) {
    this.run = run;
    this.layers = layers;
    this.onSaved = onSaved;
    this.from = h("p", { class: "hint" });
    this.rows = h("tbody");
    this.problem = h("p", { class: "form-problem", role: "alert" });
    this.save = h("button", { type: "submit", class: "primary", text: "Save" });
    this.reset = h("button", { type: "button", class: "quiet", text: "Undo", on: { click: () => this.fill() } });
    const head = ["Layers (first match wins)", "Threshold", "Action", "Matches", ""].map((text) => h("th", { scope: "col", text }));
    const add = h("button", { type: "button", class: "quiet", text: "Add an entry", on: { click: () => this.add() } });
    this.form = h("form", { class: "policy" },
      h("div", { class: "table-box" }, h("table", {}, h("thead", {}, h("tr", {}, ...head)), this.rows)),
      h("div", { class: "form-end" }, add, this.reset, this.save), this.problem,
      h("p", { class: "hint", text: "A threshold is a number, \u201c3x init\u201d (times the first \u03c3), \u201c3x rms\u201d, or empty: observe only. The running job obeys with its next batch." }));
    this.element = h("div", {}, this.from, this.form);
    this.form.addEventListener("submit", (event) => this.submit(event));
    this.form.addEventListener("input", () => this.changed(true));
  }

  async load(signal) {
    const { data, etag } = await getPolicy(this.run, signal);
    this.current = data;
    this.etag = etag;
    setText(this.from, origin(data));
    if (!this.dirty) this.fill();
  }

  fill() {
    this.rows.replaceChildren(...(this.current.policy.entries).map((entry) => this.row(entry)));
    if (!this.rows.childElementCount) this.rows.append(h("tr", { class: "none" }, h("td", { colspan: "5", text: "No entry: every layer is observed, none is held." })));
    this.changed(false);
  }

  row(entry) {
    const field = (name, value, properties) => h("input", { name, value, spellcheck: "false", autocomplete: "off", ...properties });
    const action = h("select", { name: "action", "aria-label": "Action" }, ...ACTIONS.map((name) => h("option", { value: name, text: name, selected: name === entry.action })));
    const remove = h("button", { type: "button", class: "quiet", text: "Remove", "aria-label": `Remove the entry ${entry.pattern}` });
    const row = h("tr", { class: "entry" },
      h("td", {}, field("pattern", entry.pattern, { "aria-label": "Layers", required: true })),
      h("td", {}, field("threshold", entry.threshold ?? "", { "aria-label": "Threshold", placeholder: "observe" })),
      h("td", {}, action), h("td", { class: "num matched" }), h("td", {}, remove));
    remove.addEventListener("click", () => {
      row.remove();
      this.changed(true);
    });
    return row;
  }

  add() {
    this.rows.querySelector(".none")?.remove();
    const row = this.row({ pattern: "*", threshold: "3x init", action: "rescale" });
    this.rows.append(row);
    this.changed(true);
    row.querySelector("input").select();
  }

  changed(dirty) {
    this.dirty = dirty;
    this.save.disabled = !dirty;
    this.reset.hidden = !dirty;
    setText(this.problem, "");
    this.preview();
  }

  /** Count what each entry would get: the first match wins. */
  preview() {
    const left = new Set(this.layers());
    for (const row of this.rows.querySelectorAll(".entry")) {
      const pattern = row.querySelector("[name=pattern]").value;
      const found = [...left].filter((layer) => matches(pattern, layer));
      found.forEach((layer) => left.delete(layer));
      setText(row.querySelector(".matched"), found.length === 1 ? "1 layer" : `${count(found.length)} layers`);
    }
  }

  entries() {
    return [...this.rows.querySelectorAll(".entry")].map((row) => {
      const text = row.querySelector("[name=threshold]").value.trim();
      const value = text === "" ? null : Number.isNaN(Number(text)) ? text : Number(text);
      return { pattern: row.querySelector("[name=pattern]").value, threshold: value, action: row.querySelector("[name=action]").value };
    });
  }

  async submit(event) {
    event.preventDefault();
    this.save.disabled = true;
    try {
      await putPolicy(this.run, { entries: this.entries() }, this.etag);
      this.dirty = false;
      announce("The policy is saved.");
      await this.load();
      this.onSaved();
    } catch (problem) {
      this.save.disabled = false;
      const moved = problem.status === 412;
      setText(this.problem, moved ? "Somebody else changed the policy meanwhile. Undo shows theirs; then change it again." : problem.message);
      if (moved) await this.load().catch(() => {});
    }
  }
}

/** The policy's version and where it came from, in one sentence. */
export function origin(stored) {
  const { policy_version: version } = stored;
  if (!version) return "Nobody has set a policy: every layer is observed.";
  const who = stored.author ? ` by ${stored.author}` : "";
  const when = stored.at ? `, ${moment(stored.at)}` : "";
  const scope = stored.scope === "project" ? "the project\u2019s" : "this run\u2019s own";
  return `Version ${version}, ${scope}, set${who}${when}.`;
}
