// What the server is asked, and what it answers.

/** A request that was not fulfilled: `message` says why, `field` which field is wrong. */
export class Failed extends Error {
  constructor(status, body) {
    super(body.message || `the server answered with status ${status}`);
    this.status = status;
    this.kind = body.kind;
    this.field = body.field;
  }
}

// What changes have to bring beside the cookie of the session. The browser keeps it for this host and this port only,
// while it sends the cookie to all ports of the host.
const KEPT = "xmsg-session-secret";
let secret;

/** Keeps the secret of a session that has begun; nothing: it has ended. */
export function keep(text) {
  secret = text;
  try {
    if (text) localStorage.setItem(KEPT, text);
    else localStorage.removeItem(KEPT);
  } catch { /* Nothing may be kept: it is there until the page is loaded anew. */ }
}

function kept() {
  // Another tab may have begun a session meanwhile.
  try { return localStorage.getItem(KEPT) ?? secret; } catch { return secret; }
}

/** Asks, and returns what the answer says. */
export async function ask(method, path, body) {
  const options = { method, headers: { "X-Xmsg-Page": kept() ?? "1" }, credentials: "same-origin" };
  if (body !== undefined) {
    const isText = typeof body === "string";
    options.headers["Content-Type"] = isText ? "text/plain" : "application/json";
    options.body = isText ? body : JSON.stringify(body);
  }
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Failed(0, { kind: "unreachable", message: "The proxy does not answer: it has stopped, or the network to it is cut." });
  }
  const text = await response.text();
  const isJson = (response.headers.get("content-type") ?? "").startsWith("application/json");
  let answer = text;
  if (isJson) answer = JSON.parse(text);
  if (!response.ok) {
    if (response.status === 401) document.dispatchEvent(new Event("xmsg-session-ended"));
    throw new Failed(response.status, isJson ? answer : { message: text.trim() });
  }
  return answer;
}

/** A path with a query; what is empty is left out. */
export function query(path, values) {
  const all = Object.entries(values).filter(([, value]) => value !== undefined && value !== null && value !== "");
  const text = new URLSearchParams(all).toString();
  return text ? `${path}?${text}` : path;
}
