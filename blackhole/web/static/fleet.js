// The fleet: figures of all machines together, and the machines as rows. They are requested while they are shown.
"use strict";

let fleet = null;  // its name, and whether this machine obeys its orders; null without one
let scope = "machine";  // or "fleet", or "namespace"
let isRequesting = false;
let fleetTime = 0;  // when its figures came, in milliseconds

const STALE = 3;  // seconds since the last write of a machine, from which it is marked
const MAX_MACHINES = 200;  // rows; /stats.json?scope=fleet has more

const scopeQuery = () => (scope === "fleet" ? "?scope=fleet" : "");

// Learn from the server whether it is in a fleet.
function startFleet(found) {
  fleet = found;
  $("scope").hidden = !fleet;
  if (fleet) setText($("scope-fleet"), `Fleet ${fleet.name}`);
  chooseScope();
}

// Show the figures that the fragment of the address asks for.
function chooseScope() {
  const before = scopePath();
  namespace = namespaceOfHash();
  scope = namespace ? "namespace" : fleet && location.hash === "#fleet" ? "fleet" : "machine";
  $("scope").querySelector(`[value=${scope === "fleet" ? "fleet" : "machine"}]`).checked = true;
  document.body.dataset.scope = scope;
  document.body.dataset.control = fleet?.control ? "fleet" : "machine";
  for (const link of document.querySelectorAll("footer a")) {
    const path = link.dataset.path;
    link.setAttribute("href", (path === "metrics" ? "" : scopePath()) + path + scopeQuery());
  }
  if (before !== scopePath()) restartRecent();
  if (latest) show(latest);
}

// Request the figures of the fleet, and show them. `now` are those of this machine.
async function renderFleet(now) {
  if (isRequesting) return;
  isRequesting = true;
  try {
    const response = await fetch("stats.json?scope=fleet", { signal: AbortSignal.timeout(10000) });
    const found = await response.json();
    if (scope !== "fleet") return;
    if (response.ok) {
      fleetTime = Date.now();
      setText($("fleet-message"), "");
      renderFleetFigures(found, now);
    } else {
      const age = fleetTime ? ` These figures are ${formatAge((Date.now() - fleetTime) / 1000)} old.` : "";
      setText($("fleet-message"), shortError(found.error) + age);
    }
  } catch {
    // The event stream notices when the server is gone.
  } finally {
    isRequesting = false;
  }
}

const shortError = (error) => error.replace("; try later", "");

function renderFleetFigures(found, now) {
  const { messages, connections, machines } = found;
  const alive = machines.filter((one) => one.alive);
  const rate = alive.reduce((sum, one) => sum + one.rate, 0);
  const total = messages.accepted + messages.deferred + messages.rejected;
  document.title = `${formatRate(rate)}/s - ${found.fleet} - Blackhole`;
  setFigure("rate", rate, formatRate(rate), "/s");
  setDetails("rate-details", ["machines", formatCount(alive.length)], ["in", "10 s"]);
  setFigure("messages", total, formatCount(total), "");
  setDetails("messages-details", ["accepted", formatCount(messages.accepted)],
    messages.deferred && ["deferred", formatCount(messages.deferred), "warn"],
    messages.rejected && ["rejected", formatCount(messages.rejected), "bad"],
    ["recipients", formatCount(found.recipients)]);
  setFigure("open", connections.open, formatCount(connections.open), "");
  setDetails("open-details", ["total", formatCount(connections.total)],
    connections.refused && ["refused", formatCount(connections.refused)]);
  setFigure("received", found.received_bytes, ...formatSize(found.received_bytes));
  setDetails("received-details", total && ["mean message", formatSize(found.histograms.message_bytes.mean).join(" ")],
    found.tls.ok > 0 && ["TLS", formatCount(found.tls.ok)]);
  renderMachines(machines);
  renderReplies(found);
  renderViolations(found);
  renderRuleMatches({ rule_hits: found.rule_hits, rule_limits: withTexts(found.rule_limits, now.rule_limits), scenario: now.scenario });
  renderRuns(found);
}

// The limits of a fleet are counted, and this machine knows their texts.
function withTexts(limits, known) {
  const text = (name) => (Object.hasOwn(known, name) ? known[name].limit : "");
  return Object.fromEntries(Object.entries(limits).map(([name, one]) => [name, { ...one, limit: one.limit || text(name) }]));
}

// A machine that has not written lately shows how old its figures are.
function renderMachines(machines) {
  const marked = machines.length > MAX_MACHINES ? [...machines].sort((a, b) => (b.age >= STALE) - (a.age >= STALE)) : machines;
  updateRows("machines", marked.slice(0, MAX_MACHINES).map((one) => ({ key: one.id, one })), () =>
    create("tr", {}, create("th", { scope: "row", class: "mono" }), create("td"), create("td"), create("td"), create("td"),
      create("td"), create("td", { class: "mono" }), create("td", { class: "mono" })),
  (row, { one }) => {
    const isStale = one.age >= STALE;
    const columns = [one.name, `${one.alive ? "" : "gone, "}${formatAge(one.age)} ago`, `${formatRate(one.rate)}/s`, formatCount(one.open),
      formatPercent(one.load), formatCount(one.messages), one.version, one.scenario === "loaded" ? "configured" : baseName(one.scenario)];
    columns.forEach((text, i) => setText(row.cells[i], text));
    row.className = one.alive ? "" : "note";
    row.cells[1].className = one.alive ? (isStale ? "warn" : "") : "bad";
    row.cells[7].title = one.scenario;
    row.title = one.id;
  });
  const more = machines.length - MAX_MACHINES;
  setText($("machines-more"), more > 0 ? `and ${plural(more, "more machine")}` : "");
}

$("scope").addEventListener("change", (event) => {
  history.replaceState(null, "", event.target.value === "fleet" ? "#fleet" : location.pathname);
  chooseScope();
});
