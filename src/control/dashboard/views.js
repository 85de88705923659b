// The views beside the overview. Each has `load`, which asks the API, and `show`, which draws the answer.
import { ago, at, bar, bytes, call, clock, fill, make, percent, scroll, short, span, tile, whole } from "./dashboard-page.js";

const SITES_SHOWN = 100, RULES_SHOWN = 20, POOLS_SHOWN = 50, RECEIPTS_SHOWN = 12, DAY_MS = 86_400_000;

/** How sites can be sorted: the value that comes first is the largest. */
const ORDERS = {
  requests: (it) => it.rate ?? it.requests,
  errors: (it) => it.server_errors,
  memory: (it) => it.memory_bytes,
  name: () => 0,
};

export const sites = {
  before: null,
  load: () => Promise.all([call("store"), call("sites"), call("rules?unmatched=true")]),
  show([store, counted, { rules }]) {
    this.join(store, counted);
    const shown = rules.slice(0, RULES_SHOWN).map(([site, rule]) => [[site, "long"], [rule, "long"]]);
    const rest = rules.length - shown.length;
    if (rest > 0) shown.push([[`and ${whole(rest)} more: skerry rules --unmatched`, "soft"], ""]);
    fill("unmatched", ["Site", "Rule"], shown, "None: each rule of these sites has matched a request.");
    const { memory, directories } = store;
    const total = (name) => directories.reduce((sum, it) => sum + it[name], 0);
    at("store").replaceChildren(
      tile(`memory of ${bytes(memory.bytes_max)}`, bytes(memory.bytes), percent(memory.bytes, memory.bytes_max)),
      tile(`disk of ${bytes(total("bytes_max"))}`, bytes(total("bytes")), percent(total("bytes"), total("bytes_max"))),
      tile("sites with stored responses", whole(store.sites.length)),
      tile("entries of the purge table", whole(store.purges)),
    );
    fill("directories", ["Directory", "State", ["Allocated", "num"], ["Maximum", "num"], ["Written", "num"], ["Read", "num"], ["Queued", "num"]],
      directories.map((it) => [
        [it.path, "long"], [it.short_of_space ? `${it.service}, file system full` : it.service, it.service === "serving" && !it.short_of_space ? "good dot" : "bad dot"],
        ...["bytes", "bytes_max", "written_bytes", "read_bytes", "queued_bytes"].map((name) => [bytes(it[name]), "num"]),
      ]), "No disk cache: responses are kept in memory only.");
    this.list();
  },
  /** What is stored of each site, its counters since the start, and its rates since the last answer. */
  join(store, { now_ms, columns, sites: counted }) {
    const named = counted.map((values) => Object.fromEntries(columns.map((name, i) => [name, values[i]])));
    const stored = new Map(store.sites.map((it) => [it.site, it]));
    const before = this.before, seconds = before ? (now_ms - before.now_ms) / 1000 : 0;
    this.all = named.map((it) => {
      const old = before?.sites.get(it.site);
      const rate = seconds > 0 && old ? Math.max(0, it.requests - old.requests) / seconds : null;
      return { memory_bytes: 0, disk_bytes: 0, ...stored.get(it.site), ...it, rate };
    });
    // Answers that come at once, as after a change of the view, have no useful difference.
    if (!before || seconds >= 1) this.before = { now_ms, sites: new Map(named.map((it) => [it.site, it])) };
  },
  list() {
    const word = at("filter").value.toLowerCase(), order = ORDERS[at("order").value];
    const found = this.all.filter((it) => it.site.toLowerCase().includes(word));
    const shown = found.toSorted((a, b) => order(b) - order(a) || a.site.localeCompare(b.site, "en", { numeric: true })).slice(0, SITES_SHOWN);
    at("site-count").textContent = shown.length < found.length ? `the first ${SITES_SHOWN} of ${whole(found.length)}` : `${whole(found.length)} sites`;
    const most = Math.max(1, ...shown.map((it) => it.requests));
    fill("site-list", ["Site", "Share", ["Now/s", "num"], ["Requests", "num"], ["Hits", "num"], ["4xx", "num"], ["5xx", "num"], ["Sent", "num"], ["Memory", "num"], ["Disk", "num"]],
      shown.map((it) => [
        [it.site, "long"], bar(it.requests / most, "hits"), [it.rate === null ? "–" : short(it.rate), "num"], [short(it.requests), "num"], [percent(it.hits, it.requests), "num"],
        [short(it.client_errors), "num"], [short(it.server_errors), it.server_errors ? "num bad" : "num"], [bytes(it.bytes), "num"], [bytes(it.memory_bytes), "num"], [bytes(it.disk_bytes), "num"],
      ]),
      word ? "No site has this in its name." : "This configuration has no sites.");
  },
};

const STATES = { up: "good dot", "slow-start": "warn dot", ejected: "bad dot", down: "bad dot", draining: "warn dot", maintenance: "warn dot" };
const isUsable = (it) => it.state === "up" || it.state === "slow-start";
const SLOW_MS = 1000;
const firstByte = ({ first_byte_ms: ms }) => ms === null ? ["–", "num"] : [ms < 10 ? `${ms.toFixed(1)} ms` : `${whole(Math.round(ms))} ms`, ms < SLOW_MS ? "num" : "num warn"];
const WHY = { unreachable: "cannot be reached", faulty: "responses are faulty", check: "its check fails" };

