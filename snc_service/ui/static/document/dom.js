// Creating and updating elements. Text is always inserted as text: no markup is ever parsed.

/**
 * Create an element. `properties`: `class`, `text`, `data` (dataset), `on` (listeners by event);
 * anything else is an attribute. Null, undefined and false omit an attribute.
 */
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "class") element.className = value;
    else if (name === "text") element.textContent = value;
    else if (name === "data") Object.assign(element.dataset, value);
    else if (name === "on") {
      for (const event of Object.keys(value)) element.addEventListener(event, value[event]);
    } else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** Set text only if it differs, which keeps selections and does not alert screen readers. */
export function setText(node, text) {
  const value = String(text);
  if (node.textContent !== value) node.textContent = value;
}

export function setAttribute(node, name, value) {
  if (value === null || value === undefined || value === false) node.removeAttribute(name);
  else if (node.getAttribute(name) !== String(value)) node.setAttribute(name, value);
}

/**
 * Make `parent`'s children match `items`, one element per key. Elements are created once, updated
 * in place and moved only when the order changes, so focus and scroll position are kept.
 */
export function keyed(parent, items, key, make, update) {
  const known = (parent.keyedElements ??= new Map());
  const wanted = new Set(items.map(key));
  for (const [name, element] of known) {
    if (!wanted.has(name)) {
      element.remove();
      known.delete(name);
    }
  }
  let place = parent.firstElementChild;
  for (const item of items) {
    let element = known.get(key(item));
    if (!element) {
      element = make(item);
      known.set(key(item), element);
    }
    update(element, item);
    if (element === place) place = place.nextElementSibling;
    else parent.insertBefore(element, place);
  }
}

let announcer = null;

/** Announce a change of state to screen readers, but never values, which change too often. */
export function announce(sentence) {
  announcer ??= document.getElementById("announcer");
  announcer.textContent = sentence;
}

export function quietButton(text, click, properties = {}) {
  return h("button", { type: "button", class: "quiet", text, on: { click }, ...properties });
}

/** A button that copies `text()` and confirms it. */
export function copyButton(text, label) {
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(text());
      setText(button, "Copied");
    } catch {
      setText(button, "Copy by hand");
    }
    setTimeout(() => setText(button, "Copy"), 1500);
  };
  const button = quietButton("Copy", copy, { "aria-label": label });
  return button;
}

/** Move the focus between the rows of a table with j and k or the arrow keys. */
export function rowKeys(body, selector) {
  body.addEventListener("keydown", (event) => {
    const move = { j: 1, ArrowDown: 1, k: -1, ArrowUp: -1 }[event.key];
    if (!move || event.ctrlKey || event.metaKey || event.altKey) return;
    const stops = [...body.querySelectorAll(selector)];
    const row = event.target.closest("tr");
    const at = stops.findIndex((stop) => stop.closest("tr") === row);
    const next = stops[at + move];
    if (next) {
      next.focus();
      event.preventDefault();
    }
  });
}
