// One figure on a canvas: axes, lines, bands, points and the cells of a heatmap over one step axis.

import { color } from "../../document/theme.js";
import { cover, pixels } from "./raster.js";
import { linearTicks, logTicks } from "./ticks.js";

/**
 * A trace of lines and markers, or of cells.
 * @typedef {{type: "scatter", mode: string, x: number[], y: (number | null)[], yaxis?: string,
 *   low?: number[], high?: number[], line?: {color?: string, width?: number, dash?: string, shape?: string}, fill?: string,
 *   fillcolor?: string, marker?: any} | {type: "cells", edges: number[], places: Float32Array,
 *   rows: number, colors: Uint32Array}} Trace
 * @typedef {{offset: number, length: number, toPixel: (value: number) => number,
 *   toValue: (pixel: number) => number}} Axis
 */

const DASHES = { dash: [6, 4], solid: [] };
const FONT_PIXELS = 11;
const FINGER = 5; // pixels around the paths of markers

/**
 * Draw `data` by `layout` on `canvas`, `width` pixels wide. Returns the axes, to find what is under
 * the pointer.
 */
export function drawFigure(canvas, { data, layout }, width) {
  const ratio = globalThis.devicePixelRatio || 1;
  const { height, margin } = layout;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  const pen = canvas.getContext("2d");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.font = `${FONT_PIXELS}px ${color("font")}`;
  const area = {
    left: margin.l,
    top: margin.t,
    width: Math.max(width - margin.l - margin.r, 1),
    height: height - margin.t - margin.b,
  };
  const xaxis = xAxis(layout.xaxis, area);
  const yaxes = new Map(yNames(layout).map((name) => [name, yAxis(layout[name], area, data, name)]));
  for (const yaxis of yaxes.values()) drawBack(pen, area, yaxis);
  for (const trace of data) {
    const yaxis = yaxes.get(`yaxis${(trace.yaxis ?? "y").slice(1)}`);
    pen.save();
    pen.beginPath();
    const spare = yaxis.open ? FINGER : 0;
    pen.rect(area.left - spare, yaxis.offset - spare, area.width + 2 * spare, yaxis.length + 2 * spare);
    pen.clip();
    if (trace.type === "cells") drawCells(pen, trace, area, xaxis, yaxis, layout.xaxis.range, ratio);
    else drawScatter(pen, trace, xaxis, yaxis);
    pen.restore();
  }
  drawSteps(pen, layout.xaxis, area, xaxis);
  for (const shape of layout.shapes ?? []) {
    const yaxis = yaxes.get("yaxis");
    pen.fillStyle = shape.ink;
    const [top, bottom] = [yaxis.toPixel(shape.from), yaxis.toPixel(shape.to)];
    pen.fillRect(area.left - 7, top, 6, Math.max(bottom - top, 2));
  }
  for (const { text, y } of layout.titles ?? []) drawTitle(pen, text, area, area.top + (1 - y) * area.height);
  return { xaxis, yaxis: yaxes.get("yaxis"), yaxes, area };
}

function yNames(layout) {
  return Object.keys(layout).filter((name) => name.startsWith("yaxis"));
}

/** @returns {Axis} */
function xAxis({ range: [low, high] }, { left, width }) {
  const scale = width / (high - low || 1);
  return {
    offset: left,
    length: width,
    toPixel: (value) => left + (value - low) * scale,
    toValue: (pixel) => low + (pixel - left) / scale,
  };
}

function yAxis(axis, area, data, name) {
  const [bottom, top] = axis.domain ?? [0, 1];
  const [offset, length] = [area.top + (1 - top) * area.height, (top - bottom) * area.height];
  const log = axis.type === "log";
  const [low, high] = axis.range ?? valueRange(data, name, axis);
  const place = log ? Math.log10 : (value) => value;
  const [from, to] = [place(low), place(high)];
  const scale = length / (to - from || 1);
  return {
    ...axis,
    offset,
    length,
    low,
    high,
    open: Boolean(axis.tickvals),
    toPixel: (value) => offset + length - (place(value) - from) * scale,
    toValue: (pixel) => {
      const value = from + (offset + length - pixel) / scale;
      return log ? 10 ** value : value;
    },
  };
}

