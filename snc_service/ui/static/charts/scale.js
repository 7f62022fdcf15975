// What the colors and the marks of a heatmap mean.

import { h, setText } from "../document/dom.js";
import { isRatio } from "./metrics.js";

export class Scale {
  constructor() {
    this.low = h("span");
    this.high = h("span");
    this.bar = h("span", { class: "scale-bar", "aria-hidden": "true" });
    this.absent = h("span");
    this.held = h("span", { class: "scale-part" },
      h("span", { class: "mark-held", "aria-hidden": "true", text: "\u25c6\u2500" }),
      "breach, held");
    const breach = h("span", { class: "scale-breach", "aria-hidden": "true" });
    this.over = h("span", { class: "scale-over" }, breach, "\u2265 2");
    const part = (...children) => h("span", { class: "scale-part" }, ...children);
    const mark = (name, text) => h("span", { class: `mark-${name}`, "aria-hidden": "true", text });
    this.element = h("p", { class: "scale" },
      part(this.low, this.bar, this.high, this.over),
      part(mark("breach", "\u25b2\u2500"), "breach"),
      this.held,
      part(mark("nonfinite", "\u2715"), "not finite"),
      part(mark("absent", ""), this.absent));
  }

  show(metric, paint) {
    setText(this.low, paint.low);
    setText(this.high, paint.high);
    this.over.hidden = !isRatio(metric);
    this.held.hidden = metric !== "after";
    setText(this.absent, isRatio(metric) ? "no threshold, or not measured" : "not measured");
  }
}
