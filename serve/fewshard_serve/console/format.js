// Formats numbers for display.

const UNITS = [[1e12, " T"], [1e9, " G"], [1e6, " M"], [1e3, " k"]];
const UNKNOWN = "–";

const isNumber = (value) => typeof value === "number" && Number.isFinite(value);

// Three digits: 0.042, 3.14, 27.9, 812.
export function digits(value) {
  if (!isNumber(value)) return UNKNOWN;
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 100) return value.toFixed(0);
  if (size >= 10) return value.toFixed(1);
  return size >= 1 ? value.toFixed(2) : Number(value.toPrecision(2)).toString();
}

export function count(value) {
  if (!isNumber(value)) return UNKNOWN;
  const [size, unit] = UNITS.find(([least]) => Math.abs(value) >= least) ?? [1, ""];
  return unit ? `${digits(value / size)}${unit}` : String(Math.round(value * 100) / 100);
}

export function bytes(value) {
  return value >= 2 ** 20 ? `${digits(value / 2 ** 20)} MiB` : `${digits(value / 1024)} KiB`;
}

export const percent = (value, places = 1) => isNumber(value) ? `${(100 * value).toFixed(places)} %` : UNKNOWN;

export const milliseconds = (value) => isNumber(value) ? `${digits(value)} ms` : UNKNOWN;

export function dollars(value) {
  if (!isNumber(value)) return UNKNOWN;
  if (value >= 1 || value === 0) return `$${value.toFixed(2)}`;
  return value < 1e-7 ? "< $0.0000001" : `$${Number(value.toPrecision(3)).toFixed(Math.min(9, 2 - Math.floor(Math.log10(value))))}`;
}

export function joules(value) {
  if (!isNumber(value)) return UNKNOWN;
  return value >= 3600 ? `${digits(value / 3600)} Wh` : `${digits(value)} J`;
}

export const plural = (number, one, many = `${one}s`) => `${number.toLocaleString("en")} ${number === 1 ? one : many}`;
