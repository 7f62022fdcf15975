// Which layers are shown: a search over their names, a range of rows, experts together or apart.

import { h, quietButton, setText } from "../../document/dom.js";
import { count } from "../../document/format.js";

const TYPED = 250; // ms without a key before the service is asked
const EXPERTS = /(?:^|\.)(?:\w*experts?|expert_\w+)\.(?:\d+|\*)(?:\.|$)/;

/** `amend(changes)` changes the address; `go(changes)` too, and Back comes back from it. */
export class LayerSearch {
  constructor({ amend, go }) {
    this.field = h("input", {
      type: "search", id: "filter", placeholder: "Layers: *qkv*, part of a name", "aria-label": "Search layers",
      autocomplete: "off", spellcheck: "false",
      on: { input: () => this.typed(() => amend({ find: this.field.value, rows: null })) },
    });
    this.experts = quietButton("", () => amend({ experts: this.grouped ? "0" : null, rows: null }), { hidden: true });
    this.all = quietButton("All rows", () => go({ rows: null }), { hidden: true });
    this.found = h("span", { class: "hint", role: "status" });
    this.element = h("div", { class: "layer-search", role: "search" },
      this.field, this.experts, this.all, this.found);
  }

  typed(then) {
    clearTimeout(this.typing);
    this.typing = setTimeout(then, TYPED);
  }

  /** Apply the address: what the service is asked for. */
  update(query) {
    const find = query.get("find") ?? "";
    if (this.field.value !== find) this.field.value = find;
    this.grouped = query.get("experts") !== "0";
    this.rows = rowsOf(query);
    this.match = find;
  }

  /** Parameters of a heatmap. */
  get asked() {
    const [from, to] = this.rows ?? [null, null];
    return { match: this.match || null, experts: this.grouped || null, from_row: from, to_row: to };
  }

  /** Say how much of the model is shown. */
  show(heatmap) {
    const some = heatmap?.layers.some((layer) => EXPERTS.test(layer));
    this.experts.hidden = !some && this.grouped;
    setText(this.experts, this.grouped ? "Experts apart" : "Experts together");
    this.all.hidden = !this.rows;
    const { total = 0, total_rows: rows = 0 } = heatmap ?? {};
    const within = this.rows ? `rows ${count(this.rows[0] + 1)} to ${count(Math.min(this.rows[1] + 1, rows))} of ${count(rows)}` : "";
    const matched = this.match ? `${count(total)} ${total === 1 ? "layer matches" : "layers match"}` : "";
    setText(this.found, [matched, within].filter(Boolean).join(" \u00b7 "));
  }
}

function rowsOf(query) {
  const match = /^(\d{1,6})-(\d{1,6})$/.exec(query.get("rows") ?? "");
  const [from, to] = match ? [Number(match[1]), Number(match[2])] : [0, -1];
  return to >= from ? [from, to] : null;
}
