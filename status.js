"use strict";
// The page is there without this: it only follows what changes, and narrows down
// what is shown. All text goes in as text.
(() => {
  const every = 2000;
  const byId = (id) => document.getElementById(id);
  const make = (name, className, text) => {
    const node = document.createElement(name);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
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

  const chartOf = (c) => {
    const failed = c.recent_ms.filter((ms) => ms < 0).length;
    const slowest = Math.max(0, ...c.recent_ms.map(Math.abs));
    let text = `${c.recent_ms.length} results, ${failed} failed`;
    if (c.last) text += `, the last took ${c.last.duration_ms} ms, the slowest ${slowest} ms`;
    const svg = draw("svg", { viewBox: "0 0 240 24", preserveAspectRatio: "none", role: "img", "aria-label": text });
    const title = draw("title", {});
    title.textContent = text;
    svg.append(title);
    c.recent_ms.forEach((ms, i) => {
      const x = (60 - c.recent_ms.length + i) * 4;
      const height = Math.max(2, Math.round((24 * Math.abs(ms)) / slowest));
      svg.append(draw("rect", { class: ms > 0 ? "pass" : "fail", x, y: 24 - height, width: 3, height }));
      if (ms < 0) svg.append(draw("rect", { class: "fail", x, y: 0, width: 3, height: 2 }));
    });
    return svg;
  };

  const rowOf = (e, total) => {
    const state = stateOf(e);
    const row = make("li", `upstream ${state}${e.serving ? " serving" : ""}`);
    row.append(make("h3", "", e.upstream));
    const facts = make("p", "facts");
    facts.append(make("b", "state", state));
    const share = e.effective_weight > 0 ? Math.round((1000 * e.effective_weight) / total) / 10 : 0;
    const said = [e.mode, `share ${share} %`, `weight ${e.weight}`];
    if (e.backup) said.push("backup");
    said.push(`${e.requests} in flight`, `since ${e.since ? time(e.since) : "—"}`);
    for (const text of said) facts.append(" ", make("span", "", text));
    row.append(facts, make("p", "why", e.why));
    for (const c of e.checks) {
      const check = make("div", "check");
      const head = make("p");
      head.append(make("b", "", c.check), ` ${c.status}`);
      check.append(head, chartOf(c));
      if (c.last_failed) check.append(make("p", "reason", `last failure: ${c.last_failed.reason} (${time(c.last_failed.at)})`));
      row.append(check);
    }
    return row;
  };

  // What is shown of each pool and upstream, to change only what is new: so the
  // reader's place, and a selection, stay.
  const shown = new Map();
  const pools = byId("pools");
  const show = (entries) => {
    const word = byId("search").value.toLowerCase();
    const troubled = byId("troubled").checked;
    const totals = {};
    const failOpen = {};
    for (const e of entries) {
      totals[e.pool] = (totals[e.pool] || 0) + e.effective_weight;
      failOpen[e.pool] = failOpen[e.pool] || Boolean(e.fail_open);
    }
    const seen = new Set();
    let after = null;
    const keep = (key, text, build, parent, before) => {
      let known = shown.get(key);
      if (!known || known.text !== text) {
        const node = build();
        if (known) known.node.replaceWith(node);
        known = { text, node };
        shown.set(key, known);
      }
      seen.add(key);
      const place = before ? before.nextSibling : parent.firstChild;
      if (known.node !== place) parent.insertBefore(known.node, place);
      return known.node;
    };
    for (const pool of Object.keys(totals)) {
      const section = keep(`p${pool}`, String(failOpen[pool]), () => {
        const made = make("section");
        made.append(make("h2", "", pool || "Set at run time, but in no pool"));
        if (failOpen[pool]) {
          const alarm = make("p", "alarm", "Fail-open: too few upstreams serve, so requests go to upstreams whatever their health.");
          alarm.setAttribute("role", "alert");
          made.append(alarm);
        }
        made.append(make("ul"));
        return made;
      }, pools, after);
      after = section;
      let last = null;
      for (const e of entries) {
        if (e.pool !== pool) continue;
        if (troubled && e.serving) continue;
        if (word && !`${e.upstream} ${e.why} ${stateOf(e)}`.toLowerCase().includes(word)) continue;
        last = keep(`u${pool}\n${e.upstream}`, JSON.stringify(e), () => rowOf(e, totals[pool]), section.querySelector("ul"), last);
      }
    }
    for (const [key, known] of shown) {
      if (seen.has(key)) continue;
      known.node.remove();
      shown.delete(key);
    }
    const there = entries.filter((e) => e.pool !== "");
    const summary = `${there.filter((e) => e.serving).length} of ${there.length} upstreams serve`;
    if (byId("summary").textContent !== summary) byId("summary").textContent = document.title = summary;
    if (!entries.length) pools.replaceChildren(make("p", "", "No reverse_proxy uses lb_policy alive."));
  };

  let entries = JSON.parse(byId("data").textContent);
  let asOf = new Date();
  const update = async () => {
    try {
      const response = await fetch(location.href, { headers: { Accept: "application/json" }, cache: "no-store" });
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
