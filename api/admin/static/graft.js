// What every page's script shares: words in the reader's language, requests to /v1 that show they are meant, buttons.
"use strict";
const Graft = (() => {
  const meta = (name) => document.querySelector(`meta[name="${name}"]`)?.content ?? "";
  const words = JSON.parse(meta("words") || "{}");
  const t = (text, values = {}) => (words[text] ?? text).replace(/\{(\w+)\}/g, (_, name) => values[name] ?? "");

  /** An element: its name with .classes, its attributes, its children. Text is always text. */
  function make(name, attributes = {}, ...children) {
    const [tag, ...classes] = name.split(".");
    const element = document.createElement(tag);
    if (classes.length) element.className = classes.join(" ");
    for (const [key, value] of Object.entries(attributes)) if (value !== null) element.setAttribute(key, value);
    element.append(...children.filter((child) => child !== null));
    return element;
  }

  /** What /v1 answers. Throws {message, param, details, status} where it refuses. */
  async function ask(method, url, body, signal) {
    const headers = { "x-csrf-token": meta("csrf") };
    if (body !== undefined) headers["content-type"] = "application/json";
    let answer;
    try {
      answer = await fetch(url, { method, headers, signal, body: body === undefined ? undefined : JSON.stringify(body) });
    } catch (failure) {
      if (failure.name === "AbortError") throw failure;
      throw { message: t("The service does not answer."), status: 0 };
    }
    if (!answer.ok) throw await problemOf(answer);
    return answer;
  }

  async function problemOf(answer) {
    if (answer.status === 401) location.assign(`/admin/sign-in?next=${encodeURIComponent(location.pathname)}`);
    const said = await answer.json().catch(() => ({}));
    return { message: t("The service failed at this."), ...said.error, status: answer.status };
  }

  function notice(text, kind = "info") {
    const shown = make(`p.notice.${kind}`, {}, text);
    document.getElementById("notices").append(shown);
    setTimeout(() => shown.remove(), 6000);
  }

  function confirmed(question, verb) {
    const dialog = document.getElementById("confirm");
    document.getElementById("confirm-question").textContent = question;
    document.getElementById("confirm-yes").textContent = verb;
    dialog.returnValue = "no";
    dialog.showModal();
    return new Promise((resolve) =>
      dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true }),
    );
  }

  // <button data-url data-method data-confirm data-next>: one request to /v1, asked twice where it cannot be undone.
  // With data-refresh="#id" that part of the page is asked for again, and the rest stays as it is.
  document.addEventListener("click", async (event) => {
    const button = event.target.closest("button[data-url]");
    if (!button) return;
    if (button.dataset.confirm && !(await confirmed(button.dataset.confirm, button.textContent.trim()))) return;
    button.disabled = true;
    try {
      const answer = await ask(button.dataset.method, button.dataset.url);
      if (button.dataset.refresh) {
        htmx.trigger(document.querySelector(button.dataset.refresh), "refresh");
        return;
      }
      const next = (button.dataset.next || location.pathname).replace("{id}", (await answer.json()).id);
      location.assign(next);
    } catch (problem) {
      notice(problem.message, "error");
      button.disabled = false;
    }
  });

  // <form data-confirm>: asked twice, then sent.
  document.addEventListener("submit", async (event) => {
    const form = event.target;
    if (!form.dataset.confirm || form.dataset.isMeant) return;
    event.preventDefault();
    if (!(await confirmed(form.dataset.confirm, event.submitter.textContent.trim()))) return;
    form.dataset.isMeant = "yes";
    form.requestSubmit();
  });

  // <button data-copy="#id">: puts an element's text on the clipboard.
  document.addEventListener("click", async (event) => {
    const button = event.target.closest("button[data-copy]");
    if (!button) return;
    try {
      await navigator.clipboard.writeText(document.querySelector(button.dataset.copy).textContent);
      notice(t("Copied."));
    } catch {
      notice(t("The browser did not allow copying."), "error");
    }
  });

  // On a phone the navigation is wider than its place.
  const here = document.querySelector(".side nav a[aria-current]");
  if (here) here.parentElement.scrollLeft = here.offsetLeft - here.parentElement.offsetLeft - 16;
  // A link of which a part is seen is not scrolled to by a browser when the focus comes to it.
  document.querySelector(".side nav")?.addEventListener("focusin", (event) => event.target.scrollIntoView({ block: "nearest", inline: "nearest" }));

  return { ask, confirmed, csrf: () => meta("csrf"), make, notice, problemOf, t };
})();
