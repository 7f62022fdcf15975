// The view of a service without runs: how to send it the first one.

import { copyButton, h } from "../document/dom.js";
import { session } from "../service/api.js";

const PROMISE =
  "Two lines in a training loop put every layer\u2019s \u03c3 here and hold it under a threshold:";
const TOKEN = "An operator makes a token with \u201csnc token create NAME --scope ingest\u201d. " +
  "The job reads it from SNC_TOKEN.";

export function welcome() {
  const element = h("section", { class: "welcome" });
  const show = (closed) => element.replaceChildren(...content(closed));
  show(false);
  session("GET").then(({ token_needed: needed }) => needed && show(true), () => {}); // the list says what failed
  return element;
}

/** `closed`: the service asks for a token, so the snippets hold a place for one. */
function content(closed) {
  const address = location.origin + location.pathname.replace(/\/$/, "");
  const token = closed ? `, token=os.environ["SNC_TOKEN"]` : "";
  const before = [
    ...(closed ? ["import os", ""] : []),
    "from snc_client import SNCallback",
    `callback = SNCallback(model, threshold="3x init", url="${address}"${token})`,
  ];
  const header = closed ? ` -H "Authorization: Bearer $SNC_TOKEN"` : "";
  const json = ` -H 'Content-Type: application/json'`;
  const curl = [
    `curl ${address}/api/v1/runs${header}${json} -d '{"run": "hello"}'`,
    `curl ${address}/api/v1/runs/hello/batches${header}${json} -d '` +
      '{"writer": "curl", "seq": 0, "steps": [1, 2], "layers": ["fc1.weight", "fc2.weight"], ' +
      '"metrics": {"sigma": [[1.1, 2.0], [1.2, 2.1]], "threshold": [[2, 2], [2, 2]]}, ' +
      '"scalars": {"loss": [0.71, 0.70]}}\'',
  ];
  return [
    h("h1", { text: "No runs yet" }),
    h("p", { text: PROMISE }),
    snippet("Before the loop", before.join("\n")),
    snippet("In the loop, after optimizer.step()", "callback.step(loss=loss)"),
    h("p", { text: "Or try it without a model:" }),
    snippet("In a shell", curl.join("\n")),
    closed ? h("p", { class: "hint", text: TOKEN }) : null,
    h("p", { class: "hint", text: "This page shows the first run as soon as it arrives." }),
  ].filter(Boolean);
}

function snippet(title, text) {
  return h("figure", { class: "snippet" },
    h("figcaption", {}, h("span", { text: title }), copyButton(() => text, `Copy: ${title}`)),
    h("pre", { tabindex: "0", "aria-label": title }, h("code", { text })));
}
