// Lets an alias mean this adapter, once it was said which version it moves from and to.
"use strict";
// Where the drawing is wider than its place, what the page is about is what is seen first.
const here = document.querySelector(".lineage rect.here");
const room = here?.closest(".scroll");
if (here) room.scrollLeft = Number(here.getAttribute("x")) - room.clientWidth / 2 + Number(here.getAttribute("width")) / 2;

document.getElementById("promote")?.addEventListener("submit", async (event) => {
  event.preventDefault();
  const { ask, confirmed, make, t } = Graft;
  const form = event.target;
  const alias = document.getElementById("alias").value.trim();
  const { adapter, family, version } = form.dataset;
  const said = { name: `${family}@${alias}`, before: JSON.parse(form.dataset.named)[alias], after: `v${version}` };
  const question = said.before
    ? t("Move {name} from {before} to {after}? The next request is answered by {after}.", said)
    : t("Let {name} mean {after}? It means nothing yet.", said);
  if (!(await confirmed(question, event.submitter.textContent.trim()))) return;
  try {
    await ask("POST", `/v1/adapters/${adapter}/aliases/${encodeURIComponent(alias)}`);
    location.reload();
  } catch (problem) {
    document.getElementById("promote-problem").replaceChildren(make("p.problem", {}, problem.message));
  }
});
