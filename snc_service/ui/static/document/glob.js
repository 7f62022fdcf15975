// Layer patterns as the policy reads them (shell globs, case-sensitive): what would they match?

export function globToRegExp(pattern) {
  let text = "";
  for (let i = 0; i < pattern.length; i += 1) {
    const letter = pattern[i];
    if (letter === "*") text += ".*";
    else if (letter === "?") text += ".";
    else if (letter === "[") {
      const close = pattern.indexOf("]", pattern[i + 1] === "!" ? i + 3 : i + 2);
      if (close < 0) text += "\\[";
      else {
        text += set(pattern.slice(i + 1, close));
        i = close;
      }
    } else text += letter.replace(/[.+^${}()|\\/\]-]/g, "\\$&");
  }
  return new RegExp(`^${text}$`, "su");
}

function set(inside) {
  const negated = inside.startsWith("!");
  const letters = inside.slice(negated ? 1 : 0).replace(/[\\[\]^]/g, "\\$&");
  return `[${negated ? "^" : ""}${letters}]`;
}

/** A slice such as `attn.in_proj_weight[q]` is also matched by the name of its whole weight. */
export function matches(pattern, layer) {
  let expression;
  try {
    expression = globToRegExp(pattern);
  } catch {
    return false;
  }
  return expression.test(layer) || expression.test(layer.split("[", 1)[0]);
}
