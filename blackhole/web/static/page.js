// The dashboard. Figures come as server-sent events, once a second; nothing is asked of any other host.
"use strict";

const $ = (id) => document.getElementById(id);
const whole = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });
const fine = new Intl.NumberFormat("en-US", { maximumFractionDigits: 1, minimumFractionDigits: 1 });

const count = (n) => whole.format(n);
const speed = (n) => (n >= 0.05 && n < 9.95 ? fine.format(n) : whole.format(n));
const percent = (n) => (n >= 0.0005 && n < 0.0995 ? fine.format(n * 100) : whole.format(n * 100)) + " %";

function size(n) {
  const units = ["B", "kB", "MB", "GB", "TB", "PB"];
  let unit = 0;
  while (n >= 999.5 && unit < units.length - 1) { n /= 1000; unit++; }
  return [unit && n < 99.95 ? fine.format(n) : whole.format(n), units[unit]];
}

function duration(s) {
  if (!s) return "–";
  if (s < 1e-3) return `${whole.format(s * 1e6)} µs`;
  if (s < 1) return `${s < 0.01 ? fine.format(s * 1e3) : whole.format(s * 1e3)} ms`;
  return `${s < 10 ? fine.format(s) : whole.format(s)} s`;
}

function age(s) {
  const parts = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
  const first = parts.findIndex(([unit]) => s >= unit);
  if (first < 0) return "0 s";
  return parts.slice(first, first + 2).map(([unit, name], i, all) =>
    `${Math.floor((i ? s % all[0][0] : s) / unit)} ${name}`).join(" ");
}

// Elements are made once and then only changed, so that focus and selection survive.

function make(tag, attributes = {}, ...inside) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...inside);
  return element;
}

