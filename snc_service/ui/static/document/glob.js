// Layer patterns of a policy (shell globs, case-sensitive), for a preview of their matches.

/** @param {string} pattern */
export function globToRegExp(pattern) {
  const [first, ...others] = pieces(pattern);
  const last = others.pop();
  // Each piece between two stars is matched where it comes first, for good: a plain .* would try
  // all places of all pieces, without end for a pattern such as *a*a*a*a*b.
  const middle = others.map((piece, i) => `(?=(.*?${piece}))\\${i + 1}`).join("");
  return new RegExp(`^${first}${middle}${last === undefined ? "" : `.*${last}`}$`, "su");
}

/**
 * The parts of a pattern between its stars, as regular expressions.
 * @param {string} pattern
 */
function pieces(pattern) {
  const found = [""];
  for (let i = 0; i < pattern.length; i += 1) {
    const letter = pattern[i];
    const at = found.length - 1;
    if (letter === "*") {
      if (at === 0 || found[at] !== "") found.push("");
    } else if (letter === "?") found[at] += ".";
    else if (letter === "[") {
      const close = pattern.indexOf("]", pattern[i + 1] === "!" ? i + 3 : i + 2);
      if (close < 0) found[at] += "\\[";
      else {
        found[at] += set(pattern.slice(i + 1, close));
        i = close;
      }
    } else found[at] += letter.replace(/[.+^${}()|\\/\]]/, "\\$&");
  }
  return found;
}

/**
 * A set as a regular expression; a range that runs backwards holds no letter.
 * @param {string} inside
 */
function set(inside) {
  const negated = inside.startsWith("!");
  const letters = [...inside.slice(negated ? 1 : 0)];
  const escaped = (/** @type {string} */ letter) => letter.replace(/[\\\]^-]/, "\\$&");
  let text = "";
  for (let i = 0; i < letters.length; i += 1) {
    const [low, high] = [letters[i], letters[i + 2]];
    if (letters[i + 1] === "-" && high !== undefined) {
      if (low <= high) text += `${escaped(low)}-${escaped(high)}`;
      i += 2;
    } else text += escaped(low);
  }
  return `[${negated ? "^" : ""}${text}]`;
}

/**
 * Whether a policy entry with this pattern speaks of `layer`. A slice such as
 * `attn.in_proj_weight[q]` is also matched by the name of its whole weight.
 * @param {string} pattern
 * @param {string} layer
 */
export function matches(pattern, layer) {
  try {
    const expression = globToRegExp(pattern);
    return expression.test(layer) || expression.test(layer.split("[", 1)[0]);
  } catch {
    return false; // more than a regular expression can hold
  }
}
