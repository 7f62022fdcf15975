// What a figure shows, as a table in a file.

/**
 * A cell of CSV. What a spreadsheet would read as a formula gets an apostrophe in front.
 * @param {string | number | null | undefined} value
 */
export function cell(value) {
  if (value === null || value === undefined) return "";
  if (typeof value === "number") return String(value);
  const text = /^[=+\-@\t\r]/.test(value) ? `'${value}` : value;
  return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

/**
 * Rows of cells as CSV.
 * @param {(string | number | null | undefined)[][]} rows
 */
export function csv(rows) {
  return rows.map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
}

/**
 * The lines of a figure, a row for each point: its line, its step, mean, min and max.
 * @param {{name?: string, history?: {steps: number[], mean: (number | null)[],
 *   min: (number | null)[], max: (number | null)[]}}[]} data
 */
export function csvOf(data) {
  const lines = data.flatMap(({ name, history }) => (name && history ? [{ name, history }] : []));
  const rows = lines.flatMap(({ name, history: { steps, mean, min, max } }) =>
    steps.map((step, i) => [name, step, mean[i], min[i], max[i]]));
  return csv([["line", "step", "mean", "min", "max"], ...rows]);
}

/**
 * Save a blob as a file, under a name without letters that file systems refuse.
 * @param {Blob | null} blob
 * @param {string} name
 */
export function save(blob, name) {
  if (!blob) return;
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name.replace(/[^\p{L}\p{N}._-]+/gu, "-");
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
