// The steps shown, as two numbers to type: what dragging does, for keys and fingers, and exactly.

import { h, quietButton } from "../document/dom.js";

export class StepWindow {
  constructor(onZoom) {
    const field = (label) => h("input", {
      inputmode: "numeric",
      pattern: "[0-9]*",
      autocomplete: "off",
      "aria-label": label,
    });
    const word = (text) => h("span", { text, "aria-hidden": "true" });
    this.from = field("First step shown");
    this.to = field("Last step shown");
    this.all = quietButton("All steps", () => onZoom(null, null), { hidden: true });
    const set = h("button", { type: "submit", class: "visually-hidden", text: "Show these steps" });
    const submit = (event) => {
      event.preventDefault();
      onZoom(Number(this.from.value) || 0, Number(this.to.value) || 0);
    };
    this.element = h("form", { class: "step-window", on: { submit } },
      word("steps"), this.from, word("to"), this.to, set, this.all);
  }

  /** `first`, `end`: the steps of the run, used where no narrower range is set. */
  show(from, to, [first, end]) {
    // Do not overwrite a field while the user types in it.
    if (![this.from, this.to].includes(document.activeElement)) {
      this.from.value = from ?? first;
      this.to.value = to ?? end - 1;
    }
    this.all.hidden = from === null && to === null;
  }
}