/** The values of an axis without a range of its own: all that is drawn on it, and a little more. */
function valueRange(data, name, axis) {
  let [low, high] = [Infinity, -Infinity];
  for (const trace of data) {
    if (trace.type === "cells" || `yaxis${(trace.yaxis ?? "y").slice(1)}` !== name) continue;
    for (const value of [...trace.y, ...(trace.low ?? [])]) {
      if (value === null || value === undefined || (axis.type === "log" && value <= 0)) continue;
      if (value < low) low = value;
      if (value > high) high = value;
    }
  }
  if (low > high) return axis.type === "log" ? [1, 10] : [0, 1];
  if (axis.type === "log") return low < high ? [low / 1.1, high * 1.1] : [low / 2, high * 2];
  if (axis.rangemode === "tozero") [low, high] = [Math.min(low, 0), Math.max(high, 0)];
  const spare = (high - low || Math.abs(high) || 1) * 0.06;
  return [low < 0 || axis.rangemode !== "tozero" ? low - spare : low, high + spare];
}

function drawBack(pen, area, yaxis) {
  pen.fillStyle = color("well");
  pen.fillRect(area.left, yaxis.offset, area.width, yaxis.length);
  pen.textAlign = "right";
  pen.textBaseline = "middle";
  const room = Math.max(2, Math.min(7, Math.floor(yaxis.length / 26)));
  const ticks = yaxis.tickvals
    ? yaxis.tickvals.map((at, i) => ({ at, text: yaxis.ticktext[i] }))
    : (yaxis.type === "log" ? logTicks : linearTicks)(yaxis.low, yaxis.high, room);
  for (const { at, text } of ticks) {
    const y = yaxis.toPixel(at);
    if (!yaxis.tickvals) {
      pen.fillStyle = color("grid");
      pen.fillRect(area.left, Math.round(y), area.width, 1);
    }
    pen.fillStyle = color("dim");
    pen.fillText(text, area.left - (yaxis.ticklabelstandoff ?? 4) - 2, y);
  }
}

function drawSteps(pen, axis, area, xaxis) {
  const base = area.top + area.height;
  const [low, high] = axis.range;
  pen.fillStyle = color("line");
  pen.fillRect(area.left, base, area.width, 1);
  pen.textAlign = "center";
  pen.textBaseline = "top";
  const most = Math.max(3, Math.min(8, Math.floor(area.width / 80)));
  const ticks = axis.ticks?.(low, high, most) ?? linearTicks(low, high, most, true);
  for (const { at, text } of ticks) {
    const x = xaxis.toPixel(at);
    pen.fillStyle = color("strong-line");
    pen.fillRect(Math.round(x), base, 1, 3);
    pen.fillStyle = color("dim");
    const half = pen.measureText(text).width / 2;
    pen.fillText(text, Math.min(x, area.left + area.width + 12 - half), base + 5);
  }
  pen.fillText(axis.title ?? "step", area.left + area.width / 2, base + 19);
}

function drawTitle(pen, text, area, y) {
  pen.save();
  pen.fillStyle = color("ink");
  pen.textAlign = "right";
  pen.textBaseline = "middle";
  pen.font = `12px ${color("font")}`;
  pen.fillText(text, area.left - 48, y);
  pen.restore();
}

function drawCells(pen, trace, area, xaxis, yaxis, [low, high], ratio) {
  const { edges, places, rows, colors } = trace;
  const [wide, high_] = [Math.round(area.width * ratio), Math.round(yaxis.length * ratio)];
  const lines = Float64Array.from({ length: rows + 1 }, (_, row) => row - 0.5);
  const [top, bottom] = [yaxis.high, yaxis.low];
  const down = cover(lines, top, bottom, high_);
  if (yaxis.length / (bottom - top) >= 10) gaps(down);
  const across = cover(edges, low, high, wide);
  const image = new ImageData(new Uint8ClampedArray(pixels(places, edges.length - 1, across, down, colors).buffer), wide, high_);
  const layer = new OffscreenCanvas(wide, high_);
  layer.getContext("2d").putImageData(image, 0, 0);
  pen.imageSmoothingEnabled = false;
  pen.drawImage(layer, xaxis.offset, yaxis.offset, area.width, yaxis.length);
}

