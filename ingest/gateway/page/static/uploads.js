// The queue of uploads: files are chosen or dropped, two are sent at a time, each with its progress.

import { address, get, upload } from "./api.js";
import { byId, element, say } from "./dom.js";
import { bytes, seconds, visible } from "./format.js";
import { api } from "./namespaces.js";

const AT_ONCE = 2;
const queue = [];
let changed = () => {}; // called when an object was stored

export const whenStored = (call) => (changed = call);

export const isBusy = () => queue.some((item) => item.state === "waiting" || item.state === "sending");

/** `files`: [name, File] of each. */
export function add(namespace, files) {
  for (const [name, file] of files) {
    const item = new Item(namespace, name, file);
    queue.push(item);
    byId("queue").append(item.row);
  }
  advance();
}

export function clearFinished() {
  for (const item of queue.filter((item) => item.state === "done" || item.state === "cancelled")) discard(item);
  advance();
}

function discard(item) {
  const next = item.row.nextElementSibling ?? item.row.previousElementSibling;
  item.row.remove();
  queue.splice(queue.indexOf(item), 1);
  (next?.querySelector("button") ?? byId("choose")).focus();
}

function advance() {
  for (const item of queue.filter((item) => item.state === "waiting")) {
    if (queue.filter((item) => item.state === "sending").length >= AT_ONCE) break;
    item.send().then(advance);
  }
  const count = (state) => queue.filter((item) => item.state === state).length;
  const done = count("done");
  const parts = [];
  if (queue.length) parts.push(`${done} of ${queue.length} uploaded`);
  if (count("failed")) parts.push(`${count("failed")} failed`);
  if (count("taken")) parts.push(`${count("taken")} to be decided`);
  say(byId("queue-status"), parts.join(", "));
  byId("clear-queue").hidden = !(done + count("cancelled"));
}

/**
 * One file on its way.
 *
 *   state      the upload                                   what ends it
 *   waiting    for its turn, or for a decision's turn       sending, cancelled
 *   sending    is being sent, or its bytes are being saved  done, failed, taken, cancelled
 *   taken      there is an object of that name              Replace: waiting; Remove
 *   failed     was refused, or broke                        Try again: waiting; Remove
 *   done, cancelled                                         Remove
 */
class Item {
  constructor(namespace, name, file) {
    this.namespace = namespace;
    this.name = name;
    this.file = file;
    this.state = "waiting";
    this.replaces = false;
    this.abort = null;
    this.bar = element("progress", { max: "1", value: "0", "aria-label": `Upload of ${visible(name)}` });
    this.text = element("span", { class: "progress-text" });
    this.buttons = element("span", { class: "buttons" });
    this.row = element(
      "li",
      {},
      element("bdi", { class: "name" }, visible(name)),
      this.bar,
      this.text,
      this.buttons,
    );
    this.become("waiting", `${bytes(file.size)}, waiting`);
  }

  become(state, text) {
    const hadFocus = this.buttons.contains(document.activeElement);
    this.state = state;
    this.row.className = state;
    this.bar.hidden = state !== "sending" && state !== "waiting";
    this.text.textContent = text;
    const button = (label, act) =>
      element("button", { type: "button", class: "quiet", "aria-label": `${label}: ${visible(this.name)}`, onclick: act }, label);
    const again = (replaces) => () => {
      this.replaces ||= replaces;
      this.bar.value = 0;
      this.become("waiting", `${bytes(this.file.size)}, waiting`);
      advance();
    };
    const remove = () => {
      discard(this);
      advance();
    };
    this.buttons.replaceChildren(
      ...{
        waiting: [button("Cancel", () => this.cancel())],
        sending: [button("Cancel", () => this.cancel())],
        taken: [button("Replace", again(true)), button("Remove", remove)],
        failed: [button("Try again", again(false)), button("Remove", remove)],
        done: [button("Remove", remove)],
        cancelled: [button("Remove", remove)],
      }[state],
    );
    if (hadFocus) this.buttons.querySelector("button").focus();
  }

  cancel() {
    if (this.state === "sending") this.abort.abort();
    else this.become("cancelled", "Cancelled.");
    advance();
  }

  async send() {
    this.abort = new AbortController();
    this.become("sending", "…");
    const known = api(this.namespace);
    const way = this.replaces ? known.replace : known.create;
    try {
      if (known.looks && !this.replaces && (await this.isThere())) return this.taken(known);
      await upload(way.method, way.path(this.name), this.file, way.headers, {
        progress: this.meter(),
        sent: () => (this.text.textContent = `${bytes(this.file.size)} sent, being made durable`),
        signal: this.abort.signal,
      });
      this.become("done", `${bytes(this.file.size)} stored`);
      changed(this.namespace);
    } catch (error) {
      if (error.name === "AbortError") return this.become("cancelled", "Cancelled.");
      if (error.status === 412 && known.replace) return this.taken(known);
      this.become("failed", error.message);
    }
  }

  /** Better now than when all of it has been sent. The first name that begins so is the name itself, if it is there. */
  async isThere() {
    const { namespace, name } = this;
    const { objects } = await get(address("/catalog/objects", { namespace, prefix: name, limit: 1 }));
    this.abort.signal.throwIfAborted();
    return objects[0]?.name === name;
  }

  taken(known) {
    if (known.replace) this.become("taken", "There is an object of this name.");
    else this.become("failed", "There is an object of this name, and here it stays.");
  }

  /** Shows how far it is. The rate is that since the beginning: it does not jump. */
  meter() {
    const began = performance.now();
    const size = this.file.size;
    return (sent) => {
      if (!sent) return;
      const rate = sent / Math.max(0.001, (performance.now() - began) / 1000);
      this.bar.value = size ? sent / size : 1;
      this.text.textContent = `${bytes(sent)} of ${bytes(size)}, ${bytes(rate)}/s, ${seconds((size - sent) / rate)} left`;
    };
  }
}

/** [name, File] of all that was dropped; directories are walked through, and stand in the names. */
export async function dropped(transfer) {
  // The list is empty once the event is over, so all of it is taken first.
  const entries = [...transfer.items].filter((item) => item.kind === "file").map((item) => item.webkitGetAsEntry?.());
  if (entries.includes(undefined) || entries.includes(null)) return [...transfer.files].map((file) => [file.name, file]);
  return (await Promise.all(entries.map((entry) => walk(entry)))).flat();
}

async function walk(entry) {
  if (entry.isFile) return [[entry.fullPath.slice(1), await new Promise((...settle) => entry.file(...settle))]];
  const reader = entry.createReader();
  const found = [];
  for (;;) {
    const some = await new Promise((...settle) => reader.readEntries(...settle)); // a hundred at a time
    if (!some.length) return found;
    for (const child of some) found.push(...(await walk(child)));
  }
}
