// The client of the service: GET with ETags, the page's changes, and errors as sentences.

const PREFIX = "api/v1";
const KEPT_ANSWERS = 64;

/** An error answer of the service or of a proxy. Status 0: the service was not reached. */
export class Problem extends Error {
  constructor(status, title, detail) {
    super(detail || title);
    this.status = status;
    this.title = title;
  }
}

const answers = new Map(); // URL -> {etag, data}, the oldest first
let clockOffset = 0; // the service's clock minus the local one, in milliseconds

/** The current time by the service's clock: a local clock may be off by minutes. */
export function serviceNow() {
  return Date.now() + clockOffset;
}

export function url(path, parameters = {}) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters)) {
    if (value === null || value === undefined) continue;
    for (const one of Array.isArray(value) ? value : [value]) query.append(name, one);
  }
  const text = query.toString();
  return `${PREFIX}/${path}${text ? `?${text}` : ""}`;
}

export function runPath(run, rest = "") {
  return `runs/${encodeURIComponent(run)}${rest}`;
}

/** GET. An unchanged answer is the *same* object as before. */
export async function get(path, parameters, signal) {
  const address = url(path, parameters);
  const kept = answers.get(address);
  const headers = { Accept: "application/json" };
  if (kept?.etag) headers["If-None-Match"] = kept.etag;
  const response = await reach(address, { headers, signal, cache: "no-store" });
  if (response.status === 304 && kept) return kept.data;
  const data = await body(response);
  const etag = response.headers.get("ETag");
  if (etag) keep(address, { etag, data });
  return data;
}

export async function getPolicy(run, signal) {
  const response = await reach(url(runPath(run, "/policy")), { signal, cache: "no-store" });
  return { data: await body(response), etag: response.headers.get("ETag") };
}

/** Send a change, as JSON where there is `content`; returns the answer, null if it is empty. */
export async function send(method, path, content) {
  const options = { method, cache: "no-store" };
  if (content !== undefined) {
    options.headers = { "Content-Type": "application/json" };
    options.body = JSON.stringify(content);
  }
  const response = await reach(url(path), options);
  return response.status === 204 ? null : body(response);
}

/** Acknowledge an incident; returns its new state. */
export function acknowledge(incident) {
  return send("POST", `incidents/${incident}/acknowledge`, {});
}

/** PUT a policy if the current one still has the tag `etag`. */
export async function putPolicy(run, policy, etag) {
  const headers = { "Content-Type": "application/json" };
  if (etag) headers["If-Match"] = etag;
  const options = { method: "PUT", headers, body: JSON.stringify(policy), cache: "no-store" };
  return body(await reach(url(runPath(run, "/policy")), options));
}

/** Read a session (GET), open one (POST with a token) or close it (DELETE). */
export function session(method, content) {
  return send(method, "session", content);
}

async function reach(address, options) {
  let response;
  try {
    response = await fetch(address, { credentials: "same-origin", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, "The service cannot be reached", "No answer from the service.");
  }
  const date = Date.parse(response.headers.get("Date") ?? "");
  // The header has whole seconds: smaller differences are noise.
  if (date && Math.abs(date - Date.now()) > 2000) clockOffset = date - Date.now();
  return response;
}

async function body(response) {
  let data;
  try {
    data = await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    const { status } = response;
    throw new Problem(status, "Not an answer of this service", `Status ${status} without JSON.`);
  }
  if (response.ok) return data;
  if (response.status === 401) dispatchEvent(new Event("unauthorised"));
  const title = typeof data.title === "string" ? data.title : `Status ${response.status}`;
  throw new Problem(response.status, title, typeof data.detail === "string" ? data.detail : "");
}

function keep(address, answer) {
  answers.delete(address);
  answers.set(address, answer);
  if (answers.size > KEPT_ANSWERS) answers.delete(answers.keys().next().value);
}
