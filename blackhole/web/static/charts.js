// The charts of the history.
"use strict";

const cssVariable = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const samples = { seconds: null, minutes: null };  // columns of values, the oldest first
let timeSpan = 300;  // seconds shown

const formatSpeed = (n) => `${formatSize(n).join(" ")}/s`;

// Each chart stacks its columns; the first is at the bottom. `least` is the smallest end of its axis.
const CHARTS = {
  messages: { columns: { accepted: "--good", deferred: "--warn", rejected: "--bad" }, least: 1,
    tick: formatCount, value: formatRate },
  received: { columns: { received_bytes: "--messages" }, least: 1000,
    tick: (n) => formatSize(n).join(" ").replace(".0 ", " "), value: formatSpeed },
  open: { columns: { open: "--open" }, least: 1, tick: formatCount, value: formatCount },
};

const STEPS = Array.from({ length: 16 }, (_, power) => [1, 2, 2.5, 5].map((step) => step * 10 ** power))
  .flat().filter(Number.isInteger);  // of the vertical axes

function createChart(id, { columns, least, tick, value }) {
  const box = $(id);
  const axis = {
    stroke: () => cssVariable("--muted"), font: '11px system-ui, "DejaVu Sans", sans-serif',
    grid: { stroke: () => cssVariable("--border"), width: 1 }, ticks: { show: false },
  };
  const names = Object.keys(columns);
  const plot = new uPlot({
    width: Math.max(200, box.clientWidth), height: box.clientHeight,
    padding: [8, 28, 0, 0],  // on the right, room for half of the last label
    cursor: { sync: { key: "time" }, y: false, points: { size: 7 }, drag: { x: false, y: false } },
    legend: { show: false }, drawOrder: ["series", "axes"],  // areas would cover the lines of the axes
    scales: { x: { time: true }, y: { range: (_, min, max) => [0, Math.max(least, max || 0) * 1.08] } },
    axes: [
      { ...axis, size: 26, gap: 6, space: (_, index, min, max, width) => (width < 500 ? 42 : 80), grid: { show: false },
        values: (_, ticks) => ticks.map((time) => formatClock(time, timeSpan <= 300 && time % 60 !== 0)) },
      { ...axis, size: 60, gap: 8, space: 36, incrs: STEPS, values: (_, ticks) => ticks.map(tick) },
    ],
    // The sum of all columns is drawn first, and covered by the sums without the upper ones.
    series: [{}, ...names.map((name) => ({
      stroke: () => cssVariable(columns[name]), width: 1.5, points: { show: false }, spanGaps: false,
      fill: () => `color-mix(in srgb, ${cssVariable(columns[name])} 16%, ${cssVariable("--surface")})`,
    })).reverse()],
    hooks: { setCursor: [(plot) => showCursorValue(plot, id, names, value)] },
  }, [[], ...names.map(() => [])], box);
  const resize = () => plot.setSize({ width: Math.max(200, box.clientWidth), height: box.clientHeight });
  new ResizeObserver(resize).observe(box);
  return plot;
}

function showCursorValue(plot, id, names, value) {
  const index = plot.cursor.idx;
  const sums = plot.data.slice(1).map((column) => column[index]).reverse();
  const known = index !== null && index !== undefined && sums[0] !== null && sums[0] !== undefined;
  const texts = names.map((name, i) => {
    const one = value(sums[i] - (sums[i - 1] || 0));
    return names.length > 1 ? `${one} ${name}` : one;
  });
  setText($(id.replace("chart", "cursor")), known
    ? `${formatClock(plot.data[0][index], timeSpan < 86400)}: ${texts.join(", ")}` : "");
}

const charts = {};

function drawCharts() {
  if (document.hidden || !samples.seconds) return;
  const history = timeSpan === 86400 ? samples.minutes : samples.seconds;
  const { step, until } = history;
  for (const [id, plot] of Object.entries(charts)) {
    const sums = [];
    for (const name of Object.keys(CHARTS[id].columns)) {
      const values = history[name].slice(-timeSpan / step);
      const below = sums[sums.length - 1];
      sums.push(below ? values.map((value, i) => (value === null ? null : value + below[i])) : values);
    }
    const all = sums[sums.length - 1];
    const times = all.map((_, i) => until - (all.length - 1 - i) * step);
    plot.setData([times, ...sums.reverse()], false);
    plot.batch(() => {
      plot.setScale("x", { min: until - timeSpan, max: until });
      plot.setScale("y", { min: 0, max: Math.max(CHARTS[id].least, ...all) });
    });
  }
}

// Append the latest second, and once a minute the latest minute.
function appendSample(now) {
  const values = { open: now.connections.open };
  for (const name of ["accepted", "deferred", "rejected", "received_bytes"]) values[name] = now.rates[name]["1"];
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

for (const [id, chart] of Object.entries(CHARTS)) charts[id] = createChart(`${id}-chart`, chart);
document.querySelectorAll('input[name="time-span"]').forEach((input) => input.addEventListener("change", () => {
  timeSpan = Number(input.value);
  drawCharts();
}));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => Object.values(charts).forEach((plot) => plot.redraw(false)));
