// Outgoing connections and channels: looked at, made, changed, tried and deleted.

import { ask } from "./api.js";
import { deadLetters, deleteEntry, testMessage } from "./spool.js";
import { choice, dialog, el, field, notice, say, table } from "./dom.js";
import * as format from "./format.js";
import { poll } from "./poll.js";

const KINDS = [["amqp", "RabbitMQ (AMQP)"], ["zmq", "ZeroMQ socket"]];

/** The fields of a form: name, label, and how it is filled in. Fields that a form has not stay as they are, under "Further fields". */
const FIELDS = {
  outgoing: [
    { name: "name", label: "Name" },
    { name: "kind", label: "Kind", options: KINDS },
    { name: "subscribe", label: "Topics that begin with", list: true, hint: "With commas between; none: only what is sent to it by name." },
    { name: "is_active", label: "Active", options: [["true", "yes"], ["false", "no"]] },
    { name: "connection", label: "Connection to the broker", of: "amqp" },
    { name: "exchange", label: "Exchange", of: "amqp" },
    { name: "routing_key", label: "Routing key", of: "amqp", hint: "Such as orders, or {subject}." },
    { name: "socket_type", label: "Socket", of: "zmq", options: [["PUSH", "PUSH"], ["PUB", "PUB"], ["DEALER", "DEALER"]] },
    { name: "socket_method", label: "The socket", of: "zmq", options: [["connect", "connects"], ["bind", "binds"]] },
    { name: "address", label: "Address", of: "zmq", hint: "Such as tcp://10.0.0.9:5557." },
    { name: "frames", label: "Frames", of: "zmq", options: [["all", "topic, metadata, data"], ["data", "data only"]] },
  ],
  channel: [
    { name: "name", label: "Name" },
    { name: "kind", label: "Kind", options: KINDS },
    { name: "target", label: "Target", hint: "topic:NAME or outgoing:NAME." },
    { name: "is_active", label: "Active", options: [["true", "yes"], ["false", "no"]] },
    { name: "connection", label: "Connection to the broker", of: "amqp" },
    { name: "queue", label: "Queue", of: "amqp" },
    { name: "socket_type", label: "Socket", of: "zmq", options: [["PULL", "PULL"], ["SUB", "SUB"]] },
    { name: "socket_method", label: "The socket", of: "zmq", options: [["bind", "binds"], ["connect", "connects"]] },
    { name: "address", label: "Address", of: "zmq", hint: "Such as tcp://*:5556." },
  ],
  connection: [
    { name: "name", label: "Name" },
    { name: "uris", label: "Addresses of the broker", list: true, hint: "Such as amqp://10.0.0.5:5672, with commas between." },
    { name: "vhost", label: "Virtual host" },
    { name: "username", label: "User" },
    { name: "password_file", label: "File with the password", hint: "On the machine of the proxy, in secrets_dir of its settings or in the folder of its state." },
  ],
};
const TITLES = { outgoing: "outgoing connection", channel: "channel", connection: "connection to a broker" };
const path = (sort, name, rest = "") => `/connect/${sort}/${encodeURIComponent(name)}${rest}`;

