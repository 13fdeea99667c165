// Numbers, times and names as people read them.

const UNITS = ["B", "kB", "MB", "GB", "TB", "PB"];
const GROUPED = new Intl.NumberFormat("en");
// Controls, and what changes the direction of the text around it: a name must not look like another one.
const UNPRINTABLE = /[\p{Cc}\p{Zl}\p{Zp}\u061c\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff]/gu;

/** Two digits or more, of what is no whole number: 0.12, 1.0, 12.3, 1,234. */
export function number(value) {
  if (value >= 100) return GROUPED.format(Math.round(value));
  if (value > 0 && value < 0.01) return "<0.01";
  return Number.isInteger(value) ? String(value) : value.toPrecision(value >= 10 ? 3 : 2);
}

/** 999 B, 1.46 kB, 4.20 PB: three digits, decimal, as disks are sold. */
export function bytes(size) {
  if (size < 1000) return `${Math.round(size)} B`;
  let unit = 0;
  while (size >= 999.5 && unit < UNITS.length - 1) {
    size /= 1000;
    unit += 1;
  }
  return `${size.toPrecision(3)} ${UNITS[unit]}`;
}

/** Every byte of it: 1,458. */
export const grouped = (size) => GROUPED.format(size);

/** 2026-11-21 14:05, of this machine's zone. */
export function time(text) {
  const at = new Date(text);
  const two = (value) => String(value).padStart(2, "0");
  return (
    `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())} ` +
    `${two(at.getHours())}:${two(at.getMinutes())}`
  );
}

export function seconds(value) {
  if (value < 60) return `${Math.max(1, Math.round(value))} s`;
  if (value < 3600) return `${Math.round(value / 60)} min`;
  return `${number(value / 3600)} h`;
}

/** A name, with what can't be seen as \u{…}. */
export function visible(name) {
  return name.replace(UNPRINTABLE, (found) => `\\u{${found.codePointAt(0).toString(16)}}`);
}

/** What the gateway says begins small and has no full stop: it is written for one line of a terminal. */
export function sentence(text) {
  const trimmed = text.trim();
  if (!trimmed) return "";
  return trimmed[0].toUpperCase() + trimmed.slice(1) + (/[.!?]$/.test(trimmed) ? "" : ".");
}

/** What stands behind the last slash, for a file on this machine. */
export function leaf(name) {
  return name.replace(/\/+$/, "").split("/").pop() || "object";
}
