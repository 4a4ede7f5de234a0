// Brings a file to /v1/files, shows how much of it has gone, and every fault with its line.
"use strict";
(() => {
  const { t, make, csrf, notice } = Graft;
  const drop = document.getElementById("drop");
  const file = document.getElementById("file");
  const sending = document.getElementById("sending");
  const bar = document.getElementById("sent");
  const words = document.getElementById("sending-words");
  const faults = document.getElementById("faults");

  function upload(chosen) {
    const form = new FormData();
    form.append("purpose", "fine-tune");
    form.append("file", chosen);
    faults.hidden = true;
    show(true, t("Sending {name} …", { name: chosen.name }));
    // fetch cannot tell how much has gone; XMLHttpRequest can.
    const request = new XMLHttpRequest();
    request.open("POST", "/v1/files");
    request.setRequestHeader("x-csrf-token", csrf());
    request.upload.onprogress = (event) => {
      bar.value = event.loaded / event.total;
      if (event.loaded === event.total) words.textContent = t("Reading {name} …", { name: chosen.name });
    };
    request.onerror = () => {
      show(false);
      notice(t("The service does not answer."), "error");
    };
    request.onload = () => done(request, chosen.name);
    request.send(form);
  }

  function done(request, name) {
    show(false);
    if (request.status === 401) location.assign("/admin/sign-in?next=/admin/data");
    let said = {};
    try {
      said = JSON.parse(request.responseText);
    } catch {
      said = {};
    }
    if (request.status === 200) location.assign(`/admin/data/${said.id}`);
    else refuse(name, said.error ?? { message: t("The service failed at this.") });
  }

  function refuse(name, problem) {
    const lines = problem.details ?? [];
    const head = make("p.problem", {}, t("{name} was not taken: {why}", { name, why: problem.message }));
    faults.replaceChildren(head);
    if (lines.length) {
      const rows = lines.map((fault) =>
        make("tr", {}, make("td", {}, `${fault.line}`), make("td", {}, fault.field || "–"), make("td.wrap", {}, fault.message)),
      );
      const heads = [t("Line"), t("Field"), t("What")].map((text) => make("th", { scope: "col" }, text));
      const table = make("table", {}, make("thead", {}, make("tr", {}, ...heads)), make("tbody", {}, ...rows));
      const count = t("{n} faults", { n: problem.n_errors ?? lines.length });
      faults.append(make("p.quiet", {}, count), make("div.scroll", { tabindex: "0", role: "group", "aria-label": count }, table));
    }
    faults.hidden = false;
  }

  function show(isSending, text = "") {
    sending.hidden = !isSending;
    document.getElementById("drop-words").hidden = isSending;
    document.getElementById("drop-buttons").hidden = isSending;
    words.textContent = text;
    bar.value = 0;
  }

  file.addEventListener("change", () => file.files.length && upload(file.files[0]));
  for (const name of ["dragenter", "dragover"])
    drop.addEventListener(name, (event) => {
      event.preventDefault();
      drop.classList.add("over");
    });
  for (const name of ["dragleave", "drop"]) drop.addEventListener(name, () => drop.classList.remove("over"));
  drop.addEventListener("drop", (event) => {
    event.preventDefault();
    if (event.dataTransfer.files.length) upload(event.dataTransfer.files[0]);
  });
  for (const button of document.querySelectorAll("[data-sample]"))
    button.addEventListener("click", async () => {
      const answer = await fetch(`/admin/data/samples/${button.dataset.sample}`);
      if (answer.ok) upload(new File([await answer.blob()], button.dataset.sample));
      else notice(t("The service failed at this."), "error");
    });
})();
