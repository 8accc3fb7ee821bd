"use strict";
/* The page for people: plain JavaScript. Whatever comes from the service is put in as text, never as HTML. */

const SVG = "http://www.w3.org/2000/svg";
const WORDS = { pre_ranker: "pre-ranker", reranker: "re-ranker" };
const $ = (id) => document.getElementById(id);
const word = (name) => WORDS[name] || name;
const number = (x) => x.toLocaleString("en");
const state = { info: null, turn: 0, user: null };

function el(tag, attributes = {}, ...children) {
  const node = tag.startsWith("svg:") ? document.createElementNS(SVG, tag.slice(4)) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "onclick") node.addEventListener("click", value);
    else if (value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.filter((c) => c !== null && c !== undefined));
  return node;
}

function score(x) {
  if (x === null || x === undefined) return "–";
  const size = Math.abs(x);
  return size >= 1000 ? number(Math.round(x)) : size >= 100 || Number.isInteger(x) ? x.toFixed(0) : size >= 0.01 || x === 0 ? x.toFixed(2) : x.toExponential(1);
}
const milliseconds = (s) => (s < 0.0001 ? "< 0.1 ms" : `${(1000 * s).toFixed(1)} ms`);
const percent = (p) => (p >= 0.1 ? `${(100 * p).toFixed(0)} %` : p >= 0.001 ? `${(100 * p).toFixed(1)} %` : "< 0.1 %");

function meter(share) {
  const bar = el("i");
  bar.style.width = `${Math.max(0, Math.min(1, share)) * 100}%`;
  return el("span", { class: "meter", "aria-hidden": "true" }, bar);
}

function say(text, bad = false) {
  $("status").textContent = text;
  $("status").classList.toggle("bad", bad);
}

async function ask(path, body) {
  const headers = {};
  const key = sessionStorage.getItem("recstack-key");
  if (key) headers.Authorization = `Bearer ${key}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let answer;
  try {
    answer = await fetch(path, { method: body === undefined ? "GET" : "POST", headers, body: body && JSON.stringify(body) });
  } catch {
    throw new Error("The service does not answer.");
  }
  if (answer.status === 401) {
    $("unlock").hidden = false;
    $("key").focus();
  }
  const told = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(told.error || `The service answered ${answer.status}.`);
  return told;
}

/* -- what a user is, what they did ------------------------------------------------------------------------------------- */
function nameOf(row) {
  return row.item === null ? "an item new to the models" : row.title || `Item ${row.item}`;
}

function told(row) {
  const parts = Object.entries(row.about || {}).map(([n, v]) => {
    const value = Array.isArray(v) ? v.join(", ") : String(v);
    return value.toLowerCase().startsWith(n.toLowerCase()) ? value.replaceAll("_", " ") : `${n} ${value}`;
  });
  return parts.join(" · ");
}

function called(row) {
  return el("div", { class: "name" }, nameOf(row), row.title ? el("span", { class: "told" }, ` #${row.item}`) : null);
}

function showPerson(person, fresh) {
  $("person").textContent = `User ${person.user_id}`;
  const facts = Object.entries(person.about).filter(([, v]) => v !== null);
  $("attributes").replaceChildren(
    ...(person.known ? [] : [el("span", { class: "chip" }, "never met before")]),
    ...facts.map(([n, v]) => el("span", { class: "chip" }, el("span", { class: "told" }, n), el("b", {}, String(v)))),
    el("span", { class: "chip" }, el("b", {}, number(person.met)), person.met === 1 ? "item met" : "items met"),
  );
  const parts = [];
  for (const [name, rows] of Object.entries(person.histories)) {
    parts.push(el("h3", {}, `History “${name}”, newest first`));
    if (!rows.length) parts.push(el("p", { class: "soft" }, "Nothing yet."));
    const list = rows.map((row, i) =>
      el("li", { class: i === 0 && row.item === fresh ? "fresh" : null },
        called(row),
        el("div", { class: "told" }, told(row)),
        i === 0 && row.item === fresh ? el("div", { class: "badge" }, "just now") : null));
    parts.push(el("ol", { class: "history" }, ...list));
  }
  $("histories").replaceChildren(...parts);
}

