// Elements, made without markup: whatever comes from a peer goes through textContent, and is shown as text.

const SVG = "http://www.w3.org/2000/svg";

function make(node, properties, children) {
  for (const [name, value] of Object.entries(properties ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "text") node.textContent = value;
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** An element: `el("button", { type: "button", text: "End", onclick: end })`. */
export function el(tag, properties, ...children) {
  return make(document.createElement(tag), properties, children);
}

/** The same for drawings. */
export function svg(tag, properties, ...children) {
  return make(document.createElementNS(SVG, tag), properties, children);
}

/** Sets a text only if it is another one: what does not change is not read out again, and keeps its selection. */
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

let lastId = 0;

/** A label with its input, and the place where an error stands. */
export function field(label, input, hint) {
  const id = `field-${++lastId}`;
  input.id = id;
  const error = el("div", { class: "error", id: `${id}-error` });
  input.setAttribute("aria-describedby", error.id);
  const node = el("div", { class: "fill" }, el("label", { for: id, text: label }), input, hint ? el("div", { class: "muted", text: hint }) : null, error);
  const fail = (text) => {
    say(error, text ?? "");
    if (text) input.setAttribute("aria-invalid", "true");
    else input.removeAttribute("aria-invalid");
  };
  return { node, input, fail };
}

/** A field for a part of what is looked for. */
export function search(label, value, hint) {
  const one = field(label, el("input", { type: "search", autocomplete: "off", spellcheck: "false" }), hint);
  one.input.value = value ?? "";
  return one;
}

/** Calls this when nothing was typed into the fields for a moment. What it returns ends that. */
export function whenTyped(fields, call) {
  let typing;
  for (const { input } of fields) input.addEventListener("input", () => { clearTimeout(typing); typing = setTimeout(call, 200); });
  return () => clearTimeout(typing);
}

/** Buttons that go to other pages of a list, `size` rows each; `asked.offset` is the row that the page begins with. */
export function pager(asked, size, load) {
  const go = (offset) => { asked.offset = Math.max(0, offset); load(); };
  const previous = el("button", { type: "button", text: "Previous", onclick: () => go(asked.offset - size) });
  const next = el("button", { type: "button", text: "Next", onclick: () => go(asked.offset + size) });
  const shown = el("span", { class: "muted" });
  function update(text, hasMore) {
    say(shown, text);
    previous.disabled = asked.offset === 0;
    next.disabled = !hasMore;
  }
  return { node: el("div", { class: "row" }, previous, next, shown), update };
}

/** A choice among a few: options are pairs of value and text. */
export function choice(options, value) {
  const select = el("select", {}, ...options.map(([key, text]) => el("option", { value: key, text })));
  if (value !== undefined) select.value = value;
  return select;
}

/** Buttons of which one is chosen. */
export function radios(legend, name, options, value, onchange) {
  const buttons = options.map(([key, text]) => {
    const input = el("input", { type: "radio", name, value: key, onchange: () => onchange(key) });
    input.checked = key === value;
    return el("label", {}, input, text);
  });
  return el("fieldset", {}, el("legend", { text: legend }), ...buttons);
}

let noticeTimer;

/** Says something for a moment; errors stay longer. */
export function notice(text, isError) {
  const node = document.getElementById("notice");
  node.hidden = false;
  node.className = isError ? "notice bad" : "notice";
  node.textContent = text;
  clearTimeout(noticeTimer);
  noticeTimer = setTimeout(() => { node.hidden = true; }, isError ? 12000 : 5000);
}

/** A dialog that is there until it is answered. `content` gets a function that closes it. */
export function dialog(title, content) {
  const heading = el("h2", { text: title, id: "dialog-title" });
  const node = el("dialog", { "aria-labelledby": heading.id });
  const close = () => { node.close(); };
  node.addEventListener("close", () => node.remove());
  node.append(heading, ...content(close));
  document.body.append(node);
  node.showModal();
  return node;
}

/** Asks before something is done that can't be taken back; resolves to whether it is to be done. */
export function confirm(title, text, action) {
  return new Promise((resolve) => {
    let answer = false;
    const node = dialog(title, (close) => [
      el("p", { text }),
      el("div", { class: "row" },
        el("button", { type: "button", text: "Cancel", onclick: close }),
        el("button", { type: "button", class: "main", text: action, onclick: () => { answer = true; close(); } })),
    ]);
    node.addEventListener("close", () => resolve(answer));
  });
}

/** Says whether what is in `node` stays where it is: `isOver()` while the pointer is over it, `isHeld()` also while the focus is in it. */
export function touch(node) {
  let over = false;
  node.addEventListener("pointerenter", () => { over = true; });
  node.addEventListener("pointerleave", () => { over = false; });
  return { isOver: () => over, isHeld: () => over || node.contains(document.activeElement) };
}

/**
 * Brings what is in `parent` into the order of `keys`, without what has left. `known` has what there is by its key, each with its `node`.
 * What has the focus keeps it. If `isHeld`, nothing moves or goes: what has left is dimmed.
 */
export function arrange(parent, known, keys, isHeld) {
  const wanted = new Set(keys);
  for (const [key, { node }] of known) {
    node.classList.toggle("gone", isHeld && !wanted.has(key));
    if (!isHeld && !wanted.has(key)) { node.remove(); known.delete(key); }
  }
  if (isHeld) return;
  const focused = parent.contains(document.activeElement) ? document.activeElement : null;
  let next = parent.firstElementChild;
  for (const key of keys) {
    const { node } = known.get(key);
    if (node === next) next = next.nextElementSibling;
    else parent.insertBefore(node, next);
  }
  if (focused?.isConnected && focused !== document.activeElement) focused.focus({ preventScroll: true });
}

/**
 * A table whose rows are kept by their key, so that values change where they stand.
 *
 * Columns have `title`, `cell(row)`, which returns a text or a node, and if wanted `number`, `text` (wraps) and `sort`. A node is made anew
 * each time if the column is `live`, else when its `version(row)` has changed. While the pointer is over the rows,
 * or the focus in them, no row moves, comes or goes: those that have left are dimmed.
 */
export function table({ caption, columns, key, onsort, hasHeading }) {
  const head = columns.map((column) => {
    const cell = el("th", { scope: "col", class: column.number ? "number" : undefined });
    if (column.sort && onsort) cell.append(el("button", { type: "button", text: column.title, onclick: () => onsort(column.sort) }));
    else cell.textContent = column.title;
    return cell;
  });
  const body = el("tbody");
  const rows = new Map();
  const touched = touch(body);
  // Where a heading above says the same, the caption is there for screen readers only.
  const captionNode = el("caption", { text: caption ?? "", class: hasHeading ? "unseen" : undefined });
  const node = el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption ?? "Table" },
    el("table", {}, captionNode, el("thead", {}, el("tr", {}, ...head)), body));

  function fill(cells, row) {
    columns.forEach((column, at) => {
      const value = column.cell(row);
      if (value instanceof Node) {
        const version = column.version?.(row) ?? "";
        if (!cells[at].firstChild || column.live || cells[at].dataset.version !== version) {
          const hadFocus = cells[at].contains(document.activeElement);
          cells[at].dataset.version = version;
          cells[at].replaceChildren(value);
          if (hadFocus) cells[at].querySelector("button")?.focus();
        }
      } else {
        say(cells[at], value);
      }
    });
  }

  function update(list, { isForced = false } = {}) {
    const isHeld = !isForced && touched.isHeld();
    for (const row of list) {
      const id = key(row);
      let known = rows.get(id);
      if (!known) {
        if (isHeld) continue;
        const cells = columns.map((column) => el("td", { class: [column.number && "number", column.text && "text"].filter(Boolean).join(" ") || undefined, dir: column.text ? "auto" : undefined }));
        known = { cells, node: el("tr", {}, ...cells) };
        rows.set(id, known);
      }
      fill(known.cells, row);
    }
    arrange(body, rows, list.map(key), isHeld);
  }

  function sorted(by) {
    columns.forEach((column, at) => {
      if (column.sort && column.sort === by) head[at].setAttribute("aria-sort", column.ascending ? "ascending" : "descending");
      else head[at].removeAttribute("aria-sort");
    });
  }

  return { node, update, sorted, isOver: touched.isOver, caption: (text) => say(captionNode, text) };
}
