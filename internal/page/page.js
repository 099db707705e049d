// SPDX-License-Identifier: Apache-2.0
"use strict";
// The server renders the page, and the page is complete without this script. The script
// requests the page again and again, updates what changed, and hides the rows that the
// filters exclude.
(() => {
  const interval = 2000; // milliseconds
  const timeout = 5000;
  const byId = (id) => document.getElementById(id);
  const search = byId("search");
  const troubled = byId("troubled");

  // narrow hides the rows of a document that the filters exclude.
  const narrow = (page) => {
    const word = search.value.toLowerCase();
    for (const row of page.querySelectorAll(".upstream")) {
      const texts = word ? [...row.querySelectorAll("h3, .state, .why")] : [];
      row.hidden =
        (troubled.checked && !row.classList.contains("troubled")) ||
        (word !== "" && !texts.some((node) => node.textContent.toLowerCase().includes(word)));
    }
  };

  const keyOf = (node) => node.dataset?.key;
  const alike = (node, other) => node?.nodeName === other.nodeName && keyOf(node) === keyOf(other);

  // swap makes a node equal to a fresh one of the same kind. It changes only what differs,
  // so the scroll position, the focus and a selection elsewhere stay.
  const swap = (node, fresh) => {
    if (node.isEqualNode(fresh)) return;
    if (node.nodeType === Node.TEXT_NODE) {
      node.data = fresh.data;
      return;
    }
    for (const { name } of [...node.attributes]) {
      if (!fresh.hasAttribute(name)) node.removeAttribute(name);
    }
    for (const { name, value } of fresh.attributes) {
      if (node.getAttribute(name) !== value) node.setAttribute(name, value);
    }
    swapChildren(node, fresh);
  };

  // swapChildren does the same for the children of a node. It removes old children first,
  // so that the others are not moved.
  const swapChildren = (node, fresh) => {
    const wanted = new Set([...fresh.children].map(keyOf));
    const known = new Map();
    for (const child of [...node.children]) {
      const key = keyOf(child);
      if (key === undefined) continue;
      if (!wanted.has(key) || known.has(key)) child.remove();
      else known.set(key, child);
    }
    let place = node.firstChild;
    for (const other of [...fresh.childNodes]) {
      const key = keyOf(other);
      const child = key === undefined ? place : known.get(key);
      known.delete(key);
      if (!alike(child, other)) {
        node.insertBefore(other, place);
        continue;
      }
      if (child === place) place = place.nextSibling;
      else node.insertBefore(child, place);
      swap(child, other);
    }
    while (place) {
      const next = place.nextSibling;
      place.remove();
      place = next;
    }
  };

  const update = async () => {
    try {
      const response = await fetch(location.href, {
        headers: { Accept: "text/html" },
        cache: "no-store",
        signal: AbortSignal.timeout(timeout),
      });
      if (!response.ok) throw new Error(response.statusText);
      // scripts of a parsed document do not run
      const page = new DOMParser().parseFromString(await response.text(), "text/html");
      const parts = ["summary", "time", "pools"].map((id) => [byId(id), page.getElementById(id)]);
      if (parts.some(([, fresh]) => !fresh)) throw new Error("the answer is not this page");
      narrow(page);
      for (const [part, fresh] of parts) swap(part, fresh);
      if (document.title !== page.title) document.title = page.title;
    } catch {
      byId("time").className = "stale";
      byId("time").firstChild.data = "connection lost: this is the state of ";
    }
    setTimeout(update, document.hidden ? 10 * interval : interval);
  };

  for (const filter of [search, troubled]) filter.addEventListener("input", () => narrow(document));
  byId("tools").hidden = false;
  narrow(document);
  setTimeout(update, interval);
})();