/* -- the page --------------------------------------------------------------------------------------------------------- */
const hue = (retrievers, name) => `of${Math.min(5, Math.max(0, retrievers.indexOf(name)))}`;

/** place of each item in what each stage let through: {stage: {item: place from 1}} */
function places(stages) {
  return Object.fromEntries(stages.map((s) => [s.name, new Map(s.items.map((row, i) => [row.item, i + 1]))]));
}

function showItems(answer) {
  const at = places(answer.stages);
  const label = state.info.event || "event";
  const highest = Math.max(...answer.page.map((row) => row.probability || 0), 1e-9);
  const rows = answer.page.map((row, i) => {
    const proposed = Object.keys(row.sources).filter((n) => answer.retrievers.includes(n) || n === "popular");
    const chips = proposed.map((n) =>
      el("span", { class: "chip", title: `place ${at[n]?.get(row.item) ?? "–"} of ${n}, score ${row.sources[n]}` },
        el("span", { class: `dot ${hue(answer.retrievers, n)}` }), n, el("b", {}, score(row.sources[n])),
        at[n]?.has(row.item) ? el("span", { class: "told" }, `#${at[n].get(row.item)}`) : null));
    const steps = answer.stages
      .filter((s) => !answer.retrievers.includes(s.name) && s.name !== "popular" && s.name !== "page")
      .map((s) => {
        const place = s.items.length ? at[s.name].get(row.item) : undefined;
        const own = row.sources[s.name];
        return el("li", { class: "step" },
          el("div", { class: "row" }, el("span", {}, word(s.name)), el("b", {}, place ? `#${place}` : "–")),
          el("div", { class: "row told" }, el("span", {}, `of ${number(s.kept)}`), el("span", {}, own === undefined ? "" : score(own))),
          meter(place ? 1 - (place - 1) / Math.max(1, s.kept) : 0));
      });
    const chance = row.probability === undefined ? null
      : el("div", { class: "chance", title: `calibrated probability of “${label}”; the bar compares it with the highest on this page` }, meter(row.probability / highest),
        el("span", {}, el("b", {}, percent(row.probability)), ` ${label}`));
    return el("li", { class: "item", "data-item": String(row.item) },
      el("div", { class: "place" }, String(i + 1)),
      el("div", {},
        called(row), el("div", { class: "told" }, told(row)),
        el("div", { class: "chips", "aria-label": "proposed by" }, ...chips)),
      el("div", { class: "act" }, chance,
        el("button", { type: "button", "aria-label": `Send the event “${label}” on ${nameOf(row)}`, onclick: () => send(row, i) }, `+ ${label}`)),
      steps.length ? el("ul", { class: "path", "aria-label": "stages it came through" }, ...steps) : null);
  });
  if (!rows.length) rows.push(el("li", { class: "soft" }, "Nothing is left to recommend."));
  $("items").replaceChildren(...rows);
  const why = !answer.known ? "Never met, so: what is popular." : answer.fallback ? "The cascade had nothing, so: what is popular." : "";
  $("summary").textContent = `${why} ${number(answer.page.length)} of ${number(answer.catalog)} items in ${milliseconds(answer.seconds)}`.trim();
}

