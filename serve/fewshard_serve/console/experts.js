// The heat map of a mixture of experts, by layer and expert, and the placement of experts on shards.

import { ApiError, getJson, modelPath } from "./api.js";
import { $, choice, fill, h } from "./dom.js";
import { count, digits, percent, plural } from "./format.js";

const MAX_NUMBERED_EXPERTS = 32;
// An expert with this multiple of the mean share gets the full colour.
const FULL_SHARE = 2;
// From this intensity on, numbers use the other colour to stay readable.
const HOT = 0.75;

export class Experts {
  #chosen = null;
  #names = "";

  constructor(models) {
    this.models = models;
  }

  async poll() {
    const names = this.models.list.filter(({ kind, state }) => kind === "moe" && state === "READY").map(({ name }) => name);
    $("experts").hidden = names.length === 0;
    if (!names.length) return;
    if (!names.includes(this.#chosen)) this.#chosen = names[0];
    if (this.#names !== names.join("\n")) this.#offer(names);
    const name = this.#chosen;
    try {
      const routing = await getJson(modelPath(name, "experts"));
      if (name === this.#chosen) this.#show(name, routing);
    } catch (error) {
      if (error instanceof ApiError) this.#say(error.message);
      else throw error;
    }
  }

  #offer(names) {
    this.#names = names.join("\n");
    fill($("experts-model"), choice("experts-model", "Model", names, this.#chosen, (name) => { this.#chosen = name; this.poll(); }));
  }

  #say(message) {
    $("experts-about").textContent = message;
    fill($("experts-body"));
  }

  #show(name, routing) {
    const rows = routing.layers.reduce((most, layer) => Math.max(most, layer.rows), 0);
    const spoke = routing.replicas > 1 ? ` over ${plural(routing.replicas, "replica")}` : "";
    $("experts-about").textContent = `${name}: share of tokens by layer and expert, last ${digits(routing.window_s)} s${spoke}, ` +
      `${plural(rows, "token")} a layer, ${routing.top_k === 1 ? "one expert" : `${routing.top_k} experts`} a token.`;
    fill($("experts-body"), heatMap(routing), legend(routing.num_experts), placement(routing));
  }
}

function heatMap({ layers, num_experts: numExperts }) {
  const isNumbered = numExperts <= MAX_NUMBERED_EXPERTS;
  const head = Array.from({ length: numExperts }, (_, expert) =>
    h("th", { scope: "col" }, isNumbered || expert % 8 === 0 ? String(expert) : ""));
  const table = h("table", { class: isNumbered ? "heat" : "heat dense" },
    h("caption", { class: "sr" }, "Share of tokens by layer and expert"),
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Layer"), head,
      h("th", { scope: "col", class: "number", title: "the busiest expert’s tokens over the mean" }, "Imbalance"),
      h("th", { scope: "col", class: "number", title: "1: the router spreads its probability evenly" }, "Entropy"))),
    h("tbody", {}, layers.map((layer) => heatRow(layer, isNumbered))));
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Experts heat map" }, table);
}

function heatRow(layer, isNumbered) {
  const all = layer.tokens.reduce((sum, each) => sum + each, 0);
  const dead = new Set(layer.dead_experts);
  const cells = layer.tokens.map((tokens, expert) => {
    const share = all ? tokens / all : 0;
    const heat = Math.min(1, share * layer.tokens.length / FULL_SHARE);
    const isDead = dead.has(expert);
    return h("td", {
      class: isDead ? "cell dead" : "cell", "data-hot": heat > HOT, "--heat": `${(100 * heat).toFixed(1)}%`,
      title: `layer ${layer.layer}, expert ${expert}: ${tokens.toLocaleString("en")} tokens, ${percent(share)}${isDead ? ", dead" : ""}`,
    }, isNumbered ? (isDead ? "dead" : all ? percent(share, 0) : "–") : h("span", { class: "sr" }, percent(share)));
  });
  return h("tr", {}, h("th", { scope: "row" }, String(layer.layer)), cells,
    h("td", { class: "number" }, layer.imbalance_ratio === null ? "–" : `${digits(layer.imbalance_ratio)}×`),
    h("td", { class: "number" }, digits(layer.router_entropy_ratio)));
}

function legend(numExperts) {
  return h("p", { class: "legend soft" }, "none ", h("i", { class: "ramp" }), ` twice the even share (${percent(FULL_SHARE / numExperts, 0)}) or more`);
}

function placement({ group, layers }) {
  const title = h("h3", {}, "Placement");
  if (group === null) {
    return [title, h("p", { class: "soft" }, "Not sharded: one process holds every expert of this model.")];
  }
  const state = `${group.size} of ${plural(group.shards, "shard")} at work, generation ${group.generation}, ` +
    `${plural(group.placement_moves_total, "expert")} moved${group.degraded ? "; degraded: some experts are missing" : ""}`;
  const shards = Array.from({ length: group.shards }, (_, shard) => shardCard(shard, layers));
  return [title, h("p", { class: group.degraded ? "wrong" : "soft" }, state), h("div", { class: "shards" }, shards)];
}

function shardCard(shard, layers) {
  const sum = (of) => layers.reduce((all, layer) => all + of(layer), 0);
  const own = sum((layer) => layer.shard_tokens[shard] ?? 0);
  const all = sum((layer) => layer.shard_tokens.reduce((some, each) => some + each, 0));
  return h("article", { class: "shard" },
    h("h4", {}, `Shard ${shard}`, h("span", { class: "soft" }, all ? `${percent(own / all, 0)} of the work` : "idle")),
    h("div", { class: "meter", "--share": percent(all ? own / all : 0).replace(" ", "") }, h("i")),
    h("dl", {}, layers.map((layer) => [h("dt", {}, `Layer ${layer.layer}`),
      h("dd", {}, (layer.placement[shard] ?? []).map((expert) => h("span", { class: "chip", "data-expert": expert % 12 }, String(expert))))])),
    h("p", { class: "soft" }, `${count(own)} rows in the window`));
}
