// How the proxy does: who is slow, what flows, the last minutes as plots.

import { ask, query } from "./api.js";
import { chart } from "./chart.js";
import { endButton } from "./connections.js";
import { el, radios, say, table, touch } from "./dom.js";
import * as format from "./format.js";
import { follow } from "./live.js";

const SPANS = { "5m": 300, "1h": 3600, "24h": 86400 };

export function overview(main, { page }) {
  const tile = (title) => {
    const value = el("dd", { text: "–" });
    return { node: el("div", {}, el("dt", { text: title }), value), say: (text, look) => { say(value, text); value.className = look ?? ""; } };
  };
  const tiles = {
    received: tile("Received, messages/s"), delivered: tile("Delivered, messages/s"), dropped: tile("Dropped, messages/s"),
    queued: tile("Waiting, messages"), slow: tile("Slow subscribers"), clients: tile("Publishers, subscribers"),
    memory: tile("Memory held for peers"), cpu: tile("Processors busy"),
  };

  const slow = table({
    caption: "Subscribers that lose messages or hold publishers up, the worst first",
    key: (row) => row.id,
    columns: [
      { title: "Subscriber", cell: (row) => row.principal ? `${row.peer} (${row.principal})` : row.peer },
      { title: "Slow for", number: true, cell: (row) => format.duration(row.slow_s) },
      { title: "Behind, about", number: true, cell: (row) => format.duration(row.behind_s) },
      { title: "Waiting", number: true, cell: (row) => `${format.count(row.queued.messages)} (${format.bytes(row.queued.bytes)})` },
      { title: "Dropped", number: true, cell: (row) => format.count(row.dropped.messages) },
      { title: "Publishers waited", number: true, cell: (row) => format.duration(row.publisher_wait_s) },
      { title: "Policy", cell: (row) => row.policy },
      { title: "", cell: (row) => endButton(page, row) },
    ],
  });
  const none = el("p", { class: "empty", text: "No subscriber is slow: nothing was lost, and nobody was held up, in the last ten seconds." });
  slow.node.hidden = true;

  const topics = table({
    caption: "The topics with the highest rates, counted from samples",
    key: (row) => row.topic,
    columns: [
      { title: "Topic", text: true, cell: (row) => row.topic },
      { title: "Messages/s", number: true, cell: (row) => format.rate(row.messages_per_s) },
      { title: "Bytes/s", number: true, cell: (row) => format.bytes(row.bytes_per_s) },
    ],
  });
  const quiet = el("p", { class: "empty", text: "No message has come since you look. Publish one, for example: xmsg pub hello:world 42" });

  const rate = (value) => format.rate(value);
  const charts = [
    chart({ title: "Messages a second", format: rate, series: [{ key: "received", label: "received", line: "one" }, { key: "delivered", label: "delivered", line: "two" }] }),
    chart({ title: "Bytes a second", format: format.bytes, least: 1024, isBytes: true, series: [{ key: "received_bytes", label: "received", line: "one" }, { key: "delivered_bytes", label: "delivered", line: "two" }] }),
    chart({ title: "Dropped messages a second", format: rate, series: [{ key: "dropped", label: "dropped", line: "three" }] }),
    chart({ title: "Processors busy", format: (value) => value.toFixed(2), series: [{ key: "cpu", label: "this process", line: "one" }] }),
  ];

  let span = "5m";
  let samples = [];
  let step = 1;
  const draw = () => charts.forEach((one) => one.update(step, SPANS[span], samples));
  async function load() {
    const wanted = span;
    try {
      const answer = await ask("GET", query("/api/v1/history", { span }));
      if (wanted !== span) return;
      [step, samples] = [answer.step_s, answer.samples];
      draw();
    } catch { /* The status at the top says that it does not answer. */ }
  }
  const choose = radios("Show", "span", [["5m", "5 minutes"], ["1h", "1 hour"], ["24h", "24 hours"]], span, (key) => { span = key; load(); });

  // Who is slow comes and goes: it has room of its own, and takes no other while the pointer is over what is below it.
  const room = el("div", { class: "room" }, none, slow.node);
  const below = el("div", {},
    el("div", { class: "row" }, choose),
    el("div", { class: "grid" }, ...charts.map((one) => one.node)),
    el("section", { class: "panel" }, el("h2", { text: "Busiest topics" }), quiet, topics.node));
  const touched = touch(below);
  main.append(
    el("dl", { class: "tiles" }, ...Object.values(tiles).map((one) => one.node)),
    el("section", { class: "panel" }, el("h2", { text: "Who is slow" }), room),
    below,
  );

  let seconds = 0;
  const stop = follow((now) => {
    const { received, delivered, dropped, cpu } = now.now;
    tiles.received.say(format.rate(received));
    tiles.delivered.say(format.rate(delivered));
    tiles.dropped.say(format.rate(dropped), dropped > 0 ? "bad" : "");
    tiles.queued.say(format.count(now.queued.messages));
    tiles.slow.say(format.count(now.slow_subscribers), now.slow_subscribers > 0 ? "bad" : "good");
    tiles.clients.say(`${format.count(now.publishers)}, ${format.count(now.subscribers)}`);
    tiles.memory.say(`${format.bytes(now.memory_used)}`);
    tiles.cpu.say(cpu.toFixed(2));
    if (!touched.isOver()) room.style.height = "";
    else if (!room.style.height) room.style.height = `${room.offsetHeight}px`;
    slow.node.hidden = now.slow.length === 0 && !slow.isOver();
    none.hidden = !slow.node.hidden;
    slow.update(now.slow);
    quiet.hidden = now.topics.length > 0;
    topics.node.hidden = !quiet.hidden;
    topics.update(now.topics);
    seconds += 1;
    if (span === "5m" && samples.length) {
      samples.push(now.now);
      if (samples.length > SPANS["5m"]) samples.shift();
      draw();
    } else if (seconds % step === 0) {
      load();
    }
  });
  load();
  // What was missed while the connection was lost is fetched.
  const reload = setInterval(load, 30000);
  return () => { stop(); clearInterval(reload); charts.forEach((one) => one.end()); };
}
