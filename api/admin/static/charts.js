// Curves of a run, drawn by uPlot in the page's own colours, and ranks over steps as a map drawn by hand.
"use strict";
Graft.charts = (() => {
  const { t, make, number } = Graft;
  const few = (value) => (value == null ? "–" : Math.abs(value) >= 1000 ? number(value) : value.toPrecision(3));
  const tiny = (value) => (value == null ? "–" : value.toExponential(1));
  const share = (value) => (value == null ? "–" : `${(value * 100).toFixed(1)} %`);
  // What is drawn: names of figures, the first three colours, and how they are read.
  const KINDS = [
    { id: "loss", title: "Loss", series: [["train_loss", "training"], ["full_valid_loss", "validation"]], read: few, isBroad: true, canLog: true, canSmooth: true },
    { id: "accuracy", title: "Token accuracy", series: [["train_mean_token_accuracy", "training"], ["full_valid_mean_token_accuracy", "validation"]], read: share, isBroad: true, canSmooth: true },
    { id: "rate", title: "Learning rate", series: [["learning_rate", "rate"]], read: tiny },
    { id: "norm", title: "Gradient norm", series: [["grad_norm", "norm"]], read: few, canLog: true, canSmooth: true },
    { id: "pace", title: "Tokens per second", series: [["tokens_per_s", "pace"]], read: few, canSmooth: true },
    { id: "memory", title: "Memory", series: [["gpu_mem_bytes", "in use"]], read: (value) => (value == null ? "–" : `${(value / 1e9).toFixed(3)} GB`) },
  ];
  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

  /** light-dark(a, b) as canvas wants it: one colour. */
  function ink(name) {
    const probe = make("i", { class: `ink-${name}` });
    document.body.append(probe);
    const found = getComputedStyle(probe).color;
    probe.remove();
    return found || color(name);
  }

  /** An exponential mean that forgets at the pace of the run's length, and passes over gaps. */
  function smoothed(values) {
    const keep = 1 - 2 / (Math.min(40, Math.max(4, values.length / 8)) + 1);
    let mean = null;
    return values.map((value) => {
      if (value == null) return null;
      mean = mean === null ? value : keep * mean + (1 - keep) * value;
      return mean;
    });
  }

  /** points: Map from step to its figures. */
  function draw(place, points, { isSmooth, isLog }, shown) {
    const steps = [...points.keys()].sort((a, b) => a - b);
    for (const kind of KINDS) {
      const columns = kind.series.map(([name]) => steps.map((step) => points.get(step)[name] ?? null));
      if (!columns.some((column) => column.some((value) => value !== null))) continue;
      const doesSmooth = isSmooth && kind.canSmooth;
      const data = doesSmooth ? [steps, columns[0], smoothed(columns[0]), ...columns.slice(1)] : [steps, ...columns];
      const look = `${doesSmooth}${isLog && kind.canLog}${data.length}`;
      const old = shown.get(kind.id);
      if (old?.look === look) {
        old.plot.setData(data);
        continue;
      }
      old?.plot.destroy();
      const holder = old?.holder ?? place.querySelector(`[data-chart="${kind.id}"]`);
      if (!old) holder.replaceChildren();
      shown.set(kind.id, { look, holder, plot: plot(holder, kind, data, { doesSmooth, isLog: isLog && kind.canLog }) });
    }
  }

  function plot(holder, kind, data, { doesSmooth, isLog }) {
    const lines = kind.series.map(([, label]) => label);
    if (doesSmooth) lines.splice(1, 0, "smoothed");
    const inks = doesSmooth ? ["series-3", "series-1", "series-2"] : ["series-1", "series-2"];
    return new uPlot(
      {
        ...frame(holder, kind.isBroad ? 250 : 180, isLog, kind.read),
        series: [{ label: t("Step") }, ...lines.map((label, at) => ({
          label: t(label), stroke: ink(inks[at]), width: label === "training" && doesSmooth ? 1 : 2, spanGaps: true,
          points: { show: label === "validation", size: 6 }, value: (_, value) => kind.read(value),
        }))],
      },
      data, holder,
    );
  }

  /** What every chart has: its size, its scales, and axes in the page's colours. */
  function frame(holder, height, isLog, read) {
    const axis = { stroke: ink("quiet"), grid: { stroke: ink("line"), width: 1 }, ticks: { stroke: ink("line") }, font: "11px system-ui" };
    return {
      width: holder.clientWidth, height, cursor: { y: false },
      scales: { x: { time: false }, y: { distr: isLog ? 3 : 1 } },
      axes: [{ ...axis, values: (_, all) => all.map((value) => (Number.isInteger(value) ? number(value) : "")) },
        { ...axis, size: 74, values: (_, all) => all.map((value) => (value == null ? "" : read(value))) }],
    };
  }

  /** Lines of several runs over each other. lines: {label, ink, steps, values, isThin, isDotted, isDashed}; each has its own steps. */
  function overlay(holder, lines, { isLog, height = 300 }) {
    holder.replaceChildren();
    if (!lines.length) return null;
    const data = uPlot.join(lines.map((line) => [line.steps, line.values]));
    return new uPlot(
      {
        ...frame(holder, height, isLog, few), legend: { show: false },
        series: [{ label: t("Step") }, ...lines.map((line) => ({
          label: line.label, stroke: ink(line.ink), width: line.isThin ? 1 : 2, spanGaps: true, alpha: line.isThin ? 0.45 : 1, dash: line.isDashed ? [6, 4] : [],
          points: { show: line.isDotted, size: 6 },
        }))],
      },
      data, holder,
    );
  }

  const fit = (shown) => {
    for (const { plot: one, holder } of shown.values()) one.setSize({ width: holder.clientWidth, height: one.height });
  };

  /** ranks: Map from step to {layer: rank}. A cell for each layer and each step at which ranks moved. */
  function heat(place, ranks) {
    const steps = [...ranks.keys()].sort((a, b) => a - b);
    const layers = [...new Set(steps.flatMap((step) => Object.keys(ranks.get(step))))];
    const most = Math.max(1, ...steps.flatMap((step) => Object.values(ranks.get(step))));
    const isNarrow = place.clientWidth < 500;
    const name = (layer) => (isNarrow ? layer.replace(/^model\.layers\.(\d+)\.(?:\w+\.)*(\w+)$/, "$1 $2") : layer.replace(/^model\./, ""));
    const [left, high, wide] = [isNarrow ? 96 : 230, 14, Math.max(4, Math.min(26, 700 / steps.length))];
    const svg = (name, attributes, text = "") => {
      const element = document.createElementNS("http://www.w3.org/2000/svg", name);
      for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
      element.append(text);
      return element;
    };
    const [width, height] = [left + wide * steps.length + 12, high * layers.length + 24];
    const map = svg("svg", { class: "heat", width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": t("Ranks of {n} layers", { n: layers.length }) });
    const accent = ink("series-1");
    layers.forEach((layer, y) => {
      map.append(svg("text", { x: left - 8, y: y * high + 11, "text-anchor": "end" }, name(layer)));
      steps.forEach((step, x) => {
        const rank = ranks.get(step)[layer] ?? 0;
        const cell = svg("rect", { x: left + x * wide, y: y * high + 1, width: wide - 1, height: high - 2, fill: accent, "fill-opacity": 0.06 + 0.94 * (rank / most) });
        cell.append(svg("title", {}, t("{layer}, step {step}: rank {rank}", { layer, step, rank })));
        map.append(cell);
      });
    });
    map.append(svg("text", { x: left, y: height - 6 }, `${steps[0]}`), svg("text", { x: width - 12, y: height - 6, "text-anchor": "end" }, `${steps.at(-1)}`));
    place.replaceChildren(map);
  }

  return { draw, few, fit, heat, ink, overlay, share, smoothed };
})();
