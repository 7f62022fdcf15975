// The text of a query for runs: its parts, and the part that a selector sets.

/**
 * The parts of a query: spaces inside double quotes do not part it.
 * @param {string} text
 */
export function parts(text) {
  return text.match(/(?:[^\s"]|"[^"]*(?:"|$))+/g) ?? [];
}

/**
 * The value of the first part `field:value`, "" if there is none.
 * @param {string} text
 * @param {string} field
 */
export function termOf(text, field) {
  const found = parts(text).find((part) => part.startsWith(`${field}:`));
  return found === undefined ? "" : found.slice(field.length + 1).replaceAll('"', "");
}

/**
 * The query with `field:value` in place of its first part about the field; "" removes it.
 * @param {string} text
 * @param {string} field
 * @param {string} value
 */
export function withTerm(text, field, value) {
  const term = value === "" ? [] : [`${field}:${quoted(value)}`];
  const all = parts(text);
  const at = all.findIndex((part) => part.startsWith(`${field}:`));
  const [before, after] = at < 0 ? [all, []] : [all.slice(0, at), all.slice(at + 1)];
  return [...before, ...term, ...after].join(" ");
}

/** @param {string} value */
function quoted(value) {
  // A quote itself cannot be written in a query: any one letter stands for it.
  const plain = value.replaceAll('"', "?");
  return /\s/.test(plain) ? `"${plain}"` : plain;
}
