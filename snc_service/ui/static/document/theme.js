// The theme: light, dark, or that of the system. Charts read their colors from the style sheet.

const ORDER = ["auto", "light", "dark"];
const listeners = new Set();

export function startTheme(button) {
  apply(stored(), button);
  button.addEventListener("click", () => {
    const next = ORDER[(ORDER.indexOf(stored()) + 1) % ORDER.length];
    try {
      localStorage.setItem("snc-theme", next);
    } catch {
      // Storage may be blocked; the choice then lasts as long as the page.
      document.documentElement.dataset.choice = next;
    }
    apply(next, button);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", tell);
}

/** Call `listener` whenever colors change; returns a function that unsubscribes it. */
export function onTheme(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

export function color(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

/** The colors of up to eight chosen layers or runs. */
export function seriesColor(index) {
  return color(`series-${(index % 8) + 1}`);
}

function stored() {
  try {
    return localStorage.getItem("snc-theme") ?? "auto";
  } catch {
    return document.documentElement.dataset.choice ?? "auto";
  }
}

function apply(theme, button) {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  button.textContent = `Theme: ${theme}`;
  tell();
}

function tell() {
  for (const listener of listeners) listener();
}
