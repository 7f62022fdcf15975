// One plotly.js figure: sized by its box, with a step cursor, zoom along the steps and keys.

import { h } from "../document/dom.js";
import { color, onTheme } from "../document/theme.js";

let arrived = null;

/**
 * Load plotly.js at the first request, after tables are painted: parsing its 5 MB blocks the page
 * for most of a second. If it fails to load, the charts show that themselves.
 */
export function plotly() {
  arrived ??= new Promise((resolve, reject) => {
    const fail = () => reject(new Error("plotly.js could not be loaded"));
    const load = () => (globalThis.Plotly ? resolve(globalThis.Plotly) : fail());
    const { href: src } = /** @type {HTMLLinkElement} */ (document.getElementById("plotly"));
    afterPaint(() => document.head.append(h("script", { src, on: { load, error: fail } })));
  });
  return arrived;
}

function afterPaint(task) {
  requestAnimationFrame(() => setTimeout(task));
}

const CONFIG = { displayModeBar: false, doubleClick: false, showTips: false, responsive: false };
const CLICK_PIXELS = 4;

/** The left margin for layer names, equal in all figures of a column, so that steps line up. */
export function leftMargin(width) {
  return width < 560 ? 108 : 176;
}

/**
 * `handlers`: `zoom(from, to)` with null, null for all steps; `point(step, x, y)` while the pointer
 * is over the figure (nulls when it leaves); `pick(step, y)` at a click; `key(event)`.
 */
export class Chart {
  constructor(label, handlers = {}) {
    this.handlers = handlers;
    this.plot = h("div", { class: "plot", tabindex: "0", role: "group", "aria-label": label });
    this.cursor = h("div", { class: "cursor", hidden: true });
    this.note = h("p", { class: "chart-note", text: "Drawing\u2026" });
    this.element = h("div", { class: "chart" }, this.plot, this.cursor, this.note);
    this.figure = null;
    this.seconds = 0;
    this.listen();
    this.sizes = new ResizeObserver(() => this.resized());
    this.sizes.observe(this.element);
    this.unTheme = onTheme(() => this.redraw());
  }

  destroy() {
    this.gone = true;
    this.sizes.disconnect();
    this.unTheme();
    if (globalThis.Plotly && this.drawn) globalThis.Plotly.purge(this.plot);
  }

  /** Draw what `make(width)` returns: {data, layout}. Called again when size or colors change. */
  draw(make) {
    this.figure = make;
    return this.redraw();
  }

  /** Show a sentence instead of a figure. */
  say(sentence) {
    this.figure = null;
    this.note.textContent = sentence;
    this.note.hidden = false;
    this.plot.hidden = true;
  }

  async redraw() {
    if (!this.figure) return;
    let library;
    try {
      library = await plotly();
    } catch (error) {
      this.say(`${error.message}: the tables hold the same numbers.`);
      return;
    }
    const width = this.element.clientWidth;
    if (this.gone || !this.figure || width < 50) return;
    this.width = width;
    const begin = performance.now();
    const { data, layout } = this.figure(width);
    this.note.hidden = true;
    this.plot.hidden = false;
    await library.react(this.plot, data, { ...base(width), ...layout, width }, CONFIG);
    this.seconds = (performance.now() - begin) / 1000;
    if (!this.drawn) this.listenToPlotly();
    this.drawn = true;
    this.moveCursor(this.step);
  }

  resized() {
    if (this.figure && Math.abs(this.element.clientWidth - (this.width ?? 0)) > 1) this.redraw();
  }

  /** Move the step cursor to `step`, as in every other figure; null hides it. */
  moveCursor(step) {
    this.step = step;
    const axis = this.axis("xaxis");
    const at = axis && step !== null && step !== undefined ? axis.l2p(step) : -1;
    this.cursor.hidden = !(at >= 0 && at <= axis._length);
    if (!this.cursor.hidden) this.cursor.style.transform = `translateX(${axis._offset + at}px)`;
  }

  // The internal axes of plotly.js: it has no public conversion from pixels to steps.
  axis(name) {
    return this.plot._fullLayout?.[name];
  }

  /** The data coordinates of a mouse event, null outside the axes. */
  place(event) {
    const [xaxis, yaxis] = [this.axis("xaxis"), this.axis("yaxis")];
    if (!xaxis || !yaxis) return null;
    const box = this.plot.getBoundingClientRect();
    const x = event.clientX - box.left - xaxis._offset;
    const y = event.clientY - box.top - yaxis._offset;
    if (x < 0 || x > xaxis._length || event.clientY < box.top) return null;
    return { step: xaxis.p2l(x), y: y >= 0 && y <= yaxis._length ? yaxis.p2l(y) : null };
  }

  listen() {
    this.plot.addEventListener("mousemove", (event) => {
      const place = this.place(event);
      this.handlers.point?.(place ? place.step : null, place?.y ?? null);
    });
    this.plot.addEventListener("mouseleave", () => this.handlers.point?.(null, null));
    this.plot.addEventListener("keydown", (event) => this.handlers.key?.(event));
    this.plot.addEventListener("pointerdown", (event) => this.pressed(event), true);
  }

  /** A press without movement is a click; with movement it is plotly's zoom. */
  pressed(down) {
    const up = (event) => {
      const moved = Math.hypot(event.clientX - down.clientX, event.clientY - down.clientY);
      const place = moved < CLICK_PIXELS ? this.place(down) : null;
      if (place && place.y !== null) this.handlers.pick?.(place.step, place.y);
    };
    window.addEventListener("pointerup", up, { once: true, capture: true });
  }

  listenToPlotly() {
    this.plot.on("plotly_relayout", (change) => {
      const from = change["xaxis.range[0]"] ?? change["xaxis.range"]?.[0];
      const to = change["xaxis.range[1]"] ?? change["xaxis.range"]?.[1];
      if (from !== undefined && to !== undefined) {
        this.handlers.zoom?.(Math.max(0, Math.floor(from)), Math.max(0, Math.ceil(to)));
      }
    });
    this.plot.on("plotly_doubleclick", () => this.handlers.zoom?.(null, null));
  }
}

/** The common layout. Touch scrolls the page: zoom on touch is by buttons, not by dragging. */
function base(width) {
  return {
    autosize: false,
    margin: { l: leftMargin(width), r: 12, t: 8, b: 34 },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: color("well"),
    font: { family: color("font"), size: 11, color: color("dim") },
    showlegend: false,
    hovermode: false,
    dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
    uirevision: "fixed",
  };
}

/** The step axis, the same in every figure. */
export function stepAxis(range, more = {}) {
  return {
    range,
    title: { text: "step", standoff: 4 },
    tickformat: ",d",
    nticks: 8,
    showgrid: false,
    zeroline: false,
    linecolor: color("line"),
    ticks: "outside",
    ticklen: 3,
    tickcolor: color("line"),
    fixedrange: false,
    ...more,
  };
}

export function valueAxis(more = {}) {
  return {
    ticklabelstandoff: 4,
    gridcolor: color("grid"),
    zeroline: false,
    nticks: 6,
    fixedrange: true,
    exponentformat: "power",
    ...more,
  };
}
