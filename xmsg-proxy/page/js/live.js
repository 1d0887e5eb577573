// What the server tells once a second. A connection that was lost is made again, and everybody is told which of both it is.

const listeners = new Set();
const watchers = new Set();
let source;
let timer;
let last;
let state = "connecting";

function tell(now) {
  if (state === now) return;
  state = now;
  for (const watcher of watchers) watcher(state);
}

function open() {
  clearTimeout(timer);
  source?.close();
  source = new EventSource("/api/v1/events");
  source.addEventListener("overview", (event) => {
    tell("live");
    last = JSON.parse(event.data);
    for (const listener of listeners) listener(last);
  });
  source.onerror = () => {
    tell("lost");
    // A browser tries again by itself unless it was refused.
    if (source.readyState === EventSource.CLOSED) timer = setTimeout(open, 2000);
  };
}

/** Begins, or begins anew after a login. */
export function start() {
  tell("connecting");
  open();
}

/** Stops: nobody is logged in any more. */
export function stop() {
  clearTimeout(timer);
  source?.close();
  tell("stopped");
}

/** Calls `listener` with each overview, and with the last one at once; returns what ends that. */
export function follow(listener) {
  listeners.add(listener);
  if (last) listener(last);
  return () => listeners.delete(listener);
}

/** Calls `watcher` when the connection is lost, or there again. */
export function watch(watcher) {
  watchers.add(watcher);
  watcher(state);
}
