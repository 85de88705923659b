// The forms: a request explained in sentences, and a purge.
import { at, call, make, whole } from "./dashboard-page.js";

const TITLES = { refuse: "Refused", answer: "Answered by the node itself", hit: "A hit", validate: "Validated with the origin first", forward: "Forwarded to the origin", "gateway-timeout": "Answered with 504" };

function title({ decision, stored }) {
  if (decision.act === "hit" && stored?.ttl_s < 0) return "A hit, served stale";
  return TITLES[decision.act] ?? decision.act;
}

/** Where a request goes that is not a hit, in a fleet whose nodes ask each other. */
function nextHop({ next_hop: hop, decision }) {
  if (!hop || decision.act === "hit") return null;
  const peers = (hop.peers ?? []).join(", then ");
  if (hop.to === "peer") return `the owner of the key: ${peers}`;
  if (hop.to === "shield") return `the shield, region ${hop.region}: ${peers}`;
  return hop.to === "error" ? `none: ${hop.why}, and shield_gone is "error"` : `the origin: ${hop.why}`;
}

const age = ({ ttl_s, lifetime_s }) => (ttl_s < 0 ? `stale for ${-ttl_s} s` : `fresh for ${ttl_s} of ${lifetime_s} s`);

function facts(it) {
  const { stored, rules, access, decision } = it;
  const pairs = [
    ["Site", it.site], ["Rule", it.rule && (it.rule_matches === null ? it.rule : `${it.rule}, matched by ${whole(it.rule_matches)} requests since the start`)], ["Key", it.key], ["Client country", it.country],
    ["Access", access && (access.admitted === true ? "allowed" : access.admitted === null ? `not judged: ${(access.not_judged ?? []).join(", ")}` : `refused by ${access.option} of rule ${access.rule}`)],
    ["Rate limit", it.rate && `${it.rate.per_second} a second, burst ${it.rate.burst}`],
    ["Answer", decision.status && [decision.status, decision.location].filter(Boolean).join(" to ")],
    ["Pool", it.pool && `${it.pool}, origins: ${it.pool_origins}, of them down: ${it.pool_origins_down}`],
    ["Order of origins", it.pool_tiers?.map((tier) => tier.join(", ")).join("; then ")],
    ["Stored", stored ? `status ${stored.status}, ${stored.bytes} bytes, ${stored.age_s} s old, ${age(stored)}` : it.key && "nothing"],
    ["Purged", it.purged],
    ["Lifetime", rules && (rules.lifetime_from === "none" ? "none given" : `${rules.lifetime_s} s, from ${rules.lifetime_from}`)],
    ["Would be stored", rules && (rules.not_stored_now ? `no: ${rules.not_stored_now}` : "yes")],
    ["Varies by", it.varies_by?.join?.(", ")],
    ["Next hop", nextHop(it)],
  ];
  return pairs.filter(([, value]) => value !== undefined && value !== null && value !== "" && value !== false);
}

function answer(it) {
  const { decision } = it;
  const list = make("dl", "", facts(it).flatMap(([name, value]) => [make("dt", "", name), make("dd", "", String(value))]));
  const raw = make("details", "", [make("summary", "", "The whole answer"), make("pre", "", JSON.stringify(it, null, 2))]);
  const reason = [decision.reason, decision.why].filter(Boolean).join(": ");
  return [make("p", "verdict", title(it)), make("p", "soft", reason), list, raw];
}

async function explain() {
  const query = new URLSearchParams({ url: at("url").value });
  for (const name of ["client", "country"]) if (at(name).value) query.set(name, at(name).value.trim());
  const field = at("fields").value.match(/^\s*([^:\s]+)\s*:\s*(.*)$/);
  const headers = field ? { [`x-explain-${field[1]}`]: field[2] } : {};
  const box = at("answer");
  box.hidden = false;
  try {
    box.replaceChildren(...answer(await call(`explain?${query}`, { headers })));
  } catch (error) {
    box.replaceChildren(make("p", "bad", error.message));
  }
}

async function purge() {
  const order = { [at("scope").value]: at("what").value.trim(), soft: at("soft").checked, reason: "dashboard" };
  const line = at("purge-answer");
  line.hidden = false;
  try {
    const { complete, nodes, id, warnings = [] } = await call("purge?wait=all", { method: "POST", body: JSON.stringify(order) });
    line.className = complete && !warnings.length ? "good" : "warn";
    const done = `Purge ${id}: ${complete ? `applied by ${Object.keys(nodes).length === 1 ? "this node" : `all ${Object.keys(nodes).length} nodes`}` : "accepted; not yet applied by all nodes"}.`;
    line.textContent = [done, ...warnings].join(" Warning: ");
  } catch (error) {
    line.className = "bad";
    line.textContent = error.message;
  }
}

/** Connects the forms; `purged` is called after a purge. */
export function connect(purged) {
  at("ask").addEventListener("submit", (event) => { event.preventDefault(); explain(); });
  at("purge").addEventListener("submit", async (event) => { event.preventDefault(); await purge(); purged(); });
  at("scope").addEventListener("change", () => {
    const examples = { url: "https://www.example.org/page", prefix: "https://www.example.org/news/", tag: "product-7", site: "www" };
    at("what").placeholder = examples[at("scope").value];
  });
}