/** Leave the last line of pixels of each row empty. */
function gaps(down) {
  for (let y = 0; y + 1 < down.length / 2; y += 1) {
    if (down[2 * y] !== down[2 * y + 2]) down[2 * y] = down[2 * y + 1] = -1;
  }
}

function drawScatter(pen, trace, xaxis, yaxis) {
  const { x, y, mode, line = {}, marker, fill } = trace;
  const at = x.map((value, i) => (value === null || y[i] === null || y[i] === undefined
    ? null : [xaxis.toPixel(value), yaxis.toPixel(y[i])]));
  if (fill) drawBand(pen, trace, xaxis, yaxis);
  if (mode.includes("lines") && line.width !== 0) {
    pen.strokeStyle = line.color;
    pen.lineWidth = line.width ?? 1;
    pen.lineJoin = "round";
    pen.setLineDash(DASHES[line.dash] ?? []);
    pen.beginPath();
    let before = null;
    for (const point of at) {
      if (point === null) before = null;
      else {
        if (before === null) pen.moveTo(...point);
        else {
          if (line.shape === "hv") pen.lineTo(point[0], before[1]);
          pen.lineTo(...point);
        }
        before = point;
      }
    }
    pen.stroke();
    pen.setLineDash([]);
  }
  if (!mode.includes("markers")) return;
  const of = (value, i) => (Array.isArray(value) ? value[i] : value);
  at.forEach((point, i) => {
    const size = of(marker.size, i);
    if (point === null || !size) return;
    drawMark(pen, of(marker.symbol, i) ?? "circle", point, size, of(marker.color, i), marker.line);
  });
}

function drawBand(pen, { x, low, high, fillcolor }, xaxis, yaxis) {
  pen.fillStyle = fillcolor;
  pen.beginPath();
  x.forEach((value, i) => pen.lineTo(xaxis.toPixel(value), yaxis.toPixel(high[i])));
  for (let i = x.length - 1; i >= 0; i -= 1) pen.lineTo(xaxis.toPixel(x[i]), yaxis.toPixel(low[i]));
  pen.fill();
}

// Each around (0, 0), within a square of side 2.
const SHAPES = {
  "triangle-up": [[0, -1], [0.95, 0.75], [-0.95, 0.75]],
  "triangle-left": [[-1, 0], [0.75, -0.95], [0.75, 0.95]],
  diamond: [[0, -1.1], [1.1, 0], [0, 1.1], [-1.1, 0]],
  square: [[-0.85, -0.85], [0.85, -0.85], [0.85, 0.85], [-0.85, 0.85]],
  cross: [
    [-0.35, -1], [0.35, -1], [0.35, -0.35], [1, -0.35], [1, 0.35], [0.35, 0.35],
    [0.35, 1], [-0.35, 1], [-0.35, 0.35], [-1, 0.35], [-1, -0.35], [-0.35, -0.35],
  ],
};
const TURNED = SHAPES.cross.map(([x, y]) => [(x - y) * 0.72, (x + y) * 0.72]);

function drawMark(pen, symbol, [x, y], size, ink, edge) {
  const half = size / 2;
  pen.beginPath();
  const shape = symbol === "x" ? TURNED : SHAPES[symbol];
  if (shape) for (const [dx, dy] of shape) pen.lineTo(x + dx * half, y + dy * half);
  else pen.arc(x, y, half, 0, 2 * Math.PI);
  pen.closePath();
  pen.fillStyle = ink;
  pen.fill();
  if (!edge?.width) return;
  pen.strokeStyle = edge.color;
  pen.lineWidth = edge.width;
  pen.stroke();
}
