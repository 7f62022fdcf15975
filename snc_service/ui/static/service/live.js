// Polling: repeats a task, pauses while the tab is hidden, backs off while the service is down.

import { announce, setText } from "../document/dom.js";
import { clock } from "../document/format.js";

const LONGEST_WAIT = 15_000;

/** Return the seconds between updates of charts: drawing takes at most a tenth of the time. */
export function restAfter(asking, drawing) {
  return Math.max(5, 3 * asking, 10 * drawing);
}

/**
 * Runs `task(signal)` every `interval` ms after the last call ended. Failures double the wait. A tab
 * that becomes visible, or `now()`, starts a call at once.
 */
export class Live {
  constructor(task, interval, onProblem) {
    this.task = task;
    this.interval = interval;
    this.onProblem = onProblem;
    this.failures = 0;
    this.stopped = false;
    this.running = false;
    this.again = false;
    this.abort = new AbortController();
    this.onVisible = () => (document.hidden ? this.rest() : this.now());
    document.addEventListener("visibilitychange", this.onVisible);
    this.now();
  }

  rest() {
    clearTimeout(this.timer);
    connection("paused");
  }

  stop() {
    this.stopped = true;
    this.abort.abort();
    clearTimeout(this.timer);
    document.removeEventListener("visibilitychange", this.onVisible);
  }

  /** Call the task now, or again right after the current call. */
  async now() {
    clearTimeout(this.timer);
    if (this.stopped) return;
    if (this.running) {
      this.again = true;
      return;
    }
    this.running = true;
    try {
      await this.task(this.abort.signal);
      this.failures = 0;
      if (!this.stopped) connection(document.hidden ? "paused" : "live");
    } catch (error) {
      if (!this.stopped) this.failed(error);
    }
    this.running = false;
    this.next();
  }

  failed(error) {
    this.failures += 1;
    const unreachable = error.status === 0 || error.status >= 500;
    if (error.status === undefined) console.error(error);
    const refused = error.status === 401 || error.status === 403;
    connection(unreachable ? "lost" : refused ? "refused" : error.status === undefined ? "broken" : "live");
    this.onProblem(error);
  }

  next() {
    if (this.stopped || document.hidden) return;
    const wait = this.again ? 0 : Math.min(this.interval * 2 ** this.failures, LONGEST_WAIT);
    this.again = false;
    this.timer = setTimeout(() => this.now(), wait);
  }
}

const SENTENCES = {
  connecting: "connecting",
  live: "live",
  paused: "paused while hidden",
  lost: "service not reached",
  refused: "signed out",
  broken: "page has a defect",
};
let current = "connecting";

/** Show the state of the connection; announce only changes. */
function connection(state) {
  if (state === current) return;
  const before = current;
  current = state;
  const node = document.getElementById("connection");
  node.dataset.state = state;
  const since = state === "lost" ? ` since ${clock(Date.now())}` : "";
  setText(node, SENTENCES[state] + since);
  if (state === "lost") announce("The service is not reached. What is shown may be old.");
  if (state === "live" && before === "lost") announce("The service is reached again.");
}
