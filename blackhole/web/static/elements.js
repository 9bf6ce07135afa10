// Numbers as text, elements of the page, and requests.
"use strict";

const $ = (id) => document.getElementById(id);

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

// Requests

// Send a request, show its error in the element `messageId`, and return whether there was none.
async function request(method, path, body, messageId) {
  const response = await fetch(path, { method, headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
  const result = await response.json();
  setText($(messageId), response.ok ? "" : result.error);
  return response.ok;
}
