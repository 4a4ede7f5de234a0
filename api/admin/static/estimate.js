// What a job will take, as /v1/fine_tuning/estimate reckons it, and what "auto" will be.
"use strict";
Graft.size = (bytes) => {
  let size = bytes;
  for (const unit of ["B", "KB", "MB", "GB", "TB"]) {
    if (size < 1000 || unit === "TB") return `${unit === "B" || size >= 100 ? Math.round(size) : size.toFixed(1)} ${unit}`;
    size /= 1000;
  }
};
Graft.number = (value) => Math.round(value).toString().replace(/\B(?=(\d{3})+$)/g, "\u202f");
Graft.span = (seconds) => {
  const { t } = Graft;
  if (seconds < 90) return t("{n} s", { n: Math.max(1, Math.round(seconds)) });
  if (seconds < 5400) return t("{n} min", { n: Math.round(seconds / 60) });
  return t("{n} h", { n: (seconds / 3600).toFixed(1) });
};
/** What the search of a learning rate is among what is foretold. */
Graft.searchCost = ({ rate_search: cost }) => {
  const { t, number, span } = Graft;
  const share = `${Math.round(cost.share * 100)} %`;
  return t("{n} rates are tried first: {steps} steps and {tokens} tokens together, {share} of the run's own work, about {time}.", {
    n: cost.candidates, steps: number(cost.steps), tokens: number(cost.tokens + cost.judged_tokens), share, time: span(cost.seconds),
  });
};
Graft.estimate = (place, found) => {
  const { t, make, size, number, span } = Graft;
  const tiles = [
    [t("Time"), found.seconds_range ? `${span(found.seconds_range[0])} – ${span(found.seconds_range[1])}` : span(found.seconds)],
    [t("Memory"), size(found.memory.total)],
    [t("Adapter"), size(found.adapter_bytes)],
    [t("Tokens"), number(found.tokens)],
    [t("Steps"), number(found.steps)],
    [t("Learned parameters"), number(found.trainable_parameters)],
  ];
  const shown = make("dl.tiles", {}, ...tiles.map(([name, text]) => make("div.tile", {}, make("dt", {}, name), make("dd", {}, text))));
  const parts = [shown];
  if (found.fits === false) {
    parts.push(make("p.problem", {}, t("This will not fit the device's memory of {size}.", { size: size(found.device.memory_bytes) })));
    for (const one of found.advice)
      parts.push(make("p", {}, t("{param} = {value} would take {size}.", { param: one.param, value: JSON.stringify(one.value), size: size(one.memory_bytes) })));
  }
  const basis = {
    jobs: t("The time is by the pace of earlier jobs here."),
    device: t("The time is reckoned from this device's speed: no job of this kind was done here yet."),
    default: t("The time is a guess: no job of this kind was done here yet."),
  }[found.seconds_basis];
  const device = found.device ? ` ${t("The device has {size}.", { size: size(found.device.memory_bytes) })}` : "";
  parts.push(make("p.quiet.small", {}, basis + device));
  if (found.rate_search) parts.push(make("p", {}, Graft.searchCost(found)));
  const resolved = { ...found.hyperparameters, ...found.training };
  const rows = Object.entries(resolved).filter(([, value]) => value !== null && typeof value !== "object");
  if (rows.length) {
    const facts = rows.flatMap(([name, value]) => [make("dt.mono", {}, name), make("dd", {}, `${value}`)]);
    parts.push(make("details", {}, make("summary", {}, t("What “auto” will be")), make("dl.facts", {}, ...facts)));
  }
  place.replaceChildren(...parts);
};
