// What flows, topic by topic.

import { ask, query } from "./api.js";
import { el, say, search, table, whenTyped } from "./dom.js";
import * as format from "./format.js";
import { poll } from "./poll.js";

export function topics(main, { values }) {
  const filter = search("Filter by a part of the topic", values.get("filter"));
  const rows = table({
    caption: "Topics, the highest rates first; counted from samples",
    key: (row) => row.topic,
    columns: [
      { title: "Topic", text: true, cell: (row) => row.topic },
      { title: "Messages/s", number: true, cell: (row) => format.rate(row.messages_per_s) },
      { title: "Bytes/s", number: true, cell: (row) => format.bytes(row.bytes_per_s) },
      { title: "Messages", number: true, cell: (row) => format.count(row.messages) },
      { title: "", cell: (row) => el("a", { href: query("#/messages", { topic: row.topic }), text: "Watch", "aria-label": `Watch ${row.topic}` }) },
    ],
  });
  const shown = el("p", { class: "muted" });
  const empty = el("p", { class: "empty", hidden: true });
  const error = el("div", { class: "error", role: "status" });
  function show(answer, isForced) {
    rows.update(answer.topics, { isForced });
    rows.node.hidden = answer.matching === 0;
    empty.hidden = answer.matching > 0;
    say(empty, answer.total === 0 ? "No message has come since you look. Publish one, for example: xmsg pub hello:world 42" : "No topic fits the filter.");
    const more = answer.other_messages ? ` Topics beyond these had ${format.count(answer.other_messages)} messages.` : "";
    say(shown, answer.total ? `${format.count(answer.topics.length)} of ${format.count(answer.matching)} topics that fit, ${format.count(answer.total)} seen in ${format.duration(answer.watched_s)}.${more}` : "");
  }
  const stopTyping = whenTyped([filter], () => polled.now());
  main.append(el("div", { class: "row" }, filter.node), el("section", { class: "panel" }, error, shown, empty, rows.node));
  const polled = poll(1000, () => ask("GET", query("/api/v1/topics", { filter: filter.input.value.trim(), limit: 500 })), show, error);
  return () => { polled.stop(); stopTyping(); };
}
