// What the admin API answers, asked every two seconds and shown. Nothing is kept but a token,
// for as long as the tab is open; text goes in as text, never as markup.
"use strict";

const EVERY_MS = 2000, KEPT = 150, MINUTE = 30;
const samples = [];
const at = (id) => document.getElementById(id);
const number = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });

/** Asks the API; a problem's words become the error. */
async function call(path, options = {}) {
  const token = sessionStorage.getItem("token");
  const headers = token ? { authorization: `Bearer ${token}` } : {};
  const response = await fetch(path, { ...options, headers });
  if (response.status === 401) {
    at("login").hidden = false;
    at("main").hidden = true;
  }
  const text = await response.text();
  if (!response.ok && path !== "readyz") {
    let detail = text;
    try { detail = JSON.parse(text).detail ?? text; } catch { /* it is not a problem document */ }
    throw Object.assign(new Error(detail), { status: response.status });
  }
  return text;
}

/** OpenMetrics text to a map: `name` or `name{label="x"}` to its value. */
function parse(text) {
  const values = new Map();
  for (const line of text.split("\n")) {
    const cut = line.lastIndexOf(" ");
    if (cut > 0 && !line.startsWith("#")) values.set(line.slice(0, cut), Number(line.slice(cut + 1)));
  }
  return values;
}

const labelled = (values, name) =>
  [...values].filter(([key]) => key.startsWith(`${name}{`)).map(([key, value]) => [key.match(/"(.*)"/)[1], value]);

/** How much a counter grew between two samples; a restart of the node begins anew. */
function grown(before, now, key) {
  const value = now.values.get(key) ?? 0, old = before.values.get(key) ?? 0;
  return value >= old ? value - old : value;
}

/** A quantile of what a histogram took in between two samples: its bucket's upper bound. */
function quantile(before, now, name, share) {
  const buckets = [...now.values.keys()].filter((key) => key.startsWith(`${name}_bucket{`));
  const counts = buckets.map((key) => [key.match(/le="(.*)"/)[1], grown(before, now, key)]);
  const all = counts.at(-1)?.[1] ?? 0;
  return all ? counts.find(([, count]) => count >= all * share)[0] : null;
}

function bytes(value) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) { value /= 1024; unit += 1; }
  return `${number.format(unit ? value : Math.round(value))} ${units[unit]}`;
}

const seconds = (bound) =>
  bound === null ? "–" : bound === "+Inf" ? "> 30 s" : bound < 1 ? `≤ ${number.format(bound * 1000)} ms` : `≤ ${bound} s`;

function row(cells) {
  const tr = document.createElement("tr");
  for (const [text, kind] of cells) {
    const td = document.createElement("td");
    td.textContent = text;
    if (kind) td.className = kind;
    tr.append(td);
  }
  return tr;
}

function fill(id, rows, otherwise) {
  at(id).replaceChildren(...(rows.length ? rows : [row([[otherwise, "faint"]])]));
}

function tile(title, value, isBad) {
  const div = document.createElement("div"), b = document.createElement("b"), span = document.createElement("span");
  div.className = isBad ? "tile bad" : "tile";
  b.textContent = value;
  span.textContent = title;
  div.append(b, span);
  return div;
}

// Results of requests that neither the cache nor an origin was asked about.
const GENERATED = ["answered-here", "denied", "rate-limited", "refused"];

function showNow() {
  const now = samples.at(-1), before = samples.at(-6) ?? samples[0];
  const span = Math.max((now.time - before.time) / 1000, 0.001);
  const rate = (key) => grown(before, now, key) / span;
  const hits = rate('skerry_cache_requests_total{result="hit"}');
  const cached = labelled(now.values, "skerry_cache_requests_total")
    .filter(([result]) => !GENERATED.includes(result))
    .reduce((sum, [result]) => sum + rate(`skerry_cache_requests_total{result="${result}"}`), 0);
  const errors = rate('skerry_responses_total{class="5xx"}');
  const get = (key) => now.values.get(key) ?? 0;
  const duration = "skerry_request_duration_seconds";
  at("tiles").replaceChildren(
    tile("requests/s", number.format(rate("skerry_requests_total"))),
    tile("hits", cached > 0 ? `${number.format((100 * hits) / cached)} %` : "–"),
    tile("p50 time to first byte", seconds(quantile(before, now, duration, 0.5))),
    tile("p99 time to first byte", seconds(quantile(before, now, duration, 0.99))),
    tile("5xx/s", number.format(errors), errors > 0),
    tile("to origins/s", number.format(rate("skerry_upstream_requests_total"))),
    tile("sent/s", bytes(rate("skerry_sent_bytes_total"))),
    tile("connections", number.format(get("skerry_connections"))),
    tile(`memory used of ${bytes(get("skerry_store_memory_bytes_max"))}`, bytes(get("skerry_store_memory_bytes"))),
    tile("purge bus", busState(get), get("skerry_bus_silent") > 0),
  );
}

