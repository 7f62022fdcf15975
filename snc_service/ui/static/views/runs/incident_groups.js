// Open incidents in few lines: each critical one by itself, the others by what they are about.

import { count, eventName } from "../../document/format.js";

/**
 * @typedef {{incident: number, run: string, rule: string, severity: string, layer: string | null,
 *   step?: number, acknowledged_at: string | null,
 *   events?: {rule: string, severity: string, step?: number, layer?: string | null}[]}} Incident
 * @typedef {{severity: string, text: string, run: string | null, query: string}} Line
 */

export const MOST_ALONE = 6;

/**
 * Lines for incidents that arrive with the most severe first, among those the newest. A line leads
 * to one run or to a query that finds them all. No critical incident is left out of the lines.
 * @param {Incident[]} items
 * @returns {Line[]}
 */
export function lines(items) {
  const open = items.filter((one) => !one.acknowledged_at);
  const critical = open.filter((one) => one.severity === "critical");
  const alone = critical.length > MOST_ALONE ? critical.slice(0, MOST_ALONE - 1) : critical;
  const found = alone.map(single);
  if (critical.length > alone.length) {
    const rest = critical.length - alone.length;
    found.push({ severity: "critical", text: `${count(rest)} more critical`, run: null, query: "incident:critical" });
  }
  /** @type {Map<string, Incident[]>} */
  const groups = new Map();
  for (const one of open) {
    if (one.severity === "critical") continue;
    const name = `${one.severity} ${title(one)}`;
    groups.set(name, [...(groups.get(name) ?? []), one]);
  }
  for (const group of groups.values()) found.push(group.length === 1 ? single(group[0]) : together(group));
  const known = items.length - open.length;
  if (known) found.push({ severity: "info", text: `${count(known)} acknowledged`, run: null, query: "incident:any" });
  return found;
}

/**
 * The place of the event that names an incident: the first, or one that came long after a warning.
 * @param {{rule: string, step?: number, layer: string | null, events?: {rule: string, step?: number, layer?: string | null}[]}} one
 */
export function placeOfHead({ rule, step, layer, events = [] }) {
  const place = events.findIndex((event) =>
    event.rule === rule && event.step === step && (event.layer ?? null) === layer);
  return Math.max(place, 0);
}

/** @param {Incident} one */
function title(one) {
  return eventName({ rule: one.rule, severity: one.events?.[placeOfHead(one)]?.severity ?? one.severity });
}

/**
 * @param {Incident} one
 * @returns {Line}
 */
function single(one) {
  const where = one.layer ? `, ${one.layer}` : "";
  // What made it so severe may have come after what it began with.
  const [first, ...later] = (one.events ?? []).slice(placeOfHead(one));
  const worst = first?.severity === one.severity ? null : later.find(({ severity }) => severity === one.severity);
  const then = worst ? `, then ${eventName(worst)}` : "";
  return { severity: one.severity, text: `${one.run}: ${title(one)}${where}${then}`, run: one.run, query: "" };
}

/**
 * @param {Incident[]} group
 * @returns {Line}
 */
function together(group) {
  const [{ rule, severity }] = group;
  const number = count(new Set(group.map(({ run }) => run)).size);
  const text = rule === "run_silent" ? `${number} runs silent` : `${number} runs: ${title(group[0])}`;
  return { severity, text, run: null, query: rule === "run_silent" ? "state:silent" : `incident:${severity}` };
}
