// Sends one input to every model of its task, one after the other, so that the models do not slow each other.

import { call, modelPath } from "./api.js";
import { Card, NUM_LABELS } from "./answers.js";
import { $, fill } from "./dom.js";
import { milliseconds, plural } from "./format.js";
import { TASKS } from "./tasks.js";

// `input`: { task, given }, where `given` is a text or a Blob, for example. A newer comparison ends this one.
export class Compare {
  #cards = new Map();
  #abort = new AbortController();

  constructor(live, tokens) {
    this.live = live;
    this.tokens = tokens;
  }

  async run(input, models) {
    this.#abort.abort();
    const { signal } = this.#abort = new AbortController();
    this.tokens.clear();
    const cards = this.#lay(models, input);
    this.#say(`Asking ${plural(models.length, "model")}…`);
    for (const card of cards) card.wait();
    for (const card of cards) {
      await this.#ask(card, input, signal);
      if (signal.aborted) return;
    }
    this.#sumUp();
  }

  clear() {
    this.#abort.abort();
    this.tokens.clear();
    this.#cards.clear();
    fill($("answers"));
    this.#say("");
  }

  // Keep the cards of models that are compared again, so that the layout stays stable.
  #lay(models, input) {
    const again = async (card) => {
      card.wait();
      await this.#ask(card, input, this.#abort.signal);
      this.#sumUp();
    };
    const cards = models.map((model) => {
      const known = this.#cards.get(model.name);
      const card = new Card(model, again);
      if (known?.answer) card.body.replaceChildren(...known.body.childNodes);
      return card;
    });
    this.#cards = new Map(cards.map((card) => [card.model.name, card]));
    fill($("answers"), cards.map(({ root }) => root));
    return cards;
  }

  async #ask(card, input, signal) {
    try {
      const answer = await classify(card.model, input, signal);
      if (signal.aborted) return;
      card.show(answer, this.live.perMillion(card.model.name));
      if (answer.routing) this.tokens.add(card.model.name, answer.routing);
    } catch (error) {
      if (!signal.aborted) card.fail(error);
    }
  }

  #sumUp() {
    const answered = [...this.#cards.values()].filter(({ answer }) => answer);
    const failed = this.#cards.size - answered.length;
    const trouble = failed ? `${plural(failed, "model")} gave no answer.` : "";
    if (!answered.length) return this.#say(trouble);
    const most = Math.max(...answered.map(({ answer }) => answer.total));
    const fastest = answered.reduce((best, card) => card.answer.total < best.answer.total ? card : best);
    const common = commonest(answered.map(({ answer }) => answer.ranked[0].label));
    for (const card of answered) {
      card.scale(most);
      card.mark(answered.length < 2 ? [] : [
        ...(card === fastest ? [["fastest", "good"]] : []),
        ...(card.answer.ranked[0].label !== common.label ? [["differs", "odd"]] : []),
      ]);
    }
    const speed = answered.length > 1 ? `${fastest.model.name} was the fastest, ${milliseconds(fastest.answer.total)}.` : "";
    this.#say([agreement(common, answered.length), speed, trouble].filter(Boolean).join(" "));
  }

  #say(text) {
    $("summary").textContent = text;
  }
}

function agreement({ label, times }, asked) {
  const shown = label.length > 80 ? `${label.slice(0, 79)}…` : label;
  if (asked === 1) return `The answer is “${shown}”.`;
  if (asked === 2 && times === 2) return `Both models say “${shown}”.`;
  return times === asked ? `All ${asked} models say “${shown}”.` : `${times} of ${asked} models say “${shown}”.`;
}

function commonest(labels) {
  const counts = new Map();
  for (const label of labels) counts.set(label, (counts.get(label) ?? 0) + 1);
  const [label, times] = [...counts].reduce((best, each) => each[1] > best[1] ? each : best);
  return { label, times };
}

async function classify(model, { task, given }, signal) {
  const startedAt = performance.now();
  const response = await call(...TASKS[task].request(modelPath(model.name, "classify"), given, NUM_LABELS, signal));
  const body = await response.json();
  const { queue, preprocess, infer } = body.timings_ms;
  return {
    ranked: body.predictions[0], timings: body.timings_ms, total: queue + preprocess + infer,
    roundTrip: performance.now() - startedAt, tokens: body.usage.tokens,
    stages: body.stages, degraded: body.degraded, routing: body.routing?.[0],
  };
}
