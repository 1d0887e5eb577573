// A plot of what flows: lines over time, drawn as SVG. The legend has the newest values, or those under the pointer.

import { el, say, svg } from "./dom.js";

const LEFT = 58;
const BOTTOM = 18;
const TOP = 6;

/** The next "round" number that is not less: 1, 2 or 5 times a power of ten; of bytes, a power of two. */
function round(value, isBytes) {
  if (isBytes) return 2 ** Math.ceil(Math.log2(value));
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((digit) => digit * power).find((number) => number >= value);
}

function ago(seconds) {
  if (seconds === 0) return "now";
  if (seconds < 60 || seconds % 60) return `−${seconds} s`;
  return seconds < 7200 ? `−${Math.round(seconds / 60)} min` : `−${Math.round(seconds / 3600)} h`;
}

/**
 * A plot with a title. `series` has for each line its `key` in the samples, its `label`, and its `line`: one, two or three.
 * `format` writes a value, `least` is what the axis goes up to at least, and of bytes it ends at a power of two.
 */
export function chart({ title, series, format, least = 1, isBytes = false }) {
  const values = series.map(() => el("b", { text: "–" }));
  const moment = el("span", { text: "" });
  const legend = el("div", { class: "legend" },
    ...series.map(({ label, line }, at) => el("span", {}, el("span", { class: `key ${line}` }), `${label} `, values[at])), moment);
  const drawing = svg("svg", { role: "img" });
  const node = el("section", { class: "panel chart" }, el("h2", { text: title }), drawing, legend);
  let step = 1;
  let span = 300;
  let samples = [];
  let pointed = null;

  const size = () => [drawing.clientWidth || 400, drawing.clientHeight || 140];

  function draw() {
    const [width, height] = size();
    const bottom = height - BOTTOM;
    const points = Math.max(2, Math.round(span / step));
    const highest = Math.max(least, ...samples.flatMap((sample) => series.map(({ key }) => sample[key])));
    const top = round(highest, isBytes);
    const x = (index) => LEFT + ((width - LEFT - 4) * (points - samples.length + index)) / (points - 1);
    const y = (value) => bottom - ((bottom - TOP) * value) / top;
    const parts = [];
    for (const part of [0, 0.5, 1]) {
      parts.push(svg("line", { class: "axis", x1: LEFT, x2: width, y1: y(top * part), y2: y(top * part) }));
      parts.push(svg("text", { x: LEFT - 6, y: y(top * part) + 4, "text-anchor": "end", text: format(top * part) }));
    }
    // Whole minutes, quarters of an hour, or six hours.
    const marks = span === 300 && width > 500 ? 5 : span === 300 ? 1 : 4;
    for (const part of Array.from({ length: marks + 1 }, (_, index) => index / marks)) {
      const anchor = part === 0 ? "start" : part === 1 ? "end" : "middle";
      parts.push(svg("text", { x: LEFT + (width - LEFT - 4) * part, y: height - 4, "text-anchor": anchor, text: ago(Math.round(span * (1 - part))) }));
    }
    for (const { key, line } of series) {
      const path = samples.map((sample, index) => `${index ? "L" : "M"}${x(index).toFixed(1)} ${y(sample[key]).toFixed(1)}`).join("");
      parts.push(svg("path", { class: line, d: path }));
    }
    const at = pointed === null ? samples.length - 1 : Math.min(pointed, samples.length - 1);
    if (pointed !== null && at >= 0) parts.push(svg("line", { class: "cursor", x1: x(at), x2: x(at), y1: TOP, y2: bottom }));
    drawing.replaceChildren(...parts);
    const shown = samples[at];
    series.forEach(({ key }, index) => say(values[index], shown ? format(shown[key]) : "–"));
    say(moment, pointed === null || at < 0 ? "" : ago((samples.length - 1 - at) * step));
    const told = series.map(({ key, label }) => `${label} ${samples.length ? format(samples.at(-1)[key]) : "unknown"}`).join(", ");
    drawing.setAttribute("aria-label", `${title}, the last ${ago(span).slice(1)}: now ${told}; the axis ends at ${format(top)}`);
  }

  drawing.addEventListener("pointermove", (event) => {
    const [width] = size();
    const points = Math.max(2, Math.round(span / step));
    const part = (event.offsetX - LEFT) / (width - LEFT - 4);
    const index = Math.round(part * (points - 1)) - (points - samples.length);
    pointed = index >= 0 && index < samples.length ? index : null;
    draw();
  });
  drawing.addEventListener("pointerleave", () => { pointed = null; draw(); });
  const observer = new ResizeObserver(() => draw());
  observer.observe(drawing);

  return {
    node,
    update(newStep, newSpan, newSamples) {
      [step, span, samples] = [newStep, newSpan, newSamples];
      draw();
    },
    end: () => observer.disconnect(),
  };
}
