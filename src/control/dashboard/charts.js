// Lines and areas over an hour, or since the node's start if that is less, as SVG. A chart shows the values under the pointer, or under the cursor keys, in its legend.
import { clock, make } from "./dashboard-page.js";

const NS = "http://www.w3.org/2000/svg";
const HEIGHT = 190, LEFT = 52, BOTTOM = 22, TOP = 8;

function svg(tag, attributes, text) {
  const element = document.createElementNS(NS, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

/** The next of 1, 2, 5, 10, 20, … that is at least this; of bytes, the next of 1, 2, 5, 10, …, 500 KiB, MiB, … */
function above(value, isBytes) {
  const unit = isBytes ? 1024 ** Math.max(0, Math.floor(Math.log2(value) / 10)) : 1;
  const power = 10 ** Math.floor(Math.log10(value / unit));
  return [1, 2, 5, 10].map((step) => step * power * unit).find((step) => step >= value * 0.999);
}

/** The minutes that are shown, and those with a label. */
const SPANS = [[5, [4, 3, 2, 1]], [15, [12, 9, 6, 3]], [60, [45, 30, 15]]];

/**
 * Draws `series` ({ title, kind, value(row), isArea }) of `rows` (each with end_ms), up to an hour before `now`.
 * Areas are drawn one over the other, in order.
 */
export class Chart {
  constructor(box, series, format, isBytes = false) {
    Object.assign(this, { box, series, format, isBytes, rows: [], chosen: null });
    this.legend = make("p", "legend");
    this.svg = svg("svg", { role: "img", tabindex: "0" });
    box.replaceChildren(this.svg, this.legend);
    this.svg.addEventListener("pointermove", (event) => this.choose(this.nearest(event.offsetX)));
    this.svg.addEventListener("pointerleave", () => this.choose(null));
    this.svg.addEventListener("blur", () => this.choose(null));
    this.svg.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!step || !this.rows.length) return;
      event.preventDefault();
      this.choose(Math.min(this.rows.length - 1, Math.max(0, (this.chosen ?? this.rows.length) + step)));
    });
    new ResizeObserver(() => this.draw()).observe(box);
  }

  show(rows, now) {
    const age = rows.length ? (now - rows[0].end_ms + rows[0].length_ms) / 60_000 : 0;
    const [minutes, labels] = SPANS.find(([minutes]) => age <= minutes) ?? SPANS.at(-1);
    Object.assign(this, { rows, now, minutes, labels });
    this.draw();
  }

  x(ms) { return LEFT + (this.width - LEFT) * (1 - (this.now - ms) / (60_000 * this.minutes)); }

  nearest(offset) {
    const distance = (row) => Math.abs(this.x(row.end_ms) - offset);
    return this.rows.reduce((best, row, i) => (best === null || distance(row) < distance(this.rows[best]) ? i : best), null);
  }

  choose(index) {
    this.chosen = index;
    this.draw();
  }

  draw() {
    this.width = Math.max(240, this.box.clientWidth);
    this.svg.setAttribute("viewBox", `0 0 ${this.width} ${HEIGHT}`);
    if (!this.now) return;
    const peak = Math.max(0, ...this.rows.flatMap((row) => this.series.map((it) => it.value(row) ?? 0)));
    const top = peak > 0 ? above(peak, this.isBytes) : 1;
    const y = (value) => HEIGHT - BOTTOM - (value / top) * (HEIGHT - BOTTOM - TOP);
    const parts = [];
    for (const share of [0, 0.5, 1]) {
      parts.push(svg("line", { class: "grid", x1: LEFT, x2: this.width, y1: y(share * top), y2: y(share * top) }));
      const label = peak > 0 || share === 0 ? this.format(share * top) : "";
      parts.push(svg("text", { x: LEFT - 8, y: y(share * top) + 4, "text-anchor": "end" }, label));
    }
    for (const minutes of [...this.labels, 0]) {
      const x = this.x(this.now - minutes * 60_000);
      const anchor = minutes ? "middle" : "end";
      parts.push(svg("text", { x, y: HEIGHT - 5, "text-anchor": anchor }, minutes ? `−${minutes} min` : "now"));
    }
    for (const it of this.series) parts.push(...this.lines(it, y));
    const row = this.chosen === null ? this.rows.at(-1) : this.rows[this.chosen];
    if (this.chosen !== null && row) {
      const x = this.x(row.end_ms);
      parts.push(svg("line", { class: "cross", x1: x, x2: x, y1: TOP, y2: HEIGHT - BOTTOM }));
    }
    this.svg.replaceChildren(...parts);
    this.label(row);
  }

  lines(it, y) {
    if (!this.rows.length) return [];
    // A row is drawn from its begin to its end, so that one alone is seen. A value that is null leaves a gap.
    let line = "", isOpen = false;
    for (const row of this.rows) {
      const value = it.value(row);
      if (value !== null) {
        const [begin, end] = [row.end_ms - row.length_ms, row.end_ms].map((ms) => this.x(ms).toFixed(1));
        line += `${isOpen ? "L" : "M"}${begin} ${y(value).toFixed(1)}L${end} ${y(value).toFixed(1)}`;
      }
      isOpen = value !== null;
    }
    const stroke = svg("path", { class: `c-${it.kind}`, d: line });
    if (!it.isArea) return [stroke];
    const first = this.rows[0];
    const begin = this.x(first.end_ms - first.length_ms), end = this.x(this.rows.at(-1).end_ms);
    return [svg("path", { class: `area c-${it.kind}`, d: `${line}L${end} ${y(0)}L${begin} ${y(0)}Z` }), stroke];
  }

  label(row) {
    const entries = this.series.map((it) =>
      make("span", "", [make("i", `c-${it.kind}`), it.title, make("b", "", row && it.value(row) !== null ? this.format(it.value(row)) : "–")]));
    const when = !row ? "the first values come in ten seconds" : this.chosen === null ? "" : clock(row.end_ms);
    this.legend.replaceChildren(...entries, make("span", "", when));
    this.svg.setAttribute("aria-label", this.legend.textContent);
  }
}
