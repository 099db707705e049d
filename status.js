// SPDX-License-Identifier: Apache-2.0
"use strict";
// The page is there without this: it only follows what changes, and narrows down
// what is shown. All text goes in as text.
(() => {
  const every = 2000; // milliseconds
  const patience = 5000;
  const byId = (id) => document.getElementById(id);
  const make = (name, className, text) => {
    const node = document.createElement(name);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  };
  // isolate keeps the direction in which text is read inside of it.
  const isolate = (name, className, text) => {
    const node = make(name, className);
    node.append(make("bdi", "", text));
    return node;
  };
  const draw = (name, attributes) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const key in attributes) node.setAttribute(key, attributes[key]);
    return node;
  };
  const time = (text) => text.slice(0, 19).replace("T", " ") + " UTC";

  const stateOf = (e) => {
    if (e.mode === "maintenance") return "maintenance";
    if (e.mode === "drain" || e.checks.some((c) => c.draining)) return "draining";
    return e.status;
  };

  const titleOf = (e) => (e.gone ? "Set at run time, but in no pool" : e.pool);

  // servicesOf and alarmOf say how well each pool serves, as service.go does.
  const servicesOf = (entries) => {
    const pools = new Map();
    for (const e of entries) {
      if (e.gone || e.idle) continue;
      const p = pools.get(e.pool) || { serving: false, gets: false, failOpen: false };
      p.serving ||= e.serving;
      p.gets ||= e.effective_weight > 0;
      p.failOpen ||= Boolean(e.fail_open);
      pools.set(e.pool, p);
    }
    return pools;
  };

  const alarmOf = (p) => {
    if (!p) return "";
    if (p.failOpen && !p.serving) return "Fail-open: no upstream serves, so requests go to upstreams whatever their health.";
    if (p.failOpen) return "Fail-open: too few upstreams serve, so requests go to upstreams whatever their health.";
    if (p.serving) return "";
    if (p.gets) return "No upstream serves: requests go to upstreams that drain, or have no verdict yet.";
    return "No upstream serves, and none gets requests: they are answered 503.";
  };

  const chartOf = (c) => {
    const failed = c.recent_ms.filter((ms) => ms < 0).length;
    const slowest = Math.max(0, ...c.recent_ms.map(Math.abs));
    let text = `${c.recent_ms.length} results, ${failed} failed`;
    if (c.last) text += `, the last took ${c.last.duration_ms} ms, the slowest ${slowest} ms`;
    const paths = { pass: "", fail: "" };
    c.recent_ms.forEach((ms, i) => {
      const x = (60 - c.recent_ms.length + i) * 4;
      const height = Math.max(2, Math.round((24 * Math.abs(ms)) / slowest));
      paths[ms > 0 ? "pass" : "fail"] += `M${x} 24v-${height}h3v${height}z${ms > 0 ? "" : `M${x} 2v-2h3v2z`}`;
    });
    const svg = draw("svg", { viewBox: "0 0 240 24", preserveAspectRatio: "none", role: "img", "aria-label": text });
    const title = draw("title", {});
    title.textContent = text;
    svg.append(title);
    for (const key in paths) svg.append(draw("path", { class: key, d: paths[key] }));
    return svg;
  };

  const shareOf = (e, total) => (e.effective_weight > 0 ? Math.round((1000 * e.effective_weight) / total) / 10 : 0);

  const rowOf = (e, share) => {
    const state = stateOf(e);
    const row = make("li", `upstream ${state}${e.serving ? " serving" : ""}`);
    row.append(isolate("h3", "", e.upstream));
    const facts = make("p", "facts");
    facts.append(make("b", "state", state));
    const said = [e.mode, `share ${share} %`, `weight ${e.weight}`];
    if (e.backup) said.push("backup");
    said.push(`${e.requests} in flight`, `since ${e.since ? time(e.since) : "—"}`);
    for (const text of said) facts.append(" ", make("span", "", text));
    row.append(facts, isolate("p", "why", e.why));
    for (const c of e.checks) {
      const check = make("div", "check");
      const head = make("p");
      head.append(isolate("b", "", c.check), ` ${c.status}`);
      check.append(head, chartOf(c));
      if (c.last_failed) {
        const reason = make("p", "reason");
        reason.append("last failure: ", make("bdi", "", c.last_failed.reason), ` (${time(c.last_failed.at)})`);
        check.append(reason);
      }
      row.append(check);
    }
    return row;
  };

  // become has a node look like another one, and touches nothing in it that does so
  // already: the reader's place, and a selection, stay.
  const become = (node, other) => {
    if (node.nodeName !== other.nodeName) {
      node.replaceWith(other);
      return;
    }
    if (node.nodeType === Node.TEXT_NODE) {
      if (node.data !== other.data) node.data = other.data;
      return;
    }
    for (const { name, value } of other.attributes) {
      if (node.getAttribute(name) !== value) node.setAttribute(name, value);
    }
    const [has, wants] = [[...node.childNodes], [...other.childNodes]];
    wants.forEach((child, i) => (has[i] ? become(has[i], child) : node.append(child)));
    for (const child of has.slice(wants.length)) child.remove();
  };

  // What is shown, by key, with what it was made of.
  const shown = new Map();
  const pools = byId("pools");
  const show = (entries) => {
    const word = byId("search").value.toLowerCase();
    const troubled = byId("troubled").checked;
    const there = entries.filter((e) => !e.gone);
    const totals = new Map(); // by title, which can be any text
    for (const e of entries) totals.set(titleOf(e), (totals.get(titleOf(e)) || 0) + e.effective_weight);
    const services = servicesOf(entries);
    const seen = new Set();
    // keep puts what has a key behind another node, and makes it if it is not there.
    const keep = (key, from, build, parent, before) => {
      let known = shown.get(key);
      if (!known) {
        known = { from, node: build() };
        shown.set(key, known);
      } else if (known.from !== from) {
        become(known.node, build());
        known.from = from;
      }
      seen.add(key);
      const place = before ? before.nextSibling : parent.firstChild;
      if (known.node !== place) parent.insertBefore(known.node, place);
      return known.node;
    };
    let after = null;
    for (const [title, total] of totals) {
      after = keep(`pool ${title}`, "", () => make("section"), pools, after);
      let part = keep(`title ${title}`, "", () => isolate("h2", "", title), after, null);
      const text = alarmOf(services.get(title));
      if (text) {
        part = keep(`alarm ${title}`, text, () => {
          const alarm = make("p", "alarm", text);
          alarm.setAttribute("role", "alert");
          return alarm;
        }, after, part);
      }
      const list = keep(`list ${title}`, "", () => make("ul"), after, part);
      let last = null;
      for (const e of entries) {
        if (titleOf(e) !== title) continue;
        if (troubled && e.serving) continue;
        if (word && !`${e.upstream} ${e.why} ${stateOf(e)}`.toLowerCase().includes(word)) continue;
        const share = shareOf(e, total);
        last = keep(`upstream ${title}\n${e.pool}\n${e.upstream}`, `${share} ${JSON.stringify(e)}`, () => rowOf(e, share), list, last);
      }
    }
    if (!entries.length) keep("none", "", () => make("p", "", "No reverse_proxy uses lb_policy alive."), pools, null);
    for (const [key, known] of shown) {
      if (seen.has(key)) continue;
      known.node.remove();
      shown.delete(key);
    }
    let summary = `${there.filter((e) => e.serving).length} of ${there.length} upstreams serve`;
    const all = [...services.values()];
    const open = all.filter((p) => p.failOpen).length;
    const out = all.filter((p) => !p.failOpen && !p.serving).length;
    if (open) summary = `Fail-open in ${open} of ${all.length} pools: ${summary}`;
    if (out) summary = `No upstream serves in ${out} of ${all.length} pools. ${summary}`;
    if (byId("summary").textContent !== summary) byId("summary").textContent = document.title = summary;
  };

  let entries = JSON.parse(byId("data").textContent);
  let asOf = new Date();
  const update = async () => {
    try {
      const response = await fetch(location.href, {
        headers: { Accept: "application/json" },
        cache: "no-store",
        signal: AbortSignal.timeout(patience),
      });
      if (!response.ok) throw new Error(response.statusText);
      entries = await response.json();
      asOf = new Date();
      byId("time").className = "";
      byId("time").textContent = `as of ${time(asOf.toISOString())}`;
      show(entries);
    } catch {
      byId("time").className = "stale";
      byId("time").textContent = `connection lost: this is the state of ${time(asOf.toISOString())}`;
    }
    setTimeout(update, document.hidden ? 10 * every : every);
  };

  pools.replaceChildren();
  byId("tools").hidden = false;
  byId("search").addEventListener("input", () => show(entries));
  byId("troubled").addEventListener("input", () => show(entries));
  show(entries);
  setTimeout(update, every);
})();