function busState(get) {
  if (get("skerry_bus_silent") > 0) return "silent";
  return get("skerry_bus_connected") > 0 ? `${get("skerry_bus_lag")} behind` : "none";
}

function showChart() {
  const steps = samples.slice(1).map((now, i) => {
    const before = samples[i], span = (now.time - before.time) / 1000;
    const hits = grown(before, now, 'skerry_cache_requests_total{result="hit"}') / span;
    return { hits, all: Math.max(grown(before, now, "skerry_requests_total") / span, hits) };
  });
  const peak = Math.max(1, ...steps.map((step) => step.all));
  const x = (i) => 600 - (steps.length - 1 - i) * (600 / (KEPT - 1));
  const y = (value) => 120 - (value / peak) * 116;
  const area = (value, kind) => {
    const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
    const line = steps.map((step, i) => `L${x(i).toFixed(1)} ${y(value(step)).toFixed(1)}`).join("");
    path.setAttribute("d", `M${x(0).toFixed(1)} 120${line}L600 120Z`);
    path.setAttribute("class", kind);
    return path;
  };
  at("chart").replaceChildren(...(steps.length ? [area((s) => s.all, "other"), area((s) => s.hits, "hit")] : []));
  at("peak").textContent = `· peak ${number.format(peak)}/s`;
}

function showReasons() {
  const now = samples.at(-1), before = samples.at(-1 - MINUTE) ?? samples[0];
  const rows = labelled(now.values, "skerry_cache_requests_total")
    .filter(([result, total]) => result !== "hit" && total > 0)
    .map(([result, total]) => [result, grown(before, now, `skerry_cache_requests_total{result="${result}"}`), total])
    .sort((one, other) => other[1] - one[1] || other[2] - one[2])
    .map(([result, recent, total]) =>
      row([[result], [number.format(recent), "number"], [number.format(total), "number"]]));
  fill("reasons", rows, "Every request was a hit, or there was none.");
}

function showFleet({ node: own, nodes }) {
  at("node").textContent = own;
  const rows = Object.entries(nodes).map(([name, node]) =>
    row([[name], [node.region || "–"], [node.heard_ms_ago < 1000 ? "now" : `${Math.round(node.heard_ms_ago / 1000)} s ago`, "number"]]));
  fill("nodes", rows, "This node has no purge bus.");
}

function scope(it) {
  if (it === "all") return "everything";
  const [[kind, what]] = Object.entries(it);
  return kind === "url" ? what : `${kind} ${what}`;
}

function showPurges(purges) {
  const rows = purges.slice(0, 10).map((purge) => {
    const first = purge.first_scopes.slice(0, 2).map(scope).join(", ");
    const more = purge.scopes > 2 ? ` and ${number.format(purge.scopes - 2)} more` : "";
    return row([[new Date(purge.at_ms).toLocaleTimeString()], [first + more, "long"], [purge.kind], [purge.node]]);
  });
  fill("purges", rows, "None since the node's start.");
}

function showState(text, kind) {
  at("state").textContent = text;
  at("state").className = `badge ${kind}`;
  document.title = `${at("node").textContent}: ${text}`;
}

async function look() {
  try {
    const ready = (await call("readyz")).trim();
    const [metrics, nodes, purges] = await Promise.all([call("metrics"), call("nodes"), call("purges?limit=10")]);
    samples.push({ time: performance.now(), values: parse(metrics) });
    if (samples.length > KEPT) samples.shift();
    at("login").hidden = true;
    at("main").hidden = false;
    showFleet(JSON.parse(nodes));
    showPurges(JSON.parse(purges).purges);
    showNow();
    showChart();
    showReasons();
    showState(ready, ready === "ready" ? "good" : "bad");
  } catch (error) {
    showState(error.status ? error.message : "does not answer", "bad");
  }
  setTimeout(look, EVERY_MS);
}

at("login").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("token", at("token").value);
  at("token").value = "";
});

at("ask").addEventListener("submit", async (event) => {
  event.preventDefault();
  const url = at("url").value, answer = at("answer");
  answer.hidden = false;
  answer.textContent = "…";
  try {
    answer.textContent = event.submitter?.value === "purge"
      ? await call("purge?wait=all", { method: "POST", body: JSON.stringify({ url, reason: "dashboard" }) })
      : await call(`explain?url=${encodeURIComponent(url)}`);
  } catch (error) {
    answer.textContent = error.message;
  }
});

look();
