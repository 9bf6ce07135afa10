// The scenario. A choice is one of the scenarios that the server can switch to; "loaded" is that of its configuration.
"use strict";

let scenarioChoices = [];
let phases = [];
let scenarioInForce = "";  // which one it is, as describeScenario() returns it

const describeScenario = ({ name, since }) => `${name} ${since} ${scopePath()}`;

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
  const current = describeScenario(now.scenario);
  if (scenarioInForce !== current) {
    scenarioInForce = current;
    showScenario(current);
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

const ONE_SHOT_REPLIES = ["451 4.3.0 Try again later", "452 4.2.2 Mailbox full", "421 4.7.0 Too many connections",
  "550 5.1.1 No such user", "554 5.7.1 Rejected", "accept"];

function renderOneShotForm() {
  const select = $("one-shot-phase");
  if (select.children.length) return;
  select.append(...phases.map((phase) => create("option", { value: phase }, phase === "." ? ". (end of message)" : phase)));
  select.value = "RCPT";
  $("one-shot-replies").append(...ONE_SHOT_REPLIES.map((value) => create("option", { value })));
}

async function addOneShotRule() {
  const rule = { count: Number($("one-shot-count").value), phase: $("one-shot-phase").value, reply: $("one-shot-reply").value };
  const recipient = $("one-shot-recipient").value.trim();
  if (await request("POST", `${scopePath()}next`, recipient ? { ...rule, recipient } : rule, "one-shot-message")) $("one-shot-reply").value = "";
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
// A rule with a throttle or greylist shows it, and what it decided.
function renderRuleMatches(now) {
  const counts = now.rule_hits;
  const limitOf = (name) => (Object.hasOwn(now.rule_limits, name) ? now.rule_limits[name] : null);
  const isUsed = (name) => counts[name] || limitOf(name)?.passed;
  const inForce = now.scenario.names.filter((name) => Object.hasOwn(counts, name));
  const others = Object.keys(counts).filter((name) => isUsed(name) && !inForce.includes(name));
  const isLimited = [...inForce, ...others].some(limitOf);
  const max = Math.max(1, ...Object.values(counts));
  const never = inForce.filter((name) => !counts[name]).length;
  $("matches-section").hidden = !inForce.length && !others.length;
  setText($("matches-title"), `Rule matches${never ? `: ${never} of ${plural(inForce.length, "rule")} never matched` : ""}`);
  updateRows("matches", [...inForce, ...others].map((key) => ({ key })), ({ key }) =>
    create("tr", {}, create("th", { scope: "row", class: "mono" }, /^\d+$/.test(key) ? `rule ${key}` : key), createBar(""), create("td"),
      create("td", { class: "of-limit text" }), create("td", { class: "of-limit" }), create("td", { class: "of-limit" })),
  (row, { key }) => {
    row.className = !inForce.includes(key) ? "note" : counts[key] ? "" : "never";
    setBar(row.cells[1], counts[key] / max);
    setText(row.cells[2], counts[key] ? formatCount(counts[key]) : "never");
    const one = limitOf(key);
    const figures = one ? [one.limit, formatCount(one.passed), formatCount(one.limited)] : ["", "", ""];
    figures.forEach((text, i) => setText(row.cells[3 + i], text));
  });
  $("matches").classList.toggle("with-limits", isLimited);
}

$("scenario-name").addEventListener("change", renderDescription);
$("scenario-form").addEventListener("submit", (event) => {
  event.preventDefault();
  request("POST", `${scopePath()}scenario`, { name: $("scenario-name").value }, "scenario-message");
});
$("one-shot-form").addEventListener("submit", (event) => {
  event.preventDefault();
  addOneShotRule();
});
$("one-shot-remove").addEventListener("click", () => request("DELETE", `${scopePath()}next`, {}, "one-shot-message"));
