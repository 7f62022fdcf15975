// One figure: sized by its box, with a step cursor, zoom by dragging, keys, and export.

import { h, quietButton } from "../document/dom.js";
import { onTheme } from "../document/theme.js";
import { csvOf, save } from "./canvas/export.js";
import { drawFigure } from "./canvas/figure.js";

const CLICK_PIXELS = 4;
const ROW_DRAG = 12; // pixels up or down before a drag also chooses rows

/** The left margin for layer names, equal in all figures of a column, so that steps line up. */
export function leftMargin(width) {
  return width < 560 ? 108 : 176;
}

/**
 * `handlers`: `zoom(from, to)` with null, null for all steps; `rows(from, to)` if rows can be chosen;
 * `point(step, y)` while the pointer is over the figure (nulls when it leaves); `pick(step, y)` at a
 * click; `key(event)`.
 */
export class Chart {
  constructor(label, handlers = {}) {
    this.handlers = handlers;
    this.label = label;
    this.canvas = h("canvas");
    this.plot = h("div", { class: "plot", tabindex: "0", role: "group", "aria-label": label }, this.canvas);
    this.cursor = h("div", { class: "cursor", hidden: true });
    this.frame = h("div", { class: "drag", hidden: true });
    this.note = h("p", { class: "chart-note", text: "Drawing\u2026" });
    this.exports = h("div", { class: "exports" },
      quietButton("CSV", () => this.saveCsv(), { "aria-label": `CSV of ${this.name()}`, title: "Save what is drawn as CSV" }),
      quietButton("PNG", () => this.savePng(), { "aria-label": `PNG of ${this.name()}`, title: "Save the picture" }));
    this.element = h("div", { class: "chart" }, this.plot, this.cursor, this.frame, this.exports, this.note);
    this.make = null;
    this.seconds = 0;
    this.listen();
    this.sizes = new ResizeObserver(() => this.resized());
    this.sizes.observe(this.element);
    this.unTheme = onTheme(() => this.redraw());
  }

  name() {
    return this.label.split(":")[0];
  }

  destroy() {
    this.gone = true;
    this.sizes.disconnect();
    this.unTheme();
  }

  /** Draw what `make(width)` returns: {data, layout}. Called again when size or colors change. */
  draw(make) {
    this.make = make;
    this.redraw();
  }

  /** Show a sentence instead of a figure. */
  say(sentence) {
    this.make = null;
    this.note.textContent = sentence;
    this.note.hidden = false;
    this.plot.hidden = this.exports.hidden = this.cursor.hidden = true;
  }

  redraw() {
    const width = this.element.clientWidth;
    if (!this.make || this.gone || width < 50) return;
    this.width = width;
    const begin = performance.now();
    this.note.hidden = true;
    this.plot.hidden = this.exports.hidden = false;
    const { data, layout } = this.make(width);
    const whole = { ...layout, margin: layout.margin ?? { l: leftMargin(width), r: 12, t: 8, b: 34 } };
    const axes = drawFigure(this.canvas, { data, layout: whole }, width);
    /** What is drawn, also for whoever looks at the element. */
    this.plot.figure = { data, layout: whole, ...axes };
    this.seconds = (performance.now() - begin) / 1000;
    this.moveCursor(this.step);
  }

  get drawn() {
    return this.plot.figure;
  }

  resized() {
    if (this.make && Math.abs(this.element.clientWidth - (this.width ?? 0)) > 1) this.redraw();
  }

  /** Move the step cursor to `step`, as in every other figure; null hides it. */
  moveCursor(step) {
    this.step = step;
    const axis = this.drawn?.xaxis;
    const at = axis && step !== null && step !== undefined ? axis.toPixel(step) : -1;
    this.cursor.hidden = this.plot.hidden || !(axis && at >= axis.offset && at <= axis.offset + axis.length);
    if (!this.cursor.hidden) this.cursor.style.transform = `translateX(${at}px)`;
  }

