// One job, live: its events by server-sent events, each once whatever breaks in between, into curves, samples and a log.
"use strict";
(() => {
  const { t, make, ask, charts, notice } = Graft;
  const feed = document.getElementById("feed");
  const at = (id) => document.getElementById(id);
  const job = `/v1/fine_tuning/jobs/${feed.dataset.job}`;
  const points = new Map(); // step -> figures
  const ranks = new Map(); // step -> {layer: rank}
  const samples = new Map(); // step -> samples
  const seen = new Set(); // ids of events
  const shown = new Map(); // charts
  let isDue = false;

  function take(event) {
    if (seen.has(event.id)) return;
    seen.add(event.id);
    const { data } = event;
    if (event.type === "metrics") {
      const { step, ranks: moved, ...figures } = data;
      const told = Object.fromEntries(Object.entries(figures).filter(([, value]) => value !== null));
      points.set(step, { ...points.get(step), ...told });
      if (moved) ranks.set(step, moved);
    } else if (event.kind === "samples") samples.set(event.step, data.samples);
    if (event.kind !== "step") tell(event);
    if (!isDue) {
      isDue = true;
      requestAnimationFrame(draw);
    }
  }

  function tell(event) {
    const when = new Date(event.created_at * 1000);
    const row = make(`li.${event.level}`, { "data-number": event.id.replace(/\D/g, "") },
      make("time", { datetime: when.toISOString() }, when.toLocaleTimeString()), make("span", {}, event.message));
    const number = Number(row.dataset.number);
    const log = at("log");
    const isAtEnd = log.scrollTop + log.clientHeight > log.scrollHeight - 40;
    const after = [...log.children].find((other) => Number(other.dataset.number) > number);
    log.insertBefore(row, after ?? null);
    if (isAtEnd) log.scrollTop = log.scrollHeight;
  }

  function draw() {
    isDue = false;
    if (points.size) at("no-points").replaceChildren(); // its line stays, so that the charts below do not move
    feed.dataset.points = points.size;
    if (points.size) charts.draw(at("charts"), points, { isSmooth: at("smooth").checked, isLog: at("log-scale").checked }, shown);
    if (ranks.size && at("ranks")) {
      at("no-ranks")?.remove();
      charts.heat(at("ranks-map"), ranks);
    }
    if (samples.size && at("samples")) drawSamples();
  }

  function drawSamples() {
    const steps = [...samples.keys()].sort((a, b) => b - a);
    const choice = at("samples-step");
    if (choice.options.length !== steps.length) {
      const isNewest = choice.selectedIndex <= 0;
      const chosen = choice.value;
      choice.replaceChildren(...steps.map((step) => make("option", {}, `${step}`)));
      if (!isNewest) choice.value = chosen;
    }
    at("no-samples")?.remove();
    const rows = samples.get(Number(choice.value)) ?? [];
    at("samples-rows").replaceChildren(
      ...rows.map((row) => make("tr", {}, ...[row.prompt, row.expected, row.said].map((text) => make("td.wrap", {}, text)))),
    );
  }

  /** A page that was made while the job ran has other buttons than one that is made now. */
  function ended() {
    at("link").textContent = "";
    if (feed.dataset.over === "false") location.reload();
  }

  /** Everything from the beginning, or behind the last that is known. The browser itself resumes a broken stream. */
  function follow(last = "") {
    const stream = new EventSource(`${job}/stream${last && `?after=${last}`}`);
    stream.onopen = () => (at("link").textContent = feed.dataset.over === "true" ? "" : t("live"));
    stream.onmessage = (message) => {
      last = message.lastEventId;
      take(JSON.parse(message.data));
    };
    stream.addEventListener("end", () => {
      stream.close();
      ended();
    });
    stream.onerror = () => {
      at("link").textContent = t("connecting again …");
      // Where it was refused, a browser gives up: then it is for us to come again.
      if (stream.readyState === EventSource.CLOSED) setTimeout(() => follow(last), 2000);
    };
  }

  for (const id of ["smooth", "log-scale"]) at(id).addEventListener("change", draw);
  at("samples-step")?.addEventListener("change", drawSamples);
  new ResizeObserver(() => charts.fit(shown)).observe(at("charts"));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    for (const one of shown.values()) one.look = "";
    draw();
  });
  at("promote")?.addEventListener("submit", async (event) => {
    event.preventDefault();
    const { adapter } = at("promote").dataset;
    try {
      await ask("POST", `/v1/adapters/${adapter}/aliases/${encodeURIComponent(at("alias").value.trim())}`);
      location.reload();
    } catch (problem) {
      notice(problem.message, "error");
    }
  });
  follow();
})();
