// What happened to a run: the list, and the marks it leaves on the step axis.

import { h, keyed, setText } from "./dom.js";
import { clock, count, moment } from "./format.js";
import { color } from "./theme.js";

// A shape per rule that happens often, one for the rest.
const SYMBOLS = {
  breach: "triangle-up",
  rescale: "diamond",
  nonfinite: "x",
  policy_changed: "square",
  rewound: "triangle-left",
  dropped: "cross",
};
const GLYPHS = { breach: "\u25b2", rescale: "\u25c6", nonfinite: "\u2715", policy_changed: "\u25a0", rewound: "\u25c0", dropped: "\u271a" };
const ON_RAIL = (event) => !event.rule.startsWith("run_");

/** `handlers`: `go(event)` shows where an event happened. */
export class EventList {
  constructor(handlers) {
    this.handlers = handlers;
    this.empty = h("p", { class: "hint", text: "Nothing has happened yet: no breach, no value that is not finite." });
    this.list = h("ol", { class: "events" });
    this.note = h("p", { class: "hint", hidden: true });
    this.element = h("div", {}, this.empty, this.list, this.note);
  }

  show(items, more) {
    this.empty.hidden = items.length > 0;
    keyed(this.list, items, (event) => `${event.run}/${event.id}`, (event) => this.item(event), () => {});
    this.note.hidden = !more;
    setText(this.note, `The newest ${count(items.length)}. All of them: GET /api/v1/runs/\u2026/events`);
  }

  item(event) {
    const where = event.layer ? h("span", { class: "event-layer", text: layers(event) }) : null;
    const head = h("span", { class: "event-head" },
      h("span", { class: "event-glyph", "aria-hidden": "true", text: GLYPHS[event.rule] ?? "\u25cf" }),
      h("span", { class: "event-rule", text: event.rule.replaceAll("_", " ") }),
      h("span", { class: "event-severity", text: event.severity }),
      h("span", { class: "event-step", text: `step ${count(event.step)}` }),
      h("time", { class: "event-time", datetime: event.at, title: moment(event.at), text: clock(event.at) }));
    const button = h("button", { type: "button", class: "event", on: { click: () => this.handlers.go(event) } },
      head, where, h("span", { class: "event-message", text: event.message }));
    return h("li", { data: { severity: event.severity, rule: event.rule } }, button);
  }
}

function layers(event) {
  return event.layers > 1 ? `${event.layer} and ${count(event.layers - 1)} more` : event.layer;
}

/** The events as points of a rail. */
export function eventPoints(items) {
  return items.filter(ON_RAIL).map((event) => ({
    step: event.step,
    ink: color(`severity-${event.severity}`),
    symbol: SYMBOLS[event.rule] ?? "circle",
  }));
}
