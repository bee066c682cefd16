// Shows the last text, layer by layer, with each token in the colour of its expert.

import { $, choice, fill, h } from "./dom.js";

const NUM_COLOURS = 12;
const MAX_TOKENS = 512;

export class Tokens {
  #answers = new Map();
  #chosen = null;

  clear() {
    this.#answers.clear();
    $("tokens").hidden = true;
  }

  // `routing`: { tokens, experts[layer][token][choice] } of one item.
  add(model, routing) {
    this.#answers.set(model, routing);
    if (!this.#answers.has(this.#chosen)) this.#chosen = model;
    $("tokens").hidden = false;
    this.#show();
  }

  #show() {
    const names = [...this.#answers.keys()];
    fill($("tokens-model"), choice("tokens-model", "Model", names, this.#chosen, (name) => { this.#chosen = name; this.#show(); }));
    const { tokens, experts } = this.#answers.get(this.#chosen);
    const more = tokens.length - MAX_TOKENS;
    fill($("tokens-body"),
      h("ol", { class: "routes" }, experts.map((layer, index) => routes(index, tokens.slice(0, MAX_TOKENS), layer))),
      more > 0 ? h("p", { class: "soft" }, `and ${more} more tokens`) : null);
  }
}

function routes(index, tokens, layer) {
  return h("li", {}, h("span", { class: "layer soft" }, `Layer ${index}`),
    h("p", {}, tokens.map((token, at) => chip(token, layer[at]))));
}

function chip(token, experts) {
  const { text, joins } = spelled(token);
  const named = experts.length === 1 ? `expert ${experts[0]}` : `experts ${experts.join(" and ")}`;
  return h("span", { class: "token", "data-expert": experts[0] % NUM_COLOURS, "data-joins": joins, title: named },
    text, h("sub", { "aria-label": named }, experts.join("·")));
}

// In WordPiece, "##" continues a word; byte-level tokenizers begin a word with "Ġ".
function spelled(token) {
  if (token.startsWith("##") && token.length > 2) return { text: token.slice(2), joins: true };
  return { text: token.replaceAll("Ġ", "").replaceAll("▁", "") || "␣", joins: false };
}
