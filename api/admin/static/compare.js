// Several jobs' curves over each other, as /v1 tells their metrics, and the figures at the end of each.
"use strict";
(() => {
  const { t, ask, charts, span } = Graft;
  const at = (id) => document.getElementById(id);
  const place = at("overlay");
  const boxes = [...place.querySelectorAll("[data-job]")];
  const told = new Map(); // job -> metric -> {steps, values, lows}
  const plots = new Map();
  const PAUSE_MS = 5000;

  function line(box, name, look) {
    const one = told.get(box.dataset.job)?.[name];
    if (!one || !box.checked) return [];
    const label = box.parentElement.querySelector("[data-name]").textContent;
    const values = look.isSmooth ? charts.smoothed(one.values) : one.values;
    return [{ label, ink: `job-${box.dataset.number}`, steps: one.steps, values, ...look }];
  }

  function draw() {
    const isLog = at("log-scale").checked;
    const looks = [at("raw").checked && { isThin: at("smooth").checked }, at("smooth").checked && { isSmooth: true }].filter(Boolean);
    put("chart-train", looks.flatMap((look) => boxes.flatMap((box) => line(box, "train_loss", look))), isLog);
    put("chart-valid", boxes.flatMap((box) => line(box, "full_valid_loss", { isDotted: true })), isLog);
    place.dataset.drawn = boxes.filter((box) => box.checked && told.has(box.dataset.job)).length;
  }

  function put(id, lines, isLog) {
    plots.get(id)?.destroy();
    const holder = at(id);
    plots.set(id, charts.overlay(holder, lines, { isLog }));
    if (!lines.length) holder.textContent = t("Nothing has been told yet.");
  }

  /** The last training loss, smoothed, and the least validation loss with its accuracy. */
  function figures(job) {
    const row = document.querySelector(`[data-row="${CSS.escape(job)}"]`);
    const { train_loss: train, full_valid_loss: valid, full_valid_mean_token_accuracy: right } = told.get(job);
    const best = valid ? valid.values.indexOf(Math.min(...valid.values)) : -1;
    const said = {
      train_loss: charts.few(train && charts.smoothed(train.values).at(-1)),
      full_valid_loss: charts.few(valid?.values[best]),
      full_valid_mean_token_accuracy: charts.share(right?.values[best]),
    };
    for (const [name, text] of Object.entries(said)) row.querySelector(`[data-figure="${name}"]`).textContent = text;
  }

  async function read() {
    try {
      await Promise.all(boxes.map(async ({ dataset: { job } }) => {
        const answer = await ask("GET", `/v1/fine_tuning/jobs/${job}/metrics?resolution=600`);
        told.set(job, (await answer.json()).series);
        figures(job);
      }));
      at("told").textContent = place.dataset.over === "true" ? "" : t("live");
    } catch (problem) {
      at("told").textContent = problem.message;
    }
    draw();
    if (place.dataset.over === "false") setTimeout(read, PAUSE_MS);
  }

  for (const cell of document.querySelectorAll("[data-seconds]"))
    if (cell.dataset.seconds) cell.textContent = span(Number(cell.dataset.seconds));
  place.addEventListener("change", draw);
  addEventListener("resize", draw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  read();
})();
