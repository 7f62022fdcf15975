// The legend: the chosen layers with their values at the cursor.

import { h, keyed, quietButton, setText } from "../document/dom.js";
import { count, MISSING } from "../document/format.js";
import { valueAt } from "./lines.js";
import { swatch } from "../document/elements.js";

export class Legend {
  constructor(onRemove) {
    this.onRemove = onRemove;
    this.step = null;
    this.name = "loss";
    this.where = h("p", { class: "legend-step", text: "newest values shown" });
    this.list = h("ul", { class: "legend" });
    this.element = h("div", { class: "legend-box" }, this.where, this.list);
  }

  /** `chosen`: [{layer, ink, history, threshold}]. */
  show(chosen) {
    this.chosen = chosen;
    const update = (item, one) => this.update(item, one);
    keyed(this.list, chosen, (one) => one.layer, (one) => this.item(one), update);
  }

  at(step, loss) {
    this.step = step;
    const value = loss?.steps.length ? ` \u00b7 ${this.name} ${valueAt(loss, step)}` : "";
    setText(this.where, step === null ? "newest values shown" : `step ${count(step)}${value}`);
    if (this.chosen) this.show(this.chosen);
  }

  item({ layer }) {
    return h("li", {},
      swatch(),
      h("span", { class: "legend-name", text: layer, title: layer }),
      h("span", { class: "legend-value" }),
      quietButton("\u00d7", () => this.onRemove(layer), {
        "aria-label": `Remove ${layer} from the history`,
      }));
  }

  update(item, { ink, history, threshold }) {
    item.querySelector(".swatch").style.backgroundColor = ink;
    const limit = valueAt(threshold, this.step);
    const parts = [`\u03c3 ${valueAt(history, this.step)}`];
    if (limit !== MISSING) parts.push(`threshold ${limit}`);
    setText(item.querySelector(".legend-value"), parts.join(" \u00b7 "));
  }
}
