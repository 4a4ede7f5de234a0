// Lets an alias mean a checkpoint: which alias is asked in a dialog, with what it means now and what it will.
"use strict";
(() => {
  const { ask, make, t } = Graft;
  const at = (id) => document.getElementById(id);
  const dialog = at("promote-step");
  if (!dialog) return;
  const named = JSON.parse(dialog.dataset.named);
  let chosen; // the button that was pressed

  function tell() {
    const alias = at("step-alias").value.trim();
    const said = { name: `${dialog.dataset.family}@${alias}`, before: named[alias], after: chosen.dataset.after };
    at("promote-says").textContent = said.before
      ? t("Move {name} from {before} to {after}? The next request is answered by {after}.", said)
      : t("Let {name} mean {after}? It means nothing yet.", said);
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-promote]");
    if (!button) return;
    chosen = button;
    at("step-problem").replaceChildren();
    tell();
    dialog.showModal();
    at("step-alias").select();
  });
  at("step-alias").addEventListener("input", tell);
  at("promote-not").addEventListener("click", () => dialog.close());
  dialog.querySelector("form").addEventListener("submit", async (event) => {
    event.preventDefault();
    at("promote-now").disabled = true;
    try {
      const alias = encodeURIComponent(at("step-alias").value.trim());
      await ask("POST", `/v1/adapters/${encodeURIComponent(chosen.dataset.promote)}/aliases/${alias}`);
      location.reload();
    } catch (problem) {
      at("step-problem").replaceChildren(make("p.problem", {}, problem.message));
      at("promote-now").disabled = false;
    }
  });
})();
