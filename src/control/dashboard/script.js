// The dashboard: asks the API for the view that is shown, and draws the answer. Nothing is kept but a token, for as long as the tab
// is open, and the choice between light and dark.
import * as forms from "./dashboard-explain.js";
import * as overview from "./dashboard-overview.js";
import { at, clock, make } from "./dashboard-page.js";
import * as views from "./dashboard-views.js";

const EVERY_MS = 2000;
const VIEWS = ["overview", "sites", "origins", "certificates", "purges", "fleet", "explain"];
let current = "overview", round = 0;

/** The head and the alarms are on every view: the other views ask for a brief overview. */
async function look() {
  const mine = ++round, isOverview = current === "overview";
  try {
    const state = await overview.load(isOverview);
    const view = views[current];
    const answer = view && (await view.load());
    if (mine !== round) return;
    at("login").hidden = true;
    at("main").hidden = false;
    showHead(state);
    if (isOverview) overview.show(state);
    if (view) view.show(answer);
    at("clock").textContent = `As of ${clock(state.now_ms)}.`;
  } catch (error) {
    if (mine !== round) return;
    if (error.status === 401) {
      at("login").hidden = false;
      at("main").hidden = true;
      showAlarms([]);
      showState(sessionStorage.getItem("token") ? "unknown token" : "no token", "");
    } else if (error.status) {
      showState("refused", "bad");
      showAlarms([{ urgent: true, cause: error.message, action: "" }]);
    } else {
      overview.forget();
      showState("does not answer", "bad");
      showAlarms([{ urgent: true, cause: "this node does not answer", action: "check whether the process runs; this page asks on" }]);
    }
  }
  if (mine === round) setTimeout(() => mine === round && !document.hidden && look(), EVERY_MS);
}

function showHead(state) {
  at("node").textContent = state.node;
  at("about").textContent = overview.about(state);
  showState(state.not_ready ?? "ready", state.not_ready ? "bad" : "good");
  showAlarms(state.alarms);
}

function showState(text, kind) {
  at("state").textContent = text;
  at("state").className = `badge ${kind}`;
  document.title = `${at("node").textContent.trim() || "Skerry"}: ${text}`;
}

let alarmsShown = "";
function showAlarms(alarms) {
  // Replaced only when they change, so that a screen reader says each once.
  const text = JSON.stringify(alarms);
  if (text === alarmsShown) return;
  alarmsShown = text;
  at("alarms").hidden = !alarms.length;
  at("alarms").replaceChildren(...alarms.map((it) => make("li", it.urgent ? "urgent" : "", [make("b", "", it.cause), make("span", "", it.action)])));
}

function route() {
  const name = location.hash.slice(1);
  if (name && !VIEWS.includes(name)) return;
  current = name || "overview";
  for (const view of VIEWS) at(view).hidden = view !== current;
  for (const link of at("views").children) {
    if (link.hash === `#${current}`) {
      link.setAttribute("aria-current", "page");
      link.scrollIntoView({ block: "nearest", inline: "nearest" });
    } else {
      link.removeAttribute("aria-current");
    }
  }
  scrollTo(0, 0);
  look();
}

addEventListener("hashchange", route);
document.addEventListener("visibilitychange", () => document.hidden || look());
addEventListener("keydown", (event) => {
  if (event.target.closest("input, select") || event.ctrlKey || event.metaKey || event.altKey) return;
  const view = VIEWS[Number(event.key) - 1];
  if (view) location.hash = view;
});
at("login").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("token", at("token").value);
  at("token").value = "";
  look();
});
for (const id of ["filter", "order"]) at(id).addEventListener("input", () => views.sites.all && views.sites.list());
at("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const isDark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = isDark ? "light" : "dark";
  sessionStorage.setItem("theme", root.dataset.theme);
});
document.documentElement.dataset.theme = sessionStorage.getItem("theme") ?? "";
forms.connect(look);
route();
