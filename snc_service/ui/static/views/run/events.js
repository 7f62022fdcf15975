// The events of a run: the list, and their marks on the step axis.

import { h, keyed, setText } from "../../document/dom.js";
import { clock, count, eventName, moment } from "../../document/format.js";
import { color } from "../../document/theme.js";

// One shape per frequent rule, one for all others.
const SYMBOLS = {
  breach: "triangle-up",
  rescale: "diamond",
  nonfinite: "x",
  policy_changed: "square",
  rewound: "triangle-left",
  dropped: "cross",
};
const GLYPHS = {
  breach: "\u25b2",
  rescale: "\u25c6",
  nonfinite: "\u2715",
  policy_changed: "\u25a0",
  rewound: "\u25c0",
  dropped: "\u271a",
};
const NOTHING = "Nothing has happened yet: no breach, no value that is not finite.";

/** `handlers`: `go(event)` shows the layer and step of an event. */
export class EventList {
  constructor(handlers) {
    this.handlers = handlers;
    this.empty = h("p", { class: "hint", text: NOTHING });
    this.list = h("ol", { class: "events" });
    this.note = h("p", { class: "hint", hidden: true });
    this.element = h("div", {}, this.empty, this.list, this.note);
  }

  show(items, more) {
    this.empty.hidden = items.length > 0;
    const key = (event) => `${event.run}/${event.id}`;
    keyed(this.list, items, key, (event) => this.item(event), () => {});
    this.note.hidden = !more;
    setText(this.note, `These are the newest ${count(items.length)}; the API has them all.`);
  }

  item(event) {
    const { at, layer, message, rule, severity, step } = event;
    const head = h("span", { class: "event-head" },
      part("glyph", GLYPHS[rule] ?? "\u25cf", { "aria-hidden": "true" }),
      part("rule", eventName(event)),
      part("severity", severity),
      part("step", `step ${count(step)}`),
      timeOf(at));
    const go = { click: () => this.handlers.go(event) };
    const button = h("button", { type: "button", class: "event", on: go },
      head,
      layer ? part("layer", layers(event)) : null,
      part("message", message));
    return h("li", { data: { severity, rule } }, button);
  }
}

/** One part of an event's entry. */
export function part(name, text, more = {}) {
  return h("span", { class: `event-${name}`, text, ...more });
}

export function timeOf(at) {
  return h("time", { class: "event-time", datetime: at, title: moment(at), text: clock(at) });
}

/** The place of an event: its worst layer, and the number of others. */
export function layers(event) {
  return event.layers > 1 ? `${event.layer} and ${count(event.layers - 1)} more` : event.layer;
}

/** The events as points of a rail. */
export function eventPoints(items) {
  return items.filter(({ rule }) => !rule.startsWith("run_")).map((event) => ({
    step: event.step,
    ink: color(`severity-${event.severity}`),
    symbol: SYMBOLS[event.rule] ?? "circle",
  }));
}
