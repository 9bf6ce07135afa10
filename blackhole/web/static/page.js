// The dashboard. Figures arrive as server-sent events, once a second. No other host is contacted.
"use strict";

const $ = (id) => document.getElementById(id);

// Numbers as text

const integers = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });
const decimals = new Intl.NumberFormat("en-US", { maximumFractionDigits: 1, minimumFractionDigits: 1 });

const formatCount = (n) => integers.format(n);
const formatRate = (n) => (n >= 0.05 && n < 9.95 ? decimals.format(n) : integers.format(n));
const formatPercent = (n) => (n >= 0.0005 && n < 0.0995 ? decimals.format(n * 100) : integers.format(n * 100)) + " %";
const plural = (n, noun) => `${formatCount(n)} ${noun}${n === 1 ? "" : "s"}`;

// Return a number of bytes as [number, unit].
function formatSize(n) {
  const units = ["B", "kB", "MB", "GB", "TB", "PB"];
  let unit = 0;
  while (n >= 999.5 && unit < units.length - 1) { n /= 1000; unit++; }
  return [unit && n < 99.95 ? decimals.format(n) : integers.format(n), units[unit]];
}

// Return a time of seconds or less.
function formatDuration(s) {
  if (!s) return "–";
  if (s < 1e-3) return `${integers.format(s * 1e6)} µs`;
  if (s < 1) return `${s < 0.01 ? decimals.format(s * 1e3) : integers.format(s * 1e3)} ms`;
  return `${s < 10 ? decimals.format(s) : integers.format(s)} s`;
}

// Return a time of seconds or more, in its two largest units.
function formatAge(s) {
  const units = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
  const first = units.findIndex(([seconds]) => s >= seconds);
  if (first < 0) return "0 s";
  return units.slice(first, first + 2).map(([seconds, name], i, shown) =>
    `${Math.floor((i ? s % shown[0][0] : s) / seconds)} ${name}`).join(" ");
}

function formatClock(seconds, withSeconds) {
  const time = new Date(seconds * 1000);
  return time.toLocaleTimeString("en-GB", withSeconds ? {} : { hour: "2-digit", minute: "2-digit" });
}

// Elements are created once and changed afterwards, so that focus and selection are kept.

