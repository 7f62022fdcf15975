// The columns of the list of runs: what is always there, and what a user adds.

import { h, setText } from "../../document/dom.js";
import { ratioBar, showRatio, showState, sortHeader, stateBadge } from "../../document/elements.js";
import { age, count, duration, MISSING, moment, number, percent } from "../../document/format.js";
import { runLink } from "../../document/router.js";
import { serviceNow } from "../../service/api.js";
import { countTone, endedIn, isHeld } from "../run_summary.js";

/**
 * `sort` is the service's name for the order by it. `more` columns are shown when asked for.
 * @typedef {{key: string, label: string, style: string, sort: string, more?: boolean}} Column
 */

/** @type {Column[]} */
const COLUMNS = [
  { key: "state", label: "State", style: "col-state", sort: "attention" },
  { key: "name", label: "Run", style: "col-run", sort: "name" },
  { key: "loss", label: "Loss", style: "num", sort: "loss" },
  { key: "worst_ratio", label: "Worst \u03c3 / threshold", style: "col-worst", sort: "ratio" },
  { key: "incidents", label: "Incidents", style: "num", sort: "incidents" },
  { key: "breaches", label: "Breaches", style: "num", sort: "breaches" },
  { key: "last_step", label: "Step", style: "num", sort: "step" },
  { key: "duration", label: "Duration", style: "num", sort: "duration" },
  { key: "updated_at", label: "Last report", style: "num", sort: "updated" },
  { key: "rescales", label: "Rescales", style: "num", sort: "rescales", more: true },
  { key: "nonfinite_layers", label: "Not finite", style: "num", sort: "nonfinite", more: true },
  { key: "dropped_values", label: "Dropped", style: "num", sort: "dropped", more: true },
  { key: "overhead", label: "Overhead", style: "num", sort: "overhead", more: true },
];
const CONFIG = "config.";

/** The columns that can be added: [key, label]. */
export function offered(config) {
  const own = COLUMNS.filter((column) => column.more).map(({ key, label }) => [key, label]);
  return [...own, ...config.map((path) => [`${CONFIG}${path}`, path])];
}

/** The columns to show, with those of `added` that exist. */
export function columnsWith(added) {
  const own = COLUMNS.filter((column) => !column.more || added.includes(column.key));
  const paths = added.filter((key) => key.startsWith(CONFIG));
  const config = paths.map((key) => ({ key, label: key.slice(CONFIG.length), style: "num config", sort: key }));
  return [...own, ...config];
}

/** The config paths among `added`, as the service is asked for them. */
export function configPaths(added) {
  return added.filter((key) => key.startsWith(CONFIG)).map((key) => key.slice(CONFIG.length));
}

export function headers(columns, order) {
  return columns.map(({ label, style, sort }) => sortHeader(label, sort, () => order(sort), { class: style }));
}

export function newRow(run, columns, choose) {
  const pick = h("input", {
    type: "checkbox",
    "aria-label": `Select ${run.name || run.run}`,
    on: { change: () => choose(run.run, pick.checked) },
  });
  return h("tr", {}, h("td", { class: "col-pick" }, pick), ...columns.map((column) => newCell(run, column)));
}

function newCell(run, { key, label, style }) {
  const cell = (...children) => h("td", { class: style, data: { key, label } }, ...children);
  if (key === "state") return cell(stateBadge(), h("span", { class: "ended" }));
  if (key === "worst_ratio") return cell(ratioBar(), h("span", { class: "worst-layer" }));
  if (key !== "name") return cell();
  return h("th", { scope: "row", class: style, data: { key } },
    h("a", { href: runLink(run.run), class: "run-name" }),
    h("span", { class: "run-detail" }));
}

/** Show a run in its row. */
export function fill(row, run, columns) {
  for (const { key } of columns) {
    const cell = row.querySelector(`[data-key="${CSS.escape(key)}"]`);
    if (key === "state") fillState(cell, run);
    else if (key === "name") fillName(cell, run);
    else if (key === "worst_ratio") fillWorst(cell, run);
    else fillPlain(cell, key, run);
  }
  row.classList.toggle("is-archived", run.archived);
}

function fillState(cell, run) {
  showState(cell.querySelector(".badge"), run.state);
  const ended = cell.querySelector(".ended");
  setText(ended, endedIn(run).text);
  ended.dataset.tone = endedIn(run).tone;
}

function fillName(cell, run) {
  const id = run.name && run.name !== run.run ? run.run : "";
  const tags = run.tags.map((tag) => `#${tag}`).join(" ");
  setText(cell.querySelector(".run-name"), run.name || run.run);
  setText(cell.querySelector(".run-detail"), [run.project, id, tags].filter(Boolean).join(" \u00b7 "));
  cell.querySelector(".run-detail").title = run.note;
}

function fillWorst(cell, run) {
  // The worst is what is not finite: the largest finite ratio is another layer's.
  const broken = run.nonfinite_layers > 0;
  showRatio(cell.querySelector(".ratio"), broken ? null : run.worst_ratio, { broken, held: isHeld(run) });
  const layer = cell.querySelector(".worst-layer");
  const plural = run.nonfinite_layers > 1 ? "layers" : "layer";
  setText(layer, broken ? `${count(run.nonfinite_layers)} ${plural}` : run.worst_layer ?? "");
  layer.title = broken ? "" : run.worst_layer ?? "";
}

function fillPlain(cell, key, run) {
  const [text, tone, title] = plain(key, run);
  setText(cell, text);
  cell.dataset.tone = tone;
  cell.title = title;
}

/** [text, tone, title] of a cell. */
function plain(key, run) {
  if (key === "loss") return run.nonfinite_loss ? ["\u2715 not finite", "broken", ""] : [number(run.loss), "", ""];
  if (key === "incidents") return [count(run.incidents), incidentTone(run), run.incident_severity ?? ""];
  if (key === "last_step") return [count(run.last_step), "", ""];
  if (key === "overhead") return [percent(run.overhead), "", ""];
  if (key === "updated_at") return [age(run.updated_at, serviceNow()), "", moment(run.updated_at)];
  if (key === "duration") {
    if (run.duration === null) return ["unknown", "none", "Its source has no times"];
    return [duration(run.duration), "", `since ${moment(run.started_at)}`];
  }
  if (key.startsWith(CONFIG)) {
    const value = run.config_values[key.slice(CONFIG.length)];
    const text = value === undefined ? MISSING : typeof value === "string" ? value : JSON.stringify(value);
    return [text, "", text];
  }
  return [count(run[key]), countTone(key, run), ""];
}

function incidentTone(run) {
  if (!run.incidents) return "none";
  return run.incident_severity === "critical" ? "bad" : "warn";
}
