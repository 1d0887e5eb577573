// The settings in force, as they would stand in a file, and what a reload would change.

import { ask } from "./api.js";
import { el, say, search, table } from "./dom.js";
import { poll } from "./poll.js";

/** Pairs of key and value: `tcp.keepalive_s`, 60. */
function flat(value, prefix = "") {
  if (value === null || typeof value !== "object" || Array.isArray(value)) return [[prefix, value]];
  return Object.entries(value).flatMap(([key, inner]) => flat(inner, prefix ? `${prefix}.${key}` : key));
}

const UNCHANGED = "The settings file says what is in force: a reload would change nothing.";
const NO_FILE = "The proxy was started without a settings file (--config): a reload reads only the files that its options name, and they say what is in force.";

/** What a reload would change, above everything else. */
function changes(main) {
  const state = el("p", { role: "status" });
  const error = el("div", { class: "error", role: "status" });
  const rows = table({
    caption: "What a reload would change", hasHeading: true,
    key: (row) => row.setting,
    columns: [
      { title: "Setting", cell: (row) => row.setting },
      { title: "In force", text: true, cell: (row) => row.is_content ? "the former content" : row.in_force || "not set" },
      { title: "In the file", text: true, cell: (row) => row.is_content ? "another content" : row.in_file || "not set" },
      { title: "Then", cell: (row) => row.is_reloadable ? "taken over by a reload" : "needs a restart" },
    ],
  });
  main.querySelector("h1").after(el("section", { class: "panel" }, el("h2", { text: "What a reload would change" }), error, state, rows.node));
  return poll(5000, () => ask("GET", "/api/v1/settings/changes"), (answer, isForced) => {
    rows.update(answer.changes, { isForced });
    rows.node.hidden = answer.changes.length === 0;
    const taken = answer.changes.filter((row) => row.is_reloadable).length;
    if (answer.problem) say(state, `A reload would change nothing, because the settings can't be used: ${answer.problem}`);
    else if (answer.changes.length === 0) say(state, answer.has_file ? UNCHANGED : NO_FILE);
    else say(state, `SIGHUP would take over ${taken} of ${answer.changes.length} changes${taken < answer.changes.length ? "; the others need a restart" : ""}.`);
    state.className = answer.problem ? "bad" : "";
  }, error);
}

export function settings(main) {
  const filter = search("Filter");
  const rows = table({
    caption: "Settings in force",
    key: ([key]) => key,
    columns: [
      { title: "Setting", cell: ([key]) => key },
      { title: "Value", text: true, cell: ([, value]) => typeof value === "string" ? value : JSON.stringify(value) },
    ],
  });
  const error = el("div", { class: "error", role: "status" });
  let all = [];
  const show = () => {
    const wanted = filter.input.value.trim().toLowerCase();
    rows.update(all.filter(([key, value]) => `${key} ${JSON.stringify(value)}`.toLowerCase().includes(wanted)), { isForced: true });
  };
  filter.input.addEventListener("input", show);
  main.append(
    el("p", { text: "They come from defaults, the settings file, the environment and options. To change them, change the file and send SIGHUP; docs/xmsg-proxy.toml explains each, and says which need a restart. Passwords, keys and tokens stand in files, which are named here." }),
    el("div", { class: "row" }, filter.node), el("section", { class: "panel" }, error, rows.node));
  const polled = poll(5000, () => ask("GET", "/api/v1/settings"), (answer) => { all = flat(answer); show(); }, error);
  const watched = changes(main);
  return () => { polled.stop(); watched.stop(); };
}
