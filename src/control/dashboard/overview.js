// The overview: an hour of requests, latency, bandwidth and errors, kept by the node, and what explains them.
import { Chart } from "./dashboard-charts.js";
import { ago, at, bar, bytes, call, fill, micros, percent, short, span, tile, whole } from "./dashboard-page.js";

const TOP = 10, ERRORS_SHOWN = 15, TOP_EVERY_MS = 10_000;
let rows = [], askedTopAt = 0, charts = null;

const perSecond = (name) => (row) => (row.length_ms ? (1000 * row[name]) / row.length_ms : 0);

function draw() {
  const rate = (title, kind, name, isArea = false) => ({ title, kind, isArea, value: perSecond(name) });
  const time = (title, kind) => ({ title, kind, value: (row) => (row.requests ? row[`${kind}_us`] : null) });
  return {
    requests: new Chart(at("chart-requests"), [rate("all", "miss", "requests", true), rate("hits", "hit", "hits", true)], short),
    latency: new Chart(at("chart-latency"), [time("p99", "p99"), time("p90", "p90"), time("p50", "p50")], micros),
    bytes: new Chart(at("chart-bytes"), [rate("all", "hit", "bytes", true), rate("not from the cache", "miss", "forwarded_bytes", true)], bytes, true),
    errors: new Chart(at("chart-errors"), [rate("4xx", "miss", "client_errors"), rate("5xx", "bad", "server_errors", true), rate("origins", "p90", "upstream_failures")], short),
  };
}

/** The node and its alarms; if `isShown`, also what is new since the last overview. */
export async function load(isShown) {
  if (!isShown) return call("overview?brief=true");
  const isTopDue = performance.now() - askedTopAt >= TOP_EVERY_MS || !askedTopAt;
  const since = rows.at(-1)?.end_ms ?? 0;
  const overview = await call(`overview?since=${since}${isTopDue ? `&top=${TOP}` : ""}`);
  if (isTopDue) askedTopAt = performance.now();
  const named = (values) => Object.fromEntries(overview.columns.map((name, i) => [name, values[i]]));
  // A restart begins a new history.
  rows = rows.filter((row) => row.end_ms > overview.now_ms - 3_600_000).concat(overview.intervals.map(named));
  return { ...overview, now: named(overview.now) };
}

/** Forgets what was loaded: another node may answer at this address. */
export function forget() {
  rows = [];
  askedTopAt = 0;
}

export function show(overview) {
  charts ??= draw();
  const { now } = overview;
  const hour = (name) => rows.reduce((sum, row) => sum + row[name], 0);
  const errors = perSecond("server_errors")(now);
  at("tiles").replaceChildren(
    tile("requests/s", short(perSecond("requests")(now)), `${short(hour("requests"))} last hour`),
    tile("hits, by requests", percent(now.hits, now.lookups), `${percent(hour("hits"), hour("lookups"))} last hour`),
    tile("hits, by bytes", percent(now.bytes - now.forwarded_bytes, now.bytes), `${percent(hour("bytes") - hour("forwarded_bytes"), hour("bytes"))} last hour`),
    tile("first byte, p50", now.requests ? micros(now.p50_us) : "–", now.requests ? `p90 ${micros(now.p90_us)} · p99 ${micros(now.p99_us)}` : "no requests"),
    tile("to clients/s", bytes(perSecond("bytes")(now)), `${bytes(hour("bytes"))} last hour`),
    tile("to origins/s", short(perSecond("upstream_requests")(now)), `${short(perSecond("upstream_failures")(now))} failed`),
    tile("5xx/s", short(errors), `${short(hour("server_errors"))} last hour`, errors > 0),
  );
  Object.values(charts).forEach((chart) => chart.show(rows, overview.now_ms));
  showReasons(overview.reasons);
  if (overview.top) showTop(overview.top);
  fill("errors", ["When", ["Status", "num"], "Request", "Failure", "Pool and origin", "Request id"],
    overview.errors.slice(0, ERRORS_SHOWN).map((it) => [ago(overview.now_ms - it.at_ms), [String(it.status), "num bad"], [it.request, "long"], it.failure || "sent by the origin", it.origin || "–", [it.id, "soft"]]),
    "None since the node's start.");
}

function showReasons(reasons) {
  const most = Math.max(1, ...reasons.map(([, count]) => count));
  fill("reasons", [], reasons.slice(0, 12).map(([reason, count]) => [[reason, "long"], bar(count / most), [whole(count), "num"]]),
    "Every request was a hit, or there was none.");
}

function showTop(top) {
  const most = Math.max(...top.map(([, share]) => share));
  fill("top", [], top.map(([url, share]) => [[url, "long"], bar(share / most, "hits"), [percent(share, 1), "num"]]),
    "Nothing was a hit yet. One of sixteen hits is counted.");
}

/** The line below the node's name. */
export const about = (overview) =>
  [overview.region, `version ${overview.version}`, `up for ${span(overview.now_ms - overview.started_ms)}`].filter(Boolean).join(" · ");
