// Incidents: one entry each, with a button that acknowledges it.

import { acknowledge, get } from "../service/api.js";
import { announce, h, keyed, quietButton, setText } from "../document/dom.js";
import { panel } from "../document/elements.js";
import { layers, part, timeOf } from "./run/events.js";
import { beginning } from "./run/order.js";
import { clock, count, eventName } from "../document/format.js";
import { format, runLink } from "../document/router.js";
import { lines, placeOfHead } from "./runs/incident_groups.js";

const GLYPHS = { open: "\u25cf", resolved: "\u2713", notice: "\u25cb" };
const MOST = 20;
const MOST_OPEN = 500; // the service's largest page
const MOST_TOLD = 4; // of the later rules in an entry
const REST = 5000; // ms between two requests: incidents are formed shortly after their events

/** The incidents of one run. `handlers`: `go(event)` shows where an incident began. */
export class IncidentPanel {
  constructor(run, handlers) {
    this.run = run;
    this.handlers = handlers;
    this.asked = -Infinity;
    this.items = [];
    this.onset = null;
    this.list = h("ol", { class: "incidents" });
    this.problem = h("p", { class: "form-problem", role: "alert" });
    this.element = panel("area-incidents", "Incidents", [], h("div", {}, this.list, this.problem));
  }

  /** Reload, unless the last load was recent; returns the number of open incidents. */
  async load(signal, { now = false } = {}) {
    if (now || performance.now() - this.asked >= REST) {
      this.asked = performance.now();
      // What is open is shown however many notices came after it.
      const [open, newest] = await Promise.all([
        get("incidents", { run: this.run, state: "open", limit: MOST }, signal),
        get("incidents", { run: this.run, limit: MOST }, signal),
      ]);
      this.show([...open.items, ...newest.items.filter(({ state }) => state !== "open")]);
    }
    return this.open;
  }

  /** Tell the newest incident as the list of layers that left their band does: one step, one list. */
  tellOnset(onset) {
    this.onset = onset;
    this.show(this.items);
  }

  show(items) {
    this.items = items;
    this.open = items.filter(({ state }) => state === "open").length;
    const key = ({ incident }) => incident;
    keyed(this.list, items, key, (one) => this.item(one), (row, one) => this.update(row, one));
    this.element.hidden = items.length === 0;
  }

  item(incident) {
    const now = () => this.items.find((one) => one.incident === incident.incident) ?? incident;
    const go = { click: () => this.handlers.go(this.begin(now())) };
    const head = h("span", { class: "event-head" },
      part("glyph", "", { "aria-hidden": "true" }),
      part("rule", ""),
      part("severity", ""),
      part("step", ""),
      timeOf(incident.opened_at));
    const button = h("button", { type: "button", class: "event", on: go },
      head,
      part("layer", ""),
      part("message", ""),
      part("then", ""),
      part("confidence", ""));
    const take = quietButton("Acknowledge", () => this.take(incident.incident), {
      class: "quiet incident-take",
      title: "Nobody is told of it again unless it becomes worse",
    });
    return h("li", {}, button, h("div", { class: "incident-end" }, part("owner", ""), take));
  }

  update(row, incident) {
    const { severity, state } = incident;
    Object.assign(row.dataset, { severity, state, rule: incident.rule });
    const put = (name, text) => setText(row.querySelector(`.event-${name}`), text);
    put("glyph", GLYPHS[state] ?? "\u25cb");
    put("severity", `${severity} \u00b7 ${state}`);
    const head = headOf(incident);
    const begin = this.begin(incident);
    const alarm = begin.step < incident.step ? `, alarm at ${count(incident.step)}` : "";
    put("rule", eventName(head));
    put("step", `from step ${count(begin.step)}${alarm}`);
    put("layer", begin.layer ? layers(begin) : "");
    put("message", head.message ?? "");
    put("then", followed(incident));
    put("confidence", incident.confidence ?? "");
    put("owner", owner(incident));
    row.querySelector(".incident-take").hidden = state !== "open" || Boolean(incident.acknowledged_at);
  }

  /** Where an incident began: by the onset, unless something worse than its first event names it. */
  begin(incident) {
    return placeOfHead(incident) ? headOf(incident) : beginning(incident, this.onset);
  }

  async take(number) {
    try {
      const taken = await acknowledge(number);
      setText(this.problem, "");
      this.show(this.items.map((one) => (one.incident === number ? taken : one)));
      announce("The incident is acknowledged.");
    } catch (problem) {
      setText(this.problem, problem.message);
    }
  }
}

/** The event that names an incident. */
function headOf(incident) {
  return incident.events[placeOfHead(incident)] ?? incident;
}

/** Describe the rules that fired before and after the one that names the incident, in order. */
function followed(incident) {
  const { events, omitted } = incident;
  const place = placeOfHead(incident);
  const before = told("after", events.slice(0, place), 0);
  return [before, told("then", events.slice(place + 1), omitted)].filter(Boolean).join(" \u00b7 ");
}

function told(word, events, omitted) {
  if (!events.length) return "";
  const named = events.slice(0, MOST_TOLD).map((event) => `${eventName(event)} at ${count(event.step)}`);
  const more = events.length - named.length + omitted;
  return `${word} ${named.join(", ")}${more ? ` and ${count(more)} more` : ""}`;
}

function owner({ acknowledged_at: at, acknowledged_by: by, resolved_at: resolved }) {
  const parts = [];
  if (at) parts.push(`acknowledged${by ? ` by ${by}` : ""} at ${clock(at)}`);
  if (resolved) parts.push(`over at ${clock(resolved)}`);
  return parts.join(" \u00b7 ");
}

/** Lines above the list of runs about what is open, the most severe first. */
export class OpenIncidents {
  constructor() {
    this.asked = -Infinity;
    this.element = h("div", { class: "open-incidents", role: "status", hidden: true });
  }

  async load(signal) {
    if (performance.now() - this.asked < REST) return;
    this.asked = performance.now();
    const { items, next } = await get("incidents", { state: "open", sort: "severity", limit: MOST_OPEN }, signal);
    if (items === this.items) return;
    this.items = items;
    this.element.hidden = items.length === 0;
    const number = `${count(items.length)}${next ? "+" : ""} open ${items.length > 1 ? "incidents" : "incident"}`;
    const links = lines(items).map(({ severity, text, run, query }) => {
      const href = run === null ? format({ view: "runs", query: new URLSearchParams({ q: query }) }) : runLink(run);
      const glyph = h("span", { class: "event-glyph", "aria-hidden": "true", text: `${GLYPHS.open} ` });
      return h("a", { href, data: { severity } }, glyph, text);
    });
    this.element.replaceChildren(h("strong", { text: number }), ...links);
    this.element.dataset.severity = items[0]?.severity ?? "info";
  }
}
