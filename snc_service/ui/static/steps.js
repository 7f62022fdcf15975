// Which steps are shown, as two numbers: what dragging does, for keys and fingers, and exactly.

import { h } from "./dom.js";

export class StepWindow {
  constructor(onZoom) {
    const field = (label) => h("input", { inputmode: "numeric", pattern: "[0-9]*", size: "7", "aria-label": label, autocomplete: "off" });
    this.from = field("First step shown");
    this.to = field("Last step shown");
    this.all = h("button", { type: "button", class: "quiet", text: "All steps", hidden: true, on: { click: () => onZoom(null, null) } });
    const set = h("button", { type: "submit", class: "visually-hidden", text: "Show these steps" });
    this.element = h("form", { class: "step-window" }, h("span", { text: "steps", "aria-hidden": "true" }), this.from, h("span", { text: "to", "aria-hidden": "true" }), this.to, set, this.all);
    this.element.addEventListener("submit", (event) => {
      event.preventDefault();
      onZoom(Number(this.from.value) || 0, Number(this.to.value) || 0);
    });
  }

  /** `first`, `end`: the steps there are; shown where nothing narrower was asked for. */
  show(from, to, [first, end]) {
    const typing = this.element.contains(document.activeElement) && document.activeElement.tagName === "INPUT";
    if (!typing) {
      this.from.value = from ?? first;
      this.to.value = to ?? end - 1;
    }
    this.all.hidden = from === null && to === null;
  }
}