export const origins = {
  load: () => call("origins"),
  show({ now_ms, pools }) {
    const all = pools.flatMap(({ origins }) => origins), count = (...states) => all.filter((it) => states.includes(it.state)).length;
    const usable = ({ origins }) => origins.filter(isUsable).length, share = (it) => usable(it) / Math.max(1, it.origins.length);
    const lost = pools.filter((it) => !usable(it)).length;
    const tiles = make("div", "tiles", [
      tile("origins usable", `${whole(count("up", "slow-start"))} of ${whole(all.length)}`, count("slow-start") ? `${whole(count("slow-start"))} in slow start` : ""),
      tile("down", whole(count("down")), "get only trials", count("down") > 0),
      tile("ejected", whole(count("ejected")), "their responses are faulty", count("ejected") > 0),
      tile("draining or in maintenance", whole(count("draining", "maintenance")), "set by an operator"),
      tile("pools without an origin", whole(lost), `of ${whole(pools.length)}`, lost > 0),
    ]);
    // Pools in trouble first.
    const shown = pools.toSorted((a, b) => share(a) - share(b)).slice(0, POOLS_SHOWN);
    const cards = shown.map(({ pool, origins }) => {
      const up = origins.filter(isUsable).length;
      const table = make("table");
      const check = (it) => {
        if (!it.last_check) return ["–", "soft"];
        const { passed, failure, took_ms, at_ms } = it.last_check;
        return [passed ? `passed in ${took_ms} ms, ${ago(now_ms - at_ms)}` : failure, passed ? "" : "long bad"];
      };
      fill(table, ["Origin", "State", "For", "Next trial", ["Failures", "num"], ["Priority", "num"], ["Weight", "num"], ["First byte", "num"], ["In flight", "num"], ["Connections", "num"], "Last check"],
        origins.map((it) => [
          [it.origin, "long"], [it.why ? `${it.state}: ${WHY[it.why] ?? it.why}` : it.state, `long ${STATES[it.state] ?? ""}`], span(now_ms - it.since_ms),
          it.on_trial ? "now" : it.until_ms ? `in ${span(it.until_ms - now_ms)}` : "–", [whole(it.failures), "num"],
          [whole(it.priority), "num"], [whole(it.weight), "num"], firstByte(it), [it.in_flight === null ? "–" : whole(it.in_flight), "num"], [whole(it.connections), "num"], check(it),
        ]), "This pool has no origins.");
      const state = make("p", up === origins.length ? "" : up ? "warn" : "bad", `${up} of ${origins.length} usable`);
      return make("section", "card", [make("h2", "", `Pool ${pool}`), state, scroll(table)]);
    });
    const rest = pools.length - shown.length;
    if (rest > 0) cards.push(make("section", "card", `${whole(rest)} further pools have all their origins, or as many as these: skerry origins lists them.`));
    at("origins").replaceChildren(...(cards.length ? [tiles, ...cards] : [make("section", "card", "This configuration has no pools.")]));
  },
};

export const certificates = {
  load: () => call("certificates"),
  show({ now_ms, certificates }) {
    const expiry = ({ until_ms, self_signed }) => {
      if (until_ms === null) return ["unreadable", "warn"];
      const left = until_ms - now_ms, date = new Date(until_ms).toLocaleDateString("en-CA");
      if (left < 0) return [`expired on ${date}`, "bad dot"];
      return [`${date}, in ${span(left)}`, left < 14 * DAY_MS && !self_signed ? "warn dot" : "good dot"];
    };
    fill("certificate-list", ["Names", "Expires", "File", "Note"],
      certificates.toSorted((a, b) => (a.until_ms ?? 0) - (b.until_ms ?? 0)).slice(0, SITES_SHOWN)
        .map((it) => [[it.names.join(", ") || "–", "long"], expiry(it), [it.file, "soft"], it.self_signed ? "self-signed; renewed by the node" : ""]),
      "No listener has TLS.");
  },
};

function scope(it) {
  if (it === "all") return "everything";
  const [[kind, what]] = Object.entries(it);
  return kind === "url" ? what : `${kind} ${what}`;
}

/** "6/6, 128 ms", or the nodes that are pending. */
function receipts(purge) {
  if (!purge?.nodes) return ["…", "soft"];
  const nodes = Object.entries(purge.nodes);
  const pending = nodes.filter(([, node]) => node.state !== "applied").map(([name]) => name);
  const slowest = Math.max(0, ...nodes.map(([, node]) => node.durable_ms ?? 0));
  const count = `${nodes.length - pending.length}/${nodes.length}`;
  if (purge.published === false && purge.bus !== "connected") return [`${count}, not sent: Redis is not reached`, "warn long"];
  if (pending.length) return [`${count}, pending: ${pending.join(", ")}`, "warn long"];
  return [slowest ? `${count}, ${slowest < 10 ? slowest.toFixed(1) : whole(slowest)} ms` : count, "good"];
}

