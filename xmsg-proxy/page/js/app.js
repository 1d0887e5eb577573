// The page as a whole: which view is shown, who is logged in, and whether the connection to the proxy is alive.

import { ask, keep } from "./api.js";
import { dialog, el, field, notice, say } from "./dom.js";
import * as format from "./format.js";
import * as live from "./live.js";
import { overview } from "./overview.js";
import { connections } from "./connections.js";
import { topics } from "./topics.js";
import { messages } from "./messages.js";
import { topology } from "./topology.js";
import { registrations } from "./registrations.js";
import { connect } from "./connect.js";
import { settings } from "./settings.js";
import { log } from "./log.js";

const VIEWS = [
  { path: "overview", title: "Overview", view: overview },
  { path: "connections", title: "Connections", view: connections },
  { path: "topics", title: "Topics", view: topics },
  { path: "messages", title: "Messages", view: messages },
  { path: "topology", title: "Topology", view: topology },
  { path: "registrations", title: "Registrations", view: registrations },
  { path: "connect", title: "Outgoing and channels", view: connect },
  { path: "settings", title: "Settings", view: settings },
  { path: "log", title: "Log", view: log },
];

const main = document.getElementById("main");
const account = document.getElementById("account");
const page = { session: null, can: (role) => page.session?.role === "operator" || role !== "operator" };
let end = null;
let shown = "";

function route() {
  const [path, text] = location.hash.replace(/^#\/?/, "").split("?");
  return { found: VIEWS.find((one) => one.path === path) ?? VIEWS[0], values: new URLSearchParams(text ?? "") };
}

function show() {
  const { found, values } = route();
  end?.();
  end = null;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.getAttribute("href") === `#/${found.path}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${found.title} – ${page.session?.name ?? "xmsg-proxy"}`;
  const heading = el("h1", { text: found.title, tabindex: "-1" });
  main.replaceChildren(heading);
  if (page.session && !page.session.role && !page.session.open_to_look) {
    main.append(el("p", { text: "Whoever looks at this proxy has to show its token first." }), el("button", { type: "button", class: "main", text: "Log in with the token", onclick: logIn }));
    return;
  }
  end = found.view(main, { page, values, logIn }) ?? null;
  // Whoever reads by ear is told where they are now; the first view is read from the top anyway.
  if (shown && shown !== found.path) heading.focus();
  shown = found.path;
}

function know(session) {
  page.session = session;
  say(document.getElementById("name"), session.name);
  account.hidden = !session.can_log_in && !session.role;
  say(account, session.role ? `Log out (${session.role})` : "Log in");
  if (session.role || session.open_to_look) live.start();
  else live.stop();
  show();
}

/** Begins a session with `{ token }`, or with `{ code }`, that of a link. */
async function begin(shown) {
  const session = await ask("POST", "/api/v1/session", shown);
  keep(session.secret);
  know(session);
}

function logIn() {
  const token = field("Token", el("input", { type: "password", autocomplete: "current-password", required: true }), "It stands in the token file of the proxy, or the proxy showed it when it started.");
  dialog("Log in", (close) => {
    const form = el("form", {}, token.node, el("div", { class: "row" },
      el("button", { type: "button", text: "Cancel", onclick: close }),
      el("button", { type: "submit", class: "main", text: "Log in" })));
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      try {
        await begin({ token: token.input.value });
        close();
      } catch (error) {
        token.fail(error.message);
        token.input.focus();
      }
    });
    return [form];
  });
  token.input.focus();
}

account.addEventListener("click", async () => {
  if (!page.session?.role) { logIn(); return; }
  try {
    const session = await ask("DELETE", "/api/v1/session");
    keep();
    know(session);
  } catch (error) {
    notice(error.message, true);
  }
});

document.getElementById("skip").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});

// The token has changed, the session is over, or the proxy was started anew.
let asking = false;
document.addEventListener("xmsg-session-ended", async () => {
  if (asking) return;
  asking = true;
  try { know(await ask("GET", "/api/v1/session")); } catch { /* The status says that it does not answer. */ }
  asking = false;
});

const badge = document.getElementById("state");
let wasLost = false;
live.watch(async (state) => {
  const texts = { connecting: "connecting", live: "live", lost: "connection lost – trying again", stopped: "not logged in" };
  say(badge, texts[state]);
  badge.className = `badge ${state === "live" ? "good" : state === "lost" ? "bad" : ""}`;
  if (state === "live" && wasLost) {
    // It may have been started anew, and then knows no session.
    try {
      const session = await ask("GET", "/api/v1/session");
      if (session.role !== page.session?.role) know(session);
    } catch { /* Lost again. */ }
  }
  wasLost = state === "lost";
});
live.follow((now) => {
  say(document.getElementById("facts"), `${now.version} · ${now.phase === "ready" ? "up" : "stopping, up"} ${format.duration(now.uptime_s)}`);
});

document.getElementById("pages").append(...VIEWS.map(({ path, title }) => el("li", {}, el("a", { href: `#/${path}`, text: title }))));

async function open() {
  // The link that the proxy shows has a code behind the sign that browsers keep to themselves. It is good once: what
  // stays in the history of the browser lets nobody in.
  const code = /^#code=([^&]+)/.exec(location.hash)?.[1];
  if (code) {
    history.replaceState(null, "", "#/overview");
    try {
      await begin({ code: decodeURIComponent(code) });
      return;
    } catch (error) {
      notice(error.message, true);
    }
  }
  try {
    know(await ask("GET", "/api/v1/session"));
  } catch (error) {
    main.replaceChildren(el("h1", { text: "No answer" }), el("p", { text: error.message }), el("button", { type: "button", text: "Try again", onclick: open }));
  }
}

// The link may be opened where the page is open already.
window.addEventListener("hashchange", () => (location.hash.startsWith("#code=") ? open() : show()));
open();