  /** The data coordinates of a mouse event, null outside the axes. */
  place(event) {
    if (!this.drawn) return null;
    const { xaxis, yaxis } = this.drawn;
    const box = this.plot.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    if (x < xaxis.offset || x > xaxis.offset + xaxis.length || y < 0) return null;
    const inside = y >= yaxis.offset && y <= yaxis.offset + yaxis.length;
    return { step: xaxis.toValue(x), y: inside ? yaxis.toValue(y) : null, x, top: y };
  }

  listen() {
    this.plot.addEventListener("mousemove", (event) => {
      const place = this.place(event);
      this.handlers.point?.(place ? place.step : null, place?.y ?? null);
    });
    this.plot.addEventListener("mouseleave", () => this.handlers.point?.(null, null));
    this.plot.addEventListener("keydown", (event) => this.handlers.key?.(event));
    this.plot.addEventListener("dblclick", () => this.handlers.zoom?.(null, null));
    this.plot.addEventListener("pointerdown", (event) => this.pressed(event));
  }

  /** A press without movement is a click; with movement it zooms. Touch scrolls the page instead. */
  pressed(down) {
    const from = this.place(down);
    if (!from || down.button) return;
    const move = (event) => this.showFrame(from, this.clamped(event));
    const up = (event) => {
      removeEventListener("pointermove", move);
      this.frame.hidden = true;
      const moved = Math.hypot(event.clientX - down.clientX, event.clientY - down.clientY);
      if (moved < CLICK_PIXELS) {
        if (from.y !== null) this.handlers.pick?.(from.step, from.y);
      } else if (down.pointerType !== "touch") this.dragged(from, this.clamped(event));
    };
    if (down.pointerType !== "touch") addEventListener("pointermove", move);
    addEventListener("pointerup", up, { once: true });
    addEventListener("pointercancel", () => {
      removeEventListener("pointermove", move);
      removeEventListener("pointerup", up);
      this.frame.hidden = true;
    }, { once: true });
  }

  /** Where a pointer is, kept within the axes. */
  clamped(event) {
    const { xaxis, yaxis } = this.drawn;
    const box = this.plot.getBoundingClientRect();
    const x = Math.min(Math.max(event.clientX - box.left, xaxis.offset), xaxis.offset + xaxis.length);
    const top = Math.min(Math.max(event.clientY - box.top, yaxis.offset), yaxis.offset + yaxis.length);
    return { x, top, step: xaxis.toValue(x), y: yaxis.toValue(top) };
  }

  choosesRows(from, to) {
    return Boolean(this.handlers.rows) && from.y !== null && Math.abs(to.top - from.top) >= ROW_DRAG;
  }

  choosesSteps(from, to) {
    return Math.abs(to.x - from.x) >= CLICK_PIXELS * 2;
  }

  showFrame(from, to) {
    const { area } = this.drawn;
    const [rows, steps] = [this.choosesRows(from, to), this.choosesSteps(from, to)];
    this.frame.hidden = !rows && !steps;
    const [left, right] = steps ? [Math.min(from.x, to.x), Math.max(from.x, to.x)] : [area.left, area.left + area.width];
    const [top, bottom] = rows ? [Math.min(from.top, to.top), Math.max(from.top, to.top)] : [area.top, area.top + area.height];
    this.frame.style.transform = `translate(${left}px, ${top}px)`;
    this.frame.style.width = `${right - left}px`;
    this.frame.style.height = `${bottom - top}px`;
  }

  dragged(from, to) {
    if (this.choosesRows(from, to)) {
      const ends = [Math.round(from.y), Math.round(to.y)];
      this.handlers.rows(Math.min(...ends), Math.max(...ends));
    }
    if (this.choosesSteps(from, to)) {
      const [low, high] = [Math.min(from.step, to.step), Math.max(from.step, to.step)];
      this.handlers.zoom?.(Math.max(0, Math.floor(low)), Math.max(0, Math.ceil(high)));
    }
  }

  saveCsv() {
    const text = (this.handlers.csv ?? (() => csvOf(this.drawn.data)))();
    save(new Blob([text], { type: "text/csv" }), `${this.name()}.csv`);
  }

  savePng() {
    this.canvas.toBlob((blob) => save(blob, `${this.name()}.png`));
  }
}

/** The step axis, the same in every figure. */
export function stepAxis(range, more = {}) {
  return { range, title: "step", ...more };
}
