// The view of a service without runs: how to send it the first one.

import { copyButton, h } from "../document/dom.js";

const PROMISE =
  "Two lines in a training loop put every layer\u2019s \u03c3 here and hold it under a threshold:";

export function welcome() {
  const address = location.origin + location.pathname.replace(/\/$/, "");
  const loop = [
    `callback = SNCallback(model, threshold="3x init", url="${address}")`,
    "callback.step(loss=loss)",
  ];
  const curl = [
    `curl ${address}/api/v1/runs -H 'Content-Type: application/json' -d '{"run": "hello"}'`,
    `curl ${address}/api/v1/runs/hello/batches -H 'Content-Type: application/json' -d '` +
      '{"writer": "curl", "seq": 0, "steps": [1, 2], "layers": ["fc1.weight", "fc2.weight"], ' +
      '"metrics": {"sigma": [[1.1, 2.0], [1.2, 2.1]], "threshold": [[2, 2], [2, 2]]}, ' +
      '"scalars": {"loss": [0.71, 0.70]}}\'',
  ];
  return h("section", { class: "welcome" },
    h("h1", { text: "No runs yet" }),
    h("p", { text: PROMISE }),
    snippet("Before the loop", `from snc_client import SNCallback\n${loop[0]}`),
    snippet("In the loop, after optimizer.step()", loop[1]),
    h("p", { text: "Or try it without a model:" }),
    snippet("In a shell", curl.join("\n")),
    h("p", { class: "hint", text: "This page shows the first run as soon as it arrives." }));
}

function snippet(title, text) {
  return h("figure", { class: "snippet" },
    h("figcaption", {}, h("span", { text: title }), copyButton(() => text, `Copy: ${title}`)),
    h("pre", { tabindex: "0", "aria-label": title }, h("code", { text })));
}
