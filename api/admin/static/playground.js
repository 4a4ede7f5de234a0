// One prompt to several models by /v1/compare: their answers stream into columns side by side.
"use strict";
(() => {
  const { t, make, ask } = Graft;
  const at = (id) => document.getElementById(id);
  const form = at("ask");
  let columns = [];
  let asking;

  const chosen = () => [...form.querySelectorAll('[name="model"]:checked')].map((box) => box.value);

  function bound() {
    const isFull = chosen().length >= Number(form.dataset.most);
    for (const box of form.querySelectorAll('[name="model"]')) box.disabled = isFull && !box.checked;
    at("go").disabled = !chosen().length;
  }

  function body() {
    const messages = [{ role: "user", content: at("prompt").value }];
    if (at("system").value.trim()) messages.unshift({ role: "system", content: at("system").value });
    const asked = { models: chosen(), messages, stream: true, max_tokens: Number(at("max_tokens").value), temperature: Number(at("temperature").value) };
    if (at("play-seed").value !== "") asked.seed = Number(at("play-seed").value);
    return asked;
  }

  function column(model) {
    const answer = make("p.answer", {});
    const foot = make("p.quiet.small", {}, t("waiting …"));
    at("answers").append(make("section.card", { "aria-label": model }, make("h2", {}, model), answer, foot));
    return { answer, foot, text: "" };
  }

  function take(chunk) {
    if (chunk.error && chunk.index === undefined) throw chunk.error;
    const one = columns[chunk.index];
    if (chunk.delta?.content) {
      one.text += chunk.delta.content;
      one.answer.textContent = one.text;
    }
    if (chunk.error) one.foot.replaceChildren(make("span.problem", {}, chunk.error.message));
    else if (chunk.latency) one.foot.textContent = figures(chunk);
  }

  function figures({ usage, latency, finish_reason: finish }) {
    const written = usage.completion_tokens;
    const pace = latency.total_ms > 0 ? (written / latency.total_ms) * 1000 : 0;
    const said = { n: written, first: Math.round(latency.first_token_ms ?? 0), pace: pace.toFixed(1) };
    return t("{n} tokens · first after {first} ms · {pace} tokens/s", said) + (finish === "length" ? ` · ${t("cut short")}` : "");
  }

  /** Words that the first answer does not have in the same order: a longest common subsequence of words. */
  function mark() {
    const words = (text) => text.split(/(\s+)/).filter(Boolean).slice(0, 800);
    const first = words(columns[0]?.text ?? "");
    columns.forEach((one, index) => {
      if (!at("differ").checked || index === 0) return void (one.answer.textContent = one.text);
      const own = words(one.text);
      const common = shared(first, own);
      one.answer.replaceChildren(...own.map((word, n) => (common.has(n) || !word.trim() ? word : make("mark", {}, word))));
    });
  }

  function shared(a, b) {
    const best = Array.from({ length: a.length + 1 }, () => new Uint16Array(b.length + 1));
    for (let i = a.length - 1; i >= 0; i--)
      for (let j = b.length - 1; j >= 0; j--)
        best[i][j] = a[i] === b[j] ? best[i + 1][j + 1] + 1 : Math.max(best[i + 1][j], best[i][j + 1]);
    const kept = new Set();
    for (let i = 0, j = 0; i < a.length && j < b.length; )
      if (a[i] === b[j]) kept.add(j++), i++;
      else if (best[i + 1][j] >= best[i][j + 1]) i++;
      else j++;
    return kept;
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

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    at("play-problem").replaceChildren();
    at("answers").replaceChildren();
    columns = chosen().map(column);
    asking = new AbortController();
    at("go").disabled = true;
    at("stop").hidden = false;
    try {
      await read(await ask("POST", "/v1/compare", body(), asking.signal));
    } catch (problem) {
      if (problem.name !== "AbortError") at("play-problem").replaceChildren(make("p.problem", {}, problem.message));
    }
    for (const one of columns) if (one.foot.textContent === t("waiting …")) one.foot.textContent = t("stopped");
    at("stop").hidden = true;
    bound();
    mark();
  });
  at("stop").addEventListener("click", () => asking?.abort());
  at("differ").addEventListener("change", mark);
  form.addEventListener("change", bound);
  at("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
  bound();
})();
