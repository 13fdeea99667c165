// The table of objects: a page of one namespace, with download, history and delete of each.

import { address, ApiError, get, hasToken, request } from "./api.js";
import { ask, byId, element, say } from "./dom.js";
import { bytes, grouped, leaf, time, visible } from "./format.js";
import { api, place } from "./namespaces.js";

const PAGE = 50; // names
let shown = { namespace: "", prefix: "", after: "" };
let turn = 0; // of the requests for a page: only the last one is shown
let following = null;
let rows = new Map(); // what is in the table

/** Asks for a page, and shows it. Never fails: what goes wrong is said below the table. */
export async function showPage(view) {
  const mine = ++turn;
  shown = view;
  let page;
  try {
    // One more than is shown tells whether there is another page.
    page = await get(address("/catalog/objects", { ...view, limit: PAGE + 1 }));
  } catch (error) {
    if (mine === turn) fail(error);
    return;
  }
  if (mine !== turn) return;
  const entries = page.objects.slice(0, PAGE);
  following = page.objects.length > PAGE ? entries.at(-1).name : null;
  put(view.namespace, entries);
  byId("next").disabled = following === null;
  byId("previous").disabled = view.after === "";
  say(byId("list-status"), summary(entries.length, view));
}

/** The name after which the next page begins; null on the last one. */
export const nextPage = () => following;

/** Shows the same page again: something may have changed. */
export const refresh = () => showPage(shown);

/** Rows that are there already stay as they are: with the focus, and with an open history. */
function put(namespace, entries) {
  const body = byId("objects");
  const key = (entry) => JSON.stringify([namespace, entry.name, entry.etag, entry.created]);
  const old = rows;
  rows = new Map(entries.map((entry) => [key(entry), old.get(key(entry)) ?? row(entry)]));
  const wanted = [...rows.values()].flatMap((made) => {
    const below = made.nextElementSibling;
    return below?.classList.contains("history") ? [made, below] : [made];
  });
  if (wanted.length === body.children.length && wanted.every((made, index) => made === body.children[index])) return;
  const focused = document.activeElement;
  body.replaceChildren(...wanted);
  if (focused !== document.activeElement && focused.isConnected) focused.focus();
}

function fail(error) {
  following = null;
  put(shown.namespace, []);
  byId("next").disabled = byId("previous").disabled = true;
  if (!(error instanceof ApiError)) throw error;
  say(byId("list-status"), error.message);
}

function summary(count, { prefix, after }) {
  const what = prefix ? ` that begin with “${visible(prefix)}”` : "";
  if (count === 0) return after ? "No more names." : prefix ? `No names${what}.` : "No objects here yet.";
  if (after) return `${count} more ${count === 1 ? "name" : "names"}${what}${following === null ? "" : ", and others follow"}.`;
  if (following !== null) return `The first ${count} names${what}.`;
  return `${count} ${count === 1 ? "name" : "names"}${what}.`;
}

function row(entry) {
  const { namespace } = shown;
  const cell = (tag, role, attributes, ...children) => element(tag, { role, ...attributes }, ...children);
  const made = cell("tr", "row", {});
  const link = element(
    "a",
    { class: "name", href: place(namespace, entry.name), download: leaf(entry.name), onclick: (event) => download(event, namespace, entry) },
    name(entry.name),
  );
  const history = element(
    "button",
    { type: "button", class: "quiet", "aria-expanded": "false", "aria-label": `History of ${visible(entry.name)}`, onclick: () => toggleHistory(made, history, entry) },
    "History",
  );
  const actions = cell("td", "cell", { class: "actions" }, history);
  if (api(namespace).deletes)
    actions.append(
      element(
        "button",
        { type: "button", class: "quiet", "aria-label": `Delete ${visible(entry.name)}`, onclick: () => remove(made, entry) },
        "Delete",
      ),
    );
  made.append(
    cell("th", "rowheader", { scope: "row" }, link),
    cell("td", "cell", { class: "size", title: `${grouped(entry.size)} bytes` }, bytes(entry.size)),
    cell("td", "cell", { class: "time" }, element("time", { datetime: entry.created, title: entry.created }, time(entry.created))),
    actions,
  );
  return made;
}

/** A name, its directories paler than what stands behind them. */
function name(text) {
  const cut = text.replace(/\/+$/, "").lastIndexOf("/") + 1;
  const made = element("bdi", {});
  if (cut) made.append(element("span", { class: "directory" }, visible(text.slice(0, cut))));
  made.append(visible(text.slice(cut)));
  return made;
}

/** With a token the browser needs a link that is good without one: so it writes a file of any size to the disk by itself. */
async function download(event, namespace, entry) {
  if (!hasToken()) return;
  event.preventDefault();
  try {
    const { url } = await get(address("/catalog/link", { namespace, name: entry.name }));
    element("a", { href: url, download: leaf(entry.name) }).click();
  } catch (error) {
    say(byId("list-status"), error.message);
  }
}

async function toggleHistory(below, button, entry) {
  const open = below.nextElementSibling;
  if (open?.classList.contains("history")) {
    open.remove();
    button.setAttribute("aria-expanded", "false");
    return;
  }
  const content = element("td", { role: "cell", colspan: "4" }, element("p", {}, "…"));
  below.after(element("tr", { role: "row", class: "history" }, content));
  button.setAttribute("aria-expanded", "true");
  try {
    const version = await get(address("/catalog/version", { namespace: shown.namespace, name: entry.name }));
    content.replaceChildren(facts(version), historyTable(entry, version.history));
  } catch (error) {
    content.replaceChildren(element("p", { class: "error", role: "alert" }, error.message));
  }
}

function facts({ etag, id, headers }) {
  const type = headers["Content-Type"];
  const made = element("p", {}, "BLAKE3 ", element("code", {}, etag), " · id ", element("code", {}, id));
  if (type) made.append(` · ${visible(type)}`);
  return made;
}

function historyTable(entry, steps) {
  const head = ["Version", "State", "When", "Size", "Why"].map((text) => element("th", { scope: "col" }, text));
  return element(
    "table",
    {},
    element("caption", { class: "hidden" }, `History of ${visible(entry.name)}, newest first`),
    element("thead", {}, element("tr", {}, ...head)),
    element(
      "tbody",
      {},
      ...steps.map((step) =>
        element(
          "tr",
          {},
          element("td", {}, String(step.version)),
          element("td", { class: `state ${step.state}` }, step.state),
          element("td", { title: step.time }, time(step.time)),
          element("td", { class: "size" }, bytes(step.size)),
          element("td", { class: "reason" }, step.reason),
        ),
      ),
    ),
  );
}

async function remove(made, entry) {
  const { namespace } = shown;
  const complaint = byId("delete-error");
  byId("delete-name").textContent = visible(entry.name);
  complaint.textContent = "";
  const deleted = await ask(byId("delete-dialog"), async () => {
    try {
      // If it was replaced since it was listed, it is another object than the one that is meant.
      await request("DELETE", place(namespace, entry.name), { headers: { "If-Match": `"${entry.etag}"` } });
      return true;
    } catch (error) {
      complaint.textContent = error.message;
      return false;
    }
  });
  if (!deleted) return;
  const index = [...made.parentElement.querySelectorAll("tr:not(.history)")].indexOf(made);
  await refresh();
  say(byId("list-status"), `Deleted ${visible(entry.name)}.`);
  const names = byId("objects").querySelectorAll("a.name");
  (names[Math.min(index, names.length - 1)] ?? byId("prefix")).focus();
}
