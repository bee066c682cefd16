// One card per model: its answer, times and cost, or the error.

import { ApiError, Gone } from "./api.js";
import { fill, h } from "./dom.js";
import { count, digits, dollars, joules, milliseconds, percent, plural } from "./format.js";
import { badge } from "./models.js";

export const NUM_LABELS = 5;
const STAGES = ["queue", "preprocess", "infer"];

export class Card {
  #again;
  #timer = 0;

  // `again` sends the input to this model again.
  constructor(model, again) {
    this.model = model;
    this.#again = again;
    this.body = h("div", { class: "body" });
    this.marks = h("span", { class: "marks" });
    this.root = h("article", { class: "card", "aria-label": model.name, "aria-busy": "false" },
      h("header", {}, h("h3", { class: "name", title: model.name }, model.name), badge(model.kind), this.marks), this.body);
    this.wait();
  }

  wait() {
    this.#state("waiting");
    if (!this.body.hasChildNodes()) fill(this.body, h("div", { class: "skeleton" }), h("div", { class: "skeleton short" }), h("div", { class: "skeleton" }));
  }

  show(answer, perMillion) {
    this.answer = answer;
    this.#state("answered");
    const [best] = answer.ranked;
    fill(this.body,
      h("p", { class: "best" }, h("strong", { title: best.label }, best.label), h("span", {}, score(best.score))),
      h("ul", { class: "bars" }, answer.ranked.map(bar)),
      this.#rest(answer),
      this.times = h("div", { class: "times" }),
      h("dl", { class: "facts" }, facts(this.model, answer, perMillion)));
    this.scale(answer.total);
  }

  // Draws the times relative to the slowest model.
  scale(most) {
    const { timings, total } = this.answer;
    fill(this.times,
      h("p", {}, h("strong", {}, milliseconds(total)), h("span", { class: "soft" }, ` in the server, ${milliseconds(this.answer.roundTrip)} round trip`)),
      h("div", { class: "stack", "aria-hidden": "true" }, STAGES.map((stage) => h("i", { "data-stage": stage, "--part": `${100 * timings[stage] / (most || 1)}%` }))),
      h("ul", { class: "stages" }, STAGES.map((stage) => h("li", { "data-stage": stage }, h("i"), `${stage} ${digits(timings[stage])}`))));
  }

  mark(texts) {
    fill(this.marks, texts.map(([text, kind]) => h("span", { class: "mark", "data-mark": kind }, text)));
  }

  fail(error) {
    this.answer = null;
    this.#state("failed");
    const button = h("button", { type: "button", class: "plain", onclick: () => this.#again(this) }, "Try again");
    fill(this.body, h("p", { class: "wrong" }, headline(error)), h("p", { class: "soft detail" }, error.message), button);
    if (error.retryAfter) this.#countDown(button, Math.ceil(error.retryAfter));
  }

  #countDown(button, left) {
    button.disabled = left > 0;
    button.textContent = left > 0 ? `Try again in ${left} s` : "Try again";
    if (left > 0) this.#timer = setTimeout(() => this.#countDown(button, left - 1), 1000);
  }

  #rest(answer) {
    const labels = this.model.config?.labels?.length ?? 0;
    const hidden = labels - answer.ranked.length;
    return hidden > 0 ? h("p", { class: "soft small" }, `and ${plural(hidden, "other label")}`) : null;
  }

  #state(state) {
    clearTimeout(this.#timer);
    this.root.dataset.state = state;
    this.root.setAttribute("aria-busy", String(state === "waiting"));
    if (state !== "answered") this.mark([]);
  }
}

const score = (value) => value >= 0 && value <= 1 ? percent(value) : digits(value);

const bar = ({ label, score: value }) => h("li", {},
  h("span", { class: "label", title: label }, label), h("span", { class: "number" }, score(value)),
  h("i", { "aria-hidden": "true", "--part": `${100 * Math.min(1, Math.max(0, value))}%` }));

function facts({ config }, answer, perMillion) {
  const card = config?.card ?? {};
  const fact = (name, value) => [h("dt", {}, name), h("dd", {}, value)];
  return [
    fact("MACs an item", count(card.macs)),
    fact("Parameters", card.parameters_total === undefined ? "–" : `${count(card.parameters_active)} of ${count(card.parameters_total)} active`),
    answer.tokens ? fact("Tokens", String(answer.tokens)) : null,
    answer.stages ? fact("Answered by", answer.stages.join(", ")) : null,
    answer.degraded ? fact("Degraded", "some experts were missing") : null,
    fact("Cost a million", perMillion.dollars === null ? "no price set" : dollars(perMillion.dollars)),
    perMillion.joules === null ? null : fact("Energy a million", `${joules(perMillion.joules)}, ${perMillion.method}`),
  ];
}

function headline(error) {
  if (error instanceof Gone) return "The server is gone";
  if (!(error instanceof ApiError)) return "No answer";
  return {
    401: "A token is needed", 403: "Not allowed", 408: "Out of time", 413: "Too large", 415: "Not an image that it reads",
    422: "Cannot be used", 429: "Busy", 503: "Not ready",
  }[error.status] ?? `Error ${error.status}`;
}
