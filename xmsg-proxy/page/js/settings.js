// The settings in force, as they would stand in a file.

import { ask } from "./api.js";
import { el, field, say, table } from "./dom.js";

/** Pairs of key and value: `tcp.keepalive_s`, 60. */
function flat(value, prefix = "") {
  if (value === null || typeof value !== "object" || Array.isArray(value)) return [[prefix, value]];
  return Object.entries(value).flatMap(([key, inner]) => flat(inner, prefix ? `${prefix}.${key}` : key));
}

export function settings(main) {
  const filter = field("Filter", el("input", { type: "search", autocomplete: "off", spellcheck: "false" }));
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
  async function load() {
    try {
      all = flat(await ask("GET", "/api/v1/settings"));
      say(error, "");
      show();
    } catch (problem) { say(error, problem.message); }
  }
  load();
  const timer = setInterval(load, 5000);
  return () => clearInterval(timer);
}
