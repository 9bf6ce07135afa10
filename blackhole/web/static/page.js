// The dashboard. Figures arrive as server-sent events, once a second. No other host is contacted.
"use strict";

// Figures

let violationRules = {};

function render(now) {
  document.title = `${formatRate(now.rates.messages["1"])}/s - Blackhole`;
  setText($("state"), `live, up ${formatAge(now.time - now.started)}`);
  setText($("version"), `Blackhole ${now.version}`);
  renderHint(now);
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
  renderDomains(now);
  renderRuns(now);
  renderNamespaces(now);
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
    connections.timed_out && ["timed out", formatCount(connections.timed_out)],
    now.store.unanswered && ["store unanswered", formatCount(now.store.unanswered), "warn"]);
  setFigure("received", now.received_bytes, ...formatSize(now.received_bytes));
  setDetails("received-details", ["", formatSize(rates.received_bytes["10"]).join(" ") + "/s"],
    total && ["mean message", formatSize(now.histograms.message_bytes.mean).join(" ")],
    now.tls.ok + now.tls.failed > 0 && ["TLS", formatCount(now.tls.ok)],
    now.tls.failed && ["TLS failed", formatCount(now.tls.failed), "warn"]);
  $("messages-chart").setAttribute("aria-label",
    `Messages per second over time: now ${formatRate(rates.messages["1"])}, peak ${formatCount(rates.messages.peak)}`);
  $("open-chart").setAttribute("aria-label",
    `Open connections over time: now ${formatCount(connections.open)}, peak ${formatCount(rates.open.peak)}`);
  $("received-chart").setAttribute("aria-label",
    `Data received per second over time: now ${formatSpeed(rates.received_bytes["1"])}`);
}

const MAX_COMMANDS = 3;

// Until a message has arrived, show how to send one to each listener.
function renderHint(now) {
  const { accepted, deferred, rejected } = now.messages;
  const isEmpty = !(accepted + deferred + rejected);
  $("hint").hidden = !isEmpty;
  const list = $("hint-commands");
  const text = JSON.stringify(now.listeners);
  if (!isEmpty || list.dataset.text === text) return;
  list.dataset.text = text;
  list.replaceChildren(...now.listeners.slice(0, MAX_COMMANDS).map((one) => {
    const command = create("code", {}, swaksCommand(one));
    const copy = create("button", { type: "button", "aria-label": `Copy the command for ${one.address}` }, "Copy");
    copy.hidden = !navigator.clipboard;  // only for a page that came from this machine, or over TLS
    copy.addEventListener("click", async () => {
      await navigator.clipboard.writeText(command.textContent);
      setText(copy, "Copied");
    });
    return create("li", {}, command, copy);
  }));
}

// Return a command that sends a message to a listener. One that listens on all addresses is reached where the page is.
function swaksCommand({ address, tls, service }) {
  const more = (service === "lmtp" ? " --protocol LMTP" : "") + (tls ? " --tls-on-connect" : "");
  if (address.startsWith("unix:")) return `swaks --socket ${address.slice(5)} --to anyone@example.com${more}`;
  const end = address.lastIndexOf(":");
  const bound = address.slice(0, end).replace(/[[\]]/g, "");
  const page = location.hostname.replace(/[[\]]/g, "");
  const isIPv6 = bound.includes(":");
  const isLocal = page === "localhost" || page.startsWith("127.");
  const host = !/^[0:.]*$/.test(bound) ? bound : isIPv6 && isLocal ? "::1" : page;
  return `swaks${isIPv6 ? " -6" : ""} --server ${host} --port ${address.slice(end + 1)} --to anyone@example.com${more}`;
}

