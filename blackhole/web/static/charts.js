// The charts of the history.
"use strict";

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

charts.messages = createChart("messages-chart", "--messages", () => $("messages-chart").clientHeight);
charts.open = createChart("open-chart", "--open", () => $("open-chart").clientHeight);
document.querySelectorAll('input[name="time-span"]').forEach((input) => input.addEventListener("change", () => {
  timeSpan = Number(input.value);
  drawCharts();
}));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => Object.values(charts).forEach((plot) => plot.redraw(false)));
