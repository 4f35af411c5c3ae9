// What htmx does not do: curves, ages, and the end of a log.
"use strict";

(() => {
  const LOG_LINES = 300; // chunks of lines that a log keeps, so that a page that is open for days stays small
  const plots = new Map();
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  function options(chart, width, step) {
    const axis = { stroke: colour("--dim"), grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line") } };
    const series = chart.labels.map((label, at) => {
      const soft = chart.soft.includes(at);
      const pairs = chart.soft.length > 0;
      return {
        label,
        stroke: colour(`--c${(pairs ? at >> 1 : at) % 8}`),
        width: soft ? 1 : 2,
        alpha: soft ? 0.4 : 1,
        spanGaps: true,
        points: { show: !soft && chart.data[0].length < 3 },
      };
    });
    return {
      width,
      height: 240,
      scales: { x: { time: false } },
      axes: [{ ...axis }, { ...axis, size: 64, values: (_, found) => found.map((value) => Number(value.toPrecision(4)).toString()) }],
      series: [{ label: step }, ...series],
      cursor: { drag: { x: true, y: false } },
    };
  }

  function draw() {
    const source = document.getElementById("curve-data");
    const place = document.getElementById("plots");
    if (!source || !place || typeof uPlot === "undefined") return;
    for (const [at, chart] of JSON.parse(source.dataset.charts).entries()) {
      const known = plots.get(chart.id);
      const shape = chart.labels.join("|");
      if (known && known.shape === shape && known.figure.isConnected) {
        const zoomed = known.plot.scales.x.min > known.first || known.plot.scales.x.max < known.last;
        [known.first, known.last] = [chart.data[0][0], chart.data[0].at(-1)];
        known.plot.setData(chart.data, !zoomed);
        known.figure.setAttribute("aria-label", chart.summaries.join(". "));
        continue;
      }
      if (known) { known.plot.destroy(); known.figure.remove(); }
      const figure = document.createElement("figure");
      const caption = document.createElement("figcaption");
      figure.setAttribute("aria-label", chart.summaries.join(". "));
      caption.textContent = chart.name;
      figure.append(caption);
      place.insertBefore(figure, place.children[at] ?? null); // a chart with a new line stays in its place
      const plot = new uPlot(options(chart, figure.clientWidth - 18, source.dataset.step), chart.data, figure);
      plots.set(chart.id, { plot, figure, shape, first: chart.data[0][0], last: chart.data[0].at(-1) });
    }
    grow(); // a second figure makes the first narrower
  }

  function again() {
    for (const { plot, figure } of plots.values()) { plot.destroy(); figure.remove(); }
    plots.clear();
    draw();
  }

  function age(seconds) {
    const minutes = Math.floor(seconds / 60), hours = Math.floor(seconds / 3600), days = Math.floor(seconds / 86400);
    if (minutes < 1) return `${Math.max(0, Math.floor(seconds))}s`;
    if (hours < 1) return minutes < 10 ? `${minutes}m${String(Math.floor(seconds % 60)).padStart(2, "0")}s` : `${minutes}m`;
    return days < 1 ? `${hours}h${String(minutes % 60).padStart(2, "0")}m` : `${days}d${hours % 24}h`;
  }

  function ages() {
    for (const time of document.querySelectorAll("time[data-ago]")) {
      const text = age((Date.now() - Date.parse(time.dateTime)) / 1000);
      if (time.textContent !== text) time.textContent = text;
    }
  }

  function tail(log) {
    while (log.childElementCount > LOG_LINES) log.firstElementChild.remove();
    const follow = document.getElementById("follow");
    if (follow && follow.checked) log.scrollTop = log.scrollHeight;
  }

  function grow() {
    for (const { plot, figure } of plots.values()) {
      if (Math.abs(plot.width - (figure.clientWidth - 18)) > 1) plot.setSize({ width: figure.clientWidth - 18, height: 240 });
    }
  }

  // Events of streams have no detail.target.
  const swapped = (event) => event.detail.target ?? event.target;
  document.addEventListener("htmx:oobAfterSwap", (event) => { if (swapped(event).id === "curve-data") draw(); });
  document.addEventListener("htmx:afterSwap", (event) => { if (swapped(event).id === "log") tail(swapped(event)); });
  addEventListener("resize", grow);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
  setInterval(ages, 10000);
  draw();
})();
