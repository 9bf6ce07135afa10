// Namespaces: a list of them, and the figures of one in place of those of the server. They are requested while they are shown.
"use strict";

const NAMESPACE_HASH = "#namespace=";

let namespace = "";  // whose figures are shown, in the scope "namespace"
let namespaceRequest = "";  // whose figures are being requested
let namespaceBefore = null;  // { name, total, time } of its last figures, for the rate

const namespaceOfHash = () => (location.hash.startsWith(NAMESPACE_HASH) ? decodeURIComponent(location.hash.slice(NAMESPACE_HASH.length)) : "");

// Paths of the HTTP API that a namespace has too are below its own.
const scopePath = () => (scope === "namespace" ? `namespaces/${namespace}/` : "");

// Namespaces are known with --namespace-by only.
function renderNamespaces(now) {
  const items = (now.namespaces || []).map((one) => ({ key: one.name, one }));
  $("namespaces-section").hidden = !now.namespaces;
  $("namespace-choice").hidden = !now.namespaces;
  $("namespaces-empty").hidden = items.length > 0;
  $("namespaces").hidden = !items.length;
  const names = items.map(({ key }) => key).sort();
  const select = $("namespace"), shown = scope === "namespace" ? namespace : "";
  const options = names.includes(shown) || !shown ? names : [...names, shown];
  const text = JSON.stringify(options);
  if (select.dataset.text !== text) {
    select.dataset.text = text;
    select.replaceChildren(create("option", { value: "" }, "all mail"), ...options.map((name) => create("option", { value: name }, name)));
  }
  if (document.activeElement !== select) select.value = shown;
  updateRows("namespaces", items, ({ key }) => create("tr", {}, create("th", { scope: "row", class: "mono" },
    create("a", { href: `${NAMESPACE_HASH}${encodeURIComponent(key)}`, title: "Show its figures" }, key)),
  ...Array.from({ length: 5 }, () => create("td"))), (row, { one }) => {
    const scenario = one.scenario === "loaded" ? "configured" : label(findChoice(one.scenario));
    [formatCount(one.messages), scenario, formatCount(one.waiting), formatAge(Math.max(0, now.time - one.made)), formatAge(one.unused)]
      .forEach((value, i) => setText(row.cells[i + 1], value));
    row.cells[2].title = one.scenario;
    row.className = one.name === shown ? "shown" : "";
  });
}

// Request the figures of the namespace, and show them.
async function renderNamespace() {
  const name = namespace;
  if (namespaceRequest === name) return;
  namespaceRequest = name;
  try {
    const response = await fetch(`${scopePath()}stats.json`, { signal: AbortSignal.timeout(10000) });
    const found = await response.json();
    if (scope !== "namespace" || namespace !== name) return;
    setText($("namespace-message"), response.ok ? "" : response.status === 404 ? `The namespace ${name} is gone.` : found.error);
    if (response.ok) renderNamespaceFigures(name, found);
  } catch {
    // The event stream notices when the server is gone.
  } finally {
    if (namespaceRequest === name) namespaceRequest = "";
  }
}

function renderNamespaceFigures(name, found) {
  const { messages, connections } = found;
  const total = messages.accepted + messages.deferred + messages.rejected;
  const before = namespaceBefore?.name === name ? namespaceBefore : { total, time: found.time - 1 };
  const rate = Math.max(0, total - before.total) / Math.max(0.1, found.time - before.time);
  namespaceBefore = { name, total, time: found.time };
  document.title = `${formatRate(rate)}/s - ${name} - Blackhole`;
  setFigure("rate", rate, formatRate(rate), "/s");
  setDetails("rate-details", ["connections", formatCount(connections.total)],
    connections.refused && ["refused", formatCount(connections.refused)]);
  setFigure("messages", total, formatCount(total), "");
  setDetails("messages-details", ["accepted", formatCount(messages.accepted)],
    messages.deferred && ["deferred", formatCount(messages.deferred), "warn"],
    messages.rejected && ["rejected", formatCount(messages.rejected), "bad"],
    ["recipients", formatCount(found.recipients)]);
  renderScenario(found);
  renderRuleMatches({ ...found, rule_limits: withTexts(found.rule_limits, latest.rule_limits) });
  renderOneShotRules(found);
  renderReplies(found);
  renderViolations(found);
  renderRuns(found);
}

$("namespace").addEventListener("change", (event) => {
  const { value } = event.target;
  history.replaceState(null, "", value ? `${NAMESPACE_HASH}${encodeURIComponent(value)}` : location.pathname);
  chooseScope();
});
addEventListener("hashchange", () => chooseScope());