function create(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// Set one of the large figures at the top.
function setFigure(id, value, text, unit) {
  const element = $(id);
  if (element.value === String(value) && element.dataset.text === text + unit) return;
  element.value = value;
  element.dataset.text = text + unit;
  element.replaceChildren(text, ...(unit ? [create("small", {}, unit)] : []));
}

// Set the line below a large figure: each detail is [label, value, class].
function setDetails(id, ...details) {
  const element = $(id);
  const text = JSON.stringify(details);
  if (element.dataset.text === text) return;
  element.dataset.text = text;
  element.replaceChildren(...details.filter(Boolean).flatMap(([label, value, kind]) => {
    const attributes = kind ? { class: kind } : {};
    return [create("span", attributes, label && `${label} `, create("b", attributes, value)), " "];
  }));
}

// Show one row for each item, by its key: `createRow(item)` makes a new row, `updateRow(row, item)` fills it.
function updateRows(id, items, createRow, updateRow) {
  const body = $(id).tBodies[0];
  const known = new Map([...body.rows].map((row) => [row.dataset.key, row]));
  let next = body.firstElementChild;
  for (const item of items) {
    let row = known.get(item.key);
    if (!row) { row = createRow(item); row.dataset.key = item.key; }
    known.delete(item.key);
    if (row === next) next = next.nextElementSibling;
    else body.insertBefore(row, next);
    updateRow(row, item);
  }
  for (const row of known.values()) row.remove();
}

function createBar(kind) {
  return create("td", { class: "bar-cell" }, create("span", { class: "bar" }, create("i", { class: kind })));
}

function setBar(cell, share) {
  const { style } = cell.firstElementChild.firstElementChild;
  style.width = `${Math.min(100, share * 100).toFixed(1)}%`;
  style.minWidth = share > 0.001 ? "2px" : "0";
}

// Charts

const cssVariable = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const samples = { seconds: null, minutes: null };  // columns of values, the oldest first
let timeSpan = 300;  // seconds shown

function createChart(id, colour, height) {
  const box = $(id);
  const axis = {
    stroke: () => cssVariable("--muted"), font: '11px system-ui, "DejaVu Sans", sans-serif',
    grid: { stroke: () => cssVariable("--border"), width: 1 }, ticks: { show: false },
  };
  const plot = new uPlot({
    width: Math.max(200, box.clientWidth), height: height(),
    padding: [8, 4, 0, 0],
    cursor: { sync: { key: "time" }, y: false, points: { size: 7 }, drag: { x: false, y: false } },
    legend: { show: false },
    scales: { x: { time: true }, y: { range: (_, min, max) => [0, Math.max(1, max || 0) * 1.08] } },
    axes: [
      { ...axis, size: 26, gap: 6, space: (_, index, min, max, width) => (width < 500 ? 50 : 80), grid: { show: false },
        values: (_, ticks) => ticks.map((tick) => formatClock(tick, timeSpan <= 300 && tick % 60 !== 0)) },
      { ...axis, size: 52, gap: 8, space: 36, incrs: [1, 2, 5, 10, 20, 25, 50, 100, 200, 250, 500, 1e3, 2e3, 2.5e3, 5e3,
        1e4, 2e4, 2.5e4, 5e4, 1e5, 2e5, 5e5, 1e6, 2e6, 5e6], values: (_, ticks) => ticks.map((tick) => formatCount(tick)) },
    ],
    series: [{}, {
      stroke: () => cssVariable(colour), width: 1.5, points: { show: false }, spanGaps: false,
      fill: () => `color-mix(in srgb, ${cssVariable(colour)} 14%, transparent)`,
    }],
    hooks: { setCursor: [showCursorValue] },
  }, [[], []], box);
  const resize = () => plot.setSize({ width: Math.max(200, box.clientWidth), height: box.clientHeight });
  new ResizeObserver(resize).observe(box);
  return plot;
}

function showCursorValue(plot) {
  const index = plot.cursor.idx;
  const value = index === null || index === undefined ? null : plot.data[1][index];
  const output = $(plot.root.parentElement.id.replace("chart", "cursor"));
  setText(output, value === null || value === undefined ? "" :
    `${formatClock(plot.data[0][index], timeSpan < 86400)}: ${formatRate(value)}`);
}

const charts = {};

function drawCharts() {
  if (document.hidden || !samples.seconds) return;
  const columns = timeSpan === 86400 ? samples.minutes : samples.seconds;
  const { step, until } = columns;
  for (const [name, plot] of Object.entries(charts)) {
    const values = columns[name].slice(-timeSpan / step);
    const times = values.map((_, i) => until - (values.length - 1 - i) * step);
    plot.setData([times, values], false);
    plot.batch(() => {
      plot.setScale("x", { min: until - timeSpan, max: until });
      plot.setScale("y", { min: 0, max: Math.max(1, ...values) });
    });
  }
}

// Append the latest second, and once a minute the latest minute.
function appendSample(now) {
  const values = { messages: now.rates.messages["1"], connections: now.rates.connections["1"],
    received_bytes: now.rates.received_bytes["1"], open: now.connections.open };
  const { seconds, minutes } = samples;
  const elapsed = Math.max(1, Math.min(3600, Math.round(now.time - seconds.until)));
  const isNewMinute = Math.floor(seconds.until / 60) !== Math.floor(now.time / 60);
  for (const [name, value] of Object.entries(values)) {
    const column = seconds[name];
    for (let i = 1; i < elapsed; i++) column.push(null);
    column.push(value);
    column.splice(0, Math.max(0, column.length - 3600));
    if (isNewMinute) {
      const minute = column.slice(-60).filter((one) => one !== null);
      minutes[name].push(name === "open" ? Math.max(...minute) : minute.reduce((a, b) => a + b, 0) / minute.length);
      minutes[name].splice(0, Math.max(0, minutes[name].length - 1440));
    }
  }
  seconds.until = now.time;
  if (isNewMinute) minutes.until = now.time;
}

// Figures

let violationRules = {};
let scenarioChoices = [];

function render(now) {
  document.title = `${formatRate(now.rates.messages["1"])}/s - Blackhole`;
  setText($("state"), `live, up ${formatAge(now.time - now.started)}`);
  setText($("version"), `Blackhole ${now.version}`);
  renderFigures(now);
  renderListeners(now);
  renderScenario(now);
  renderRuleMatches(now);
  renderOneShotRules(now);
  renderBreakdown(now);
  renderWorkers(now);
  renderReplies(now);
  renderViolations(now);
  renderClients(now);
  renderRuns(now);
}

function renderFigures(now) {
  const { messages, connections, rates } = now;
  const total = messages.accepted + messages.deferred + messages.rejected;
  setFigure("rate", rates.messages["1"], formatRate(rates.messages["1"]), "/s");
  setDetails("rate-details", ["peak", formatCount(rates.messages.peak)], ["10 s", formatRate(rates.messages["10"])],
    ["60 s", formatRate(rates.messages["60"])]);
  setFigure("messages", total, formatCount(total), "");
  setDetails("messages-details", ["accepted", formatCount(messages.accepted)],
    messages.deferred && ["deferred", formatCount(messages.deferred), "warn"],
    messages.rejected && ["rejected", formatCount(messages.rejected), "bad"],
    ["recipients", formatCount(now.recipients)]);
  setFigure("open", connections.open, formatCount(connections.open), "");
  setDetails("open-details", ["peak", formatCount(rates.open.peak)], ["total", formatCount(connections.total)],
    connections.refused && ["refused", formatCount(connections.refused)],
    connections.timed_out && ["timed out", formatCount(connections.timed_out)]);
  setFigure("received", now.received_bytes, ...formatSize(now.received_bytes));
  setDetails("received-details", ["", formatSize(rates.received_bytes["10"]).join(" ") + "/s"],
    total && ["mean message", formatSize(now.histograms.message_bytes.mean).join(" ")],
    now.tls.ok + now.tls.failed > 0 && ["TLS", formatCount(now.tls.ok)],
    now.tls.failed && ["TLS failed", formatCount(now.tls.failed), "warn"]);
  $("messages-chart").setAttribute("aria-label",
    `Messages per second over time: now ${formatRate(rates.messages["1"])}, peak ${formatCount(rates.messages.peak)}`);
  $("open-chart").setAttribute("aria-label",
    `Open connections over time: now ${formatCount(connections.open)}, peak ${formatCount(rates.open.peak)}`);
}

function renderListeners(now) {
  const { name, rules } = now.scenario;
  const text = JSON.stringify([now.listeners, name]);
  const list = $("listeners");
  if (list.dataset.text === text) return;
  list.dataset.text = text;
  const describe = ({ mode, delay, tls }) =>
    mode + (delay ? `, delay ${[...new Set(delay)].join("–")} s` : "") + (tls ? ", TLS" : "");
  list.replaceChildren(
    ...now.listeners.map((one) => create("li", {}, `${one.address} `, create("b", {}, describe(one)))),
    ...(rules ? [create("li", {}, "scenario ", create("b", {}, shortLabel(findChoice(name))))] : []));
}

const BREAKDOWN = { sink: "processing by Blackhole", client: "waiting for the sender", delay: "configured delays" };

function renderBreakdown(now) {
  const minute = now.minute;
  const parts = Object.keys(BREAKDOWN);
  const total = parts.reduce((sum, part) => sum + minute[part].sum, 0);
  const share = (part) => (total ? minute[part].sum / total : 0);
  const stack = $("breakdown-bar");
  if (!stack.children.length) stack.append(...parts.map((part) => create("i", { class: part })));
  parts.forEach((part, i) => { stack.children[i].style.width = `${share(part) * 100}%`; });
  stack.setAttribute("aria-label", total ? parts.map((part) => `${BREAKDOWN[part]} ${formatPercent(share(part))}`).join(", ")
    : "No measurement in the last minute");
  updateRows("breakdown", parts.map((key) => ({ key })), ({ key }) =>
    create("tr", {}, create("th", { scope: "row" }, create("i", { class: `key ${key}` }), BREAKDOWN[key]),
      create("td"), create("td"), create("td")),
  (row, { key }) => {
    setText(row.cells[1], total ? formatPercent(share(key)) : "–");
    setText(row.cells[2], formatDuration(minute[key].count && minute[key].p50));
    setText(row.cells[3], formatDuration(minute[key].count && minute[key].p99));
  });
  const busy = now.workers.length ? now.workers.reduce((sum, one) => sum + one.load, 0) / now.workers.length : 0;
  setText($("bottleneck"), !total || !now.rates.messages["10"] ? ""
    : `Workers are ${formatPercent(busy)} busy: ${busy > 0.85 ? "Blackhole" : "the sender"} limits the rate.`);
}

function renderWorkers(now) {
  updateRows("workers", now.workers.map((one) => ({ key: String(one.pid), one })), () =>
    create("tr", {}, create("th", { scope: "row" }), create("td"), createBar("cpu"), create("td")),
  (row, { one }) => {
    const silence = one.silent > 3 ? ` (not responding for ${formatAge(one.silent)})` : "";
    setText(row.cells[0], one.title.replace("blackhole: worker ", "") + silence);
    row.cells[0].title = `process ${one.pid}`;
    setText(row.cells[1], formatPercent(one.load));
    setBar(row.cells[2], one.load);
    setText(row.cells[3], formatCount(one.open));
  });
}

function renderReplies(now) {
  const items = [];
  let max = 0;
  for (const [phase, codes] of Object.entries(now.replies)) {
    let isFirst = true;
    for (const [code, count] of Object.entries(codes)) {
      items.push({ key: `${phase} ${code}`, phase, code, count, isFirst });
      max = Math.max(max, count);
      isFirst = false;
    }
  }
  $("replies-empty").hidden = items.length > 0;
  $("replies").hidden = !items.length;
  updateRows("replies", items, ({ code }) =>
    create("tr", {}, create("th", { scope: "row", class: "mono" }), create("td", { class: `mono c${code[0]}` }),
      createBar(`c${code[0]}`), create("td")),
  (row, item) => {
    setText(row.cells[0], item.isFirst ? (item.phase === "." ? ". (end of message)" : item.phase) : "");
    row.className = item.isFirst ? "" : "same-phase";
    setText(row.cells[1], item.code);
    setBar(row.cells[2], item.count / max);
    setText(row.cells[3], formatCount(item.count));
  });
}

const MAX_CLIENTS = 20;  // /stats.json has more

// Clients are known with --show_clients only.
function renderClients(now) {
  const items = (now.clients || []).slice(0, MAX_CLIENTS).map((one) => ({ key: one.address, one }));
  $("clients-section").hidden = !now.clients;
  $("clients-empty").hidden = items.length > 0;
  $("clients").hidden = !items.length;
  updateRows("clients", items, ({ key }) =>
    create("tr", {}, create("th", { scope: "row", class: "mono" }, key), create("td"), create("td"), create("td")),
  (row, { one }) => [one.connections, one.messages, one.violations].forEach((n, i) => setText(row.cells[i + 1], formatCount(n))));
}

function renderViolations(now) {
  const order = { must: 0, should: 1, style: 2 };
  const items = Object.entries(now.violations)
    .map(([key, count]) => ({ key, count, rule: violationRules[key] }))
    .filter(({ count, rule }) => count && rule)
    .sort((a, b) => order[a.rule.level] - order[b.rule.level] || b.count - a.count);
  $("violations-empty").hidden = items.length > 0;
  $("violations").hidden = !items.length;
  updateRows("violations", items, ({ rule }) =>
    create("tr", {},
      create("td", {}, create("a", { href: `https://www.rfc-editor.org/rfc/rfc${rule.rfc}#section-${rule.section}`, rel: "noreferrer" },
        `${rule.rfc}, ${rule.section}`)),
      create("td", { class: "text", title: rule.hint },
        create("span", { class: `level ${rule.level}` }, rule.level === "style" ? "style" : rule.level.toUpperCase()), " ", rule.meaning),
      create("td")),
  (row, { count }) => setText(row.cells[2], formatCount(count)));
}

// Requests

// Send a request, show its error in the element `messageId`, and return whether there was none.
async function request(method, path, body, messageId) {
  const response = await fetch(path, { method, headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
  const result = await response.json();
  setText($(messageId), response.ok ? "" : result.error);
  return response.ok;
}

// Runs

function renderRuns(now) {
  const items = now.runs.map((run) => ({ key: run.name, run })).reverse();
  $("runs-empty").hidden = items.length > 0;
  $("runs").hidden = !items.length;
  updateRows("runs", items, ({ run }) => {
    const stop = create("button", { type: "button", "aria-label": `Stop the run ${run.name}` }, "Stop");
    stop.addEventListener("click", () => request("POST", `/runs/${run.name}/stop`, {}, "run-message"));
    const save = create("a", { class: "button", href: `/runs/${run.name}`, download: `${run.name}.json`,
      "aria-label": `Save the report of the run ${run.name}` }, "Save report");
    return create("tr", {}, create("th", { scope: "row", class: "mono" }, run.name, create("span", { class: "running" }, "running")),
      create("td"), create("td"), create("td"), create("td"), create("td"), create("td", {}, stop, save));
  }, (row, { run }) => {
    row.querySelector(".running").hidden = !run.running;
    row.querySelector("button").hidden = !run.running;
    setText(row.cells[1], decimals.format(run.seconds));
    setText(row.cells[2], formatCount(run.total));
    setText(row.cells[3], formatRate(run.rate.mean));
    setText(row.cells[4], formatRate(run.rate.peak));
    setText(row.cells[5], formatPercent(run.cpu_share));
  });
}

// The scenario. A choice is one of the scenarios that the server can switch to; "loaded" is that of its configuration.

const MAX_NAMES = 2;  // files that are named where there is little room

const baseName = (path) => path.slice(path.lastIndexOf("/") + 1);
const findChoice = (name) => scenarioChoices.find((one) => one.name === name) || { name, about: "" };

function label({ name, about }) {
  if (name === "loaded") return about || "none";
  return name.startsWith("PUT ") ? name : baseName(name);
}

function shortLabel(choice) {
  const files = choice.name === "loaded" ? choice.about.split(", ").length : 1;
  return files > MAX_NAMES ? plural(files, "file") : label(choice);
}

function renderScenario(now) {
  const { name, ordered, rules, since } = now.scenario;
  const choice = findChoice(name);
  const select = $("scenario-name");
  const choices = JSON.stringify(scenarioChoices);
  if (select.dataset.text !== choices) {
    select.dataset.text = choices;
    select.replaceChildren(...scenarioChoices.map((one) => create("option", { value: one.name },
      one.name === "loaded" ? `configured (${shortLabel(one)})` : label(one))));
  }
  const line = $("scenario-current");
  const text = JSON.stringify([name, ordered, rules]);
  if (line.dataset.text !== text) {
    line.dataset.text = text;
    line.replaceChildren(create("b", { class: "mono", title: name }, label(choice)), " ",
      create("span", {}, rules ? plural(rules, "rule") : "no rules: each listener follows its mode"), " ",
      create("span", {}), " ", ...(ordered ? [create("span", { class: "warn" }, "set over HTTP")] : []));
  }
  setText(line.children[2], `for ${formatAge(Math.max(0, now.time - since))}`);
  const current = `${name} ${since}`;
  const details = $("scenario-text");
  details.hidden = !rules;
  if (details.dataset.of !== current) {
    details.dataset.of = current;
    if (details.open) loadScenarioText();
    if (document.activeElement !== select) select.value = scenarioChoices.includes(choice) ? name : "loaded";
    renderDescription();
  }
}

// Describe the selected scenario, with its name if it is not in force.
function renderDescription() {
  const choice = findChoice($("scenario-name").value);
  const inForce = $("scenario-current").firstElementChild.title;
  const text = inForce === choice.name ? choice.about : `${label(choice)}: ${choice.about}`;
  setText($("scenario-about"), choice.name === "loaded" || !choice.about ? "" : text);
}

async function loadScenarioText() {
  const response = await fetch("/scenario", { headers: { Accept: "application/toml" } });
  setText(document.querySelector("#scenario-text pre"), await response.text());
}

function renderOneShotRules(now) {
  const rules = now.scenario.next;
  $("one-shot-section").hidden = !rules.length;
  const describe = ([key, value]) =>
    (key === "reply" ? String(value) : `${key} ${typeof value === "string" ? value : JSON.stringify(value)}`);
  updateRows("one-shot-rules", rules.map((rule, i) => ({ key: JSON.stringify({ ...rule, left: i }), rule })), ({ rule }) => {
    const { phase, count, left, ...rest } = rule;
    return create("tr", {}, create("th", { scope: "row", class: "mono" }, [phase].flat().join(" ")),
      create("td", { class: "text mono" }, Object.entries(rest).map(describe).join(", ")), create("td"));
  }, (row, { rule }) => setText(row.cells[2], `${formatCount(rule.left)} of ${formatCount(rule.count)}`));
}

// Rules in force in their order, then others that matched: of earlier scenarios, or one-shot rules.
function renderRuleMatches(now) {
  const counts = now.rule_hits;
  const inForce = now.scenario.names.filter((name) => Object.hasOwn(counts, name));
  const others = Object.keys(counts).filter((name) => counts[name] && !inForce.includes(name));
  const max = Math.max(1, ...Object.values(counts));
  $("matches-section").hidden = !inForce.length && !others.length;
  updateRows("matches", [...inForce, ...others].map((key) => ({ key })), ({ key }) =>
    create("tr", {}, create("th", { scope: "row", class: "mono" }, /^\d+$/.test(key) ? `rule ${key}` : key), createBar(""), create("td")),
  (row, { key }) => {
    row.className = inForce.includes(key) ? "" : "note";
    setBar(row.cells[1], counts[key] / max);
    setText(row.cells[2], formatCount(counts[key]));
  });
}

// The event stream

let stream;

function connect() {
  stream = new EventSource("/events");
  const setState = (name) => { document.documentElement.className = name; };
  stream.addEventListener("past", (event) => {
    const past = JSON.parse(event.data);
    samples.seconds = past.seconds;
    samples.minutes = past.minutes;
    violationRules = Object.fromEntries(past.rules.map((rule) => [rule.name, rule]));
    scenarioChoices = past.choices;
    drawCharts();
  });
  stream.addEventListener("now", (event) => {
    const now = JSON.parse(event.data);
    setState("live");
    appendSample(now);
    if (document.hidden) return;
    render(now);
    drawCharts();
  });
  stream.addEventListener("error", () => {
    setState("disconnected");
    setText($("state"), "disconnected, reconnecting");
    document.title = "Blackhole (disconnected)";
    // The browser reconnects after an interruption, but not after an error response.
    if (stream.readyState === EventSource.CLOSED) setTimeout(connect, 5000);
  });
}

charts.messages = createChart("messages-chart", "--messages", () => $("messages-chart").clientHeight);
charts.open = createChart("open-chart", "--open", () => $("open-chart").clientHeight);
document.querySelectorAll('input[name="time-span"]').forEach((input) => input.addEventListener("change", () => {
  timeSpan = Number(input.value);
  drawCharts();
}));
$("run-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  if (await request("POST", "/runs", { name: $("run-name").value.trim() }, "run-message")) $("run-form").reset();
});
$("scenario-name").addEventListener("change", renderDescription);
$("scenario-form").addEventListener("submit", (event) => {
  event.preventDefault();
  request("POST", "/scenario", { name: $("scenario-name").value }, "scenario-message");
});
$("one-shot-remove").addEventListener("click", () => request("DELETE", "/next", {}, "scenario-message"));
$("scenario-text").addEventListener("toggle", (event) => { if (event.target.open) loadScenarioText(); });
// A browser keeps a page that was left, and its stream; it allows six connections to a host, so the stream is closed.
addEventListener("pagehide", () => stream.close());
addEventListener("pageshow", (event) => { if (event.persisted) connect(); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => Object.values(charts).forEach((plot) => plot.redraw(false)));
connect();
