// The served models: the index, each model's configuration, and the table of both.

import { getJson, modelPath } from "./api.js";
import { fill, h } from "./dom.js";
import { count, digits, milliseconds, percent } from "./format.js";

const COLUMNS = ["Model", "State", "Accuracy", "Parameters", "Active", "MACs", "Runs on", "Requests/s", "Median", "99 %"];
const FIRST_NUMBER = 2, TEXT_COLUMN = 6;

// The models of the index, each with `config`, the body of its `/config`, once it is loaded.
export class Models {
  list = [];
  version = "";

  // Returns whether models were added or removed, or changed their state.
  async refresh() {
    const index = await getJson("./");
    const known = new Map(this.list.map((model) => [model.name, model]));
    const before = JSON.stringify(this.list.map(({ config, ...line }) => [line, Boolean(config)]));
    this.version = index.version;
    this.list = await Promise.all(index.models.map((line) => described(line, known.get(line.name))));
    return before !== JSON.stringify(this.list.map(({ config, ...line }) => [line, Boolean(config)]));
  }

  ready(task) {
    return this.list.filter((model) => model.state === "READY" && model.task === task);
  }
}

async function described(line, known) {
  if (line.state !== "READY") return { ...line, config: known?.config };
  if (known?.config && known.state === "READY") return { ...line, config: known.config };
  try {
    return { ...line, config: await getJson(modelPath(line.name, "config")) };
  } catch {
    return line;
  }
}

export const badge = (kind) => kind ? h("span", { class: "badge", "data-kind": kind }, kind) : null;

export function showTable(node, models, live) {
  fill(node,
    h("thead", {}, h("tr", {}, COLUMNS.map((name, column) => h("th", { scope: "col", class: isNumber(column) && "number" }, name)))),
    h("tbody", {}, models.length ? models.map((model) => row(model, live.of(model.name))) :
      h("tr", {}, h("td", { colspan: COLUMNS.length, class: "soft" }, "No models are served."))));
}

const isNumber = (column) => column >= FIRST_NUMBER && column !== TEXT_COLUMN;

function row(model, now) {
  const card = model.config?.card ?? {};
  const cells = [
    h("div", { class: "state", "data-state": model.state }, h("i"), h("span", {}, model.state.toLowerCase(), model.reason ? h("small", {}, model.reason) : null)),
    percent(card.accuracy),
    count(card.parameters_total),
    count(card.parameters_active),
    count(card.macs),
    model.config ? `${model.config.device}, ${model.config.dtype}` : "–",
    now.rate === null ? "–" : digits(now.rate),
    milliseconds(now.p50),
    milliseconds(now.p99),
  ];
  return h("tr", {},
    h("th", { scope: "row" }, h("span", { class: "name" }, model.name), " ", badge(model.kind)),
    cells.map((cell, index) => h("td", { class: isNumber(index + 1) && "number" }, cell)));
}
