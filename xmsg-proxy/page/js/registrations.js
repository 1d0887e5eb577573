// What is registered at the registrar of this proxy, page by page.

import { ask, query } from "./api.js";
import { choice, el, field, pager, say, search, table, whenTyped } from "./dom.js";
import * as format from "./format.js";
import { poll } from "./poll.js";

const PAGE = 100;
const NO_REGISTRAR = "No registrar runs in this proxy. To run one, set enabled = true under [registrar] in the settings file, or give the option --registrar, and start the proxy anew.";

export function registrations(main, { values }) {
  const asked = { offset: 0, kind: values.get("kind") ?? "", topic: values.get("topic") ?? "", filter: values.get("filter") ?? "" };
  const topic = search("Topics that begin with", asked.topic);
  const filter = search("Filter by name, address or description", asked.filter);
  const kind = field("Show", choice([["", "publishers and subscribers"], ["publisher", "publishers"], ["subscriber", "subscribers"]], asked.kind));
  const rows = table({
    caption: "Registrations",
    // Two of them may differ in nothing that is shown, and the order is always the same.
    key: (row) => row.place,
    columns: [
      { title: "Kind", cell: (row) => row.kind },
      { title: "Name", text: true, cell: (row) => row.name },
      { title: "Topic", text: true, cell: (row) => row.topic },
      { title: "Address", text: true, cell: (row) => row.address },
      { title: "Description", text: true, cell: (row) => row.description ?? "" },
      { title: "Renewed", number: true, cell: (row) => row.renewed_s === null ? "not known" : `${format.duration(row.renewed_s)} ago` },
    ],
  });
  const empty = el("p", { class: "empty", role: "status", hidden: true });
  const error = el("div", { class: "error", role: "status" });
  const counts = el("p", { class: "muted" });
  const pages = pager(asked, PAGE, () => polled.now());
  const controls = el("div", { class: "row" }, topic.node, filter.node, kind.node);

  function show(answer, isForced) {
    const list = answer.registrations;
    const all = answer.publishers + answer.subscribers;
    controls.hidden = pages.node.hidden = !answer.has_registrar;
    rows.update(list.map((row, at) => ({ ...row, place: answer.offset + at })), { isForced });
    rows.node.hidden = list.length === 0;
    say(counts, answer.has_registrar ? `Registered now: ${format.count(answer.publishers)} publishers, ${format.count(answer.subscribers)} subscribers.` : "");
    empty.hidden = list.length > 0;
    if (!answer.has_registrar) say(empty, NO_REGISTRAR);
    else if (all === 0) say(empty, "Nothing is registered. Register something, for example: xmsg registrar register report:sports --name reporter --publisher");
    else if (answer.offset > 0) say(empty, "There are no further registrations.");
    else say(empty, answer.is_cut ? "None of the first 200,000 registrations fits: name what the topic begins with." : "No registration fits the filter.");
    const cut = answer.is_cut ? "; only the first 200,000 registrations were looked at" : answer.has_more ? ", and there are more" : "";
    pages.update(list.length ? `${format.count(answer.offset + 1)} to ${format.count(answer.offset + list.length)}${cut}` : "", answer.has_more);
  }
  function change() {
    Object.assign(asked, { topic: topic.input.value.trim(), filter: filter.input.value.trim(), kind: kind.input.value, offset: 0 });
    polled.now();
  }
  const stopTyping = whenTyped([topic, filter], change);
  kind.input.addEventListener("change", change);
  main.append(controls, el("section", { class: "panel" }, error, counts, empty, rows.node, pages.node));
  const polled = poll(5000, () => ask("GET", query("/api/v1/registrations", { ...asked, limit: PAGE })), show, error);
  return () => { polled.stop(); stopTyping(); };
}
