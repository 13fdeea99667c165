// The live figures of the node: counters are asked for every two seconds, and the page makes rates of them.

import { ApiError, get } from "./api.js";
import { byId, element, say } from "./dom.js";
import { bytes, number } from "./format.js";
import { draw, drawSpace, emptyPlot } from "./plot.js";

const EVERY_MS = 2000;
const AGAIN_MS = 10_000; // after a failure
const LEAST_S = 1; // between two samples: each process of the gateway has its own, and over no time at all any rate is large
const LENGTH = 60; // samples: two minutes
const NOTHING = "–";

const cells = {};
let last = null;
const series = { frames: [[], []], bytes: [[], []], queue: [[]], latency: [[], []] };

/** Shows figures from now on, while somebody looks. */
export function watch() {
  for (const [key, title, legend] of [
    ["frames", "Frames/s", ["in", "out"]],
    ["bytes", "MB/s", ["in", "out"]],
    ["queue", "Queue, frames", []],
    ["latency", "Commit, ms", ["p50", "p99"]],
    ["space", "Space", ["free"]],
  ])
    cells[key] = cell(title, legend);
  byId("figures").replaceChildren(...Object.values(cells).map((made) => made.box));
  const loop = async () => {
    const good = document.hidden || (await sample());
    setTimeout(loop, good ? EVERY_MS : AGAIN_MS);
  };
  document.addEventListener("visibilitychange", () => (last = document.hidden ? null : last));
  loop();
}

function cell(title, legend) {
  const values = (legend.length ? legend : [""]).map((text, which) => {
    const value = element("span", { class: "value" }, NOTHING);
    return { value, box: element("span", { class: `reading reading-${which}` }, value, text && element("span", { class: "unit" }, text)) };
  });
  const plot = emptyPlot();
  const peak = element("span", { class: "peak" });
  const box = element(
    "div",
    {},
    element("dt", {}, title, peak),
    element("dd", {}, element("span", { class: "readings" }, ...values.map((made) => made.box)), plot),
  );
  return { box, plot, peak, values: values.map((made) => made.value) };
}

/** Whether there are figures; if not, what is the matter is said in their place. */
export async function sample() {
  try {
    show(await get("/node", { quiet: true }));
    byId("node-notice").hidden = true;
    return true;
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    forget();
    byId("node-notice").hidden = false;
    say(byId("node-notice"), error.status === 401 ? "The figures of the node need a token too." : error.message);
    return false;
  }
}

function show(now) {
  if (last !== null && now.time - last.time < LEAST_S) return;
  const rates = last === null ? null : rate(last, now);
  last = now;
  push(series.frames, rates ? [rates.received, rates.sent] : [null, null]);
  push(series.bytes, rates ? [rates.receivedMB, rates.sentMB] : [null, null]);
  push(series.queue, [now.queue.frames]);
  push(series.latency, rates ? [rates.p50, rates.p99] : [null, null]);
  for (const [key, lines] of Object.entries(series)) {
    const peak = draw(cells[key].plot, lines, LENGTH);
    cells[key].peak.textContent = peak ? `max ${number(peak)}` : "";
    write(cells[key], ...latest(lines));
  }
  drawSpace(cells.space.plot, now.disk);
  cells.space.peak.textContent = `of ${bytes(now.disk.size)}`;
  write(cells.space, bytes(now.disk.free));
  cells.space.box.title =
    `${bytes(now.disk.free)} free of ${bytes(now.disk.size)}, ${bytes(now.disk.reserve)} in reserve; ` +
    `log ${bytes(now.log.used)} of ${bytes(now.log.size)}`;
  readiness(now.ready ? "ready" : "not ready");
}

function forget() {
  last = null;
  for (const lines of Object.values(series)) push(lines, lines.map(() => null));
  for (const made of Object.values(cells)) write(made, ...made.values.map(() => NOTHING));
  readiness("");
}

function readiness(text) {
  say(byId("readiness"), text);
  byId("readiness").classList.toggle("not-ready", text === "not ready");
}

function push(lines, values) {
  lines.forEach((line, which) => {
    line.push(values[which]);
    if (line.length > LENGTH) line.shift();
  });
}

const latest = (lines) => lines.map((line) => (line.at(-1) === null ? NOTHING : number(line.at(-1))));

const write = (made, ...texts) => texts.forEach((text, which) => (made.values[which].textContent = text));

/** Between two samples; null when a counter went back, as it does when the node was started again. */
export function rate(before, now) {
  const passed = now.time - before.time;
  const grown = (pick) => pick(now) - pick(before);
  const frames = [(of) => of.received.frames, (of) => of.sent.frames, (of) => of.received.bytes, (of) => of.sent.bytes].map(grown);
  const commits = grown((of) => of.commits.count);
  if (passed <= 0 || commits < 0 || frames.some((value) => value < 0)) return null;
  const [received, sent, receivedBytes, sentBytes] = frames;
  const buckets = now.commits.latency.map(([bound, count], index) => [bound, count - before.commits.latency[index][1]]);
  return {
    received: received / passed,
    sent: sent / passed,
    receivedMB: receivedBytes / passed / 1e6,
    sentMB: sentBytes / passed / 1e6,
    p50: quantile(buckets, commits, 0.5),
    p99: quantile(buckets, commits, 0.99),
  };
}

/** In milliseconds, within its bucket by interpolation, as Prometheus' histogram_quantile. Null without any commit. */
function quantile(buckets, commits, part) {
  if (!commits) return null;
  let lower = 0;
  let below = 0;
  for (const [bound, count] of buckets) {
    if (count >= part * commits) {
      if (bound === null) return lower * 1000;
      return (lower + ((bound - lower) * (part * commits - below)) / (count - below)) * 1000;
    }
    [lower, below] = [bound, count];
  }
  return lower * 1000;
}
