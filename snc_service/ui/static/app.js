// The start of the page: selects the view by the address, handles the top bar and keys.

import { CompareView } from "./views/compare.js";
import { h } from "./document/dom.js";
import { Login } from "./views/login.js";
import { stateNote } from "./document/elements.js";
import { parse } from "./document/router.js";
import { RunView } from "./views/run.js";
import { RunsView } from "./views/runs.js";
import { startTheme } from "./document/theme.js";

class UnknownView {
  constructor() {
    const home = h("p", {}, h("a", { href: "#/", text: "All runs" }));
    this.element = stateNote("There is no such page", "The address leads nowhere here.", home);
  }

  update() {}

  destroy() {}
}

const VIEWS = { runs: RunsView, run: RunView, compare: CompareView, unknown: UnknownView };
const main = document.getElementById("main");
const crumbs = document.getElementById("crumbs");
let shown = null;

function show() {
  const route = parse(location.hash);
  const name = JSON.stringify([route.view, route.runs]);
  if (shown?.name === name) {
    shown.view.update(route);
    return;
  }
  const moved = shown !== null;
  shown?.view.destroy();
  const view = new VIEWS[route.view](route);
  shown = { name, view };
  main.replaceChildren(view.element);
  showCrumbs(route);
  scrollTo(0, 0);
  // Move the focus into the new view for screen readers and keys, except at the first load.
  if (moved) main.focus({ preventScroll: true });
}

function showCrumbs({ view, runs }) {
  const here = { run: runs[0], compare: `compare ${runs.length} ${runs.length === 1 ? "run" : "runs"}` }[view];
  const root = h("a", { href: "#/", text: "Runs" });
  const end = h("span", { class: "crumb", "aria-current": "page", text: here });
  if (here === undefined) root.setAttribute("aria-current", "page");
  crumbs.replaceChildren(root, ...(here === undefined ? [] : [end]));
  document.title = here === undefined ? "snc \u00b7 runs" : `${here} \u00b7 snc`;
}

const help = /** @type {HTMLDialogElement} */ (document.getElementById("key-help"));

function key(event) {
  const field = event.target.closest?.("input, select, textarea");
  const typing = field && field.type !== "checkbox";
  if (event.key === "Escape" && typing) event.target.blur();
  if (typing || event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  if (event.key === "/") document.getElementById("filter")?.focus();
  else if (event.key === "?") help.showModal();
  else if (event.key === "g") location.hash = "#/";
  else if ((event.key === "j" || event.key === "k") && !event.target.closest?.("tbody")) firstRow();
  else if (event.key === "Escape") shown?.view.escape?.();
  else return;
  event.preventDefault();
}

function firstRow() {
  const first = /** @type {HTMLElement | null} */ (main.querySelector("tbody a, tbody button"));
  first?.focus();
}

startTheme(document.getElementById("theme"));
document.getElementById("keys").addEventListener("click", () => help.showModal());
document.getElementById("key-close").addEventListener("click", () => help.close());
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault(); // the router uses the hash
  main.focus();
});
new Login(document.getElementById("sign-out")).start();
addEventListener("hashchange", show);
addEventListener("keydown", key);
show();
