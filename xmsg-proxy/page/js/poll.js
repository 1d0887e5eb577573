// Reads something again and again, and shows what is newest.

import { say } from "./dom.js";

/**
 * Calls `show(answer, isForced)` with what the promise of `read()` gives, at once and then each `every` milliseconds.
 *
 * An answer that a later one has overtaken is not shown. `isForced` says that somebody has asked for it, with `now()`,
 * since the last answer that was shown. `error` is the element that says what goes wrong.
 */
export function poll(every, read, show, error) {
  let round = 0;
  let isForced = false;
  async function load() {
    const mine = ++round;
    try {
      const answer = await read();
      if (mine !== round) return;
      say(error, "");
      const wasForced = isForced;
      isForced = false;
      show(answer, wasForced);
    } catch (problem) {
      if (mine === round) say(error, problem.message);
    }
  }
  function now() {
    isForced = true;
    return load();
  }
  now();
  const timer = setInterval(load, every);
  return { now, stop: () => { clearInterval(timer); round += 1; } };
}