/** The dialog in which an entry is made, or changed. */
function edit(sort, definition, changed) {
  const isNew = !definition;
  const old = definition ?? (sort === "connection" ? {} : { kind: "zmq", is_active: true });
  const fields = FIELDS[sort].map((one) => {
    const value = old[one.name];
    const shown = one.list ? (value ?? []).join(", ") : value;
    const input = one.options ? choice(one.options, shown === undefined ? undefined : String(shown)) : el("input", { type: "text", autocomplete: "off", spellcheck: "false", value: shown ?? "" });
    return { ...one, ...field(one.label, input, one.hint) };
  });
  const known = new Set(fields.map(({ name }) => name));
  if (sort === "connection") known.add("kind");
  const rest = Object.fromEntries(Object.entries(old).filter(([name]) => !known.has(name)));
  const further = field("Further fields, as JSON", el("textarea", { spellcheck: "false" }), "As in docs/connect.md; {} for none.");
  further.input.value = JSON.stringify(rest, null, 1);
  const general = el("div", { class: "error", role: "alert" });
  const kind = fields.find(({ name }) => name === "kind");
  const show = () => fields.forEach((one) => { one.node.hidden = Boolean(one.of && one.of !== kind.input.value); });
  kind?.input.addEventListener("change", show);
  show();

  function read() {
    const made = JSON.parse(further.input.value || "{}");
    if (sort === "connection") made.kind = "amqp";
    for (const one of fields) {
      if (one.node.hidden) continue;
      const text = one.input.value.trim();
      if (one.list) { if (text) made[one.name] = text.split(",").map((part) => part.trim()).filter(Boolean); }
      else if (one.name === "is_active") made[one.name] = text === "true";
      else if (text) made[one.name] = text;
    }
    return made;
  }
  dialog(isNew ? `New ${TITLES[sort]}` : `Change ${old.name}`, (close) => {
    const form = el("form", {}, ...fields.map(({ node }) => node), further.node, general, el("div", { class: "row" },
      el("button", { type: "button", text: "Cancel", onclick: close }),
      el("button", { type: "submit", class: "main", text: isNew ? "Create" : "Save" })));
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      [...fields, further].forEach((one) => one.fail(""));
      say(general, "");
      let made;
      try { made = read(); } catch (error) { further.fail(`This is no JSON: ${error.message}`); further.input.focus(); return; }
      try {
        if (isNew) await ask("POST", `/connect/${sort}`, made);
        else await ask("PUT", path(sort, old.name), made);
        close();
        notice(isNew ? `${made.name} was created.` : `${made.name} was changed.`);
        changed();
      } catch (error) {
        const name = error.field?.split(/[.[]/)[0];
        const wrong = fields.find((one) => one.name === name && !one.node.hidden) ?? (error.field && rest[name] !== undefined ? further : null);
        if (wrong) { wrong.fail(error.message); wrong.input.focus(); } else say(general, error.message);
      }
    });
    return [form];
  });
  fields[0].input.focus();
}

