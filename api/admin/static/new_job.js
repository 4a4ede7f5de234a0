// The form of a job as the body of POST /v1/fine_tuning/jobs: sent, reckoned with, previewed, and shown as a script.
"use strict";
(() => {
  const { t, make, ask } = Graft;
  const form = document.getElementById("job");
  if (!form) return;
  const at = (id) => document.getElementById(id);
  const method = () => form.querySelector('[name="method"]:checked').value;
  let language = "curl";

  /** The word that stands in place of a number, where it is chosen. */
  const insteadOf = (input) => form.querySelector(`[data-instead="${input.id}"]:checked`)?.value;

  /** What an input says, undefined where it says what it would anyhow. */
  function said(input) {
    const { kind } = input.dataset;
    const instead = insteadOf(input);
    if (instead) return instead;
    if (kind === "check") return input.checked === (input.dataset.default === "true") ? undefined : input.checked;
    const text = input.value.trim();
    if (text === "" || text === input.dataset.default) return undefined;
    if (kind === "number") return Number.isFinite(Number(text)) ? Number(text) : text;
    if (kind === "list") return text === "all-linear" ? text : text.split(",").map((part) => part.trim()).filter(Boolean);
    if (kind === "choice" && ["true", "false"].includes(text)) return text === "true";
    if (kind !== "json") return text;
    try {
      return JSON.parse(text);
    } catch {
      return text; // the service says what is wrong with it
    }
  }

  function group(place) {
    const found = {};
    for (const input of place.querySelectorAll("[data-name]")) {
      const value = said(input);
      if (value !== undefined) found[input.dataset.name] = value;
    }
    return found;
  }

  function body() {
    const asked = { model: at("model").value, training_file: at("training_file").value };
    for (const id of ["validation_file", "suffix", "continue_from"]) if (at(id).value.trim()) asked[id] = at(id).value.trim();
    if (at("seed").value !== "") asked.seed = Number(at("seed").value);
    const hyperparameters = group(form.querySelector('[data-group="hyperparameters"]'));
    if (Object.keys(hyperparameters).length) asked.hyperparameters = hyperparameters;
    asked.peft = { type: method(), ...group(at(`method-${method()}`)) };
    const training = group(form.querySelector('[data-group="training"]'));
    if (at("patience").value !== "") training.early_stopping = { patience: Number(at("patience").value) };
    if (Object.keys(training).length) asked.training = training;
    return asked;
  }

  function script() {
    const asked = body();
    if (language === "curl")
      return `curl ${location.origin}/v1/fine_tuning/jobs \\\n  -H "Authorization: Bearer $GRAFT_KEY" \\\n  -H 'Content-Type: application/json' \\\n  -d '${JSON.stringify(asked, null, 2).replaceAll("'", "'\\''")}'`;
    if (language === "cli") return `.venv/bin/python -m api.cli create --url ${location.origin} \\\n  ${words(asked).map(quoted).join(" \\\n  ")}`;
    const { peft, training, continue_from, ...known } = asked;
    const extra = { peft, ...(training && { training }), ...(continue_from && { continue_from }) };
    const lines = Object.entries({ ...known, extra_body: extra }).map(([name, value]) => `    ${name}=${python(value)},`);
    return `import os\nfrom openai import OpenAI\n\nclient = OpenAI(base_url="${location.origin}/v1", api_key=os.environ["GRAFT_KEY"])\njob = client.fine_tuning.jobs.create(\n${lines.join("\n")}\n)\nprint(job.id)`;
  }

  /** The body as NAME=VALUE: its three sections by their fields, what lies deeper as JSON. */
  function words(asked) {
    const text = (value) => (typeof value === "string" && !isJSON(value) ? value : JSON.stringify(value));
    return Object.entries(asked).flatMap(([name, value]) =>
      typeof value === "object" && value !== null && !Array.isArray(value)
        ? Object.entries(value).map(([field, one]) => `${name}.${field}=${text(one)}`)
        : [`${name}=${text(value)}`],
    );
  }

  function isJSON(text) {
    try {
      JSON.parse(text);
      return true;
    } catch {
      return false;
    }
  }

  const quoted = (word) => (/^[\w.,:@=/-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`);

  function python(value) {
    if (value === true) return "True";
    if (value === false) return "False";
    if (value === null) return "None";
    if (Array.isArray(value)) return `[${value.map(python).join(", ")}]`;
    if (typeof value !== "object") return JSON.stringify(value);
    return `{${Object.entries(value).map(([name, one]) => `${JSON.stringify(name)}: ${python(one)}`).join(", ")}}`;
  }

  function refuse(problem) {
    clear();
    at("refusal").replaceChildren(make("p.problem", {}, problem.message));
    const name = (problem.param ?? "").split(".").pop();
    const places = [at(`method-${method()}`), form].map((place) => place.querySelector(`[data-param="${CSS.escape(name)}"]`));
    const place = places.find((found) => found && !found.closest("[hidden]"));
    if (!place) return;
    place.closest("details")?.setAttribute("open", "");
    const input = place.querySelector("input, select, textarea");
    input.setAttribute("aria-invalid", "true");
    place.append(make("p.problem.here", {}, problem.message));
    input.focus();
  }

  function clear() {
    at("refusal").replaceChildren();
    for (const one of form.querySelectorAll(".here")) one.remove();
    for (const one of form.querySelectorAll("[aria-invalid]")) one.removeAttribute("aria-invalid");
  }

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    at("create").disabled = true;
    try {
      const job = await (await ask("POST", "/v1/fine_tuning/jobs", body())).json();
      location.assign(`/admin/jobs/${job.id}`);
    } catch (problem) {
      refuse(problem);
      at("create").disabled = false;
    }
  });

  function look() {
    const { model, training_file, peft, training } = body();
    Graft.preview.show(at("preview-rows"), { model, training_file, peft, ...(training && { training }) });
  }

  const source = () => ({ model: at("model").value, training_file: at("training_file").value });
  const template = Graft.template.edit(at("p_tuning-template"), source, look);
  let waiting, asking;
  async function reckon() {
    asking?.abort();
    if (method() === "p_tuning" && !template.isSound()) return;
    asking = new AbortController();
    at("estimated").setAttribute("aria-busy", "true");
    try {
      const found = await (await ask("POST", "/v1/fine_tuning/estimate", body(), asking.signal)).json();
      Graft.estimate(at("estimated"), found);
      tellCost(found);
      at("estimated").setAttribute("aria-busy", "false");
    } catch (problem) {
      if (problem.name === "AbortError") return;
      at("estimated").replaceChildren(make("p.quiet", {}, problem.message));
      tellCost(null);
      at("estimated").setAttribute("aria-busy", "false");
    }
  }

  /** What the search of a learning rate adds, beside the box that asks for it. */
  function tellCost(found) {
    const place = at("training-learning_rate-search-says");
    if (found?.rate_search) place.textContent = Graft.searchCost(found);
    else place.textContent = t(at("training-learning_rate-search").checked && !found ? "What it costs is not known: no engine counts the data now." : "word.search.says");
  }

  function changed() {
    at("script").textContent = script();
    clearTimeout(waiting);
    waiting = setTimeout(reckon, 500);
  }

  const LANGUAGES = ["curl", "python", "cli"];
  for (const name of LANGUAGES)
    at(`as-${name}`).addEventListener("click", () => {
      language = name;
      for (const other of LANGUAGES) at(`as-${other}`).setAttribute("aria-pressed", `${other === name}`);
      at("script").textContent = script();
    });
  form.addEventListener("input", () => {
    for (const place of form.querySelectorAll(".of-method")) place.hidden = place.id !== `method-${method()}`;
    if (method() === "p_tuning") template.open();
    settle();
    changed();
  });
  /** A number that a word stands in for is kept, and cannot be written meanwhile. */
  function settle() {
    for (const box of form.querySelectorAll("[data-instead]")) at(box.dataset.instead).disabled = box.checked;
  }

  at("look-now").addEventListener("click", look);
  settle(); // a browser that comes back to the page keeps what was marked
  changed();
})();
