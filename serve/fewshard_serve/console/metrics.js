// Parses Prometheus text, and computes the increase of its counters between two readings.

const LINE = /^(fewshard_\w+)(?:\{(.*)\})? (\S+)/;
const LABEL = /(\w+)="((?:[^"\\]|\\.)*)"/g;
const ESCAPES = { "\\n": "\n", "\\\\": "\\", '\\"': '"' };

// Maps each name in `wanted` to a list of { key, labels, value }.
export function parse(text, wanted) {
  const found = new Map([...wanted].map((name) => [name, []]));
  for (const line of text.split("\n")) {
    const match = LINE.exec(line);
    if (match && found.has(match[1])) {
      found.get(match[1]).push({ key: match[2], labels: labels(match[2] ?? ""), value: Number(match[3]) });
    }
  }
  return found;
}

function labels(text) {
  return Object.fromEntries([...text.matchAll(LABEL)].map(([, key, value]) =>
    [key, value.replace(/\\[n"\\]/g, (escaped) => ESCAPES[escaped])]));
}

// The sum of each model's series, as { model: value }; `keep` chooses series by their labels.
export function byModel(series, keep = () => true) {
  const sums = {};
  for (const { labels: { model = "", ...rest }, value } of series) {
    if (keep(rest)) sums[model] = (sums[model] ?? 0) + value;
  }
  return sums;
}

// Cumulative bucket counts of each model: { model: Map(upper bound in seconds → count) }.
export function buckets(series) {
  const found = {};
  for (const { labels: { model = "", le }, value } of series) {
    const bound = le === "+Inf" ? Infinity : Number(le);
    const counts = (found[model] ??= new Map());
    counts.set(bound, (counts.get(bound) ?? 0) + value);
  }
  return found;
}

// The increase of each series since its last reading. A replica may be missing from a reading and reappear; a
// restarted replica counts from zero.
export class Growth {
  #last = new Map();
  #isFirst = true;

  // `found`: the result of `parse`. The result has the same form, with increases as values.
  of(found) {
    const grown = new Map([...found].map(([name, series]) => [name, series.map((each) => ({ ...each, value: this.#step(name, each) }))]));
    this.#isFirst = false;
    return grown;
  }

  #step(name, { key, value }) {
    const id = `${name}{${key}}`, last = this.#last.get(id) ?? (this.#isFirst ? value : 0);
    this.#last.set(id, value);
    return value < last ? value : value - last;
  }
}

// A quantile in seconds, interpolated linearly within its bucket; null if nothing was counted.
export function quantile(counts, q) {
  const bounds = [...counts].sort(([a], [b]) => a - b);
  const total = bounds.at(-1)?.[1] ?? 0;
  if (!total) return null;
  let lower = 0, below = 0;
  for (const [bound, upTo] of bounds) {
    if (upTo >= q * total) {
      return bound === Infinity ? lower : lower + (bound - lower) * (q * total - below) / (upTo - below || 1);
    }
    [lower, below] = [bound, upTo];
  }
  return lower;
}
