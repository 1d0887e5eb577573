// Publishers and subscribers: sorted, filtered, and ended one by one.

import { ask, query } from "./api.js";
import { choice, confirm, el, field, notice, pager, say, search, table, whenTyped } from "./dom.js";
import * as format from "./format.js";
import { poll } from "./poll.js";

const PAGE = 100;

/** What ends a connection, for those who may. */
export function endButton(page, row) {
  if (!page.can("operator")) return el("span", { class: "muted", text: "" });
  return el("button", {
    type: "button", text: "End", "aria-label": `End the connection of ${row.peer}`,
    onclick: async () => {
      const isSure = await confirm("End this connection?", `The ${row.kind} at ${row.peer} is cut off. What waits for it is lost; it may connect again.`, "End the connection");
      if (!isSure) return;
      try {
        const ended = await ask("POST", `/api/v1/connections/${row.id}/end`);
        notice(`The connection of the ${ended.side} at ${ended.peer} was ended.`);
      } catch (error) {
        notice(error.message, true);
      }
    },
  });
}

export function connections(main, { page, values }) {
  const asked = { offset: 0, sort: values.get("sort") ?? "trouble", kind: values.get("kind") ?? "", filter: values.get("filter") ?? "" };
  const filter = search("Filter by address, name or number", asked.filter);
  const kind = field("Show", choice([["", "publishers and subscribers"], ["publisher", "publishers"], ["subscriber", "subscribers"]], asked.kind));
  const sort = field("Sort by", choice([["trouble", "trouble"], ["rate", "rate"], ["messages", "messages"], ["queue", "what waits"], ["drops", "drops"], ["subscriptions", "subscriptions"], ["connected", "time connected"], ["peer", "address"], ["id", "number"]], asked.sort));
  const of = (row, value) => row.kind === "subscriber" ? value(row) : "";
  const rows = table({
    caption: "Connections",
    key: (row) => row.id,
    onsort: (by) => { sort.input.value = by; change(); },
    columns: [
      { title: "No.", number: true, sort: "id", ascending: true, cell: (row) => String(row.id) },
      { title: "Kind", cell: (row) => row.kind },
      { title: "Address", sort: "peer", ascending: true, cell: (row) => row.peer },
      { title: "Name", text: true, cell: (row) => row.principal ?? "" },
      { title: "Messages/s", number: true, sort: "rate", cell: (row) => format.rate(row.messages_per_s) },
      { title: "Bytes/s", number: true, cell: (row) => format.bytes(row.bytes_per_s) },
      { title: "Messages", number: true, sort: "messages", cell: (row) => format.count(row.messages) },
      { title: "Subscriptions", number: true, sort: "subscriptions", cell: (row) => of(row, () => format.count(row.subscriptions)) },
      { title: "Waiting", number: true, sort: "queue", cell: (row) => of(row, () => format.count(row.queued.messages)) },
      { title: "Dropped", number: true, sort: "drops", cell: (row) => of(row, () => format.count(row.dropped.messages)) },
      { title: "Slow for", number: true, cell: (row) => of(row, () => row.slow_s === null ? "" : format.duration(row.slow_s)) },
      { title: "Connected for", number: true, sort: "connected", cell: (row) => format.duration(row.connected_s) },
      { title: "", cell: (row) => endButton(page, row) },
    ],
  });
  const empty = el("p", { class: "empty", hidden: true });
  const error = el("div", { class: "error", role: "status" });
  const pages = pager(asked, PAGE, () => polled.now());

  function show(answer, isForced) {
    rows.sorted(asked.sort);
    rows.update(answer.connections, { isForced });
    const last = answer.offset + answer.connections.length;
    pages.update(answer.matching ? `${format.count(answer.offset + 1)} to ${format.count(last)} of ${format.count(answer.matching)}` : "", last < answer.matching);
    rows.node.hidden = answer.matching === 0;
    empty.hidden = answer.matching > 0;
    say(empty, answer.total === 0 ? "Nobody is connected. Subscribe, for example: xmsg sub" : "No connection fits the filter.");
  }
  function change() {
    Object.assign(asked, { filter: filter.input.value.trim(), kind: kind.input.value, sort: sort.input.value, offset: 0 });
    polled.now();
  }
  const stopTyping = whenTyped([filter], change);
  kind.input.addEventListener("change", change);
  sort.input.addEventListener("change", change);

  main.append(
    el("div", { class: "row" }, filter.node, kind.node, sort.node),
    el("section", { class: "panel" }, error, empty, rows.node, pages.node),
  );
  if (!page.can("operator")) main.append(el("p", { class: "muted", text: "To end a connection, log in with the operator's token." }));
  const polled = poll(2000, () => ask("GET", query("/api/v1/connections", { ...asked, limit: PAGE })), show, error);
  return () => { polled.stop(); stopTyping(); };
}
