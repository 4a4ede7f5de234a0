// Several jobs' curves over each other, as /v1 tells their metrics, and the figures at the end of each. Jobs that trained
// in step can be drawn as one: the mean of their losses.
"use strict";
(() => {
  const { t, ask, charts, size, span } = Graft;
  const at = (id) => document.getElementById(id);
  const place = at("overlay");
  const boxes = [...place.querySelectorAll("[data-job]")];
  const groups = [...place.querySelectorAll("[data-group]")].map((box) => ({ box, jobs: boxes.filter((one) => one.dataset.of === box.dataset.group) }));
  const told = new Map(); // the box of a job or of a group -> metric -> {steps, values, highs}
  const heard = new Map(); // the box of a job -> what /v1 said last
  const plots = new Map();
  const PAUSE_MS = 5000;
  const POINTS = 600;
  const isAsOne = () => at("as-one")?.checked ?? false;

  /** A metric as lines: of a group, dashed from where not all of its jobs go on. */
  function line(box, name, look) {
    const one = told.get(box)?.[name];
    if (!one?.steps.length || !box.checked || box.closest("[hidden]")) return [];
    const label = box.parentElement.querySelector("[data-name]").textContent;
    const values = look.isSmooth ? charts.smoothed(one.values) : one.values;
    const { nOfAll = values.length } = one;
    const part = (from, to) => ({ label, ink: `job-${box.dataset.number}`, steps: one.steps.slice(from, to), values: values.slice(from, to), ...look });
    const isCut = nOfAll < values.length;
    return [...(nOfAll ? [part(0, nOfAll)] : []), ...(isCut ? [{ ...part(Math.max(0, nOfAll - 1)), isDashed: true }] : [])];
  }

  function draw() {
    const isLog = at("log-scale").checked;
    const shown = [...groups.map(({ box }) => box), ...boxes].filter((box) => !box.closest("[hidden]"));
    const looks = [at("raw").checked && { isThin: at("smooth").checked }, at("smooth").checked && { isSmooth: true }].filter(Boolean);
    put("chart-train", looks.flatMap((look) => shown.flatMap((box) => line(box, "train_loss", look))), isLog);
    put("chart-valid", shown.flatMap((box) => line(box, "full_valid_loss", { isDotted: true })), isLog);
    place.dataset.drawn = shown.filter((box) => box.checked && told.has(box)).length;
  }

  async function metrics(box, { from = 1, to = null, points = POINTS } = {}) {
    const asked = `from_step=${from}${to === null ? "" : `&to_step=${to}`}&resolution=${points}`;
    return (await ask("GET", `/v1/fine_tuning/jobs/${box.dataset.job}/metrics?${asked}`)).json();
  }

  /** One metric of several jobs as one, from a step to another: where all have told of it, the mean by weight. */
  function mean(all, weights, from, to) {
    if (all.some((one) => !one)) return { steps: [], values: [] };
    const columns = all.map((one) => new Map(one.steps.map((step, n) => [step, one.values[n]])));
    const steps = all[0].steps.filter((step) => step >= from && step <= to && columns.every((column) => column.has(step)));
    const whole = weights.reduce((sum, weight) => sum + weight, 0);
    return { steps, values: steps.map((step) => columns.reduce((sum, column, n) => sum + column.get(step) * weights[n], 0) / whole) };
  }

  /** The jobs that went so far as one. They are thinned alike, so that a point stands for the same steps in all. */
  async function piece(jobs, from, to, longest) {
    const isThinned = jobs.some((job) => heard.get(job).steps_per_point > 1);
    const asked = { from, to, points: Math.ceil((POINTS * (to - from + 1)) / longest) };
    const all = await Promise.all(jobs.map((job) => (isThinned ? metrics(job, asked) : heard.get(job))));
    const weights = jobs.map((job) => Number(job.dataset.weight));
    const series = (name) => mean(all.map((one) => one.series[name]), weights, from, to);
    return { n: jobs.length, to, train_loss: series("train_loss"), full_valid_loss: series("full_valid_loss") };
  }

  /** A group as one: a piece up to where the first of its jobs ends, then one of those that went on, up to the longest. */
  async function join({ box, jobs }) {
    const last = (job) => (heard.get(job).series.train_loss ? heard.get(job).last_step : 0);
    const ends = [...new Set(jobs.map(last))].filter(Boolean).sort((a, b) => a - b);
    const pieces = await Promise.all(
      ends.map((to, n) => piece(jobs.filter((job) => last(job) >= to), n ? ends[n - 1] + 1 : 1, to, ends.at(-1))),
    );
    const joined = (name) => ({
      steps: pieces.flatMap((one) => one[name].steps), values: pieces.flatMap((one) => one[name].values),
      nOfAll: pieces.filter((one) => one.n === jobs.length).reduce((sum, one) => sum + one[name].steps.length, 0),
    });
    told.set(box, { train_loss: joined("train_loss"), full_valid_loss: joined("full_valid_loss") });
    const reach = ({ n, to }) => t(n === jobs.length ? "all {n} to step {step}" : "{n} of them to step {step}, dashed", { n, step: to });
    box.parentElement.querySelector("[data-reach]").textContent = pieces.map(reach).join(" · ");
  }

  function swap() {
    for (const { box, jobs } of groups) {
      box.closest("label").hidden = !isAsOne();
      for (const job of jobs) job.closest("label").hidden = isAsOne();
    }
    if (at("as-one-says")) at("as-one-says").hidden = !isAsOne();
  }

  function put(id, lines, isLog) {
    plots.get(id)?.destroy();
    const holder = at(id);
    plots.set(id, charts.overlay(holder, lines, { isLog }));
    if (!lines.length) holder.textContent = t("Nothing has been told yet.");
  }

  const READ = { train_loss: charts.few, full_valid_loss: charts.few, full_valid_mean_token_accuracy: charts.share };
  const ends = new Map(); // the box of a job -> its figures

  /** The last training loss, smoothed, and the least validation loss with its accuracy. */
  function figures(box) {
    const row = document.querySelector(`[data-row="${CSS.escape(box.dataset.job)}"]`);
    const { train_loss: train, full_valid_loss: valid, full_valid_mean_token_accuracy: right } = told.get(box);
    const best = valid ? valid.values.indexOf(Math.min(...valid.values)) : -1;
    const found = { train_loss: train && charts.smoothed(train.values).at(-1), full_valid_loss: valid?.values[best], full_valid_mean_token_accuracy: right?.values[best] };
    ends.set(box, found);
    for (const [name, value] of Object.entries(found)) row.querySelector(`[data-figure="${name}"]`).textContent = READ[name](value);
  }

  /** A group's figures from the lowest to the highest of its jobs, and the most memory that its process ever had. */
  function ranges({ box, jobs }) {
    const row = document.querySelector(`[data-group-row="${box.dataset.group}"]`);
    for (const [name, read] of Object.entries(READ)) {
      const all = jobs.map((job) => ends.get(job)[name]).filter((value) => value != null);
      const said = [...new Set([Math.min(...all), Math.max(...all)].map((value) => read(value).replace(" ", "\u00a0")))].join(" – ");
      row.querySelector(`[data-range="${name}"]`).textContent = all.length ? said : "–";
    }
    const memory = row.querySelector("[data-memory]");
    const peaks = jobs.flatMap((job) => told.get(job).gpu_mem_bytes?.highs ?? []);
    const peak = peaks.reduce((most, one) => Math.max(most, one), Number(memory.dataset.memory));
    if (peak) memory.textContent = size(peak);
  }

  async function read() {
    try {
      await Promise.all(boxes.map(async (box) => {
        heard.set(box, await metrics(box));
        told.set(box, heard.get(box).series);
        figures(box);
      }));
      groups.forEach(ranges);
      if (isAsOne()) await Promise.all(groups.map(join));
      at("told").textContent = place.dataset.over === "true" ? "" : t("live");
    } catch (problem) {
      at("told").textContent = problem.message;
    }
    draw();
    if (place.dataset.over === "false") setTimeout(read, PAUSE_MS);
  }

  async function changed(event) {
    swap();
    try {
      if (event.target.id === "as-one" && isAsOne() && heard.size === boxes.length) await Promise.all(groups.map(join));
    } catch (problem) {
      at("told").textContent = problem.message;
    }
    draw();
  }

  for (const cell of document.querySelectorAll("[data-seconds]"))
    if (cell.dataset.seconds) cell.textContent = span(Number(cell.dataset.seconds));
  place.addEventListener("change", changed);
  addEventListener("resize", draw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  swap(); // a browser that comes back to the page keeps what was marked
  read();
})();
