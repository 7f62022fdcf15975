// A run summarised in numbers and words, for several views.

import { serviceNow } from "../service/api.js";
import { announce } from "../document/dom.js";
import { age, count, MISSING, percent, ratio, shortName } from "../document/format.js";

/** Return whether every breach was acted on at once: above the threshold, but held there. */
export function isHeld(run) {
  return run.breaches > 0 && run.rescales >= run.breaches;
}

const ENDS = { nonfinite: "in NaN", breach: "in breach" };

/** How a run ended, {text, tone}: quiet once somebody acknowledged it. */
export function endedIn(run) {
  const end = ENDS[run.ended_in];
  if (end === undefined) return { text: "", tone: "" };
  const text = `${run.state === "silent" ? "stopped" : "ended"} ${end}`;
  if (isSeen(run)) return { text: `${text}, seen`, tone: "none" };
  return { text, tone: run.ended_in === "nonfinite" ? "broken" : "bad" };
}

/** Whether somebody acknowledged how the run stands, and nothing came since. */
export function isSeen(run) {
  return run.acknowledged_at !== null && run.acknowledged_at >= run.updated_at;
}

/** Above 1 and not held is bad; above 1 and held is a warning. */
function ratioTone(run) {
  if (!(run.worst_ratio > 1)) return "";
  return isHeld(run) ? "warn" : "bad";
}

/** The facts at the top of a run's page; `policy` is the stored policy or null. */
export function runFacts(run, policy) {
  const held = isHeld(run);
  const broken = run.nonfinite_layers > 0;
  const version = policy?.policy_version;
  return {
    Step: { value: count(run.last_step), detail: run.attempt ? `attempt ${run.attempt + 1}` : "" },
    "Last report": {
      value: age(run.updated_at, serviceNow()),
      tone: run.state === "silent" ? "warn" : "",
    },
    Layers: { value: count(run.layers) },
    "Worst ratio": broken ? {
      value: "\u2715 not finite",
      tone: "broken",
      detail: `largest other ${ratio(run.worst_ratio)}`,
    } : {
      value: `${run.worst_ratio > 1 ? "\u25b2 " : ""}${ratio(run.worst_ratio)}`,
      tone: ratioTone(run),
      detail: shortName(run.worst_layer ?? "", 18),
      title: run.worst_layer ?? "",
    },
    Breaches: {
      value: count(run.breaches),
      tone: run.breaches && !held ? "bad" : "",
      detail: held ? "all held" : "",
    },
    Rescales: { value: count(run.rescales) },
    "Not finite": {
      value: broken ? `\u2715 ${count(run.nonfinite_layers)}` : "0",
      tone: broken ? "broken" : "",
      detail: broken ? "layers" : "",
    },
    Dropped: {
      value: count(run.dropped_values),
      tone: run.dropped_values ? "warn" : "",
      detail: run.dropped_values ? "values" : "",
    },
    Overhead: {
      value: percent(run.overhead),
      detail: run.overhead === null ? "not reported" : "of step time",
    },
    Policy: {
      value: version ? `v${version}` : MISSING,
      detail: version ? `by ${policy.author}` : "observe only",
    },
  };
}

/** The tone of one of a run's counts in a table. */
export function countTone(key, run) {
  if (!run[key]) return "none";
  if (key === "breaches") return isHeld(run) ? "" : "bad";
  return { nonfinite_layers: "broken", dropped_values: "warn" }[key] ?? "";
}

/** Announce when a run changes its state, or has its first breach or non-finite value. */
export function tellChange(before, run, name) {
  if (before.state !== run.state) announce(`${name} is ${run.state}.`);
  else if (!before.breaches && run.breaches) announce(`${name}: first breach.`);
  else if (!before.nonfinite_layers && run.nonfinite_layers) {
    announce(`${name}: a layer is not finite.`);
  }
}
