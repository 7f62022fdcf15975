// The table of a run's layers, the worst first: the content of the heatmap as numbers.

import { h, keyed, quietButton, rowKeys, setText } from "../../document/dom.js";
import { count, number, shape } from "../../document/format.js";
import { breakable, nextSort, ratioBar, showRatio, showSort, sortHeader, swatch } from "../../document/elements.js";

// Columns with a `sort` of the service can be sorted by; "model" is the model's own order. A column
// with a `title` is shown where some layer has a value of it.
/** @type {{key: string, label: string, style: string, sort?: string, title?: string}[]} */
const COLUMNS = [
  { key: "layer", label: "Layer", style: "col-layer", sort: "model" },
  { key: "ratio", label: "\u03c3 / threshold", style: "col-ratio", sort: "ratio" },
  { key: "sigma", label: "\u03c3", style: "num", sort: "sigma" },
  { key: "sigma_upper", label: "\u03c3 upper", style: "num" },
  { key: "threshold", label: "threshold", style: "num" },
  { key: "scale", label: "scale", style: "num" },
  { key: "update_sigma_ratio", label: "step / \u03c3", style: "num", title: "\u03c3 of the optimizer's last step over \u03c3 of the weight" },
];
const PAGE = 25;
const MOST_LAYERS = 500;

/** `handlers`: `select(layer)` toggles a layer's history, `ask()` requests other rows. */
export class LayerTable {
  constructor(handlers) {
    this.handlers = handlers;
    this.sort = "-ratio";
    this.limit = PAGE;
    this.head = h("tr", {}, ...COLUMNS.map((column) => this.header(column)));
    this.body = h("tbody");
    this.more = quietButton("", () => this.extend(), { hidden: true });
    this.note = h("p", { class: "hint", hidden: true, text: "No thresholds: the layer that grew most comes first." });
    const table = h("table", { class: "layers" },
      h("caption", { class: "visually-hidden", text: "Layers with their newest values" }),
      h("thead", {}, this.head),
      this.body);
    this.element = h("div", { class: "bleed" }, h("div", { class: "table-box" }, table), this.more);
    rowKeys(this.body, "button");
    showSort(this.head, this.sort);
  }

  /** @param {{label: string, style: string, sort?: string, title?: string}} column */
  header({ label, style, sort, title }) {
    if (!sort) return h("th", { scope: "col", class: style, text: label, title });
    return sortHeader(label, sort, () => this.order(sort), { class: style });
  }

  order(key) {
    this.sort = key === "model" ? key : nextSort(this.sort, key);
    showSort(this.head, this.sort);
    this.handlers.ask();
  }

  extend() {
    this.limit = Math.min(this.limit * 2, MOST_LAYERS);
    this.handlers.ask();
  }

  /**
   * Show `items` (in the requested order) of `total` layers; `selected` maps layers to colors, `norm`
   * is the metric in the column of sigma.
   */
  show(items, total, selected, norm = "sigma") {
    const rows = items.slice(0, this.limit);
    const newest = Math.max(...rows.map(({ step }) => step ?? -1));
    const update = (row, item) => this.update(row, item, { selected, norm, newest });
    keyed(this.body, rows, (item) => item.layer, (item) => this.row(item), update);
    this.showColumns(rows);
    this.note.hidden = this.sort !== "-ratio" || !rows.length || rows.some((item) => item.ratio !== null);
    this.more.hidden = total <= rows.length || this.limit >= MOST_LAYERS;
    setText(this.more, `Show more of ${count(total)} layers`);
  }

  /** Hide the columns that have a `title` where no row has a value of them. */
  showColumns(rows) {
    for (const [place, { key, title }] of COLUMNS.entries()) {
      if (title === undefined) continue;
      const hidden = !rows.some((item) => valueOf(item, key) !== null);
      for (const line of [this.head, ...this.body.rows]) line.children[place].hidden = hidden;
    }
  }

  row(item) {
    const select = () => this.handlers.select(item.layer);
    const button = h("button", { type: "button", class: "layer-name", on: { click: select } },
      swatch(),
      h("span", {}, ...breakable(item.layer)));
    const row = h("tr", {},
      h("th", { scope: "row", class: "col-layer" }, button, h("span", { class: "layer-kind" })),
      h("td", { class: "col-ratio" }, ratioBar()),
      ...COLUMNS.slice(2).map(({ key }) => h("td", { class: "num", data: { key } })));
    row.addEventListener("click", (event) => {
      // The whole row can be clicked; its button is for keyboard and screen readers.
      if (!event.target.closest("button") && !String(getSelection())) select();
    });
    return row;
  }

  update(row, item, { selected, norm, newest }) {
    const broken = item.nonfinite.includes(norm);
    const ink = selected.get(item.layer);
    const button = row.querySelector("button");
    button.setAttribute("aria-pressed", String(ink !== undefined));
    button.firstChild.style.backgroundColor = ink ?? "transparent";
    row.classList.toggle("is-selected", ink !== undefined);
    row.classList.toggle("is-breach", (item.ratio ?? 0) > 1);
    setText(row.querySelector(".layer-kind"), describe(item, newest));
    showRatio(row.querySelector(".ratio"), item.ratio, { broken, left: leftOf(item) });
    for (const cell of row.querySelectorAll("td[data-key]")) {
      const { key } = cell.dataset;
      const metric = key === "sigma" ? norm : key;
      setText(cell, item.nonfinite.includes(metric) ? "not finite" : number(valueOf(item, metric)));
      const said = key === "sigma_upper" ? origin(item) : worth(false, "");
      cell.classList.toggle("is-old", said.old);
      cell.title = said.title;
    }
  }
}

/** The newest value of a metric, null if it was not measured. */
function valueOf(item, metric) {
  return item[metric] ?? item.metrics[metric] ?? null;
}

/** Describe the validity of sigma_upper: a bound of this weight, or of an earlier state of it. */
function origin({ metrics, sigma, sigma_upper: upper }) {
  const { bound_age: age, certified_age: since } = metrics;
  if (upper === null) return worth(false, "");
  // Clients that report no ages: a bound below sigma must be of an earlier step.
  if (age === undefined) return upper < sigma ? worth(true, "Of an earlier step than \u03c3") : worth(false, "");
  if (age > 0) return worth(true, `A bound ${count(age)} steps ago; the weight has moved since`);
  if (since > 0) return worth(false, `A bound, carried from a certificate ${count(since)} steps ago`);
  return worth(false, "A bound, certified at this step");
}

function worth(old, title) {
  return { old, title };
}

/** The ratio that an action left, null if there was none. */
function leftOf({ ratio, scale }) {
  if (ratio === null || scale === null || scale === 1) return null;
  return Number((ratio * scale).toFixed(6)); // rounding must not turn a met threshold into a breach
}

/** Kind and shape; the step only where the values are older than those of other layers. */
function describe({ kind, shape: sizes, step }, newest) {
  const at = step === null ? "no value yet" : step < newest ? `step ${count(step)}` : "";
  return [[kind, shape(sizes)].filter(Boolean).join(" "), at].filter(Boolean).join(" \u00b7 ");
}
