// The end of the log, and what is added to it.

import { el, say, search } from "./dom.js";

const KEPT = 1000;

export function log(main, { page, logIn }) {
  if (page.session?.has_log === false) {
    main.append(el("p", { text: "This program keeps no log of its own." }));
    return undefined;
  }
  if (!page.can("operator")) {
    main.append(el("p", { text: "The log may have names and addresses in it: to read it, log in with the operator's token." }), el("button", { type: "button", class: "main", text: "Log in", onclick: logIn }));
    return undefined;
  }
  const filter = search("Show lines with");
  const state = el("p", { class: "muted", role: "status", text: "Connecting …" });
  const list = el("pre", { class: "log", role: "log", "aria-label": "Log", "aria-live": "off", tabindex: "0" });
  let lines = [];
  const fits = (line) => line.toLowerCase().includes(filter.input.value.trim().toLowerCase());
  const shown = (line) => el("div", { class: / ERROR /.test(line) ? "bad" : / WARN /.test(line) ? "warn" : undefined, text: line });
  const source = new EventSource("/api/v1/log");
  source.addEventListener("lines", (event) => {
    const added = JSON.parse(event.data);
    lines = [...lines, ...added].slice(-KEPT);
    // Whoever reads further up is not moved.
    const isAtEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 24;
    list.append(...added.filter(fits).map(shown));
    while (list.childElementCount > KEPT) list.firstElementChild.remove();
    if (isAtEnd) list.scrollTop = list.scrollHeight;
    say(state, "The last lines of the log; new ones are added at the end.");
  });
  source.onerror = async () => {
    if (source.readyState !== EventSource.CLOSED) { say(state, "The connection is lost – trying again."); return; }
    let why = "log in again.";
    // A refusal is read by asking once more.
    try {
      const answer = await fetch("/api/v1/log");
      if (answer.ok) await answer.body.cancel();
      else why = (await answer.json()).message;
    } catch { /* The status at the top says so. */ }
    say(state, `The log can't be read: ${why}`);
  };
  source.onopen = () => { lines = []; list.replaceChildren(); say(state, "Nothing has been logged yet."); };
  filter.input.addEventListener("input", () => list.replaceChildren(...lines.filter(fits).map(shown)));
  main.append(
    el("p", { class: "muted", text: "Times in the log are those of the proxy, in UTC (Z)." }),
    el("div", { class: "row" }, filter.node), el("section", { class: "panel" }, state, list));
  return () => source.close();
}