export function connect(main, { page, logIn }) {
  if (!page.session?.has_connect) {
    main.append(el("p", { text: "This proxy has no outgoing connections and channels. To have them, put enabled = true and state_dir = \"/var/lib/xmsg/connect\" under [connect] in its settings, and start it anew." }));
    return undefined;
  }
  const may = page.can("operator");
  // What somebody has changed is shown, wherever the pointer is.
  const changed = () => polled.now();

  function act(text, label, work) {
    return el("button", {
      type: "button", text, "aria-label": label,
      onclick: async (event) => {
        event.target.disabled = true;
        try { const said = await work(); if (said) notice(said); } catch (error) { notice(error.message, true); }
        event.target.disabled = false;
        changed();
      },
    });
  }
  function actions(sort, row) {
    const { name, is_active: isActive } = row.definition;
    if (!may) return el("span");
    const all = [];
    if (sort !== "connection") {
      all.push(act(isActive ? "Disable" : "Enable", `${isActive ? "Disable" : "Enable"} ${name}`, async () => {
        await ask("POST", path(sort, name, isActive ? "/disable" : "/enable"));
        return `${name} is ${isActive ? "disabled" : "enabled"}.`;
      }));
    }
    all.push(act("Ping", `Ping ${name}`, async () => `The peer of ${name} answered after ${format.duration((await ask("POST", path(sort, name, "/ping"))).seconds)}.`));
    if (sort === "outgoing") {
      all.push(el("button", { type: "button", text: "Send", "aria-label": `Send a test message by ${name}`, onclick: () => testMessage(name, changed) }));
      all.push(el("button", { type: "button", text: "Dead letters", "aria-label": `Dead letters of ${name}`, onclick: () => deadLetters(name, changed) }));
    }
    all.push(el("button", { type: "button", text: "Change", "aria-label": `Change ${name}`, onclick: () => edit(sort, row.definition, changed) }));
    all.push(el("button", { type: "button", text: "Delete", "aria-label": `Delete ${name}`, onclick: () => deleteEntry(sort, row, changed) }));
    return el("span", {}, ...all);
  }
  const state = (row) => {
    const { state: now, reason } = row.link;
    const look = { connected: "good", faulted: "bad", disconnected: "bad", blocked: "warn" }[now];
    return el("span", {}, el("b", { class: look, text: now }), reason && now !== "connected" ? `: ${reason.what}` : "");
  };
  const way = ({ definition }) => definition.kind === "zmq" ? `${definition.socket_type ?? ""} ${definition.address ?? ""}` : `${definition.connection ?? ""} ${definition.exchange ?? definition.queue ?? ""}`;
  const key = (row) => row.definition.name;
  const version = (row) => JSON.stringify(row.definition);
  const outgoing = table({
    caption: "Outgoing connections", hasHeading: true, key,
    columns: [
      { title: "Name", text: true, cell: (row) => row.definition.name },
      { title: "To", text: true, cell: way },
      { title: "State", text: true, live: true, cell: state },
      { title: "Accepted", number: true, cell: (row) => format.count(row.link.counts.accepted) },
      { title: "Delivered", number: true, cell: (row) => format.count(row.link.counts.delivered) },
      { title: "In the spool", number: true, cell: (row) => `${format.count(row.spool.entries)} (${format.bytes(row.spool.bytes)})` },
      { title: "Oldest", number: true, cell: (row) => row.oldest_s === null ? "" : format.duration(row.oldest_s) },
      { title: "Dead letters", number: true, cell: (row) => format.count(row.spool.dead_entries) },
      { title: "", version, cell: (row) => actions("outgoing", row) },
    ],
  });
  const channels = table({
    caption: "Channels", hasHeading: true, key,
    columns: [
      { title: "Name", text: true, cell: (row) => row.definition.name },
      { title: "From", text: true, cell: way },
      { title: "Target", text: true, cell: (row) => row.definition.target },
      { title: "State", text: true, live: true, cell: state },
      { title: "Accepted", number: true, cell: (row) => format.count(row.link.counts.accepted) },
      { title: "Delivered", number: true, cell: (row) => format.count(row.link.counts.delivered) },
      { title: "", version, cell: (row) => actions("channel", row) },
    ],
  });
  const brokers = table({
    caption: "Connections to brokers", hasHeading: true, key,
    columns: [
      { title: "Name", text: true, cell: (row) => row.definition.name },
      { title: "Addresses", text: true, cell: (row) => (row.definition.uris ?? []).join(", ") },
      { title: "Virtual host", text: true, cell: (row) => row.definition.vhost ?? "" },
      { title: "", version, cell: (row) => actions("connection", row) },
    ],
  });
  const error = el("div", { class: "error", role: "status" });
  const part = (sort, title, rows, none) => {
    const empty = el("p", { class: "empty", text: none });
    const make = may ? el("button", { type: "button", text: `New ${TITLES[sort]}`, onclick: () => edit(sort, null, changed) }) : null;
    return { node: el("section", { class: "panel" }, el("h2", { text: title }), empty, rows.node, el("div", { class: "row" }, make)), update: (list, isForced) => { rows.update(list, { isForced }); empty.hidden = list.length > 0; rows.node.hidden = list.length === 0; } };
  };
  const parts = [
    part("outgoing", "Outgoing connections", outgoing, "There is none: messages do not leave this proxy but to its subscribers."),
    part("channel", "Channels", channels, "There is none: nothing comes in but from publishers."),
    part("connection", "Connections to brokers", brokers, "There is none. Outgoing connections and channels to RabbitMQ need one."),
  ];
  function show(report, isForced) {
    say(error, report.orphans.length ? `Spools of no outgoing connection: ${report.orphans.join(", ")}` : "");
    parts[0].update(report.outgoing, isForced);
    parts[1].update(report.channels, isForced);
    parts[2].update(report.connections.map((definition) => ({ definition })), isForced);
  }
  main.append(error, ...parts.map(({ node }) => node));
  if (!may) main.append(el("p", {}, "To change something, log in with the operator's token. ", el("button", { type: "button", text: "Log in", onclick: logIn })));
  const polled = poll(2000, () => ask("GET", "/connect"), show, error);
  return () => polled.stop();
}