function put(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function figure(id, value, text, unit) {
  const element = $(id);
  if (element.value === String(value) && element.dataset.text === text + unit) return;
  element.value = value;
  element.dataset.text = text + unit;
  element.replaceChildren(text, ...(unit ? [make("small", {}, unit)] : []));
}

function words(id, ...parts) {
  const element = $(id);
  const text = JSON.stringify(parts);
  if (element.dataset.text === text) return;
  element.dataset.text = text;
  element.replaceChildren(...parts.filter(Boolean).flatMap(([label, value, kind]) =>
    [make("span", kind ? { class: kind } : {}, label && `${label} `, make("b", kind ? { class: kind } : {}, value)), " "]));
}

// A table whose rows have keys: `row(key)` makes the cells, `fill(cells, item)` says what is in them.
function rows(id, items, row, fill) {
  const body = $(id).tBodies[0];
  const known = new Map([...body.rows].map((one) => [one.dataset.key, one]));
  let at = body.firstElementChild;
  for (const item of items) {
    let line = known.get(item.key);
    if (!line) { line = row(item); line.dataset.key = item.key; }
    known.delete(item.key);
    if (line === at) at = at.nextElementSibling;
    else body.insertBefore(line, at);
    fill(line, item);
  }
  for (const line of known.values()) line.remove();
}

function bar(kind) {
  return make("td", { class: "wide" }, make("span", { class: "bar" }, make("i", { class: kind })));
}

function fill(cell, share) {
  const { style } = cell.firstElementChild.firstElementChild;
  style.width = `${Math.min(100, share * 100).toFixed(1)}%`;
  style.minWidth = share > 0.001 ? "2px" : "0";
}

// Charts

const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const past = { seconds: null, minutes: null };
let span = 300;

function chart(id, colour, height) {
  const box = $(id);
  const axis = {
    stroke: () => style("--soft"), font: '11px system-ui, "DejaVu Sans", sans-serif',
    grid: { stroke: () => style("--line"), width: 1 }, ticks: { show: false },
  };
  const plot = new uPlot({
    width: Math.max(200, box.clientWidth), height: height(),
    padding: [8, 4, 0, 0],
    cursor: { sync: { key: "time" }, y: false, points: { size: 7 }, drag: { x: false, y: false } },
    legend: { show: false },
    scales: { x: { time: true }, y: { range: (_, least, most) => [0, Math.max(1, most || 0) * 1.08] } },
    axes: [
      { ...axis, size: 26, gap: 6, space: (_, at, least, most, width) => (width < 500 ? 50 : 80), grid: { show: false },
        values: (_, ticks) => ticks.map((tick) => clock(tick, span <= 300 && tick % 60 !== 0)) },
      { ...axis, size: 52, gap: 8, space: 36, incrs: [1, 2, 5, 10, 20, 25, 50, 100, 200, 250, 500, 1e3, 2e3, 2.5e3, 5e3,
        1e4, 2e4, 2.5e4, 5e4, 1e5, 2e5, 5e5, 1e6, 2e6, 5e6], values: (_, ticks) => ticks.map((tick) => count(tick)) },
    ],
    series: [{}, {
      stroke: () => style(colour), width: 1.5, points: { show: false }, spanGaps: false,
      fill: () => `color-mix(in srgb, ${style(colour)} 14%, transparent)`,
    }],
    hooks: { setCursor: [point] },
  }, [[], []], box);
  const fit = () => plot.setSize({ width: Math.max(200, box.clientWidth), height: box.clientHeight });
  new ResizeObserver(fit).observe(box);
  return plot;
}

function clock(seconds, precise) {
  const time = new Date(seconds * 1000);
  return time.toLocaleTimeString("en-GB", precise ? {} : { hour: "2-digit", minute: "2-digit" });
}

function point(plot) {
  const at = plot.cursor.idx;
  const value = at === null || at === undefined ? null : plot.data[1][at];
  const output = $(plot.root.parentElement.id.replace("chart", "at"));
  put(output, value === null || value === undefined ? "" :
    `${clock(plot.data[0][at], span < 86400)}: ${speed(value)}`);
}

const charts = {};

function draw() {
  if (document.hidden || !past.seconds) return;
  const from = span === 86400 ? past.minutes : past.seconds;
  const size = span / from.step;
  for (const [name, plot] of Object.entries(charts)) {
    const values = from[name].slice(-size);
    const times = values.map((_, i) => from.until - (values.length - 1 - i) * from.step);
    plot.setData([times, values], false);
    const until = from.until;
    plot.batch(() => {
      plot.setScale("x", { min: until - span, max: until });
      plot.setScale("y", { min: 0, max: Math.max(1, ...values) });
    });
  }
}

function remember(now) {
  const value = { messages: now.rates.messages["1"], connections: now.rates.connections["1"],
    received_bytes: now.rates.received_bytes["1"], open: now.connections.open };
  const missed = Math.max(1, Math.min(3600, Math.round(now.time - past.seconds.until)));
  const minute = Math.floor(past.seconds.until / 60) !== Math.floor(now.time / 60);
  for (const name of Object.keys(value)) {
    const column = past.seconds[name];
    for (let i = 1; i < missed; i++) column.push(null);
    column.push(value[name]);
    column.splice(0, Math.max(0, column.length - 3600));
    if (minute) {
      const last = column.slice(-60).filter((one) => one !== null);
      past.minutes[name].push(name === "open" ? Math.max(...last) : last.reduce((a, b) => a + b, 0) / last.length);
      past.minutes[name].splice(0, Math.max(0, past.minutes[name].length - 1440));
    }
  }
  past.seconds.until = now.time;
  if (minute) past.minutes.until = now.time;
}

// Figures

let rules = {};
let choices = [];

function show(now) {
  document.title = `${speed(now.rates.messages["1"])}/s - Blackhole`;
  put($("state"), `live, up ${age(now.time - now.started)}`);
  put($("version"), `Blackhole ${now.version}`);
  const { messages, connections, rates } = now;
  const total = messages.accepted + messages.deferred + messages.rejected;

  figure("rate", rates.messages["1"], speed(rates.messages["1"]), "/s");
  words("rate-more", ["peak", count(rates.messages.peak)], ["10 s", speed(rates.messages["10"])],
    ["60 s", speed(rates.messages["60"])]);
  figure("messages", total, count(total), "");
  words("messages-more", ["accepted", count(messages.accepted)],
    messages.deferred && ["deferred", count(messages.deferred), "warn"],
    messages.rejected && ["rejected", count(messages.rejected), "bad"],
    ["recipients", count(now.recipients)]);
  figure("open", connections.open, count(connections.open), "");
  words("open-more", ["peak", count(rates.open.peak)], ["total", count(connections.total)],
    connections.refused && ["refused", count(connections.refused)],
    connections.timed_out && ["timed out", count(connections.timed_out)]);
  figure("received", now.received_bytes, ...size(now.received_bytes));
  words("received-more", ["", size(rates.received_bytes["10"]).join(" ") + "/s"],
    total && ["mean message", size(now.histograms.message_bytes.mean).join(" ")],
    now.tls.ok + now.tls.failed > 0 && ["TLS", count(now.tls.ok)],
    now.tls.failed && ["TLS failed", count(now.tls.failed), "warn"]);
  $("messages-chart").setAttribute("aria-label",
    `Messages a second over time: now ${speed(rates.messages["1"])}, peak ${count(rates.messages.peak)}`);
  $("open-chart").setAttribute("aria-label",
    `Open connections over time: now ${count(connections.open)}, peak ${count(rates.open.peak)}`);

  listeners(now);
  scenario(now);
  hits(now);
  time(now);
  workers(now);
  replies(now);
  violations(now);
  clients(now);
  runs(now);
}

function listeners(now) {
  const { name, rules: inForce } = now.scenario;
  const text = JSON.stringify([now.listeners, name]);
  if ($("listeners").dataset.text === text) return;
  $("listeners").dataset.text = text;
  $("listeners").replaceChildren(...now.listeners.map((one) =>
    make("li", {}, `${one.address} `, make("b", {}, one.mode + (one.delay ? `, delay ${[...new Set(one.delay)].join("–")} s` : "") + (one.tls ? ", TLS" : "")))),
  ...(inForce ? [make("li", {}, "scenario ", make("b", {}, brief(known(name))))] : []));
}

const PARTS = { sink: "the sink", client: "waiting for the sender", delay: "delay that was asked for" };

function time(now) {
  const minute = now.minute;
  const all = Object.keys(PARTS).reduce((sum, part) => sum + minute[part].sum, 0);
  const share = (part) => (all ? minute[part].sum / all : 0);
  const stack = $("time-bar");
  if (!stack.children.length) stack.append(...Object.keys(PARTS).map((part) => make("i", { class: part })));
  for (const [i, part] of Object.keys(PARTS).entries()) stack.children[i].style.width = `${share(part) * 100}%`;
  stack.setAttribute("aria-label", all ? Object.entries(PARTS).map(([part, name]) => `${name} ${percent(share(part))}`).join(", ")
    : "Nothing measured in the last minute");
  rows("times", Object.keys(PARTS).map((key) => ({ key })), ({ key }) =>
    make("tr", {}, make("th", { scope: "row" }, make("i", { class: `key ${key}` }), PARTS[key]), make("td"), make("td"), make("td")),
  (line, { key }) => {
    put(line.cells[1], all ? percent(share(key)) : "–");
    put(line.cells[2], duration(minute[key].count && minute[key].p50));
    put(line.cells[3], duration(minute[key].count && minute[key].p99));
  });
  const busy = now.workers.length ? now.workers.reduce((sum, one) => sum + one.load, 0) / now.workers.length : 0;
  put($("verdict"), !all || !now.rates.messages["10"] ? "" : busy > 0.85 ? `The workers are ${percent(busy)} busy: the sink is the limit.`
    : `The workers are ${percent(busy)} busy: the sender is the limit.`);
}

function workers(now) {
  rows("workers", now.workers.map((one) => ({ key: String(one.pid), one })), () =>
    make("tr", {}, make("th", { scope: "row" }), make("td"), bar("cpu"), make("td")),
  (line, { one }) => {
    put(line.cells[0], one.title.replace("blackhole: worker ", "") + (one.silent > 3 ? ` silent for ${age(one.silent)}` : ""));
    line.cells[0].title = `process ${one.pid}`;
    put(line.cells[1], percent(one.load));
    fill(line.cells[2], one.load);
    put(line.cells[3], count(one.open));
  });
}

function replies(now) {
  const items = [];
  let most = 0;
  for (const [phase, codes] of Object.entries(now.replies)) {
    let first = true;
    for (const [code, said] of Object.entries(codes)) {
      items.push({ key: `${phase} ${code}`, phase, code, said, first });
      most = Math.max(most, said);
      first = false;
    }
  }
  $("replies-none").hidden = items.length > 0;
  $("replies").hidden = !items.length;
  rows("replies", items, ({ code }) =>
    make("tr", {}, make("th", { scope: "row", class: "mono" }), make("td", { class: `mono c${code[0]}` }), bar(`c${code[0]}`), make("td")),
  (line, item) => {
    put(line.cells[0], item.first ? (item.phase === "." ? ". (end of message)" : item.phase) : "");
    line.className = item.first ? "" : "again";
    put(line.cells[1], item.code);
    fill(line.cells[2], item.said / most);
    put(line.cells[3], count(item.said));
  });
}

// With --show-clients only; the others are in /stats.json.
const CLIENTS = 20;

function clients(now) {
  const items = (now.clients || []).slice(0, CLIENTS).map((one) => ({ key: one.address, one }));
  $("clients-section").hidden = !now.clients;
  $("clients-none").hidden = items.length > 0;
  $("clients").hidden = !items.length;
  rows("clients", items, ({ key }) =>
    make("tr", {}, make("th", { scope: "row", class: "mono" }, key), make("td"), make("td"), make("td")),
  (line, { one }) => [one.connections, one.messages, one.violations].forEach((seen, i) => put(line.cells[i + 1], count(seen))));
}

function violations(now) {
  const order = { must: 0, should: 1, style: 2 };
  const items = Object.entries(now.violations).filter(([, seen]) => seen).map(([key, seen]) => ({ key, seen, rule: rules[key] }))
    .filter(({ rule }) => rule).sort((a, b) => order[a.rule.level] - order[b.rule.level] || b.seen - a.seen);
  $("violations-none").hidden = items.length > 0;
  $("violations").hidden = !items.length;
  rows("violations", items, ({ rule }) =>
    make("tr", {},
      make("td", {}, make("a", { href: `https://www.rfc-editor.org/rfc/rfc${rule.rfc}#section-${rule.section}`, rel: "noreferrer" },
        `${rule.rfc}, ${rule.section}`)),
      make("td", { class: "text", title: rule.hint },
        make("span", { class: `level ${rule.level}` }, rule.level === "style" ? "style" : rule.level.toUpperCase()), " ", rule.meaning),
      make("td")),
  (line, { seen }) => put(line.cells[2], count(seen)));
}

// Runs

async function ask(path, body, said = "run-said", method = "POST") {
  const answer = await fetch(path, { method, headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
  const told = await answer.json();
  put($(said), answer.ok ? "" : told.error);
  return answer.ok;
}

function runs(now) {
  const items = now.runs.map((run) => ({ key: run.name, run })).reverse();
  $("runs-none").hidden = items.length > 0;
  $("runs").hidden = !items.length;
  rows("runs", items, ({ run }) => {
    const stop = make("button", { type: "button", "aria-label": `Stop the run ${run.name}` }, "Stop");
    stop.addEventListener("click", () => ask(`/runs/${run.name}/stop`, {}));
    const save = make("a", { class: "button", href: `/runs/${run.name}`, download: `${run.name}.json`,
      "aria-label": `Save the report of the run ${run.name}` }, "Save report");
    return make("tr", {}, make("th", { scope: "row", class: "mono" }, run.name, make("span", { class: "running" }, "running")),
      make("td"), make("td"), make("td"), make("td"), make("td"), make("td", {}, stop, save));
  }, (line, { run }) => {
    line.querySelector(".running").hidden = !run.running;
    line.querySelector("button").hidden = !run.running;
    put(line.cells[1], fine.format(run.seconds));
    put(line.cells[2], count(run.total));
    put(line.cells[3], speed(run.rate.mean));
    put(line.cells[4], speed(run.rate.peak));
    put(line.cells[5], percent(run.cpu_share));
  });
}

// The scenario

const short = (name) => name.slice(name.lastIndexOf("/") + 1);
const label = ({ name, about }) => (name === "loaded" ? about || "none" : name.startsWith("PUT ") ? name : short(name));
// Where a list of files would be too long.
const brief = (one) => (one.name === "loaded" && one.about.split(", ").length > 2 ? many(one.about.split(", ").length, "file") : label(one));
const known = (name) => choices.find((one) => one.name === name) || { name, about: "" };
const many = (n, what) => `${count(n)} ${what}${n === 1 ? "" : "s"}`;

function scenario(now) {
  const { name, ordered, rules, since } = now.scenario;
  const one = known(name);
  const select = $("scenario-name");
  const names = JSON.stringify(choices);
  if (select.dataset.text !== names) {
    select.dataset.text = names;
    select.replaceChildren(...choices.map((choice) => make("option", { value: choice.name },
      choice.name === "loaded" ? `as loaded (${brief(choice)})` : label(choice))));
  }
  const line = $("scenario-now");
  const text = JSON.stringify([name, ordered, rules]);
  if (line.dataset.text !== text) {
    line.dataset.text = text;
    line.replaceChildren(make("b", { class: "mono", title: name }, label(one)), " ",
      make("span", {}, rules ? many(rules, "rule") : "every listener does what its mode says"), " ",
      make("span", {}), " ", ...(ordered ? [make("span", { class: "warn" }, "by order")] : []));
  }
  put(line.children[2], `for ${age(Math.max(0, now.time - since))}`);
  const current = `${name} ${since}`;
  const part = $("scenario-text");
  part.hidden = !rules;
  if (part.dataset.of !== current) {
    part.dataset.of = current;
    if (part.open) read();
    if (document.activeElement !== select) select.value = choices.includes(one) ? name : "loaded";
    explain();
  }
  $("next-part").hidden = !now.scenario.next.length;
  rows("next", now.scenario.next.map((item, i) => ({ key: JSON.stringify({ ...item, left: i }), item })), ({ item }) => {
    const { phase, count: times, left, ...rest } = item;
    return make("tr", {}, make("th", { scope: "row", class: "mono" }, [phase].flat().join(" ")),
      make("td", { class: "text mono" }, Object.entries(rest).map(([key, value]) =>
        (key === "reply" ? String(value) : `${key} ${typeof value === "string" ? value : JSON.stringify(value)}`)).join(", ")),
      make("td"));
  }, (row, { item }) => put(row.cells[2], `${count(item.left)} of ${count(item.count)}`));
}

// The rules in force in their order, then others that have spoken: of scenarios before, or ordered for what came next.
function hits(now) {
  const seen = now.rule_hits;
  const here = now.scenario.names.filter((name) => Object.hasOwn(seen, name));
  const gone = Object.keys(seen).filter((name) => seen[name] && !here.includes(name));
  const most = Math.max(1, ...Object.values(seen));
  $("hits-part").hidden = !here.length && !gone.length;
  rows("hits", [...here, ...gone].map((key) => ({ key })), ({ key }) =>
    make("tr", {}, make("th", { scope: "row", class: "mono" }, /^\d+$/.test(key) ? `rule ${key}` : key), bar(""), make("td")),
  (line, { key }) => {
    line.className = here.includes(key) ? "" : "note";
    fill(line.cells[1], seen[key] / most);
    put(line.cells[2], count(seen[key]));
  });
}

// What the one is that was chosen: said of the one in force, or of one to switch to.
function explain() {
  const one = known($("scenario-name").value);
  const active = $("scenario-now").firstElementChild;
  put($("scenario-about"), one.name === "loaded" || !one.about ? "" : active.title === one.name ? one.about : `${label(one)}: ${one.about}`);
}

async function read() {
  const answer = await fetch("/scenario", { headers: { Accept: "application/toml" } });
  put(document.querySelector("#scenario-text pre"), await answer.text());
}

// The stream of figures

let stream;

function listen() {
  stream = new EventSource("/events");
  const state = (name) => { document.documentElement.className = name; };
  stream.addEventListener("past", (event) => {
    const said = JSON.parse(event.data);
    past.seconds = said.seconds;
    past.minutes = said.minutes;
    rules = Object.fromEntries(said.rules.map((rule) => [rule.name, rule]));
    choices = said.choices;
    draw();
  });
  stream.addEventListener("now", (event) => {
    const now = JSON.parse(event.data);
    state("live");
    remember(now);
    if (document.hidden) return;
    show(now);
    draw();
  });
  stream.addEventListener("error", () => {
    state("lost");
    put($("state"), "not connected, trying again");
    document.title = "Blackhole (not connected)";
    if (stream.readyState === EventSource.CLOSED) setTimeout(listen, 5000);  // it was refused; a broken one tries by itself
  });
}

charts.messages = chart("messages-chart", "--messages", () => $("messages-chart").clientHeight);
charts.open = chart("open-chart", "--open", () => $("open-chart").clientHeight);
document.querySelectorAll('input[name="span"]').forEach((input) => input.addEventListener("change", () => { span = Number(input.value); draw(); }));
$("run-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  if (await ask("/runs", { name: $("run-name").value.trim() })) $("run-form").reset();
});
$("scenario-name").addEventListener("change", explain);
$("scenario-form").addEventListener("submit", (event) => {
  event.preventDefault();
  ask("/scenario", { name: $("scenario-name").value }, "scenario-said");
});
$("next-forget").addEventListener("click", () => ask("/next", {}, "scenario-said", "DELETE"));
$("scenario-text").addEventListener("toggle", (event) => { if (event.target.open) read(); });
// A browser keeps a page that was left, for who comes back, and its stream with it; after six it asks for nothing more.
addEventListener("pagehide", () => stream.close());
addEventListener("pageshow", (event) => { if (event.persisted) listen(); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => Object.values(charts).forEach((plot) => plot.redraw(false)));
listen();
