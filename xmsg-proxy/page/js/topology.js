// Who publishes what to whom: three columns, in which what belongs together is marked, and a table that says the same.

import { ask, query } from "./api.js";
import { arrange, choice, el, field, say, search, table, touch, whenTyped } from "./dom.js";
import * as format from "./format.js";
import { poll } from "./poll.js";

const KIND = { publisher: "publisher", channel: "channel", subscriber: "subscriber", outgoing: "outgoing connection" };

/** A column of buttons, kept by their key. While the pointer is over them, or the focus in them, they stay where they are. */
function column(title, choose) {
  const heading = el("h2", { text: title });
  const list = el("ul", { "aria-label": title });
  const more = el("p", { class: "muted" });
  const known = new Map();
  const touched = touch(list);
  function update(items, matching, isForced) {
    const isHeld = !isForced && touched.isHeld();
    for (const item of items) {
      let one = known.get(item.key);
      if (!one) {
        if (isHeld) continue;
        const label = el("span", { dir: "auto" });
        const detail = el("small", { class: "muted" });
        const button = el("button", { type: "button", "aria-pressed": "false", onclick: () => choose(item.key) }, label);
        one = { node: el("li", {}, button, detail), button, label, detail };
        known.set(item.key, one);
      }
      say(one.label, item.label);
      say(one.detail, item.detail);
    }
    arrange(list, known, items.map(({ key }) => key), isHeld);
    const left = matching - items.length;
    say(more, left > 0 ? `and ${format.count(left)} more` : matching === 0 ? "none" : "");
  }
  function mark(chosen, linked) {
    for (const [key, { button }] of known) {
      button.setAttribute("aria-pressed", String(key === chosen));
      button.classList.toggle("linked", linked.has(key));
      button.classList.toggle("other", chosen !== null && key !== chosen && !linked.has(key));
    }
  }
  return { node: el("section", { class: "panel" }, heading, list, more), update, mark, labelOf: (key) => known.get(key)?.label.textContent };
}

export function topology(main, { values }) {
  const focus = search("Show only what has to do with", values.get("focus"), "A part of a topic, of an address or of a name.");
  const limit = field("Show of each", choice([["20", "the busiest 20"], ["50", "the busiest 50"], ["100", "the busiest 100"]]));
  const error = el("div", { class: "error", role: "status" });
  const hint = el("p", { role: "status" });
  const sources = column("From", choose);
  const topics = column("Topics", choose);
  const targets = column("To", choose);
  const names = new Map();
  const list = (ids, all) => ids.map((id) => names.get(id) ?? id).join(", ") + (all > ids.length ? `${ids.length ? " and " : ""}${format.count(all - ids.length)} not shown` : "");
  const rows = table({
    caption: "Topics with their publishers and subscribers",
    key: (row) => row.topic,
    columns: [
      { title: "From", text: true, cell: (row) => list(row.from, row.sources) },
      { title: "Topic", text: true, cell: (row) => row.topic },
      { title: "Messages/s", number: true, cell: (row) => format.rate(row.messages_per_s) },
      { title: "To", text: true, cell: (row) => list(row.to, row.targets) },
    ],
  });
  const empty = el("p", { class: "empty", hidden: true });
  const nameOf = (key) => sources.labelOf(key) ?? topics.labelOf(key) ?? targets.labelOf(key) ?? "";
  let chosen = null;
  let links = [];

  /** What is linked with the node of this key, over topics. */
  function linkedWith(key) {
    const linked = new Set();
    for (const { topic, from, to } of links) {
      const whole = [`t${topic}`, ...from.map((id) => `f${id}`), ...to.map((id) => `g${id}`)];
      if (whole.includes(key)) whole.forEach((one) => linked.add(one));
    }
    linked.delete(key);
    return linked;
  }
  function mark() {
    const linked = chosen === null ? new Set() : linkedWith(chosen);
    for (const one of [sources, topics, targets]) one.mark(chosen, linked);
    const count = (letter) => [...linked].filter((key) => key.startsWith(letter)).length;
    const topic = links.find((one) => `t${one.topic}` === chosen);
    const hidden = topic ? topic.sources - topic.from.length + topic.targets - topic.to.length : 0;
    say(hint, chosen === null ? "Choose a topic, or one of those that publish or subscribe, to see what belongs to it." : `Marked is what belongs to ${nameOf(chosen)}: ${count("f")} of those that publish, ${count("t")} topics, ${count("g")} of those that subscribe${hidden ? `, and ${format.count(hidden)} that are not shown` : ""}.`);
  }
  function choose(key) {
    chosen = chosen === key ? null : key;
    mark();
  }
  function show(answer, isForced) {
    names.clear();
    for (const node of [...answer.sources.shown, ...answer.targets.shown]) names.set(node.id, node.label);
    const item = (letter) => (node) => ({ key: letter + node.id, label: node.label, detail: [KIND[node.kind], node.note, node.messages_per_s === null ? null : `${format.rate(node.messages_per_s)}/s`].filter(Boolean).join(" · ") });
    links = answer.topics.shown;
    sources.update(answer.sources.shown.map(item("f")), answer.sources.matching, isForced);
    topics.update(links.map((one) => ({ key: `t${one.topic}`, label: one.topic, detail: `${format.rate(one.messages_per_s)}/s` })), answer.topics.matching, isForced);
    targets.update(answer.targets.shown.map(item("g")), answer.targets.matching, isForced);
    const isKnown = chosen === null || (chosen.startsWith("t") ? links.some((one) => `t${one.topic}` === chosen) : names.has(chosen.slice(1)));
    if (!isKnown) chosen = null;
    mark();
    rows.update(links, { isForced });
    rows.node.hidden = links.length === 0;
    const isEmpty = answer.sources.matching + answer.topics.matching + answer.targets.matching === 0;
    empty.hidden = !isEmpty && !answer.is_cut;
    if (isEmpty && focus.input.value.trim()) say(empty, "Nothing has to do with that.");
    else if (isEmpty) say(empty, "Nobody is connected, and no message has come since you look. Publish one, for example: xmsg pub hello:world 42");
    else say(empty, "There are too many topics or subscribers to look at all of them: the busiest were looked at.");
  }
  const stopTyping = whenTyped([focus], () => polled.now());
  limit.input.addEventListener("change", () => polled.now());
  main.append(
    el("div", { class: "row" }, focus.node, limit.node), error, empty, hint,
    el("div", { class: "topology" }, sources.node, topics.node, targets.node),
    el("section", { class: "panel" }, rows.node));
  const polled = poll(2000, () => ask("GET", query("/api/v1/topology", { focus: focus.input.value.trim(), limit: limit.input.value })), show, error);
  return () => { polled.stop(); stopTyping(); };
}
