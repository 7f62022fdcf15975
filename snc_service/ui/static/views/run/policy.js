// The policy in force: its author, its entries, and a form to change it during the run.

import { getPolicy, putPolicy } from "../../service/api.js";
import { announce, h, quietButton, setText } from "../../document/dom.js";
import { count, moment } from "../../document/format.js";
import { matches } from "../../document/glob.js";

const ACTIONS = ["observe", "rescale", "cap", "normalize", "stop"];
const HEADS = ["Layers (first match wins)", "Threshold", "Action", "Matches", "Remove"];
const HELP =
  "A threshold is a number, \u201c3x init\u201d (times the first \u03c3), \u201c3x rms\u201d, \u201cauto\u201d, or " +
  "empty: observe only. The running job obeys with its next batch.";
const PLAIN_FIELD = { spellcheck: "false", autocomplete: "off" };
const NO_ENTRY = "No entry: every layer is observed, none is held.";
const MOVED =
  "Somebody else changed the policy meanwhile. Undo shows theirs; then change it again.";

/** The panel of one run. */
export class PolicyPanel {
  constructor(run, onSaved) {
    this.run = run;
    this.layers = [];
    this.onSaved = onSaved;
    this.from = h("p", { class: "hint" });
    this.rows = h("tbody");
    this.problem = h("p", { class: "form-problem", role: "alert" });
    this.save = h("button", { type: "submit", class: "primary", text: "Save" });
    this.reset = quietButton("Undo", () => this.fill());
    const add = quietButton("Add an entry", () => this.add());
    const head = h("tr", {}, ...HEADS.map((text) => h("th", { scope: "col" }, h("span", { text, class: text === "Remove" ? "visually-hidden" : "" }))));
    this.form = h("form", { class: "policy" },
      h("div", { class: "table-box" }, h("table", {}, h("thead", {}, head), this.rows)),
      h("div", { class: "form-end" }, add, this.reset, this.save),
      this.problem,
      h("p", { class: "hint", text: HELP }));
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
    const rows = this.current.policy.entries.map((entry) => this.row(entry));
    const none = h("tr", { class: "none" }, h("td", { colspan: "5", text: NO_ENTRY }));
    this.rows.replaceChildren(...(rows.length ? rows : [none]));
    this.changed(false);
  }

  row(entry) {
    const { pattern, threshold, action } = entry;
    const field = (name, value, label, more) =>
      h("input", { name, value, "aria-label": label, ...PLAIN_FIELD, ...more });
    const options = ACTIONS.map((name) =>
      h("option", { value: name, text: name, selected: name === action }));
    const remove = () => {
      row.remove();
      this.changed(true);
    };
    const row = h("tr", { class: "entry" },
      h("td", {}, field("pattern", pattern, "Layers", { required: true })),
      h("td", {}, field("threshold", threshold ?? "", "Threshold", { placeholder: "observe" })),
      h("td", {}, h("select", { name: "action", "aria-label": "Action" }, ...options)),
      h("td", { class: "num matched" }),
      h("td", {}, quietButton("Remove", remove, { "aria-label": `Remove the entry ${pattern}` })));
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

  /** Count the layers of `layers` that each entry gets: the first match wins. */
  preview(layers = this.layers) {
    this.layers = layers;
    const left = new Set(layers);
    for (const row of this.rows.querySelectorAll(".entry")) {
      const pattern = row.querySelector("[name=pattern]").value;
      const found = [...left].filter((layer) => matches(pattern, layer));
      found.forEach((layer) => left.delete(layer));
      const layers = found.length === 1 ? "layer" : "layers";
      setText(row.querySelector(".matched"), `${count(found.length)} ${layers}`);
    }
  }

  entries() {
    return [...this.rows.querySelectorAll(".entry")].map((row) => {
      const value = (name) => row.querySelector(`[name=${name}]`).value;
      const threshold = thresholdOf(value("threshold").trim());
      return { pattern: value("pattern"), threshold, action: value("action") };
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
      setText(this.problem, moved ? MOVED : problem.message);
      if (moved) await this.load().catch(() => {});
    }
  }
}

/** Return a number if the text is one, else the text, which the service checks. */
function thresholdOf(text) {
  if (text === "") return null;
  return Number.isNaN(Number(text)) ? text : Number(text);
}

/** Describe the policy's version and its origin in one sentence. */
export function origin(stored) {
  const { policy_version: version } = stored;
  if (!version) return "Nobody has set a policy: every layer is observed.";
  const who = stored.author ? ` by ${stored.author}` : "";
  const when = stored.at ? `, ${moment(stored.at)}` : "";
  const scope = stored.scope === "project" ? "the project\u2019s" : "this run\u2019s own";
  return `Version ${version}, ${scope}, set${who}${when}.`;
}
