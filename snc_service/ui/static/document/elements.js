// Elements that several views use: the state of a run, a ratio, facts, empty states.

import { h, setText } from "./dom.js";
import { ratio } from "./format.js";

const STATE_GLYPHS = { active: "\u25cf", silent: "\u25d0", finished: "\u2713", failed: "\u2715" };
const FULL = 1.5; // the ratio at which a bar is full

/** The state as a glyph and a word, never by color alone. */
export function stateBadge() {
  return h("span", { class: "badge" }, h("span", { "aria-hidden": "true" }), h("span"));
}

export function showState(badge, state) {
  badge.dataset.state = state;
  setText(badge.firstChild, STATE_GLYPHS[state] ?? "?");
  setText(badge.lastChild, state);
}

/** A bar with a tick at 1.0, and the number. */
export function ratioBar() {
  return h("span", { class: "ratio" },
    h("span", { class: "ratio-track", "aria-hidden": "true" },
      h("span", { class: "ratio-fill" }),
      h("span", { class: "ratio-one" })),
    h("span", { class: "ratio-number" }));
}

/**
 * `broken`: sigma is not finite. `held`: a ratio above 1 was rescaled at once. `left`: the ratio
 * after a rescale.
 */
export function showRatio(bar, value, { broken = false, left = null, held = left !== null } = {}) {
  const known = value !== null && value !== undefined;
  const fill = bar.querySelector(".ratio-fill");
  fill.style.width = `${Math.min(Math.max((known ? value : 0) / FULL, 0), 1) * 100}%`;
  bar.classList.toggle("is-breach", known && value > 1);
  bar.classList.toggle("is-held", known && value > 1 && held);
  bar.classList.toggle("is-near", known && value > 0.9 && value <= 1);
  bar.classList.toggle("is-empty", !known);
  const after = left === null ? "" : ` \u2192 ${ratio(left)}`;
  const finite = `${known && value > 1 ? "\u25b2 " : ""}${ratio(value)}${after}`;
  setText(bar.querySelector(".ratio-number"), broken ? "\u2715 not finite" : finite);
  bar.classList.toggle("is-broken", broken);
}

/** A list of facts: `show({label: {value, tone?, detail?, title?}})` updates it in place. */
export class Facts {
  constructor(label) {
    this.element = h("dl", { class: "facts", "aria-label": label });
    this.known = new Map();
  }

  show(facts) {
    for (const [label, fact] of Object.entries(facts)) {
      const { value, tone = "", detail = "", title = detail } = fact;
      if (!this.known.has(label)) this.known.set(label, this.add(label));
      const { box, main, small } = this.known.get(label);
      box.dataset.tone = tone;
      setText(main, value);
      setText(small, detail);
      small.title = title;
    }
  }

  add(label) {
    const main = h("span", { class: "fact-value" });
    const small = h("span", { class: "fact-detail" });
    const box = h("div", {}, h("dt", { text: label }), h("dd", {}, main, small));
    this.element.append(box);
    return { box, main, small };
  }
}

/** A titled box with `tools` to the right of its title. */
export function panel(area, title, tools, ...children) {
  const head = h("div", { class: "panel-head" }, h("h2", { text: title }), ...tools);
  return h("section", { class: `panel ${area}` }, head, ...children);
}

/** The color of a line, shown beside its name. */
export function swatch() {
  return h("span", { class: "swatch", "aria-hidden": "true" });
}

export function waiting() {
  return h("p", { class: "hint", text: "Asking the service\u2026" });
}

/** The text of a view without content: the state, and what to do about it. */
export function stateNote(title, sentence, ...more) {
  const said = [h("h1", { text: title }), h("p", { text: sentence })];
  return h("section", { class: "state" }, ...said, ...more);
}

/** A problem as a note in the reader's terms. */
export function problemNote(problem, what) {
  const home = h("p", {}, h("a", { href: "#/", text: "All runs" }));
  const gone = "It was deleted, or it never was on this service.";
  const again = "This page tries again by itself.";
  if (problem.status === 404) return stateNote(`${what} is not here`, gone, home);
  if (problem.status === 0) return stateNote("The service is not reached", again);
  return stateNote(problem.title ?? "The page has a defect", problem.message, home);
}

/** A group of exclusive choices: {value: label}, or values that are their own labels. */
export class Choice {
  constructor(label, choices, onChange) {
    this.buttons = new Map();
    this.element = h("div", { class: "choice", role: "group", "aria-label": label });
    const plain = Array.isArray(choices);
    for (const value of plain ? choices : Object.keys(choices)) {
      const text = plain ? value : choices[value];
      const button = h("button", { type: "button", text, on: { click: () => onChange(value) } });
      this.buttons.set(value, button);
      this.element.append(button);
    }
  }

  show(value, hidden = []) {
    for (const [name, button] of this.buttons) {
      button.setAttribute("aria-pressed", String(name === value));
      button.hidden = hidden.includes(name);
    }
  }
}

/** A column header that sorts: a button, with the order in `aria-sort`. */
export function sortHeader(label, key, onSort, properties = {}) {
  const button = h("button", { type: "button", text: label, on: { click: () => onSort(key) } });
  return h("th", { scope: "col", data: { key }, ...properties }, button);
}

export function showSort(row, sort) {
  const [key, down] = sort.startsWith("-") ? [sort.slice(1), true] : [sort, false];
  for (const cell of row.children) {
    if (!cell.dataset.key) continue;
    if (cell.dataset.key === key) cell.setAttribute("aria-sort", down ? "descending" : "ascending");
    else cell.removeAttribute("aria-sort");
  }
}

/** The order after a click on `key`: numbers descending, names ascending; then the reverse. */
export function nextSort(sort, key, textKeys = ["layer", "name"]) {
  const first = textKeys.includes(key) ? key : `-${key}`;
  if (sort === first) return first.startsWith("-") ? key : `-${key}`;
  return first;
}

/** Allow line breaks after the dots and slashes of a name, not within a number. */
export function breakable(name) {
  return name.split(/(?<=[./])(?=\D)/).flatMap((part, i) => (i ? [h("wbr"), part] : [part]));
}
