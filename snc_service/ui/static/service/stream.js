// The stream of one run: what changes arrives by itself, over one connection.

import { runPath, url } from "./api.js";

/**
 * Calls `update({run, layers, events, isFirst})` after every change of a run while the tab is visible,
 * and `deleted()` when the run is deleted.
 * `isFirst`: the connection is new, so what happened before is not in `events`. Where
 * the service refuses a stream (too many are open), `isOpen` stays false and its user asks instead.
 */
export class RunStream {
  constructor(run, update, deleted) {
    this.run = run;
    this.update = update;
    this.deleted = deleted;
    this.onVisible = () => (document.hidden ? this.close() : this.open());
    document.addEventListener("visibilitychange", this.onVisible);
    if (!document.hidden) this.open();
  }

  get isOpen() {
    return this.source?.readyState === EventSource.OPEN;
  }

  open() {
    if (this.source) return;
    this.source = new EventSource(url(runPath(this.run, "/stream")));
    let isFirst = true;
    this.source.addEventListener("open", () => {
      isFirst = true;
    });
    this.source.addEventListener("update", (event) => {
      this.update({ ...JSON.parse(event.data), isFirst });
      isFirst = false;
    });
    this.source.addEventListener("deleted", () => {
      this.stop();
      this.deleted();
    });
  }

  close() {
    this.source?.close();
    this.source = null;
  }

  stop() {
    this.close();
    document.removeEventListener("visibilitychange", this.onVisible);
  }
}
