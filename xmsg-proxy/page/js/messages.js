// Messages of a topic as they come, and messages that are published from here.

import { ask, query } from "./api.js";
import { choice, el, field, notice, say, search } from "./dom.js";
import * as format from "./format.js";

const KEPT = 500;
const SHOWN = 4000;

/** The data of a message as text: what is base64 is shown as it is, long data is cut. */
function text(message) {
  const value = message.value === undefined ? message.data : message.value;
  const whole = typeof value === "string" ? value : JSON.stringify(value);
  return whole.length > SHOWN ? `${whole.slice(0, SHOWN)} …` : whole;
}

/** Characters that turn or hide text are shown by their number. */
function plain(text) {
  return text.replace(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g, (c) => `\\u{${c.codePointAt(0).toString(16)}}`);
}

function entry(message) {
  const facts = [message.mime ?? "no type", format.bytes(message.length), message.encoding === "base64" ? "shown as base64" : null, message.shown_bytes === undefined ? null : `only the first ${format.bytes(message.shown_bytes)} are shown`];
  const node = el("article", { class: "message" },
    el("div", { class: "muted" }, el("time", { text: `${format.time(new Date(message.time * 1000))} ` }), el("b", { text: plain(message.topic), dir: "auto" }), ` ${facts.filter(Boolean).join(" · ")}`),
    el("pre", { text: plain(text(message)), dir: "auto", tabindex: "0" }));
  if (message.meta || message.meta_error) node.append(el("details", {}, el("summary", { text: "Metadata" }), el("pre", { text: plain(message.meta_error ?? JSON.stringify(message.meta, null, 1)) })));
  return node;
}

