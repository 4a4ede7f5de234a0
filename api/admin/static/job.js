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
    if (["succeeded", "failed", "cancelled"].includes(event.kind)) ended();
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
    const after = [...at("log").children].find((other) => Number(other.dataset.number) < number);
    at("log").insertBefore(row, after ?? null);
  }

  function draw() {
    isDue = false;
    at("no-points").hidden = points.size > 0;
    if (points.size) charts.draw(at("charts"), points, { isSmooth: at("smooth").checked, isLog: at("log-scale").checked }, shown);
    if (ranks.size) {
      at("ranks").hidden = false;
      charts.heat(at("ranks-map"), ranks);
    }
    if (samples.size) drawSamples();
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
    at("samples").hidden = false;
    const rows = samples.get(Number(choice.value)) ?? [];
    at("samples-rows").replaceChildren(
      ...rows.map((row) => make("tr", {}, ...[row.prompt, row.expected, row.said].map((text) => make("td.wrap", {}, text)))),
    );
  }

  function ended() {
    feed.dataset.over = "true";
    at("link").textContent = "";
    if (at("again") === null) setTimeout(() => location.reload(), 800);
  }

  /** The past, newest first, page by page, back to what is known: what a stream would only tell one by one. */
  async function past() {
    let after = "";
    for (;;) {
      const page = await (await ask("GET", `${job}/events?limit=100${after}`)).json();
      const isKnown = page.data.some((event) => seen.has(event.id));
      page.data.forEach(take);
      if (isKnown || !page.has_more) return;
      after = `&after=${page.last_id}`;
    }
  }

  async function follow() {
    try {
      await past();
    } catch (problem) {
      notice(problem.message, "error");
    }
    if (feed.dataset.over === "true") return;
    const stream = new EventSource(`${job}/stream`);
    stream.onopen = () => (at("link").textContent = t("live"));
    stream.onmessage = (message) => take(JSON.parse(message.data));
    stream.onerror = () => {
      if (feed.dataset.over === "true") return stream.close();
      at("link").textContent = t("connecting again …");
      // A browser comes back by itself unless it was refused: then the past is asked for until the stream is there.
      if (stream.readyState === EventSource.CLOSED) setTimeout(follow, 2000);
    };
  }

  for (const id of ["smooth", "log-scale"]) at(id).addEventListener("change", draw);
  at("samples-step").addEventListener("change", drawSamples);
  new ResizeObserver(() => charts.fit(shown)).observe(at("charts"));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    for (const one of shown.values()) one.look = "";
    draw();
  });
  at("again")?.addEventListener("click", async () => {
    try {
      const made = await (await ask("POST", "/v1/fine_tuning/jobs", JSON.parse(at("again").dataset.body))).json();
      location.assign(`/admin/jobs/${made.id}`);
    } catch (problem) {
      notice(problem.message, "error");
    }
  });
  follow();
})();