/* -- the funnel ------------------------------------------------------------------------------------------------------- */
/** An SVG of rows {name, kept, note, seconds}; retrievers stand beside each other, so they do not narrow the funnel. */
function picture(rows, retrievers, heads, label) {
  const most = Math.max(...rows.map((r) => r.kept), 1);
  const longest = Math.max(...rows.map((r) => r.seconds || 0), 1e-9);
  const [step, middle, half, high] = [46, 430, 200, 24];
  const wide = (kept) => (kept ? Math.max(3, half * Math.sqrt(kept / most)) : 1.5);
  const text = (x, y, content, kind = "", anchor = "start") => el("svg:text", { x, y, class: kind, "text-anchor": anchor }, content);
  const parts = [];
  let before = null;
  rows.forEach((row, i) => {
    const y = 26 + i * step;
    const parallel = retrievers.includes(row.name);
    const w = wide(row.kept);
    if (!parallel) {
      if (before) {
        const a = wide(before.kept);
        const points = [[middle - a, before.y + high], [middle + a, before.y + high], [middle + w, y], [middle - w, y]];
        parts.unshift(el("svg:polygon", { class: "flow", points: points.map((p) => p.join(",")).join(" ") }));
      }
      before = { y, kept: row.kept };
    }
    const [top, thick] = parallel ? [y + 5, high - 10] : [y, high];
    parts.push(
      el("svg:rect", { class: parallel ? hue(retrievers, row.name) : "body", x: middle - w, y: top, width: 2 * w, height: thick, rx: 4 }),
      text(190, y + 17, word(row.name), parallel ? "" : "on", "end"),
      text(650, y + 17, number(Math.round(row.kept)), "on"));
    if (row.note) parts.push(text(705, y + 17, row.note, "dim"));
    if (row.seconds !== undefined && row.seconds !== null) {
      parts.push(
        el("svg:rect", { class: "time", x: 800, y: y + 8, width: Math.max(1, (100 * row.seconds) / longest), height: 8, rx: 3 }),
        text(990, y + 17, milliseconds(row.seconds), "dim", "end"));
    }
  });
  const top = [text(190, 12, "stage", "dim", "end"), text(650, 12, "items", "dim"), text(705, 12, heads[0], "dim"), text(800, 12, heads[1], "dim")];
  const told = rows.map((r) => `${word(r.name)} ${Math.round(r.kept)}`).join(", ");
  return el("svg:svg", { viewBox: `0 0 1000 ${rows.length * step + 26}`, role: "img", "aria-label": `${label}: ${told}` }, ...top, ...parts);
}

function showFunnel(answer) {
  const stages = answer.stages.map((s) => ({
    name: s.name, kept: s.kept, note: s.dropped ? `− ${number(s.dropped)}` : "", seconds: s.name === "page" ? null : s.seconds }));
  const rows = [{ name: "catalogue", kept: answer.catalog }, ...stages];
  $("funnel").replaceChildren(picture(rows, answer.retrievers, ["dropped", "time"], "Items that leave each stage"));
  const cells = answer.stages.map((s) => [word(s.name), number(s.kept), number(s.dropped), milliseconds(s.seconds)]);
  $("funnel-table").replaceChildren(table(["stage", "kept", "dropped", "time"], cells));
}

function table(head, rows) {
  return el("table", {},
    el("thead", {}, el("tr", {}, ...head.map((h) => el("th", { scope: "col" }, h)))),
    el("tbody", {}, ...rows.map((row) =>
      el("tr", {}, ...row.map((cell, i) => el(i ? "td" : "th", i ? {} : { scope: "row" }, cell))))));
}

function showEvaluation(evaluation) {
  const report = evaluation && [evaluation, evaluation.funnel, evaluation.report, evaluation.evaluation].find((r) => r && Array.isArray(r.stages));
  if (!report) {
    $("protocol").textContent = "This bundle carries no measurements (metrics.json).";
    return;
  }
  const k = report.k || 10;
  const requests = report.requests ? `${number(report.requests)} requests. ` : "";
  $("protocol").textContent = `${requests}${report.protocol || ""}`;
  const counted = report.stages.filter((s) => Number.isFinite(s.kept));
  const rows = [{ name: "catalogue", kept: state.info.catalog }, ...counted.map((s) => ({
    name: s.name, kept: s.kept, note: Number.isFinite(s.recall) ? percent(s.recall) : "",
    seconds: Number.isFinite(s.p50_ms) ? s.p50_ms / 1000 : null }))];
  const names = state.info.retrievers.map((r) => r.name);
  $("evaluation-funnel").replaceChildren(picture(rows, names, ["relevant left", "median time"], "Items that leave each stage, on average"));
  const best = (name) => Math.max(...report.stages.map((s) => s[name] || 0), 1e-9);
  const barred = (s, name) => (Number.isFinite(s[name]) ? el("div", {}, s[name].toFixed(4), meter(s[name] / best(name))) : "–");
  const ms = (x) => (Number.isFinite(x) ? x.toFixed(1) : "–");
  const cells = report.stages.map((s) => [
    word(s.name), Number.isFinite(s.kept) ? number(Math.round(s.kept)) : "–", barred(s, "recall"), barred(s, "recall@k"), barred(s, "ndcg@k"),
    ms(s.p50_ms), ms(s.p99_ms)]);
  $("evaluation").replaceChildren(table(["stage", "items", "relevant left", `recall@${k}`, `ndcg@${k}`, "p50 ms", "p99 ms"], cells));
}

