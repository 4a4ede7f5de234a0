// A dataset's first rows token by token, as /v1/fine_tuning/preview tells them.
"use strict";
Graft.preview = (() => {
  const { t, make, ask } = Graft;

  /** Rows into a place. body: of the request, without its limit. */
  async function show(place, body, limit = 3) {
    place.setAttribute("aria-busy", "true");
    try {
      const answer = await ask("POST", "/v1/fine_tuning/preview", { ...body, limit });
      draw(place, await answer.json());
    } catch (problem) {
      place.replaceChildren(make("p.problem", {}, problem.message));
    }
    place.setAttribute("aria-busy", "false");
  }

  function draw(place, found) {
    const parts = [findings(found)].filter(Boolean);
    for (const row of found.rows) {
      const counts = t("Line {line}: {n} tokens, {learned} learned", {
        line: row.line, n: row.n_tokens, learned: row.n_learned,
      });
      parts.push(make("p.small.quiet", {}, counts + (row.truncated ? ` · ${t("cut short")}` : "")));
      parts.push(make("p.tokens.mono", { lang: "und" }, ...row.tokens.map(token)));
    }
    place.replaceChildren(...parts);
  }

  /** What is wrong or odd, by line: what is wrong stops a job, what is odd does not. */
  function findings({ errors, warnings, n_errors, n_warnings }) {
    if (!errors.length && !warnings.length) return null;
    const row = (kind) => (one) =>
      make("tr", {}, make("td.number", {}, `${one.line}`), make("td", {}, make(`span.state.${kind}`, {}, t(kind))), make("td.mono", {}, one.field || "–"), make("td.wrap", {}, one.message));
    const heads = [t("Line"), t("Kind"), t("Field"), t("What")].map((text) => make("th", { scope: "col" }, text));
    const table = make("table", {}, make("thead", {}, make("tr", {}, ...heads)), make("tbody", {}, ...errors.map(row("fault")), ...warnings.map(row("remark"))));
    const title = t("In the first rows: faults {errors}, remarks {warnings}", { errors: n_errors, warnings: n_warnings });
    return make("details", errors.length ? { open: "" } : {}, make("summary", {}, title), make("div.scroll", { tabindex: "0", role: "group", "aria-label": title }, table));
  }

  function token(one) {
    const kind = one.id < 0 ? "span.virtual" : one.label === -100 ? "span" : "span.learned";
    return make(kind, { title: `${one.id}` }, one.id < 0 ? `v${-one.id}` : one.text);
  }

  const section = document.getElementById("preview");
  if (section) {
    const model = document.getElementById("preview-model");
    const look = () => show(document.getElementById("preview-rows"), { model: model.value, training_file: section.dataset.file });
    model.addEventListener("change", look);
    look();
  }
  return { show };
})();
