// The address: the hash holds the whole state of a view, for links and the back button.

export const MOST_COMPARED = 50;

/**
 * What an address says, and what is enough to write one.
 * @typedef {{view: string, runs: string[], query: URLSearchParams}} Route
 * @typedef {{view: string, runs?: string[], query?: URLSearchParams | null}} Target
 */

/**
 * Parse a hash: `#/`, `#/runs/RUN?layer=..&from=..`, `#/compare/A/B?..`.
 * Names are percent-encoded, so that / % # and ? in them stay part of the name.
 * @param {string} hash
 * @returns {Route}
 */
export function parse(hash) {
  const text = hash.replace(/^#/, "");
  const cut = text.indexOf("?");
  const path = cut < 0 ? text : text.slice(0, cut);
  const query = new URLSearchParams(cut < 0 ? "" : text.slice(cut + 1));
  let parts;
  try {
    parts = path.split("/").filter(Boolean).map(decodeURIComponent);
  } catch {
    return { view: "unknown", runs: [], query };
  }
  const [view, ...runs] = parts;
  if (view === undefined) return { view: "runs", runs: [], query };
  if (view === "runs" && runs.length === 1) return { view: "run", runs, query };
  if (view === "compare" && runs.length >= 1) return { view: "compare", runs, query };
  return { view: "unknown", runs: [], query };
}

/** @param {Target} target */
export function format({ view, runs = [], query = null }) {
  const names = runs.map(encodeURIComponent).join("/");
  const path = view === "run" ? `/runs/${names}` : view === "compare" ? `/compare/${names}` : "/";
  const text = query ? query.toString() : "";
  return `#${path}${text ? `?${text}` : ""}`;
}

/** @param {string} run */
export function runLink(run) {
  return format({ view: "run", runs: [run] });
}

/**
 * Go somewhere that Back comes back from.
 * @param {Target} target
 */
export function go(target) {
  location.hash = format(target);
}

/**
 * Note a detail (filter, order, chosen layers) in the address without a new entry in history.
 * @param {Target} target
 */
export function amend(target) {
  history.replaceState(null, "", format(target));
}

/**
 * A copy of `query` with some parameters set (null removes; arrays repeat).
 * @typedef {string | number | null | undefined} Value
 * @param {URLSearchParams} query
 * @param {Record<string, Value | Value[]>} changes
 */
export function withQuery(query, changes) {
  const copy = new URLSearchParams(query);
  for (const [name, value] of Object.entries(changes)) {
    copy.delete(name);
    for (const one of Array.isArray(value) ? value : [value]) {
      if (one !== null && one !== undefined && one !== "") copy.append(name, String(one));
    }
  }
  return copy;
}
