// SPDX-License-Identifier: Apache-2.0
"use strict";
// The server renders the page, and the page is complete without this script. The script
// requests the page again and again and updates what changed. A filter becomes part of the
// URL, so the server applies it.
(() => {
  const interval = 2000; // milliseconds
  const timeout = 5000;
  const old = 6; // seconds
  const byId = (id) => document.getElementById(id);
  const filters = byId("filters");
  const parts = ["site", "summary", "totals", "pools"];
  let title = document.title; // of the state that is shown
  let received = performance.now(); // when the state that is shown was received
  let problem = ""; // why there is no newer one
  let timer;
  let asking; // aborts the request that is on its way

  // localize writes the times of a document in the zone of the reader.
  const zoned = { year: "numeric", month: "2-digit", day: "2-digit", hour: "2-digit", minute: "2-digit", second: "2-digit", timeZoneName: "short" };
  const localize = (page) => {
    for (const time of page.querySelectorAll("time[datetime]")) {
      const text = new Date(time.dateTime).toLocaleString(undefined, zoned);
      if (!time.title || time.textContent === time.title) time.textContent = text;
      if (time.title) time.title = text;
    }
  };

  // keyOf tells siblings apart. A pool can be called as a paragraph is.
  const keyOf = (node) => (node.dataset?.key === undefined ? undefined : node.nodeName + " " + node.dataset.key);
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

  // tell says how old the state is, and why if it is too old.
  const tell = () => {
    const age = Math.round((performance.now() - received) / 1000);
    const live = byId("live");
    live.hidden = false;
    live.className = age > old ? "old" : "";
    live.textContent = age > 2 ? age + " s old" : "live";
    const lost = problem && age > old ? "This is an old state: " + problem : "";
    if (byId("lost").textContent !== lost) byId("lost").textContent = lost;
    byId("lost").hidden = !lost;
    const named = lost ? "Old: " + title : title;
    if (document.title !== named) document.title = named;
  };

  // address is that of the page, without a user and a password, which fetch does not take.
  const address = () => location.origin + location.pathname + location.search;

  const update = async () => {
    clearTimeout(timer);
    asking?.abort();
    const mine = (asking = new AbortController());
    const late = setTimeout(() => mine.abort(), timeout);
    const url = address();
    try {
      const response = await fetch(url, {
        headers: { Accept: "text/html" },
        cache: "no-store",
        redirect: "manual", // another site, such as one to log in, cannot be read
        signal: mine.signal,
      });
      if (response.type === "opaqueredirect") throw new Error("the server redirects. Load the page again.");
      if (!response.ok) throw new Error("the server answers with the status " + response.status);
      // scripts of a parsed document do not run
      const page = new DOMParser().parseFromString(await response.text(), "text/html");
      const pairs = parts.map((id) => [byId(id), page.getElementById(id)]);
      if (pairs.some(([, fresh]) => !fresh)) throw new Error("the answer is not this page");
      if (url !== address()) return; // another filter by now
      localize(page);
      for (const [part, fresh] of pairs) swap(part, fresh);
      if (!byId("choice").contains(document.activeElement)) swap(byId("choice"), page.getElementById("choice"));
      title = page.title;
      swap(byId("icon"), page.getElementById("icon"));
      received = performance.now();
      problem = "";
    } catch (error) {
      if (mine !== asking) return; // a newer request is on its way
      problem = mine.signal.aborted || error instanceof TypeError ? "Caddy does not answer" : error.message;
    } finally {
      clearTimeout(late);
    }
    tell();
    timer = setTimeout(update, document.hidden ? 10 * interval : interval);
  };

  // apply makes the filters a part of the URL.
  const apply = () => {
    const query = new URLSearchParams();
    for (const [name, value] of new FormData(filters)) {
      if (value !== "") query.set(name, value);
    }
    history.replaceState(null, "", query.size > 0 ? "?" + query : location.pathname);
    clearTimeout(timer);
    timer = setTimeout(update, 150);
  };

  filters.addEventListener("input", apply);
  filters.addEventListener("submit", (event) => {
    event.preventDefault();
    apply();
  });
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) update();
  });
  filters.querySelector("button").hidden = true; // filters apply at once
  localize(document);
  tell();
  setInterval(tell, 1000);
  timer = setTimeout(update, interval);
})();