export const purges = {
  complete: new Map(),
  async load() {
    const { purges } = await call("purges?limit=50");
    const shown = purges.slice(0, RECEIPTS_SHOWN).filter(({ id }) => !this.complete.has(id));
    const states = await Promise.all(shown.map(({ id }) => call(`purges/${encodeURIComponent(id)}`).catch(() => null)));
    const known = new Map(states.filter(Boolean).map((state) => [state.id, state]));
    // Receipts of a complete purge do not change.
    known.forEach((state, id) => { if (state.complete) this.complete.set(id, state); });
    if (this.complete.size > 500) this.complete.clear();
    return purges.map((purge) => ({ ...purge, state: known.get(purge.id) ?? this.complete.get(purge.id) }));
  },
  show(purges) {
    const scopes = (it) => {
      // A URL is purged for both schemes: one is shown.
      const all = [...new Set(it.first_scopes.map((one) => scope(one).replace(/\bhttp:/, "https:")))];
      const more = it.scopes > it.first_scopes.length ? " and more" : all.length > 3 ? ` and ${all.length - 3} more` : "";
      return all.slice(0, 3).join(", ") + more;
    };
    fill("purge-list", ["When", "What", "Kind", "Receipts", "By", "Reason"],
      purges.map((it, i) => [clock(it.at_ms), [scopes(it), "long"], it.kind, i < RECEIPTS_SHOWN || it.state ? receipts(it.state) : ["–", "soft"], it.node, [it.reason ?? "", "soft"]]),
      "None since the node's start.");
  },
};

const READY = { ready: "good dot", draining: "warn dot" };
const DISKS = { full: "disk full", "read-only": "disk cannot be written", out: "disk out of service" };

/** "ready, disk full", in the colour of the worse. */
function nodeState(it) {
  const faults = [it.duplicate_name && "name used twice", it.reachable === false && "unreachable", DISKS[it.store]].filter(Boolean);
  const kind = it.duplicate_name || it.reachable === false ? "bad dot" : READY[it.state] ?? "bad dot";
  return [[it.state, ...faults].join(", "), faults.length && kind === "good dot" ? "warn dot" : kind];
}

/** The nodes of a region in one table, with what they have in common above it. */
function region(name, members, own, newest) {
  const ready = members.filter((it) => it.state === "ready"), load = ready.reduce((sum, it) => sum + it.load, 0) / Math.max(1, ready.length);
  const table = make("table");
  const lag = ({ applied }) => {
    if (applied === null || newest === null) return ["–", "num soft"];
    return applied < newest ? [`${whole(newest - applied)} behind`, "num warn"] : ["none", "num"];
  };
  fill(table, ["Node", "State", "Load", "%", ["Purges missing", "num"], "Heartbeat", ["Weight", "num"], "Version", "Addresses"],
    members.map((it) => [
      [it.name === own ? `${it.name} (this node)` : it.name, "long"], nodeState(it),
      bar(it.load, it.load > 0.9 ? "full" : ""), percent(it.load, 1), lag(it), it.heard_ms_ago === null ? "–" : ago(it.heard_ms_ago), [whole(it.weight), "num"], it.software, [it.addresses.join(", "), "soft"],
    ]), "");
  const troubled = members.filter((it) => DISKS[it.store]).length;
  const state = `${ready.length} of ${members.length} ready, load ${percent(load, 1)}${troubled ? `, ${whole(troubled)} with disk trouble` : ""}`;
  const kind = ready.length === members.length && !troubled ? "" : ready.length ? "warn" : "bad";
  return make("section", "card", [make("h2", "", name ? `Region ${name}` : "No region"), make("p", kind, state), scroll(table)]);
}

export const fleet = {
  load: () => call("nodes"),
  show({ node: own, nodes, configs }) {
    const members = Object.entries(nodes).map(([name, it]) => ({ ...it, name })).sort((a, b) => a.name.localeCompare(b.name, "en", { numeric: true }));
    const regions = new Map();
    for (const it of members) regions.set(it.region, [...(regions.get(it.region) ?? []), it]);
    const positions = members.map((it) => it.applied).filter((it) => it !== null), newest = positions.length ? Math.max(...positions) : null;
    const ready = members.filter((it) => it.state === "ready").length, late = members.filter((it) => it.applied !== null && it.applied < newest).length;
    const differ = Object.keys(configs).length, versions = new Set(members.map((it) => it.software)).size;
    at("fleet-tiles").replaceChildren(
      tile("nodes ready", `${whole(ready)} of ${whole(members.length)}`, "", ready < members.length),
      tile("regions", whole(regions.size)),
      tile("nodes that miss purges", whole(late), newest === null ? "no purge known from the bus" : `the newest is number ${whole(newest)}`, late > 0),
      tile("configurations in use", whole(differ), differ > 1 ? "they should be the same" : "", differ > 1),
      tile("versions in use", whole(versions)),
    );
    const names = [...regions.keys()].sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
    at("regions").replaceChildren(...names.map((name) => region(name, regions.get(name), own, newest)));
  },
};
