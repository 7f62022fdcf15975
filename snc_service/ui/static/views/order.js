// Which layers left their healthy band, in order, and which will reach their threshold next.

import { h, keyed, setText } from "../document/dom.js";
import { ruleName } from "./events.js";
import { count, number, ratio } from "../document/format.js";

export const MOST_LEFT = 10;
export const MOST_AHEAD = 5;

/** A numbered list of layers, each a button. `handlers`: `go({layer, step})`. */
class LayerList {
  constructor(handlers) {
    this.handlers = handlers;
    this.summary = h("p", { class: "hint" });
    this.list = h("ol", { class: "order" });
    this.element = h("div", {}, this.summary, this.list);
  }

  put(summary, items) {
    setText(this.summary, summary);
    const update = (row, { value, detail }) => {
      setText(row.querySelector(".order-value"), value);
      setText(row.querySelector(".order-detail"), detail);
    };
    keyed(this.list, items, ({ layer, step }) => `${step} ${layer}`, (item) => this.item(item), update);
  }

  item({ layer, step }) {
    const go = { click: () => this.handlers.go({ layer, step }) };
    return h("li", {}, h("button", { type: "button", class: "order-entry", on: go },
      h("span", { class: "order-layer", text: layer, title: layer }),
      h("span", { class: "order-value" }),
      h("span", { class: "order-detail" })));
  }
}

export class OnsetList extends LayerList {
  /** `onset`: the service's answer; return whether there is anything to show. */
  show({ items, total, step }) {
    const rest = total > items.length ? `, the first ${count(items.length)} of ${count(total)}` : "";
    this.put(`Layers as they left their healthy band, from step ${count(step)} on${rest}.`,
      items.map((item) => ({
        ...item,
        value: item.step === step ? `step ${count(step)}` : `+${count(item.step - step)}`,
        detail: `${ruleName(item.rule)}, ${ratio(item.times_limit)} \u00d7 its limit`,
      })));
    return items.length > 0;
  }
}

export class ForecastList extends LayerList {
  /** `forecast`: the service's answer or null; return whether there is anything to show. */
  show(forecast) {
    const items = forecast?.items ?? [];
    this.put("If \u03c3 goes on growing as it did lately; most layers slow down.",
      items.map((item) => ({
        ...item,
        value: `in about ${count(item.steps)} steps`,
        detail: `\u03c3 ${number(item.sigma)} of ${number(item.threshold)} \u00b7 ` +
          `step ${count(item.earliest_step)} to ${count(item.latest_step)}`,
      })));
    return items.length > 0;
  }
}
