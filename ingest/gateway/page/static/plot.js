// Small plots of the last two minutes, as lines of SVG.

import { svgElement } from "./dom.js";

const WIDTH = 120;
const HEIGHT = 32;

/** A plot without values. The numbers beside it say the same, so it is nothing to readers of screens. */
export function emptyPlot() {
  return svgElement("svg", { class: "plot", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" });
}

/**
 * Draws `series`, each a list of `length` values at most, the newest last; null: a gap. The plot goes from 0 to the largest of
 * them all, which is given back.
 */
export function draw(plot, series, length) {
  const largest = Math.max(0, ...series.flat().filter((value) => value !== null));
  const paths = [];
  series.forEach((values, which) => {
    const lines = stretches(values, length, largest || 1);
    const d = lines.map((points) => `M${points.join("L")}`);
    if (which === 0) {
      const areas = lines.map((points, index) => `${d[index]}V${HEIGHT}H${points[0][0]}Z`);
      paths.push(svgElement("path", { class: "area", d: areas.join("") }));
    }
    paths.push(svgElement("path", { class: `line line-${which}`, d: d.join("") }));
  });
  plot.replaceChildren(...paths);
  return largest;
}

/** What lies between the gaps: of each stretch its points. */
function stretches(values, length, top) {
  const found = [[]];
  const offset = length - values.length;
  values.forEach((value, index) => {
    if (value === null) found.push([]);
    else found.at(-1).push([(WIDTH * (offset + index)) / (length - 1), HEIGHT - 1 - ((HEIGHT - 2) * value) / top].map(rounded));
  });
  return found.filter((points) => points.length);
}

const rounded = (value) => Math.round(value * 10) / 10;

/** A bar: how much of `size` is used, and where the reserve begins. */
export function drawSpace(plot, { free, size, reserve }) {
  const used = size ? (WIDTH * (size - free)) / size : 0;
  const kept = size ? Math.min(WIDTH, (WIDTH * reserve) / size) : 0;
  const bar = (name, x, width) => svgElement("rect", { class: name, x, y: HEIGHT - 8, width, height: 8 });
  plot.replaceChildren(bar("space", 0, WIDTH), bar("reserve", WIDTH - kept, kept), bar("used", 0, used));
}
