// The tiles at the top: throughput, latency, work in flight and cost, from two readings of /metrics.

import { getText } from "./api.js";
import { fill, h, svg } from "./dom.js";
import { count, digits, dollars, joules, milliseconds, plural } from "./format.js";
import { Growth, buckets, byModel, parse, quantile } from "./metrics.js";

const WINDOW_MS = 10_000;
const NUM_POINTS = 60;
const NAMES = {
  requests: "fewshard_requests_total",
  items: "fewshard_items_total",
  latency: "fewshard_request_seconds_bucket",
  queued: "fewshard_queue_items",
  inflight: "fewshard_inflight_items",
  cost: "fewshard_cost_usd_total",
  energy: "fewshard_energy_joules_total",
};

const of = (values, models) => models.reduce((sum, model) => sum + (values[model] ?? 0), 0);
const total = (values) => Object.values(values).reduce((sum, each) => sum + each, 0);

export class Live {
  #readings = [];
  #growth = new Growth();
  #history = { rate: [], latency: [], inflight: [] };
  #tiles;

  constructor(node) {
    this.#tiles = Object.fromEntries(["Throughput", "Latency", "In flight", "Cost"].map((name) => [name, tile(name)]));
    fill(node, Object.values(this.#tiles).map(({ root }) => root));
    this.#show({ rate: null, items: null, failed: 0, p50: null, p99: null, queued: null, inflight: null, hasPrice: null });
  }

  async poll() {
    const reading = this.#read(await getText("metrics"));
    while (this.#readings.length > 1 && this.#readings[1].at <= reading.at - WINDOW_MS) this.#readings.shift();
    this.#readings.push(reading);
    const now = this.#summary(Object.keys(reading.items));
    this.#remember(now);
    this.#show(now);
  }

  // The live figures of one model; nulls until there are two readings.
  of(model) {
    return this.#readings.length < 2 ? { rate: null, p50: null, p99: null } : this.#summary([model]);
  }

  // Dollars and joules per million items of a model, averaged over all items so far; null if the price or the
  // power is unknown. `method`: "measured" or "modelled".
  perMillion(model) {
    const latest = this.#readings.at(-1), items = latest?.items[model];
    const million = (sum) => sum === undefined || !items ? null : 1e6 * sum / items;
    return { dollars: million(latest?.cost[model]), joules: million(latest?.energy[model]), method: latest?.methods[model] };
  }

  #summary(models) {
    const now = this.#readings.at(-1), [before, ...later] = this.#readings;
    const seconds = (now.at - before.at) / 1000;
    const grown = (name) => later.reduce((sum, { growth }) => sum + of(growth[name], models), 0);
    const rate = (name) => seconds > 0 ? grown(name) / seconds : null;
    const counts = together(later.flatMap(({ growth }) => models.map((model) => growth.latency[model] ?? new Map())));
    const [p50, p99] = [0.5, 0.99].map((q) => quantile(counts, q)).map((value) => value === null ? null : 1000 * value);
    return {
      rate: rate("requests"), items: rate("items"), failed: grown("failed"), p50, p99,
      queued: of(now.queued, models), inflight: of(now.inflight, models),
      hasPrice: Object.keys(now.cost).length > 0, cost: total(now.cost), spending: rate("cost"),
      energy: Object.keys(now.energy).length ? total(now.energy) : null,
    };
  }

  // The current values and, as `growth`, the increase since the last reading.
  #read(text) {
    const found = parse(text, new Set(Object.values(NAMES)));
    const grown = this.#growth.of(found);
    const standing = (key) => byModel(found.get(NAMES[key])), since = (key) => byModel(grown.get(NAMES[key]));
    return {
      at: performance.now(),
      items: standing("items"), queued: standing("queued"), inflight: standing("inflight"), cost: standing("cost"), energy: standing("energy"),
      methods: Object.fromEntries(found.get(NAMES.energy).map(({ labels: { model = "", method } }) => [model, method])),
      growth: {
        requests: since("requests"), items: since("items"), cost: since("cost"), latency: buckets(grown.get(NAMES.latency)),
        failed: byModel(grown.get(NAMES.requests), ({ outcome }) => outcome !== "ok"),
      },
    };
  }

  #remember({ rate, p50, inflight }) {
    for (const [name, value] of Object.entries({ rate, latency: p50, inflight })) {
      this.#history[name].push(value ?? 0);
      if (this.#history[name].length > NUM_POINTS) this.#history[name].shift();
    }
  }

  #show(now) {
    const { rate, latency, inflight } = this.#history;
    this.#tiles.Throughput.show(now.rate === null ? "–" : digits(now.rate), "requests/s",
      `${count(now.items)} items/s${now.failed ? `, ${plural(Math.round(now.failed), "error")}` : ""}`, rate);
    this.#tiles.Latency.show(now.p50 === null ? "–" : digits(now.p50), now.p50 === null ? "" : "ms median",
      now.p99 === null ? "No requests in the last 10 s" : `99 % within ${milliseconds(now.p99)}`, latency);
    this.#tiles["In flight"].show(count(now.inflight), now.inflight === 1 ? "item" : "items", `${count(now.queued)} waiting in queues`, inflight);
    this.#showCost(now);
  }

  #showCost({ hasPrice, cost, spending, energy }) {
    const used = energy === null || energy === undefined ? "" : `, ${joules(energy)} used`;
    if (hasPrice) this.#tiles.Cost.show(dollars(cost), "since start", `${dollars(3600 * (spending ?? 0))} an hour now${used}`);
    else if (hasPrice === false) this.#tiles.Cost.show("Not set", "", `Give models cost.usd_per_hour in the configuration${used}`);
    else this.#tiles.Cost.show("–", "", "");
  }
}

// The sum of bucket counts.
function together(counts) {
  const sums = new Map();
  for (const [bound, value] of counts.flatMap((each) => [...each])) sums.set(bound, (sums.get(bound) ?? 0) + value);
  return sums;
}

function tile(name) {
  const value = h("strong"), unit = h("span", { class: "soft" }), detail = h("p", { class: "soft" });
  const line = sparkline();
  const root = h("article", { class: "tile" },
    h("h2", {}, name), h("p", { class: "figure" }, value, " ", unit), detail, line.root);
  return {
    root,
    show(figure, itsUnit, more, points = []) {
      value.textContent = figure;
      unit.textContent = itsUnit;
      detail.textContent = more;
      line.show(points);
    },
  };
}

function sparkline() {
  const area = svg("path", { class: "area" }), line = svg("path", { class: "line" });
  const root = svg("svg", { class: "spark", viewBox: "0 0 100 30", preserveAspectRatio: "none", "aria-hidden": "true" }, area, line);
  return {
    root,
    show(points) {
      root.toggleAttribute("hidden", points.length < 2);
      const most = Math.max(...points, 1e-9);
      const at = points.map((value, index) =>
        `${(100 * (index + NUM_POINTS - points.length) / (NUM_POINTS - 1)).toFixed(2)},${(28 - 25 * value / most).toFixed(2)}`);
      if (!at.length) return;
      line.setAttribute("d", `M${at.join("L")}`);
      area.setAttribute("d", `M${at[0].split(",")[0]},30L${at.join("L")}L100,30Z`);
    },
  };
}
