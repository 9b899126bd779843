// Curves out of the relay's samples. A sample without a figure, and a time without samples, is a gap:
// no line crosses it.

import { el, setAttribute, setClass, setText, svg } from "./dom.js";
import { NONE, known, minute, time } from "./format.js";

const GAP = 25; // seconds without a sample that are a gap; there is one every 10 s
const SPAN = 3600; // seconds that are shown
const LEFT = 44, RIGHT = 10, TOP = 8, BOTTOM = 20; // pixels around the plot

/** Runs of samples with nothing missing in between: [[{ at, value }, …], …]. */
function runs(samples, value) {
  const all = [];
  let last = null;
  for (const sample of samples) {
    const figure = value(sample);
    if (!known(figure)) {
      last = null;
      continue;
    }
    if (last === null || sample.at - last > GAP) all.push([]);
    all.at(-1).push({ at: sample.at, value: figure });
    last = sample.at;
  }
  return all;
}

const line = (run, x, y) => run.map(({ at, value }, i) => `${i ? "L" : "M"}${x(at).toFixed(1)} ${y(value).toFixed(1)}`).join("");

/** The next round number, and how many steps to it look good. */
function scale(most, smallest) {
  const top = Math.max(most, smallest);
  const power = 10 ** Math.floor(Math.log10(top));
  const [factor, steps] = [[1, 2], [2, 2], [3, 3], [4, 2], [5, 5], [6, 3], [8, 4], [10, 2]].find(([each]) => each * power >= top * 0.999);
  return { top: factor * power, steps: factor * power < steps ? 1 : steps };
}

/** A curve without a scale, beside a figure. `dots`: of what happens now and then. */
export function drawSparkline(element, samples, value, dots) {
  const [width, height] = [60, 22];
  const all = runs(samples, value);
  const points = all.flat();
  setClass(element, "dots", Boolean(dots));
  if (points.length < 2) return element.replaceChildren();
  const values = points.map((point) => point.value);
  const low = Math.min(...values), high = Math.max(...values);
  const from = samples[0].at, to = samples.at(-1).at;
  const x = (at) => 2 + ((at - from) / (to - from || 1)) * (width - 4);
  const y = (figure) => (high === low ? height / 2 : height - 3 - ((figure - low) / (high - low)) * (height - 6));
  const last = points.at(-1);
  const drawn = dots ? points.map((point) => [point]) : all;
  element.replaceChildren(
    svg("path", { d: drawn.map((run) => (run.length > 1 ? line(run, x, y) : `${line(run, x, y)}h.01`)).join("") }),
    svg("circle", { cx: x(last.at), cy: y(last.value), r: 2 }),
  );
}

/** One figure over the last hour: `value(sample)`, `format(figure)`, `top` where it has a natural end
    or else the `smallest` one; `dots` where it is of what happens now and then, between which there
    is nothing. */
export class Chart {
  element;
  #svg = svg("svg", { role: "img" });
  #read = el("output", { aria: { live: "off" } }); // it changes by itself all the time
  #cursor = svg("g", { class: "cursor" });
  #about;
  #samples = [];
  #now = 0;
  #size = [0, 0];
  #picked = null; // the sample that is pointed at
  #x = () => 0;
  #y = () => 0;

  constructor(about) {
    this.#about = about;
    this.element = el(
      "figure",
      { className: `panel chart ${about.colour}`, tabIndex: 0, aria: { label: `${about.title}, the last hour. Arrow keys read it.` } },
      el("figcaption", {}, el("h2", {}, about.title), this.#read),
      this.#svg,
    );
    new ResizeObserver(([entry]) => {
      this.#size = [entry.contentRect.width, entry.contentRect.height];
      this.#draw();
    }).observe(this.#svg);
    this.#svg.addEventListener("pointermove", (event) => {
      const at = event.clientX - this.#svg.getBoundingClientRect().left;
      const near = this.#shown().reduce((best, sample) => (!best || Math.abs(this.#x(sample.at) - at) < Math.abs(this.#x(best.at) - at) ? sample : best), null);
      this.#pick(near);
    });
    this.#svg.addEventListener("pointerleave", () => this.#pick(null));
    this.element.addEventListener("blur", () => {
      this.#read.setAttribute("aria-live", "off");
      this.#pick(null);
    });
    this.element.addEventListener("keydown", (event) => this.#key(event));
  }

  update(samples, now) {
    this.#samples = samples;
    this.#now = now;
    if (this.#picked) this.#picked = samples.find((sample) => sample.at === this.#picked.at) ?? null;
    this.#draw();
  }

  #shown() {
    return this.#samples.filter((sample) => known(this.#about.value(sample)));
  }

  #key(event) {
    const shown = this.#shown();
    const at = this.#picked ? shown.indexOf(this.#picked) : shown.length;
    const to = { ArrowLeft: Math.max(at - 1, 0), ArrowRight: Math.min(at + 1, shown.length - 1), Home: 0, End: shown.length - 1 }[event.key];
    if (to === undefined || !shown.length) return;
    event.preventDefault();
    this.#read.setAttribute("aria-live", "polite");
    this.#pick(shown[to]);
  }

