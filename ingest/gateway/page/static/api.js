// Requests to the gateway, with the token where it wants one.

import { sentence } from "./format.js";

const STORED_AS = "ingest-token";
let token = stored();
let asking = null; // the promise of a token, while somebody is asked for one
let lacking = false;
let askForToken = async () => null;

export class ApiError extends Error {
  /** `status`: of the answer; 0 when there was none. */
  constructor(status, code, message) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

/** `ask(refused)`: gives a token, or null; `refused`: the last one is none. */
export function whenTokenIsNeeded(ask) {
  askForToken = ask;
}

export const hasToken = () => token !== null;

/** Whether the gateway asked for one, and there is none, or not the right one. */
export const lacksToken = () => lacking;

export function forgetToken() {
  token = null;
  store();
}

/** Path and query. Names are parameters: in a path a browser would take `..` for the directory above. */
export const address = (path, parameters) => `${path}?${new URLSearchParams(parameters)}`;

/** The answer to a request, if it is a good one. `quiet`: nobody is asked for a token. ApiError. */
export async function request(method, url, { headers = {}, quiet = false } = {}) {
  const response = await withToken(quiet, async (authorization) => {
    try {
      return await fetch(url, { method, headers: { ...headers, ...authorization }, cache: "no-store" });
    } catch {
      throw unreachable();
    }
  });
  if (!response.ok) throw failure(response.status, await response.text().catch(() => ""));
  return response;
}

/** JSON of GET. ApiError. */
export async function get(url, options) {
  return (await request("GET", url, options)).json();
}

/**
 * Sends a file: `progress(bytes)` while it goes out, `sent()` when all of it has. `signal` ends it: AbortError. ApiError.
 * By XMLHttpRequest, because fetch tells nothing of how far it is.
 */
export async function upload(method, url, file, headers, { progress, sent, signal }) {
  const answer = await withToken(false, (authorization) => {
    signal.throwIfAborted();
    return new Promise((resolve, reject) => {
      const sending = new XMLHttpRequest();
      sending.open(method, url);
      for (const [name, value] of Object.entries({ ...headers, ...authorization }))
        sending.setRequestHeader(name, value);
      const stop = () => sending.abort();
      signal.addEventListener("abort", stop, { once: true });
      sending.upload.onprogress = (event) => progress(event.loaded);
      sending.upload.onload = () => sent();
      sending.onload = () => resolve({ status: sending.status, text: sending.responseText });
      sending.onerror = () =>
        reject(new ApiError(0, "broken", "The connection broke, or the file can't be read any more."));
      sending.onabort = () => reject(signal.reason);
      sending.onloadend = () => signal.removeEventListener("abort", stop);
      sending.send(file);
    });
  });
  if (answer.status >= 400) throw failure(answer.status, answer.text);
}

async function withToken(quiet, send) {
  for (;;) {
    const used = token;
    const answer = await send(used === null ? {} : { Authorization: `Bearer ${used}` });
    lacking = answer.status === 401;
    if (!lacking || (quiet && token === used)) return answer;
    if (token !== used) continue; // another request has asked meanwhile
    asking ??= askForToken(used !== null).finally(() => (asking = null));
    const given = await asking;
    if (given === null) return answer;
    token = given;
    store();
  }
}

function failure(status, text) {
  let said = {};
  try {
    said = JSON.parse(text);
  } catch {
    said = { message: text.length < 200 ? text : "" };
  }
  return new ApiError(status, said.code ?? "", sentence(said.message || `the gateway answered with ${status}`));
}

function unreachable() {
  return new ApiError(0, "unreachable", "The gateway can't be reached, or the connection broke.");
}

// A browser may refuse to keep anything: then the token is good until the page is loaded again.
function stored() {
  try {
    return sessionStorage.getItem(STORED_AS);
  } catch {
    return null;
  }
}

function store() {
  try {
    if (token === null) sessionStorage.removeItem(STORED_AS);
    else sessionStorage.setItem(STORED_AS, token);
  } catch {
    // kept in this page alone
  }
}
