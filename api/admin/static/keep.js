// Keeps a conversation with the answer that is right, taken from a column or written by hand, by /v1/evaluation_rows.
"use strict";
Graft.keep = (() => {
  const { ask, make, notice, t } = Graft;
  const at = (id) => document.getElementById(id);
  let kept;

  /** turns: the conversation up to the answer; the answer, and the model that gave it. */
  function offer(turns, answer, model) {
    kept = { turns, answer, model };
    at("keep-asked").textContent = turns.findLast((turn) => turn.role === "user").content;
    at("keep-answer").value = answer;
    at("keep-problem").replaceChildren();
    at("keep").showModal();
  }

  // Earlier answers are what was said, not what is right: they weigh nothing.
  const unweighed = (turn) => (turn.role === "assistant" ? { ...turn, weight: 0 } : turn);

  at("keep-form").addEventListener("submit", async (event) => {
    event.preventDefault();
    const content = at("keep-answer").value;
    const messages = [...kept.turns.map(unweighed), { role: "assistant", content }];
    const isModels = content === kept.answer;
    at("keep-now").disabled = true;
    try {
      await ask("POST", "/v1/evaluation_rows", isModels ? { messages, model: kept.model } : { messages });
      at("keep").close();
      at("n-kept").textContent = Number(at("n-kept").textContent) + 1;
      notice(t("Kept. “Kept answers” makes a validation file of them."));
    } catch (problem) {
      at("keep-problem").replaceChildren(make("p.problem", {}, problem.message));
    }
    at("keep-now").disabled = false;
  });
  at("keep-not").addEventListener("click", () => at("keep").close());
  return offer;
})();
