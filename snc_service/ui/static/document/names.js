// Names of layers in little room: without what all of them begin and end with.

import { shortName } from "./format.js";

/**
 * How many letters all names share at their beginning and at their end, in whole parts between dots.
 * @param {string[]} names
 * @returns {{prefix: string, suffix: string}}
 */
export function common(names) {
  if (names.length < 2) return { prefix: "", suffix: "" };
  const parts = names.map((name) => name.split(/(?<=[./])|(?=[./])/));
  const least = Math.min(...parts.map((part) => part.length));
  let head = 0;
  while (head < least - 1 && parts.every((part) => part[head] === parts[0][head])) head += 1;
  // A part that is only a dot stays with what follows it.
  while (head > 0 && !/[./]$/.test(parts[0][head - 1])) head -= 1;
  let tail = 0;
  const at = (/** @type {string[]} */ part, /** @type {number} */ i) => part[part.length - 1 - i];
  while (tail < least - head - 1 && parts.every((part) => at(part, tail) === at(parts[0], tail))) tail += 1;
  while (tail > 0 && !/^[./]/.test(at(parts[0], tail - 1))) tail -= 1;
  return {
    prefix: parts[0].slice(0, head).join(""),
    suffix: tail ? parts[0].slice(-tail).join("") : "",
  };
}

/**
 * Each name in at most `letters` letters, without the common beginning and end.
 * @param {string[]} names
 * @param {number} letters
 */
export function shortNames(names, letters) {
  const { prefix, suffix } = common(names);
  return names.map((name) => shortName(name.slice(prefix.length, name.length - suffix.length), letters));
}
