// A numbered list of layers, each a button that shows where it was.

import { h, keyed, setText } from "../../document/dom.js";
import { panel } from "../../document/elements.js";

export class OrderPanel {
  /** `go({layer, step})` is called for a click. */
  constructor(area, title, go) {
    this.go = go;
    this.summary = h("p", { class: "hint" });
    this.list = h("ol", { class: "order" });
    this.element = panel(area, title, [], h("div", {}, this.summary, this.list));
    this.element.hidden = true;
  }

  /** Show an order of `order.js`; without layers the panel is hidden. */
  show({ summary, entries }) {
    setText(this.summary, summary);
    const update = (row, { value, detail }) => {
      setText(row.querySelector(".order-value"), value);
      setText(row.querySelector(".order-detail"), detail);
    };
    const key = ({ layer, step }) => `${step} ${layer}`;
    keyed(this.list, entries, key, (entry) => this.item(entry), update);
    this.element.hidden = entries.length === 0;
  }

  item({ layer, step }) {
    const go = { click: () => this.go({ layer, step }) };
    return h("li", {}, h("button", { type: "button", class: "order-entry", on: go },
      h("span", { class: "order-layer", text: layer, title: layer }),
      h("span", { class: "order-value" }),
      h("span", { class: "order-detail" })));
  }
}