export function messages(main, { page, values, logIn }) {
  const topic = field("Topics that begin with", el("input", { type: "text", autocomplete: "off", spellcheck: "false" }), "Empty: all topics.");
  topic.input.value = values.get("topic") ?? "";
  const rate = field("Show at most", choice([["5", "5 a second"], ["20", "20 a second"], ["200", "200 a second"]], "20"));
  const filter = search("Keep only those with", "", "A part of the topic or of the data.");
  const watch = el("button", { type: "submit", class: "main", text: "Watch" });
  const pause = el("button", { type: "button", text: "Pause", disabled: true });
  const clear = el("button", { type: "button", text: "Clear", disabled: true });
  const download = el("button", { type: "button", text: "Download", disabled: true });
  const state = el("p", { class: "muted", role: "status", text: "Nothing is watched yet. Messages that come from then on are shown here." });
  const list = el("div", { class: "messages", role: "log", "aria-label": "Messages", "aria-live": "off", tabindex: "0" });
  let source = null;
  let kept = [];
  let waiting = [];
  let isPaused = false;
  let counts = { messages: 0, left_out: 0 };

  const fits = (message) => {
    const wanted = filter.input.value.trim();
    return !wanted || message.topic.includes(wanted) || text(message).includes(wanted);
  };
  function tell() {
    const left = counts.left_out ? `, ${format.count(counts.left_out)} of them not shown: more than you asked for` : "";
    const late = isPaused && waiting.length ? ` Paused: ${format.count(waiting.length)} wait.` : isPaused ? " Paused." : "";
    say(state, `Messages so far: ${format.count(counts.messages)}${left}.${late}`);
  }
  function add(message) {
    kept.push(message);
    if (kept.length > KEPT) kept.shift();
    if (!fits(message)) return;
    const isAtTop = list.scrollTop < 8;
    const node = entry(message);
    list.prepend(node);
    // What somebody reads stays where it is.
    if (!isAtTop) list.scrollTop += node.offsetHeight;
    while (list.childElementCount > KEPT) list.lastElementChild.remove();
    clear.disabled = download.disabled = false;
  }
  function end() {
    source?.close();
    source = null;
    say(watch, "Watch");
    pause.disabled = true;
  }
  function begin() {
    end();
    counts = { messages: 0, left_out: 0 };
    isPaused = false;
    say(pause, "Pause");
    say(state, "Subscribing …");
    topic.fail("");
    source = new EventSource(query("/api/v1/tap", { topic: topic.input.value, rate: rate.input.value }));
    source.addEventListener("message", (event) => {
      const message = JSON.parse(event.data);
      if (!isPaused) add(message);
      else if (waiting.push(message) > KEPT) waiting.shift();
      tell();
    });
    source.addEventListener("counts", (event) => { counts = JSON.parse(event.data); tell(); });
    source.onerror = async () => {
      if (source?.readyState !== EventSource.CLOSED) { say(state, "The connection is lost – trying again."); return; }
      end();
      // A refusal is read by asking once more.
      try { await fetch(query("/api/v1/tap", { topic: topic.input.value, rate: rate.input.value })).then(async (answer) => { if (!answer.ok) topic.fail((await answer.json()).message); await answer.body?.cancel(); }); } catch { /* The status at the top says so. */ }
      say(state, "Nothing is watched.");
    };
    say(watch, "Stop");
    pause.disabled = false;
  }
  const form = el("form", { class: "row" }, topic.node, rate.node, watch, pause);
  form.addEventListener("submit", (event) => { event.preventDefault(); if (source) { end(); tell(); } else begin(); });
  pause.addEventListener("click", () => {
    isPaused = !isPaused;
    say(pause, isPaused ? "Go on" : "Pause");
    if (!isPaused) { waiting.forEach(add); waiting = []; }
    tell();
  });
  clear.addEventListener("click", () => { kept = []; waiting = []; list.replaceChildren(); clear.disabled = download.disabled = true; });
  download.addEventListener("click", () => {
    const lines = kept.filter(fits).map((message) => JSON.stringify(message)).join("\n");
    const link = el("a", { href: URL.createObjectURL(new Blob([`${lines}\n`], { type: "application/x-ndjson" })), download: "messages.ndjson" });
    link.click();
    URL.revokeObjectURL(link.href);
  });
  filter.input.addEventListener("input", () => list.replaceChildren(...kept.filter(fits).reverse().map(entry)));

  const to = field("Topic", el("input", { type: "text", autocomplete: "off", spellcheck: "false", required: true }));
  const kind = field("The data is", choice([["text", "text"], ["json", "JSON"], ["base64", "bytes, as base64"]]));
  const data = field("Data", el("textarea", { spellcheck: "false" }));
  const publish = el("form", {}, el("div", { class: "row" }, to.node, kind.node), data.node, el("button", { type: "submit", class: "main", text: "Publish" }));
  const fields = { topic: to, text: data, json: data, base64: data };
  publish.addEventListener("submit", async (event) => {
    event.preventDefault();
    Object.values(fields).forEach((one) => one.fail(""));
    let body = data.input.value;
    if (kind.input.value === "json") {
      try { body = JSON.parse(body); } catch (error) { data.fail(`This is no JSON: ${error.message}`); data.input.focus(); return; }
    }
    try {
      const done = await ask("POST", "/api/v1/publish", { topic: to.input.value, [kind.input.value]: body });
      notice(`Published to ${done.topic}: ${format.bytes(done.length)}.`);
    } catch (error) {
      const wrong = fields[error.field];
      if (wrong) { wrong.fail(error.message); wrong.input.focus(); } else notice(error.message, true);
    }
  });
  main.append(
    el("section", { class: "panel" }, el("h2", { text: "Watch messages" }), form, el("div", { class: "row" }, filter.node, clear, download), state, list),
    el("section", { class: "panel" }, el("h2", { text: "Publish a message" }), page.can("operator") ? page.session?.can_publish === false ? el("p", { text: "This proxy has security, and its page no identity of its own to publish with: use xmsg pub with your keys." }) : publish : el("p", {}, "To publish, log in with the operator's token. ", el("button", { type: "button", text: "Log in", onclick: logIn }))),
  );
  if (page.session && !page.session.may_watch) {
    watch.disabled = true;
    say(state, page.session.role ? "This token is for looking, and not at what is in messages: log in with the operator's." : "Nobody sees messages of this proxy without credentials: log in with the operator's token.");
  } else if (values.has("topic")) begin();
  return end;
}
