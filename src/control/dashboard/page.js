// Elements, numbers and calls of the API: what all views use. Text goes in as text, never as markup.
export const at = (id) => document.getElementById(id);

/** An element with a class and content: text, elements, or a list of both. */
export function make(tag, kind = "", content = []) {
  const element = document.createElement(tag);
  if (kind) element.className = kind;
  element.append(...[content].flat());
  return element;
}

const number = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });
export const whole = (value) => Math.round(value).toLocaleString("en");

/** 1234567 → "1.2 M": a number that fits a tile. */
export function short(value) {
  if (value < 10) return number.format(value);
  if (value < 10_000) return whole(value);
  return value < 1e6 ? `${number.format(value / 1e3)} k` : `${number.format(value / 1e6)} M`;
}

export function bytes(value) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) { value /= 1024; unit += 1; }
  return `${unit && value < 100 ? number.format(value) : whole(value)} ${units[unit]}`;
}

export function micros(value) {
  if (value >= 1e6) return `${number.format(value / 1e6)} s`;
  return value >= 1000 ? `${number.format(value / 1000)} ms` : `${whole(value)} µs`;
}

export const percent = (part, all) => (all > 0 ? `${number.format((100 * part) / all)} %` : "–");

export function span(ms) {
  const seconds = Math.max(0, Math.round(ms / 1000));
  if (seconds < 120) return `${seconds} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  return seconds < 172_800 ? `${Math.round(seconds / 3600)} h` : `${Math.round(seconds / 86_400)} days`;
}

export const ago = (ms) => (ms < 1500 ? "now" : `${span(ms)} ago`);
export const clock = (ms) => new Date(ms).toLocaleTimeString("en-GB");

/** Fills a table. A head or a cell is text, or [text or element, class]. */
export function fill(id, heads, rows, otherwise) {
  const cell = (tag) => (it) => (Array.isArray(it) ? make(tag, it[1], it[0]) : make(tag, "", it));
  const line = (tag) => (cells) => make("tr", "", cells.map(cell(tag)));
  const table = typeof id === "string" ? at(id) : id;
  if (!rows.length) return table.replaceChildren(make("tbody", "", make("tr", "", make("td", "long soft", otherwise))));
  const head = heads.length ? [make("thead", "", line("th")(heads))] : [];
  table.replaceChildren(...head, make("tbody", "", rows.map(line("td"))));
}

/** A table that is wider than a narrow page: the keyboard can move it. */
export function scroll(table) {
  const box = make("div", "scroll", table);
  box.tabIndex = 0;
  return box;
}

/** A bar that shows a share from 0 to 1. */
export function bar(share, kind = "") {
  const inner = make("span");
  inner.style.width = `${Math.min(100, 100 * share).toFixed(1)}%`;
  return make("span", `bar ${kind}`, inner);
}

/** A tile: "12 ms" has its unit in smaller letters. */
export function tile(title, value, more = "", isBad = false) {
  const [first, ...unit] = value.split(" ");
  const b = make("b", "", unit.length ? [first, make("small", "", unit.join(" "))] : first);
  return make("div", isBad ? "tile bad" : "tile", [b, make("span", "", title), ...(more ? [make("i", "", more)] : [])]);
}

/** Calls the API; a problem's words become the error. */
export async function call(path, options = {}) {
  const token = sessionStorage.getItem("token");
  const headers = { ...options.headers, ...(token ? { authorization: `Bearer ${token}` } : {}) };
  const response = await fetch(path, { ...options, headers });
  const text = await response.text();
  if (!response.ok) {
    let detail = text;
    try { detail = JSON.parse(text).detail ?? text; } catch { /* not a problem document */ }
    throw Object.assign(new Error(detail), { status: response.status });
  }
  return JSON.parse(text);
}
