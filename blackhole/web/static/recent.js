// The last transactions: a list with a filter, and the conversation of each.
"use strict";

const MAX_LISTED = 100;
const RECENT_WAIT = 25;  // seconds for which a request waits for a new transaction
const RECENT_PAUSE = 1000;  // milliseconds between two requests, however many transactions come
const RECENT_RETRY = 5000;  // milliseconds after a request that failed

let recentRequest;  // the request under way, which ends when the page is left, hidden or filtered
let listed = new Map();  // transactions by id, the oldest first
const opened = new Set();  // the ids of those whose conversation is shown

// Characters that are invisible or change the direction of a text, as escapes: a client may send any.
const visible = (text) => text.replace(/[\u0000-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]/g,
  (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`);

function startRecent(kept) {
  $("recent-section").hidden = !kept;
  setText($("recent-kept"), kept ? `of the last ${formatCount(kept)}` : "");
  stopRecent();
  if (kept && !document.hidden) followRecent(recentRequest = new AbortController());
}

// Begin anew, with the transactions of another namespace.
function restartRecent() {
  listed = new Map();
  stopRecent();
  if (!document.hidden && !$("recent-section").hidden) followRecent(recentRequest = new AbortController());
}

function stopRecent() {
  if (recentRequest) recentRequest.abort();
  recentRequest = undefined;
}

function recentQuery(more) {
  const query = new URLSearchParams({ limit: MAX_LISTED, ...more });
  const text = $("recent-text").value.trim();
  // Without a sign of a pattern, a part of the address is enough.
  if (text) query.set($("recent-key").value, /[*?]/.test(text) ? text : `*${text}*`);
  if ($("recent-outcome").value) query.set("outcome", $("recent-outcome").value);
  return `${scopePath()}recent?${query}`;
}

async function followRecent(current) {
  const pause = (milliseconds) => new Promise((resume) => setTimeout(resume, milliseconds));
  let since = "";
  while (current === recentRequest) {
    let wait = RECENT_PAUSE;
    try {
      const more = since ? { since, timeout: RECENT_WAIT } : {};
      const response = await fetch(recentQuery(more), { signal: current.signal });
      const found = await response.json();
      if (current !== recentRequest) return;
      setText($("recent-message"), response.ok ? "" : found.error);
      if (!response.ok) throw new Error(found.error);
      if (!since) listed = new Map();
      since = found.more ? "" : found.next;  // too many have come: begin anew with the newest
      for (const one of found.transactions) listed.set(one.id, one);
      renderRecent();
      if (found.more) wait = 0;
    } catch {
      if (current.signal.aborted) return;
      since = "";
      wait = RECENT_RETRY;
    }
    await pause(wait);
  }
}

function renderRecent() {
  const newest = [...listed.values()].slice(-MAX_LISTED).reverse();
  listed = new Map(newest.map((one) => [one.id, one]).reverse());
  for (const id of opened) if (!listed.has(id)) opened.delete(id);
  $("recent").hidden = !newest.length;
  $("recent-empty").hidden = newest.length > 0;
  const items = newest.flatMap((one) => [{ key: one.id, one },
    ...(opened.has(one.id) ? [{ key: `${one.id} conversation`, one, isConversation: true }] : [])]);
  updateRows("recent", items, ({ one, isConversation }) =>
    (isConversation ? createConversation(one) : createTransaction(one)), (row, { one, isConversation }) => {
    if (isConversation) return;
    row.querySelector("button").setAttribute("aria-expanded", opened.has(one.id));
    setText(row.cells[5], one.violations.length ? plural(one.violations.length, "violation") : "");
  });
}

function createTransaction(one) {
  const toggle = create("button", { type: "button", class: "mono", "aria-expanded": "false",
    title: "Show the conversation" }, formatClock(one.time, true));
  toggle.addEventListener("click", () => {
    if (!opened.delete(one.id)) opened.add(one.id);
    renderRecent();
  });
  const shown = one.recipients.length ? one.recipients : one.refused_recipients;
  const further = one.recipient_count - one.recipients.length;
  const refused = one.recipients.length ? one.refused_recipients : [];
  const people = create("td", { class: "text mono" },
    one.sender === null ? create("span", { class: "note" }, "no sender") : `<${visible(one.sender)}>`, " → ",
    shown.map((address) => `<${visible(address)}>`).join(", ") || "nobody", further > 0 ? ` and ${formatCount(further)} more` : "");
  if (refused.length) people.append(create("span", { class: "note" }, `, refused ${refused.map((address) => `<${visible(address)}>`).join(", ")}`));
  const fields = Object.entries(one.fields).map(([name, value]) => `${name}: ${visible(value)}`);
  if (fields.length) people.append(create("span", { class: "fields note" }, fields.join(" · ")));
  const kind = { accepted: "c2", deferred: "c4", rejected: "c5" }[one.outcome] || "";
  return create("tr", {}, create("th", { scope: "row" }, toggle), create("td", { class: `outcome ${kind}` }, one.outcome),
    people, create("td", {}, one.size ? formatSize(one.size).join(" ") : ""),
    create("td", { class: "text mono" }, ruleName(one.rule)), create("td", { class: "warn" }));
}

// A rule without a name has its number.
const ruleName = (rule) => (/^\d+$/.test(rule) ? `rule ${rule}` : visible(rule));

function createConversation(one) {
  const began = one.exchanges.length ? one.exchanges[0].time : one.time;
  const lines = one.exchanges.flatMap((exchange, position) => {
    const size = plural(one.size, "octet");
    const sent = exchange.command || (exchange.phase === "." ? `(message of ${size})` : "");
    const replies = exchange.reply ? exchange.reply.split("\r\n") : ["(no reply)"];
    const notes = [exchange.rule && (/^(mode|X-Blackhole-Mode:) /.test(exchange.rule) ? exchange.rule : `rule ${exchange.rule}`), exchange.fault && `then ${exchange.fault}`].filter(Boolean);
    const time = `+${decimals.format((exchange.time - began) * 1000)} ms`;
    return [
      ...(one.left_out && position === one.left_out_at ? [create("li", { class: "note" }, `${plural(one.left_out, "command")} left out`)] : []),
      ...(sent ? [create("li", { class: "client" }, visible(sent))] : []),
      ...replies.map((reply, i) => create("li", { class: `server c${reply[0]}` }, create("span", {}, visible(reply)),
        ...(i === replies.length - 1 ? [create("small", {}, visible([`${exchange.phase} ${time}`.trim(), ...notes].join(", ")))] : []))),
    ];
  });
  const about = [`client ${one.client}`, one.helo && `name ${one.helo}`, one.tls, `listener ${one.listener}`].filter(Boolean).join(" · ");
  const violations = one.violations.map(({ name, line }) => create("li", {},
    create("b", {}, (violationRules[name] || { meaning: name }).meaning), ...(line ? [" ", create("code", {}, visible(line))] : [])));
  return create("tr", { class: "conversation" }, create("td", { colspan: 6 }, create("p", { class: "note" }, visible(about)),
    create("ol", {}, ...lines), ...(violations.length ? [create("ul", { class: "violations" }, ...violations)] : [])));
}

$("recent-form").addEventListener("submit", (event) => event.preventDefault());
$("recent-form").addEventListener("input", () => {
  listed = new Map();
  stopRecent();
  const current = recentRequest = new AbortController();
  // Not with every letter that is typed.
  setTimeout(() => { if (current === recentRequest) followRecent(current); }, 300);
});
document.addEventListener("visibilitychange", () => (document.hidden ? stopRecent() : restartRecent()));
addEventListener("pagehide", stopRecent);
