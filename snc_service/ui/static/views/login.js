// Login and logout: a token field if the service requires a token.

import { session } from "../service/api.js";
import { h, setText } from "../document/dom.js";

const HINT = "An operator makes one with \u201csnc token create NAME --scope read\u201d.";

/** Show the field until a token is accepted; then reload the page. */
export class Login {
  constructor(out) {
    this.out = out;
    this.field = h("input", {
      type: "password", name: "token", id: "token", required: true, autocomplete: "off",
      spellcheck: "false",
    });
    this.problem = h("p", { class: "form-problem", role: "alert" });
    this.enter = h("button", { type: "submit", class: "primary", text: "Sign in" });
    const form = h("form", { class: "login", method: "dialog" },
      h("h2", { id: "login-title", text: "A token is needed" }),
      h("label", { for: "token", text: "Token" }), this.field, this.enter, this.problem,
      h("p", { class: "hint", text: HINT }));
    this.dialog = h("dialog", { id: "login", "aria-labelledby": "login-title" }, form);
    // Without a token there is no view to go back to.
    this.dialog.addEventListener("cancel", (event) => event.preventDefault());
    form.addEventListener("submit", (event) => this.submit(event));
    out.addEventListener("click", () => this.leave());
    document.body.append(this.dialog);
    addEventListener("unauthorised", () => this.ask());
  }

  /** Query whether the service requires tokens, and the current session. */
  async start() {
    try {
      const who = await session("GET");
      this.out.hidden = !who.token_needed;
      setText(this.out, `Sign out ${who.name}`);
    } catch {
      this.out.hidden = true; // the views show the error; a 401 has opened the login already
    }
  }

  ask() {
    if (this.dialog.open) return;
    this.dialog.showModal();
    this.field.focus();
  }

  async submit(event) {
    event.preventDefault();
    this.enter.disabled = true;
    setText(this.problem, "");
    try {
      await session("POST", { token: this.field.value.trim() });
      location.reload();
    } catch (problem) {
      setText(this.problem, problem.message);
      this.enter.disabled = false;
      this.field.select();
    }
  }

  async leave() {
    await session("DELETE");
    location.reload();
  }
}