/* -- doing ------------------------------------------------------------------------------------------------------------ */
async function show(user, { fresh, focus } = {}) {
  const turn = ++state.turn;
  $("main").classList.add("waiting");
  $("user").value = user;
  const k = $("k").value;
  history.replaceState(null, "", `#${new URLSearchParams({ user, k })}`);
  try {
    const [person, answer] = await Promise.all([
      ask(`/api/user/${encodeURIComponent(user)}`),
      ask(`/explain?${new URLSearchParams({ user_id: user, k })}`)]);
    if (turn !== state.turn) return; // somebody else was chosen meanwhile
    state.user = person.user_id;
    showPerson(person, fresh);
    showItems(answer);
    showFunnel(answer);
    if (fresh === undefined) say("");
    if (focus !== undefined) (document.querySelectorAll("#items button")[focus] || $("page")).focus();
    document.title = `User ${user} · RecStack`;
  } catch (error) {
    if (turn === state.turn) say(error.message, true);
  } finally {
    if (turn === state.turn) $("main").classList.remove("waiting");
  }
}

function eventId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (b) => b.toString(16).padStart(2, "0")).join("");
}

async function send(row, place) {
  const user = state.user;
  try {
    await ask("/events", { user_id: user, item_id: row.item, event_id: eventId() });
    say(`${nameOf(row)} is now the newest item of user ${user}; the page was made anew.`);
    await show(String(user), { fresh: row.item, focus: place });
  } catch (error) {
    say(error.message, true);
  }
}

async function random() {
  try {
    const { users } = await ask("/api/users?limit=1");
    if (users.length) await show(String(users[0]));
    else say("There are no users yet.");
  } catch (error) {
    say(error.message, true);
  }
}

async function suggest() {
  try {
    const { users } = await ask(`/api/users?${new URLSearchParams({ q: $("user").value, limit: 10 })}`);
    $("users").replaceChildren(...users.map((u) => el("option", { value: String(u) })));
  } catch { /* a list of suggestions may be missing; sending the form tells what is wrong */ }
}

function readHash() {
  const hash = new URLSearchParams(location.hash.slice(1));
  if ([...$("k").options].some((o) => o.value === hash.get("k"))) $("k").value = hash.get("k");
  return hash.get("user");
}

async function begin() {
  try {
    state.info = await ask("/api/funnel");
  } catch (error) {
    say(error.message, true);
    $("about").textContent = "";
    return;
  }
  const { users, catalog, retrievers, stages, rules, evaluation } = state.info;
  const names = [retrievers.map((r) => r.class).join(" + "), ...stages.map((s) => s.class), ...rules];
  $("about").textContent = `${names.join(" → ")} · ${number(users)} users, ${number(catalog)} items`;
  showEvaluation(evaluation);
  const user = readHash();
  await (user ? show(user) : random());
}

let typing;
$("user").addEventListener("input", () => { clearTimeout(typing); typing = setTimeout(suggest, 150); });
$("k").addEventListener("change", () => { if (state.user !== null) show(String(state.user)); });
$("choose").addEventListener("submit", (e) => { e.preventDefault(); show($("user").value.trim()); });
$("random").addEventListener("click", random);
$("unlock").addEventListener("submit", (e) => {
  e.preventDefault();
  sessionStorage.setItem("recstack-key", $("key").value);
  $("unlock").hidden = true;
  say("");
  begin();
});
window.addEventListener("hashchange", () => { const user = readHash(); if (user && user !== String(state.user)) show(user); });
begin();
