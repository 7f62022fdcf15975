// What a user does to runs: edit what is said of them, archive, delete. Each is asked for once.

import { announce, h } from "../document/dom.js";
import { ask, field } from "../document/dialogs.js";
import { count } from "../document/format.js";
import { runPath, send } from "../service/api.js";

const MOST_NAMED = 5;

/** Edit name, tags and note of a run; resolves to whether it was changed. */
export function edit(run) {
  const name = h("input", { name: "name", value: run.name, required: true, maxlength: "200", autocomplete: "off" });
  const tags = h("input", { name: "tags", value: run.tags.join(", "), autocomplete: "off", spellcheck: "false" });
  const note = h("textarea", { name: "note", rows: "6", text: run.note });
  return ask({
    title: `About ${run.run}`,
    fields: [field("Name", name), field("Tags, with commas between them", tags), field("Note", note)],
    confirm: "Save",
    submit: async (values) => {
      const told = { name: values.name, tags: split(values.tags), note: values.note.replaceAll("\r\n", "\n") };
      await send("PATCH", runPath(run.run), told);
      announce("The run is changed.");
    },
  });
}

/** Add tags to each of `runs`. */
export function tag(runs) {
  const tags = h("input", { name: "tags", required: true, autocomplete: "off", spellcheck: "false" });
  return ask({
    title: `Tag ${counted(runs)}`,
    fields: [field("Tags to add, with commas between them", tags)],
    confirm: "Add",
    submit: async (values) => {
      const added = split(values.tags);
      for (const run of runs) {
        await send("PATCH", runPath(run.run), { tags: [...new Set([...run.tags, ...added])] });
      }
      announce("The runs are tagged.");
    },
  });
}

/** Move runs to the archive, or back if all of them are in it. */
export function archive(runs) {
  const back = runs.every((run) => run.archived);
  return ask({
    title: `${back ? "Bring back" : "Archive"} ${counted(runs)}?`,
    sentence: `${named(runs)} ${back ? "" : "Lists leave them out until you ask for archived:yes. Nothing is lost."}`,
    confirm: back ? "Bring back" : "Archive",
    submit: async () => {
      for (const run of runs) await send("PATCH", runPath(run.run), { archived: !back });
      announce(back ? "The runs are back." : "The runs are archived.");
    },
  });
}

/** Delete runs for good, after a second look. */
export function remove(runs) {
  const word = runs.length === 1 ? runs[0].run : String(runs.length);
  const typed = h("input", { name: "typed", required: true, autocomplete: "off", spellcheck: "false" });
  const active = runs.filter((run) => run.state === "active").length;
  const working = active ? ` ${count(active)} of them ${active > 1 ? "are" : "is"} still training.` : "";
  return ask({
    title: `Delete ${counted(runs)} for good?`,
    sentence: `${named(runs)}${working} All values, events and incidents go with ${runs.length > 1 ? "them" : "it"}. ` +
      "This cannot be undone; archiving can.",
    fields: [field(`Type ${word} to delete`, typed)],
    confirm: "Delete",
    danger: true,
    submit: async (values) => {
      if (values.typed.trim() !== word) throw new Error(`Type ${word}, got ${values.typed.trim() || "nothing"}.`);
      for (const run of runs) await send("DELETE", runPath(run.run));
      announce("Deleted.");
    },
  });
}

function split(text) {
  return [...new Set(text.split(",").map((part) => part.trim()).filter(Boolean))];
}

function counted(runs) {
  return runs.length === 1 ? runs[0].name || runs[0].run : `${count(runs.length)} runs`;
}

function named(runs) {
  const names = runs.slice(0, MOST_NAMED).map((run) => run.name || run.run).join(", ");
  const more = runs.length - MOST_NAMED;
  return `${names}${more > 0 ? ` and ${count(more)} more` : ""}.`;
}
