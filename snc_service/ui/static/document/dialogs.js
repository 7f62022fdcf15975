// Questions that need an answer before something is done: a form in a dialog.

import { h, quietButton, setText } from "./dom.js";

/**
 * Show a form. `fields` are elements with a name; `submit(values)` does what was asked for, and a
 * problem that it throws is shown in the dialog. Resolves to whether it was done.
 * @param {{title: string, sentence?: string, fields?: HTMLElement[], confirm: string,
 *   danger?: boolean, submit: (values: Record<string, string>) => Promise<void>}} question
 * @returns {Promise<boolean>}
 */
export function ask({ title, sentence = "", fields = [], confirm, danger = false, submit }) {
  return new Promise((resolve) => {
    let done = false;
    const problem = h("p", { class: "form-problem", role: "alert" });
    const enter = h("button", { type: "submit", class: danger ? "danger" : "primary", text: confirm });
    const cancel = quietButton("Cancel", () => dialog.close());
    const form = h("form", { class: "question", method: "dialog" },
      h("h2", { id: "question-title", text: title }),
      sentence ? h("p", { text: sentence }) : null,
      ...fields,
      problem,
      h("div", { class: "form-end" }, cancel, enter));
    const dialog = h("dialog", { "aria-labelledby": "question-title" }, form);
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      enter.disabled = true;
      try {
        const values = Object.fromEntries(new FormData(form).entries());
        await submit(/** @type {Record<string, string>} */ (values));
        done = true;
        dialog.close();
      } catch (error) {
        setText(problem, error.message);
        enter.disabled = false;
      }
    });
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(done);
    });
    document.body.append(dialog);
    dialog.showModal();
    // What cannot be undone is not one key away.
    if (danger) cancel.focus();
  });
}

/** A labelled field of such a form. */
export function field(label, element) {
  return h("label", { class: "field" }, h("span", { text: label }), element);
}
