// In words: which layers left their healthy band, in order, and which reach their threshold next.

import { count, number, ratio, ruleName } from "../../document/format.js";

export const MOST_LEFT = 10;
export const MOST_AHEAD = 5;

/**
 * What a list shows: a sentence, and per layer the step to go to and what is said of it.
 * @typedef {{layer: string, step: number, value: string, detail: string}} Entry
 * @typedef {{summary: string, entries: Entry[]}} Order
 */

/**
 * The layers in the order in which they left their healthy band.
 * @param {{items: {layer: string, step: number, alarm_step: number, rule: string, times_limit: number | null}[],
 *   total: number, step: number | null}} onset the service's answer; `step` is null without items
 * @returns {Order}
 */
export function onsetOrder({ items, total, step }) {
  const begin = step ?? 0;
  const rest = total > items.length ? `, the first ${count(items.length)} of ${count(total)}` : "";
  return {
    summary: `Layers as they left their healthy band, from step ${count(step)} on${rest}.`,
    entries: items.map((item) => ({
      layer: item.layer,
      step: item.step,
      value: item.step === begin ? `step ${count(begin)}` : `+${count(item.step - begin)}`,
      detail: `${ruleName(item.rule)}${alarm(item)}, ${ratio(item.times_limit)} \u00d7 its limit`,
    })),
  };
}

/**
 * Where the rule fired, if the layer had left its band before.
 * @param {{step: number, alarm_step: number}} item
 */
function alarm({ step, alarm_step: told }) {
  return told > step ? ` at ${count(told)}` : "";
}

/**
 * Where an incident began, and with which layers: by the onset if it is of this incident, else by the
 * first event.
 * @param {{step: number, events: any[]}} incident
 * @param {{step: number | null, alarm_step: number | null, total: number, items: any[]} | null} onset
 */
export function beginning(incident, onset) {
  const first = incident.events[0] ?? incident;
  const isOf = (/** @type {any} */ event) => event.layer !== null && event.step === onset?.alarm_step;
  if (!onset?.items.length || !incident.events.some(isOf)) return first;
  const step = Math.min(incident.step, onset.step ?? incident.step);
  return { step, layer: onset.items[0].layer, layers: onset.total };
}

/**
 * The layers in the order in which they will reach their threshold if sigma grows on.
 * @param {{items: {layer: string, step: number, steps: number, sigma: number | null,
 *   threshold: number | null, earliest_step: number, latest_step: number}[]} | null} forecast
 *   the service's answer, or null if it was not asked
 * @returns {Order}
 */
export function forecastOrder(forecast) {
  return {
    summary: "If \u03c3 goes on growing as it did lately; most layers slow down.",
    entries: (forecast?.items ?? []).map((item) => ({
      layer: item.layer,
      step: item.step,
      value: `in about ${count(item.steps)} ${item.steps === 1 ? "step" : "steps"}`,
      detail: `\u03c3 ${number(item.sigma)} of ${number(item.threshold)} \u00b7 ` +
        `step ${count(item.earliest_step)} to ${count(item.latest_step)}`,
    })),
  };
}
