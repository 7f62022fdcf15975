// The head of a run's page: its name, its state, what went wrong, and its numbers.

import { runPath, send } from "../../service/api.js";
import { announce, h, quietButton, setText } from "../../document/dom.js";
import { Facts, showState, stateBadge } from "../../document/elements.js";
import { count, moment } from "../../document/format.js";
import { endedIn, isSeen, runFacts } from "../run_summary.js";

export class RunHead {
  /** `handlers`: `acknowledge()` after it was done, `edit()`, `archive()`, `remove()`. */
  constructor({ acknowledge, edit, archive, remove }) {
    this.acknowledged = acknowledge;
    this.badge = stateBadge();
    this.title = h("h1");
    this.sub = h("p", { class: "summary" });
    this.facts = new Facts("State of the run");
    this.archive = quietButton("", archive);
    const tools = h("div", { class: "tools" },
      quietButton("Edit\u2026", edit), this.archive, quietButton("Delete\u2026", remove));
    this.element = h("div", { class: "view-head" }, this.title, this.badge, this.sub, tools);
    this.text = h("p");
    this.take = h("button", { type: "button", text: "Acknowledge", on: { click: () => this.see() } });
    this.problem = h("p", { class: "form-problem", role: "alert" });
    /** What went wrong with the run, until somebody acknowledges it. */
    this.verdict = h("div", { class: "verdict", hidden: true }, this.text, this.take, this.problem);
  }

  /** `policy`: the stored policy, or null until it is known. */
  show(item, policy) {
    this.item = item;
    const { run, name, project, created_at: created, started_at: started } = item;
    showState(this.badge, item.state);
    setText(this.title, name || run);
    const archived = item.archived ? "archived" : "";
    const imported = started !== created ? `imported ${moment(created)}` : "";
    const parts = [project, name && name !== run ? run : "", `started ${moment(started)}`, imported, archived];
    setText(this.sub, parts.filter(Boolean).join(" \u00b7 "));
    setText(this.archive, item.archived ? "Bring back\u2026" : "Archive\u2026");
    this.facts.show(runFacts(item, policy));
    this.showVerdict(item);
  }

  showVerdict(item) {
    const { text } = endedIn(item);
    this.verdict.hidden = !text;
    this.verdict.dataset.kind = isSeen(item) ? "seen" : item.ended_in ?? "";
    this.take.hidden = isSeen(item);
    const who = item.acknowledged_by ? ` Acknowledged by ${item.acknowledged_by}.` : " Acknowledged.";
    setText(this.text, `${verdict(item)}${isSeen(item) ? who : ""}`);
  }

  async see() {
    try {
      await send("POST", runPath(this.item.run, "/acknowledge"), {});
      setText(this.problem, "");
      announce("The run is acknowledged.");
      this.acknowledged();
    } catch (problem) {
      setText(this.problem, problem.message);
    }
  }
}

/** How a run ended, in one sentence. */
export function verdict(item) {
  const at = `at step ${count(item.last_step)}`;
  const verb = item.state === "silent" ? "stopped" : "ended";
  if (item.ended_in === "nonfinite") {
    const layers = item.nonfinite_layers;
    const what = layers ? `${count(layers)} ${layers === 1 ? "layer is" : "layers are"} not finite` : "the loss is not finite";
    return `This run ${verb} in NaN ${at}: ${what}.`;
  }
  return `This run ${verb} in breach ${at}: ${item.worst_layer} is above its threshold.`;
}
