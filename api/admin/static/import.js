// Brings an adapter that others made to /v1/adapters/import.
"use strict";
document.getElementById("import").addEventListener("submit", async (event) => {
  event.preventDefault();
  const { make, csrf, problemOf } = Graft;
  const at = (id) => document.getElementById(`import-${id}`);
  const form = new FormData();
  form.append("model", at("model").value);
  if (at("suffix").value.trim()) form.append("suffix", at("suffix").value.trim());
  form.append("file", at("file").files[0]);
  at("now").disabled = true;
  const answer = await fetch("/v1/adapters/import", { method: "POST", headers: { "x-csrf-token": csrf() }, body: form });
  if (answer.ok) location.assign(`/admin/adapters/${(await answer.json()).id}`);
  else at("problem").replaceChildren(make("p.problem", {}, (await problemOf(answer)).message));
  at("now").disabled = false;
});
