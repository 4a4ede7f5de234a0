// Several models by /v1/compare: answers stream into columns side by side, to one prompt or turn after turn.
"use strict";
(() => {
  const { t, make, ask, differ, keep } = Graft;
  const at = (id) => document.getElementById(id);
  const form = at("ask");
  const boxes = [...form.querySelectorAll('[name="model"]')];
  let columns = []; // {model, place, turns: what was said before, now: the answer that streams}
  let isChat = false;
  let asking = null;

  const chosen = () => boxes.filter((box) => box.checked).map((box) => box.value);
  const goesOn = () => isChat && columns.some((one) => one.turns.length);

  /** What may be pressed now. Models stay as they are while a conversation goes on. */
  function bound() {
    const isFull = chosen().length >= Number(form.dataset.most);
    for (const box of boxes) box.disabled = goesOn() || asking !== null || (isFull && !box.checked);
    at("go").disabled = asking !== null || !chosen().length;
    at("stop").hidden = asking === null;
    at("anew").hidden = !goesOn() || asking !== null;
    for (const mode of ["mode-once", "mode-chat"]) at(mode).disabled = asking !== null;
  }

  function body(models) {
    const system = at("system").value.trim() ? [{ role: "system", content: at("system").value }] : [];
    const prompt = { role: "user", content: at("prompt").value };
    for (const one of columns) one.asked = [...system, ...one.turns, prompt];
    const said = isChat ? { conversations: columns.map((one) => one.asked) } : { messages: columns[0].asked };
    const asked = { models, ...said, stream: true, max_tokens: Number(at("max_tokens").value), temperature: Number(at("temperature").value) };
    if (at("play-seed").value !== "") asked.seed = Number(at("play-seed").value);
    return asked;
  }

  function column(model) {
    const place = isChat ? make("div.turns.talk", { tabindex: "0", role: "group", "aria-label": t("Conversation with {name}", { name: model }) }) : make("div.turns");
    at("answers").append(make("section.card", { "aria-label": model }, make("h2", {}, model), place));
    return { model, place, turns: [], now: null };
  }

  /** Where a column's next answer goes. */
  function open(one) {
    const answer = make("p.answer", {}, "");
    const foot = make("p.quiet.small.foot", {}, t("waiting …"));
    if (isChat) one.place.append(make("p.asked", {}, at("prompt").value));
    one.place.append(answer, foot);
    one.now = { answer, foot, text: "", problem: null };
  }

  function take(chunk) {
    if (chunk.error && chunk.index === undefined) throw chunk.error;
    const { now } = columns[chunk.index];
    if (chunk.seed !== undefined) at("seed-says").textContent = t("seed {n} for all", { n: chunk.seed });
    if (chunk.delta?.content) {
      now.text += chunk.delta.content;
      now.answer.textContent = now.text;
      columns[chunk.index].place.scrollTop = 1e9; // where a conversation is longer than its place
    }
    if (chunk.error) now.foot.replaceChildren(make("span.problem", {}, (now.problem = chunk.error.message)));
    else if (chunk.latency) now.foot.textContent = figures(chunk);
  }

  function figures({ usage, latency, finish_reason: finish }) {
    const n = usage.completion_tokens;
    const [first, total] = [latency.first_token_ms ?? latency.total_ms, latency.total_ms];
    const pace = n > 1 && total > first ? ((n - 1) / (total - first)) * 1000 : (n / Math.max(total, 1)) * 1000;
    const said = { n, first: Math.round(first), total: Math.round(total), pace: pace.toFixed(1) };
    return t("{n} tokens · first after {first} ms · {total} ms in all · {pace} tokens/s", said) + (finish === "length" ? ` · ${t("cut short")}` : "");
  }

  /** Words that the first column's newest answer does not have in the same order. */
  function mark() {
    const first = columns[0]?.now?.text ?? "";
    for (const [index, one] of columns.entries())
      if (one.now) one.now.answer.replaceChildren(...(at("differ").checked && index ? differ(first, one.now.text) : [one.now.text]));
  }

  /** An answer that is there becomes part of its column's conversation, and may be kept. */
  function close(one) {
    const { asked, now, model } = one;
    if (now.foot.textContent === t("waiting …")) now.foot.textContent = t("stopped");
    if (!now.text.trim() || now.problem) return;
    const button = make("button.plain.small", { type: "button", "aria-label": `${t("Keep")}: ${model}` }, t("Keep"));
    button.addEventListener("click", () => keep(asked, now.text, model));
    now.foot.append(" ", button);
    if (isChat) one.turns.push(asked.at(-1), { role: "assistant", content: now.text });
  }

  async function read(answer) {
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const events = (rest + value).split("\n\n");
      rest = events.pop();
      for (const event of events)
        if (event.startsWith("data: ") && event !== "data: [DONE]") take(JSON.parse(event.slice(6)));
    }
  }

  function clear() {
    columns = [];
    at("answers").replaceChildren();
    at("seed-says").textContent = "";
  }

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (asking) return;
    at("play-problem").replaceChildren();
    if (!goesOn()) {
      clear();
      columns = chosen().map(column);
    }
    columns.forEach(open);
    asking = new AbortController();
    const isPressed = document.activeElement === at("go");
    bound();
    if (isPressed) at("stop").focus(); // what was pressed can be pressed no more, and would lose the focus
    try {
      await read(await ask("POST", "/v1/compare", body(columns.map((one) => one.model)), asking.signal));
    } catch (problem) {
      if (problem.name !== "AbortError") at("play-problem").replaceChildren(make("p.problem", {}, problem.message));
    }
    mark();
    columns.forEach(close);
    asking = null;
    if (goesOn()) at("prompt").value = "";
    bound();
    at("prompt").focus({ preventScroll: true });
  });

  function choose(chat) {
    isChat = chat;
    at("mode-once").setAttribute("aria-pressed", String(!chat));
    at("mode-chat").setAttribute("aria-pressed", String(chat));
    at("mode-says").textContent = chat ? t("Each model keeps its own conversation.") : t("Each prompt stands alone.");
    clear();
    bound();
  }

  at("mode-once").addEventListener("click", () => choose(false));
  at("mode-chat").addEventListener("click", () => choose(true));
  at("anew").addEventListener("click", () => choose(true));
  at("stop").addEventListener("click", () => asking?.abort());
  at("differ").addEventListener("change", mark);
  form.addEventListener("change", bound);
  at("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
  bound();
})();