  #pick(sample) {
    this.#picked = sample;
    this.#tell();
  }

  #tell() {
    const { value, format } = this.#about;
    const sample = this.#picked;
    const last = this.#shown().at(-1);
    this.#cursor.replaceChildren();
    if (sample) {
      const [x, y] = [this.#x(sample.at), this.#y(value(sample))];
      this.#cursor.append(svg("path", { d: `M${x.toFixed(1)} ${TOP}V${this.#size[1] - BOTTOM}` }), svg("circle", { cx: x, cy: y, r: 4 }));
      setText(this.#read, `${format(value(sample))} at ${time(sample.at)}`);
    } else if (last) {
      const fresh = this.#now - last.at < 2 * GAP;
      setText(this.#read, fresh ? format(value(last)) : `${format(value(last))} at ${minute(last.at)}`);
    } else {
      setText(this.#read, NONE);
    }
  }

  #draw() {
    const [width, height] = this.#size;
    if (!width) return;
    const { value, format, title, top: natural, smallest, dots } = this.#about;
    const all = runs(this.#samples, value);
    const values = all.flat().map((point) => point.value);
    const { top, steps } = natural ? { top: natural, steps: 2 } : scale(Math.max(0, ...values), smallest);
    // Less than an hour of samples has all of the room, but ten minutes at least are shown.
    const to = this.#now;
    const from = Math.max(to - SPAN, Math.min(this.#samples[0]?.at ?? to - SPAN, to - 600));
    const x = (this.#x = (at) => LEFT + ((at - from) / (to - from || 1)) * (width - LEFT - RIGHT));
    const y = (this.#y = (figure) => height - BOTTOM - (figure / top) * (height - TOP - BOTTOM));
    const grid = svg("g", { class: "grid" });
    for (let i = 0; i <= steps; i++) {
      const figure = (top * i) / steps;
      grid.append(
        svg("path", { d: `M${LEFT} ${y(figure).toFixed(1)}H${width - RIGHT}` }),
        svg("text", { x: LEFT - 6, y: (y(figure) + 3.5).toFixed(1), "text-anchor": "end" }, format(figure)),
      );
    }
    const every = to - from > 1800 ? 900 : to - from > 900 ? 300 : 120;
    for (let at = Math.ceil(from / every) * every; at <= to; at += every) {
      if (x(at) < LEFT + 12 || x(at) > width - 18) continue;
      grid.append(svg("text", { x: x(at).toFixed(1), y: height - 5, "text-anchor": "middle" }, minute(at)));
    }
    const curve = svg("g", { class: "curve" });
    for (const run of all) {
      if (run.length > 1 && !dots) {
        const ends = `L${x(run.at(-1).at).toFixed(1)} ${y(0)}L${x(run[0].at).toFixed(1)} ${y(0)}Z`;
        curve.append(svg("path", { class: "area", d: line(run, x, y) + ends }), svg("path", { class: "stroke", d: line(run, x, y) }));
      } else {
        curve.append(...run.map((point) => svg("circle", { cx: x(point.at).toFixed(1), cy: y(point.value).toFixed(1), r: 2.5 })));
      }
    }
    setAttribute(this.#svg, "viewBox", `0 0 ${width} ${height}`);
    const most = values.length ? `${values.length} samples, from ${format(Math.min(...values))} to ${format(Math.max(...values))}` : "nothing was measured";
    setAttribute(this.#svg, "aria-label", `${title}: ${most}`);
    this.#svg.replaceChildren(grid, curve, this.#cursor);
    if (!values.length) {
      this.#svg.append(svg("text", { class: "nothing", x: LEFT + (width - LEFT - RIGHT) / 2, y: TOP + (height - TOP - BOTTOM) / 2, "text-anchor": "middle" }, "nothing measured yet"));
    }
    this.#tell();
  }
}
