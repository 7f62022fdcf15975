// What is said of a run: its note, tags and config, and marks of planned changes.

import { get, runPath, send } from "../../service/api.js";
import { announce, h, keyed, quietButton, setText } from "../../document/dom.js";
import { ask, field } from "../../document/dialogs.js";
import { panel } from "../../document/elements.js";
import { count } from "../../document/format.js";

const REST = 10_000; // ms between two requests for annotations

/** Leaves of a config as [path, text], nested names joined by dots. */
export function leaves(config, path = "") {
  return Object.entries(config).flatMap(([name, value]) => {
    const whole = path ? `${path}.${name}` : name;
    if (value !== null && typeof value === "object" && !Array.isArray(value)) return leaves(value, whole);
    return [[whole, plain(value)]];
  });
}

function plain(value) {
  if (typeof value === "number") return String(Number(value.toPrecision(12))); // 0.3, not 0.30000000000000004
  return typeof value === "string" ? value : JSON.stringify(value);
}

export class AboutPanel {
  /** `go(step)` shows a step. */
  constructor(run, { edit, go }) {
    this.run = run;
    this.go = go;
    this.asked = -Infinity;
    this.note = h("p", { class: "note" });
    this.tags = h("p", { class: "hint" });
    this.config = h("dl", { class: "config-list" });
    this.marks = h("ol", { class: "order" });
    const mark = quietButton("Mark a change\u2026", () => this.add());
    this.element = panel("area-about", "About this run", [mark, quietButton("Edit\u2026", edit)],
      h("div", {}, this.note, this.tags, this.marks, this.config));
  }

  show(item) {
    this.item = item;
    setText(this.note, item.note);
    this.note.hidden = !item.note;
    setText(this.tags, item.tags.map((tag) => `#${tag}`).join(" "));
    this.tags.hidden = !item.tags.length;
    const make = ([path]) => h("div", {}, h("dt", { text: path }), h("dd"));
    const update = (row, [, text]) => setText(row.lastChild, text);
    keyed(this.config, leaves(item.config), ([path]) => path, make, update);
  }

  async load(signal) {
    if (performance.now() - this.asked < REST) return;
    this.asked = performance.now();
    const { items } = await get(runPath(this.run, "/annotations"), {}, signal);
    this.annotations = items;
    const make = (one) => h("li", {}, h("button", {
      type: "button", class: "order-entry", on: { click: () => this.go(one.step) },
    },
    h("span", { class: "order-layer", text: one.text }),
    h("span", { class: "order-value", text: `step ${count(one.step)}` }),
    h("span", { class: "order-detail", text: `marked by ${one.author}, rules rest for ${count(one.quiet_steps)} steps` })));
    keyed(this.marks, items, ({ id }) => id, make, () => {});
  }

  async add() {
    const whole = { required: true, inputmode: "numeric", pattern: "[0-9]+", autocomplete: "off" };
    const step = h("input", { name: "step", value: String(this.item.last_step ?? 0), ...whole });
    const quiet = h("input", { name: "quiet", value: "50", ...whole });
    const text = h("input", { name: "text", required: true, maxlength: "200", autocomplete: "off" });
    const done = await ask({
      title: "Mark a planned change",
      sentence: "Rules that compare with the past rest for a while, and the step is marked in the history.",
      fields: [field("Step", step), field("What changes", text), field("Steps for which rules rest", quiet)],
      confirm: "Mark",
      submit: async (values) => {
        const told = { step: Number(values.step), text: values.text, quiet_steps: Number(values.quiet) };
        await send("POST", runPath(this.run, "/annotations"), told);
        announce("The change is marked.");
      },
    });
    if (!done) return;
    this.asked = -Infinity;
    await this.load();
  }
}
