// The chosen layers with their values at the cursor: a legend that is also the readout.

import { h, keyed, setText } from "./dom.js";
import { count, MISSING } from "./format.js";
import { valueAt } from "./lines.js";

export class Legend {
  constructor(onRemove) {
    this.onRemove = onRemove;
    this.step = null;
    this.where = h("p", { class: "legend-step", text: "newest values shown" });
    this.list = h("ul", { class: "legend" });
    this.element = h("div", { class: "legend-box" }, this.where, this.list);
  }

  /** `chosen`: [{layer, ink, history, threshold}]. */
  show(chosen) {
    this.chosen = chosen;
    keyed(this.list, chosen, (one) => one.layer, (one) => this.item(one), (item, one) => this.update(item, one));
  }

  at(step, loss) {
    this.step = step;
    const value = loss?.steps.length ? ` \u00b7 loss ${valueAt(loss, step)}` : "";
    setText(this.where, step === null ? "newest values shown" : `step ${count(step)}${value}`);
    if (this.chosen) this.show(this.chosen);
  }

  item({ layer }) {
    const remove = h("button", { type: "button", class: "quiet", text: "\u00d7", "aria-label": `Remove ${layer} from the history`, on: { click: () => this.onRemove(layer) } });
    return h("li", {}, h("span", { class: "swatch", "aria-hidden": "true" }), h("span", { class: "legend-name", text: layer, title: layer }), h("span", { class: "legend-value" }), remove);
  }

  update(item, { ink, history, threshold }) {
    item.querySelector(".swatch").style.backgroundColor = ink;
    const limit = valueAt(threshold, this.step);
    setText(item.querySelector(".legend-value"), `\u03c3 ${valueAt(history, this.step)}${limit === MISSING ? "" : ` \u00b7 threshold ${limit}`}`);
  }
}