function renderListeners(now) {
  const { name, rules } = now.scenario;
  const text = JSON.stringify([now.listeners, name]);
  const list = $("listeners");
  if (list.dataset.text === text) return;
  list.dataset.text = text;
  const describe = ({ mode, delay, tls, service }) =>
    (service === "lmtp" ? "LMTP, " : "") + mode + (delay ? `, delay ${[...new Set(delay)].join("–")} s` : "") + (tls ? ", TLS" : "");
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

// Clients are known with --show-clients only.
function renderClients(now) {
  const items = (now.clients || []).slice(0, MAX_CLIENTS).map((one) => ({ key: one.address, one }));
  $("clients-section").hidden = !now.clients;
  $("clients-empty").hidden = items.length > 0;
  $("clients").hidden = !items.length;
  updateRows("clients", items, ({ key }) =>
    create("tr", {}, create("th", { scope: "row", class: "mono" }, key), create("td"), create("td"), create("td"), create("td")),
  (row, { one }) => [one.connections, one.messages, one.violations, one.sampled_violations]
    .forEach((n, i) => setText(row.cells[i + 1], formatCount(n))));
}

// Domains are known with --show-domains only: at most 100, and the rest together.
function renderDomains(now) {
  const items = (now.domains || []).map((one) => ({ key: one.domain, one }));
  const seconds = (limit) => limit === null ? "" : `${formatCount(limit)} s`;
  $("domains-section").hidden = !now.domains;
  $("domains-empty").hidden = items.length > 0;
  $("domains").hidden = !items.length;
  updateRows("domains", items, ({ key }) =>
    create("tr", {}, create("th", { scope: "row", class: "mono" }, key), ...Array.from({ length: 6 }, () => create("td"))),
  (row, { one }) => [...[one.accepted, one.deferred, one.refused, one.per_minute].map(formatCount), seconds(one.retry_p50), seconds(one.retry_p99)]
    .forEach((text, i) => setText(row.cells[i + 1], text)));
}

function renderViolations(now) {
  const items = now.findings.map((finding) => ({ key: finding.rule, finding, rule: violationRules[finding.rule] }))
    .filter(({ rule }) => rule);
  $("violations-empty").hidden = items.length > 0;
  $("violations").hidden = !items.length;
  updateRows("violations", items, ({ rule }) =>
    create("tr", {},
      create("td", {}, rule.rfc ? create("a", { href: `https://www.rfc-editor.org/rfc/rfc${rule.rfc}#section-${rule.section}`, rel: "noreferrer" },
        `${rule.rfc}, ${rule.section}`) : rule.section),
      create("td", { class: "text" },
        create("span", { class: `level ${rule.level}` }, ["must", "should"].includes(rule.level) ? rule.level.toUpperCase() : rule.level), " ", rule.meaning,
        create("details", { class: "evidence" }, create("summary"), create("p", { class: "note" }, rule.hint), create("ul"))),
      create("td")),
  updateViolation);
}

// What is counted and what is seen in a sample are two figures.
function updateViolation(row, { finding }) {
  const { counted, sample, connections, evidence } = finding;
  const figures = [counted && formatCount(counted), sample && `${formatCount(sample.found)} of ${formatCount(sample.inspected)}`];
  setText(row.cells[2], figures.filter(Boolean).join(" + "));
  const times = [evidence.first && `first ${formatClock(evidence.first, true)}`, evidence.last && `last ${formatClock(evidence.last, true)}`];
  setText(row.querySelector("summary"), [
    sample ? finding.seen : "", finding.expected, connections ? `in ${plural(connections, "connection")}` : "", ...times,
  ].filter(Boolean).join(", "));
  const list = row.querySelector("ul"), text = JSON.stringify(evidence.examples);
  if (list.dataset.text === text) return;
  list.dataset.text = text;
  list.replaceChildren(...evidence.examples.map(({ phase, line, reply }) => create("li", {},
    [phase === "." ? "message" : phase, reply && `after “${reply}”`].filter(Boolean).join(" "),
    ...(line ? [create("code", {}, line)] : []))));
}

// Runs

function renderRuns(now) {
  const path = scopePath();
  const items = now.runs.map((run) => ({ key: `${run.name} ${scope} ${path}`, run })).reverse();
  $("runs-empty").hidden = items.length > 0;
  $("runs").hidden = !items.length;
  updateRows("runs", items, ({ run }) => {
    const stop = create("button", { type: "button", "aria-label": `Stop the run ${run.name}` }, "Stop");
    stop.addEventListener("click", () => request("POST", `${path}runs/${run.name}/stop${scopeQuery()}`, {}, "run-message"));
    const save = create("a", { class: "button", href: `${path}runs/${run.name}${scopeQuery()}`, download: `${run.name}.json`,
      "aria-label": `Save the report of the run ${run.name}` }, "Save report");
    return create("tr", {}, create("th", { scope: "row", class: "mono" }, run.name, create("span", { class: "running" }, "running")),
      create("td"), create("td"), create("td"), create("td"), create("td"), create("td", {}, stop, save));
  }, (row, { run }) => {
    row.querySelector(".running").hidden = !run.running;
    row.querySelector("button").hidden = !run.running;
    setText(row.cells[1], decimals.format(run.seconds));
    setText(row.cells[2], formatCount(run.total));
    setText(row.cells[3], formatRate(run.rate.mean));
    setText(row.cells[4], run.rate.peak === null ? "–" : formatRate(run.rate.peak));
    setText(row.cells[5], formatPercent(run.cpu_share));
  });
}

// The event stream

let stream;
let latest;  // figures of this machine

// Show figures of this machine, those of the fleet, or those of a namespace.
function show(now) {
  if (scope === "machine") {
    render(now);
    drawCharts();
    return;
  }
  setText($("state"), `live, up ${formatAge(now.time - now.started)}`);
  setText($("version"), `Blackhole ${now.version}`);
  renderListeners(now);
  renderNamespaces(now);
  if (scope === "namespace") {
    renderNamespace();
    return;
  }
  renderScenario(now);
  renderOneShotRules(now);
  renderFleet(now);
}

let isInHistory = false;  // the figures that come right after the history are its last sample

function connect() {
  stream = new EventSource("events");
  const setState = (name) => { document.documentElement.className = name; };
  stream.addEventListener("past", (event) => {
    const past = JSON.parse(event.data);
    samples.seconds = past.seconds;
    samples.minutes = past.minutes;
    violationRules = Object.fromEntries(past.rules.map((rule) => [rule.name, rule]));
    scenarioChoices = past.choices;
    phases = past.phases;
    isInHistory = true;
    startRecent(past.recent);
    startFleet(past.fleet);
    renderOneShotForm();
    drawCharts();
  });
  stream.addEventListener("now", (event) => {
    const now = JSON.parse(event.data);
    setState("live");
    if (!isInHistory) appendSample(now);
    isInHistory = false;
    latest = now;
    if (!document.hidden) show(now);
  });
  stream.addEventListener("error", () => {
    setState("disconnected");
    setText($("state"), "disconnected, reconnecting");
    document.title = "Blackhole (disconnected)";
    // The browser reconnects after an interruption, but not after an error response.
    if (stream.readyState === EventSource.CLOSED) setTimeout(connect, 5000);
  });
}

$("run-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  if (await request("POST", `${scopePath()}runs${scopeQuery()}`, { name: $("run-name").value.trim() }, "run-message")) $("run-form").reset();
});
// A browser keeps a page that was left, and its stream; it allows six connections to a host, so the stream is closed.
addEventListener("pagehide", () => stream.close());
addEventListener("pageshow", (event) => { if (event.persisted) connect(); });
connect();
