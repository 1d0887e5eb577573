// What is done with the messages of an outgoing connection: one is sent to try it, dead letters are sent again or deleted, and all of it goes with the
// connection.

import { ask, query } from "./api.js";
import { choice, dialog, el, field, notice, say, table } from "./dom.js";
import * as format from "./format.js";

const path = (sort, name, rest = "") => `/connect/${sort}/${encodeURIComponent(name)}${rest}`;

/** Sends one message, and waits until the peer has it. */
export function testMessage(name, changed) {
  const topic = field("Topic", el("input", { type: "text", value: "test:page", spellcheck: "false" }));
  const data = field("Data, as text", el("textarea", {}));
  data.input.value = "a test message";
  const told = el("div", { role: "status", class: "error" });
  dialog(`Send a test message by ${name}`, (close) => {
    const form = el("form", {}, topic.node, data.node, told, el("div", { class: "row" },
      el("button", { type: "button", text: "Close", onclick: close }),
      el("button", { type: "submit", class: "main", text: "Send and wait for the peer" })));
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      topic.fail("");
      data.fail("");
      say(told, "Waiting for the peer …");
      try {
        const { sequence } = await ask("POST", path("outgoing", name, "/send"), { topic: topic.input.value, text: data.input.value, confirm: true, timeout_s: 10 });
        close();
        notice(`The peer of ${name} has message ${sequence}.`);
      } catch (error) {
        say(told, "");
        const wrong = { topic, text: data }[error.field];
        if (wrong) { wrong.fail(error.message); wrong.input.focus(); } else say(told, error.message);
      }
      changed();
    });
    return [form];
  });
  topic.input.focus();
}

/** Messages that could not be delivered, with their reasons. */
export function deadLetters(name, changed) {
  const empty = el("p", { class: "empty", text: "There is none: everything was delivered, or waits in the spool." });
  const error = el("div", { class: "error", role: "status" });
  const work = async (method, rest) => {
    try { await ask(method, path("outgoing", name, rest)); } catch (problem) { say(error, problem.message); }
    load();
    changed();
  };
  const rows = table({
    caption: `Dead letters of ${name}, the oldest first`, key: (row) => row.sequence,
    columns: [
      { title: "No.", number: true, cell: (row) => String(row.sequence) },
      { title: "Topic", text: true, cell: (row) => row.topic ?? "" },
      { title: "Size", number: true, cell: (row) => format.bytes(row.size) },
      { title: "Dead since", cell: (row) => format.moment(new Date(row.dead_since)) },
      { title: "Reason", text: true, cell: (row) => row.reason },
      { title: "", cell: (row) => el("span", {},
        el("button", { type: "button", text: "Send again", "aria-label": `Send again message ${row.sequence}`, onclick: () => work("POST", `/dead/${row.sequence}/revive`) }),
        el("button", { type: "button", text: "Delete", "aria-label": `Delete message ${row.sequence}`, onclick: () => work("DELETE", `/dead?sequence=${row.sequence}`) })) },
    ],
  });
  async function load() {
    try {
      const { dead } = await ask("GET", path("outgoing", name, "/dead"));
      rows.update(dead, { isForced: true });
      empty.hidden = dead.length > 0;
      rows.node.hidden = dead.length === 0;
    } catch (problem) { say(error, problem.message); }
  }
  dialog(`Dead letters of ${name}`, (close) => [error, empty, rows.node, el("div", { class: "row" }, el("button", { type: "button", class: "main", text: "Close", onclick: close }))]);
  load();
}

/** Deletes an entry, after having asked what is to become of messages that wait. */
export async function deleteEntry(sort, { definition: { name } }, changed) {
  let row;
  try { row = await ask("GET", path(sort, name)); } catch (problem) { notice(problem.message, true); return; }
  const waiting = row.spool ? row.spool.entries + row.spool.dead_entries : 0;
  const fate = field(`${format.count(waiting)} messages wait, or are dead letters. They are`, choice([["drain", "delivered first, within 30 s"], ["purge", "lost"]]));
  const error = el("div", { class: "error", role: "alert" });
  dialog(`Delete ${name}?`, (close) => [
    el("p", { text: "It ends its connection, and its definition is gone." }),
    waiting ? fate.node : null, error,
    el("div", { class: "row" },
      el("button", { type: "button", text: "Cancel", onclick: close }),
      el("button", {
        type: "button", class: "main", text: "Delete", onclick: async (event) => {
          event.target.disabled = true;
          try {
            await ask("DELETE", query(path(sort, name), { on_delete: waiting ? fate.input.value : undefined }));
            close();
            notice(`${name} was deleted.`);
            changed();
          } catch (problem) { say(error, problem.message); event.target.disabled = false; }
        },
      })),
  ].filter(Boolean));
}
