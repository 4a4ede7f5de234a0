// P-tuning's template as it is typed: read as core/specs/template.py reads it, and a row of the dataset in its form.
"use strict";
Graft.template = (() => {
  const { t, make, ask } = Graft;
  const MOST = 512; // virtual tokens, as the service bounds them
  const SHOWN = 24; // chips of one run of virtual tokens
  const PART = /\{\{|\}\}|\{[^{}]*\}|[{}]|[^{}]+/gu;
  const PLAIN = "{v:1}{input}{target}";

  /** {parts, n} or {fault}. A part is {kind: virtual, words, input or target}; characters count from 1, as in Python. */
  function parse(text) {
    const parts = [];
    let [stage, n, at] = ["before", 0, 1];
    for (const [part] of text.matchAll(PART)) {
      const here = at;
      at += [...part].length;
      if (stage === "end" && part.trim()) return { fault: t("Character {at}: nothing may stand behind {part}.", { at: here, part: "{target}" }) };
      if (stage === "end") continue;
      const virtual = /^\{v:([0-9]{1,4})\}$/.exec(part);
      if (part === (stage === "before" ? "{input}" : "{target}")) {
        parts.push({ kind: part.slice(1, -1) });
        stage = stage === "before" ? "after" : "end";
      } else if (part === "{input}" || part === "{target}")
        return { fault: t("Character {at}: {part} is expected once, {first} first and {last} last.", { at: here, part, first: "{input}", last: "{target}" }) };
      else if (virtual && Number(virtual[1])) {
        parts.push({ kind: "virtual", first: n + 1, count: Number(virtual[1]) });
        n += Number(virtual[1]);
      } else if ("{}".includes(part[0]) && part !== "{{" && part !== "}}")
        return { fault: t("Character {at}: {part} is not understood.", { at: here, part }) };
      else parts.push({ kind: "words", text: part === "{{" ? "{" : part === "}}" ? "}" : part });
    }
    if (stage !== "end") return { fault: t("It has no {part}.", { part: stage === "before" ? "{input}" : "{target}" }) };
    if (n < 1 || n > MOST) return { fault: t("It has {n} virtual tokens; 1 to {most} are expected.", { n, most: MOST }) };
    return { parts, n };
  }

  /** A parsed template with a row in it: {input, target}, as text. */
  function drawn(parts, row) {
    return parts.flatMap((part) => {
      if (part.kind === "words") return [make("span", {}, part.text)];
      if (part.kind === "input") return [make("span.input", { title: "{input}" }, row.input)];
      if (part.kind === "target") return [make("span.learned", { title: "{target}" }, row.target)];
      const chips = Array.from({ length: Math.min(part.count, SHOWN) }, (_, at) => make("span.virtual", {}, `v${part.first + at}`));
      return part.count > SHOWN ? [...chips, make("span.quiet", {}, ` +${part.count - SHOWN} `)] : chips;
    });
  }

  /** Rows of a dataset as the model will have them without a template, from an engine; none where none answers. */
  async function rowsOf(model, training_file) {
    const asked = { model, training_file, peft: { type: "p_tuning", template: PLAIN }, limit: 8 };
    const { rows } = await (await ask("POST", "/v1/fine_tuning/preview", asked)).json();
    return rows.map(({ tokens }) => ({
      input: tokens.filter((one) => one.id >= 0 && one.label === -100).map((one) => one.text).join(""),
      target: tokens.filter((one) => one.label !== -100).map((one) => one.text).join(""),
    }));
  }

  /** Wires the editor. source(): {model, training_file} as they are chosen. onSound: after each change that is sound. */
  function edit(input, source, onSound) {
    const at = (name) => document.getElementById(`template-${name}`);
    let [rows, which, known, settling] = [[], 0, "", 0];

    function show() {
      const found = parse(input.value);
      at("fault").textContent = found.fault ?? "";
      at("fault").hidden = !found.fault;
      if (found.fault) input.setAttribute("aria-invalid", "true");
      else input.removeAttribute("aria-invalid");
      at("row").classList.toggle("stale", Boolean(found.fault));
      if (found.fault) return false;
      const row = rows[which] ?? { input: t("the prompt"), target: t("the answer") };
      at("row").replaceChildren(...drawn(found.parts, row));
      at("count").textContent = t("{n} virtual tokens", { n: found.n });
      return true;
    }

    async function open() {
      const { model, training_file } = source();
      if (known === `${model} ${training_file}`) return;
      known = `${model} ${training_file}`;
      [rows, which] = [await rowsOf(model, training_file).catch(() => []), 0];
      at("next").disabled = rows.length < 2;
      show();
    }

    input.addEventListener("input", () => {
      clearTimeout(settling);
      if (show()) settling = setTimeout(onSound, 700);
    });
    at("next").addEventListener("click", () => {
      which = (which + 1) % rows.length;
      show();
    });
    for (const button of document.querySelectorAll("[data-insert]"))
      button.addEventListener("click", () => {
        // Whoever comes by keyboard passed the field, which marks all of it: that was not to be written over.
        const isAll = input.selectionStart === 0 && input.selectionEnd === input.value.length;
        input.setRangeText(button.dataset.insert, input.selectionStart, isAll ? 0 : input.selectionEnd, "end");
        input.focus();
        input.dispatchEvent(new Event("input", { bubbles: true }));
      });
    show();
    return { open, isSound: () => !parse(input.value).fault };
  }

  return { edit, parse };
})();
