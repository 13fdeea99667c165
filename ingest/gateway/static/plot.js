// Small plots of the last two minutes, as lines of SVG.

import { svgElement } from "./dom.js";

const WIDTH = 120;
const HEIGHT = 32;

/** A plot without values. The numbers beside it say the same, so it is nothing to readers of screens. */
export function emptyPlot() {
  return svgElement("svg", { class: "plot", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" });
}

/** Draws `series`, each a list of `length` values at most, the newest last; null: a gap. From 0 to the largest, `least` at least. */
export function draw(plot, series, length, least) {
  const top = Math.max(least, ...series.flat().filter((value) => value !== null));
  const x = (index, count) => (WIDTH * (length - count + index)) / (length - 1);
  const y = (value) => HEIGHT - 1 - ((HEIGHT - 2) * value) / top;
  const paths = [];
  series.forEach((values, which) => {
    let line = "";
    let begun = null;
    let area = "";
    values.forEach((value, index) => {
      if (value === null) {
        begun = null;
        return;
      }
      const point = `${x(index, values.length).toFixed(1)},${y(value).toFixed(1)}`;
      line += begun === null ? `M${point}` : `L${point}`;
      begun ??= x(index, values.length).toFixed(1);
      const last = index === values.length - 1 || values[index + 1] === null;
      if (which === 0 && last) {
        const from = line.lastIndexOf("M");
        area += `${line.slice(from)}L${point.split(",")[0]},${HEIGHT}L${begun},${HEIGHT}Z`;
      }
    });
    if (area) paths.push(svgElement("path", { class: "area", d: area }));
    paths.push(svgElement("path", { class: `line line-${which}`, d: line }));
  });
  plot.replaceChildren(...paths);
}

/** A bar: how much of `size` is used, and where the reserve begins. */
export function drawSpace(plot, { free, size, reserve }) {
  const used = size ? (WIDTH * (size - free)) / size : 0;
  const kept = size ? Math.min(WIDTH, (WIDTH * reserve) / size) : 0;
  const bar = (name, x, width) => svgElement("rect", { class: name, x, y: HEIGHT - 12, width, height: 10 });
  plot.replaceChildren(bar("space", 0, WIDTH), bar("reserve", WIDTH - kept, kept), bar("used", 0, used));
}
