// The list of jobs: which of them are marked to be compared. A mark outlives the list's asking for itself anew.
"use strict";
(() => {
  const form = document.getElementById("compare");
  if (!form) return;
  const most = Number(form.dataset.most);
  const marked = new Set();
  const boxes = () => [...document.querySelectorAll('input[name="job"][form="compare"]')];

  function shown() {
    for (const box of boxes()) {
      box.checked = marked.has(box.value);
      box.disabled = marked.size >= most && !box.checked;
    }
    document.getElementById("compare-now").disabled = marked.size < 2;
    document.getElementById("marked").textContent = marked.size;
  }

  document.addEventListener("change", (event) => {
    if (!event.target.matches('input[name="job"][form="compare"]')) return;
    if (event.target.checked) marked.add(event.target.value);
    else marked.delete(event.target.value);
    shown();
  });
  document.addEventListener("htmx:after:swap", shown);
  // Whoever comes back by the browser finds the marks that the browser kept.
  addEventListener("pageshow", () => {
    for (const box of boxes()) if (box.checked) marked.add(box.value);
    shown();
  });
})();
