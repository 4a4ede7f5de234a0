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

  function line(box, name, look) {
    const one = told.get(box)?.[name];
    if (!one?.steps.length || !box.checked || box.closest("[hidden]")) return [];
    const label = box.parentElement.querySelector("[data-name]").textContent;
    const values = look.isSmooth ? charts.smoothed(one.values) : one.values;
    return [{ label, ink: `job-${box.dataset.number}`, steps: one.steps, values, ...look }];
  }

  function draw() {
    const isLog = at("log-scale").checked;
    const shown = [...groups.map(({ box }) => box), ...boxes].filter((box) => !box.closest("[hidden]"));
    const looks = [at("raw").checked && { isThin: at("smooth").checked }, at("smooth").checked && { isSmooth: true }].filter(Boolean);
    put("chart-train", looks.flatMap((look) => shown.flatMap((box) => line(box, "train_loss", look))), isLog);
    put("chart-valid", shown.flatMap((box) => line(box, "full_valid_loss", { isDotted: true })), isLog);
    place.dataset.drawn = shown.filter((box) => box.checked && told.has(box)).length;
  }

  const metrics = async (box, until = "") => (await ask("GET", `/v1/fine_tuning/jobs/${box.dataset.job}/metrics?resolution=${POINTS}${until}`)).json();

  /** One metric of several jobs as one: at the steps that all have told of, the mean by weight. */
  function mean(all, weights) {
    if (all.some((one) => !one)) return { steps: [], values: [] };
    const columns = all.map((one) => new Map(one.steps.map((step, n) => [step, one.values[n]])));
    const steps = all[0].steps.filter((step) => columns.every((column) => column.has(step)));
    const whole = weights.reduce((sum, weight) => sum + weight, 0);
    return { steps, values: steps.map((step) => columns.reduce((sum, column, n) => sum + column.get(step) * weights[n], 0) / whole) };
  }

  /** A group as one. Jobs are cut to the shortest first: points of a thinned run stand for the same steps in all then. */
  async function join({ box, jobs }) {
    const last = Math.min(...jobs.map((job) => heard.get(job).last_step));
    const cut = await Promise.all(jobs.map((job) => {
      const isWhole = heard.get(job).steps_per_point === 1 || heard.get(job).last_step === last;
      return isWhole ? heard.get(job) : metrics(job, `&to_step=${last}`);
    }));
    const weights = jobs.map((job) => Number(job.dataset.weight));
    const series = (name) => mean(cut.map((one) => one.series[name]), weights);
    told.set(box, { train_loss: series("train_loss"), full_valid_loss: series("full_valid_loss") });
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
