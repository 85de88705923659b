// The views beside the overview. Each has `load`, which asks the API, and `show`, which draws the answer.
import { ago, at, bar, bytes, call, clock, fill, make, percent, span, tile, whole } from "./dashboard-page.js";

const SITES_SHOWN = 100, RECEIPTS_SHOWN = 12, DAY_MS = 86_400_000;

export const sites = {
  load: () => call("store"),
  show(store) {
    this.store = store;
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
  list() {
    const word = at("filter").value.toLowerCase();
    const found = this.store.sites.filter((it) => it.site.toLowerCase().includes(word));
    const shown = found.toSorted((a, b) => b.memory_bytes - a.memory_bytes || a.site.localeCompare(b.site, "en", { numeric: true })).slice(0, SITES_SHOWN);
    at("site-count").textContent = shown.length < found.length ? `the ${SITES_SHOWN} largest of ${whole(found.length)}` : `${whole(found.length)} sites`;
    const most = Math.max(1, ...shown.map((it) => it.memory_bytes));
    fill("site-list", ["Site", "", ["Memory", "num"], ["Objects", "num"], ["Disk", "num"], ["Objects", "num"]],
      shown.map((it) => [[it.site, "long"], bar(it.memory_bytes / most, "hits"), [bytes(it.memory_bytes), "num"], [whole(it.memory_objects), "num"], [bytes(it.disk_bytes), "num"], [whole(it.disk_objects), "num"]]),
      word ? "No site has this in its name." : "Nothing is stored yet.");
  },
};

const STATES = { up: "good dot", "slow-start": "warn dot", ejected: "bad dot", down: "bad dot" };
const WHY = { unreachable: "cannot be reached", faulty: "responses are faulty", check: "its check fails" };

export const origins = {
  load: () => call("origins"),
  show({ now_ms, pools }) {
    const cards = pools.map(({ pool, origins }) => {
      const up = origins.filter((it) => it.state === "up" || it.state === "slow-start").length;
      const table = make("table");
      const check = (it) => {
        if (!it.last_check) return ["–", "soft"];
        const { passed, failure, took_ms, at_ms } = it.last_check;
        return [passed ? `passed in ${took_ms} ms, ${ago(now_ms - at_ms)}` : failure, passed ? "" : "long bad"];
      };
      fill(table, ["Origin", "State", "For", "Next trial", ["Failures", "num"], ["Connections", "num"], "Last check"],
        origins.map((it) => [
          [it.origin, "long"], [it.why ? `${it.state}: ${WHY[it.why] ?? it.why}` : it.state, `long ${STATES[it.state] ?? ""}`], span(now_ms - it.since_ms),
          it.on_trial ? "now" : it.until_ms ? `in ${span(it.until_ms - now_ms)}` : "–", [whole(it.failures), "num"], [whole(it.connections), "num"], check(it),
        ]), "This pool has no origins.");
      const state = make("p", up === origins.length ? "" : up ? "warn" : "bad", `${up} of ${origins.length} usable`);
      return make("section", "card", [make("h2", "", `Pool ${pool}`), state, make("div", "scroll", table)]);
    });
    at("origins").replaceChildren(...(cards.length ? cards : [make("section", "card", "This configuration has no pools.")]));
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
    fill("certificate-list", ["Names", "Expires", "File", ""],
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
  if (purge.published === false) return [`${count}, not sent: Redis is not reached`, "warn long"];
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

export const fleet = {
  load: () => call("nodes"),
  show({ node: own, nodes }) {
    const names = Object.keys(nodes).sort((a, b) => (nodes[a].region ?? "").localeCompare(nodes[b].region ?? "") || a.localeCompare(b));
    fill("nodes", ["Node", "Region", "State", "Last heartbeat"],
      names.map((name) => [[name === own ? `${name} (this node)` : name, "long"], nodes[name].region || "–", [nodes[name].state, nodes[name].state === "ready" ? "good dot" : "bad dot"], nodes[name].heard_ms_ago === null ? "–" : ago(nodes[name].heard_ms_ago)]),
      "No node is known.");
  },
};
