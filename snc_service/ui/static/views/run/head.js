// The head of a run's page: its name, its state and its numbers.

import { h, setText } from "../../document/dom.js";
import { Facts, showState, stateBadge } from "../../document/elements.js";
import { moment } from "../../document/format.js";
import { runFacts } from "../run_summary.js";

export class RunHead {
  constructor() {
    this.badge = stateBadge();
    this.title = h("h1");
    this.sub = h("p", { class: "summary" });
    this.facts = new Facts("State of the run");
    this.element = h("div", { class: "view-head" }, this.title, this.badge, this.sub);
  }

  /** `policy`: the stored policy, or null until it is known. */
  show(item, policy) {
    const { run, name, project, created_at: created } = item;
    showState(this.badge, item.state);
    setText(this.title, name || run);
    const parts = [project, name && name !== run ? run : "", `started ${moment(created)}`];
    setText(this.sub, parts.filter(Boolean).join(" \u00b7 "));
    this.facts.show(runFacts(item, policy));
  }
}
