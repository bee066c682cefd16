// Elements from data. Children are elements or text, never HTML.

const SVG = "http://www.w3.org/2000/svg";

export const $ = (id) => document.getElementById(id);

export function h(tag, attributes = {}, ...children) {
  return dressed(document.createElement(tag), attributes, children);
}

export function svg(tag, attributes = {}, ...children) {
  return dressed(document.createElementNS(SVG, tag), attributes, children);
}

// Replaces the children of a node. `null` children are left out.
export function fill(node, ...children) {
  node.replaceChildren(...kept(children));
  return node;
}

// `--name` keys are CSS variables, `on…` keys are listeners, true and false add and omit an attribute.
function dressed(node, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("--")) node.style.setProperty(key, value);
    else if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value === true) node.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(key, value);
  }
  node.append(...kept(children));
  return node;
}

const kept = (children) => children.flat(2).filter((child) => child !== null && child !== undefined && child !== false);

// A group of radio buttons, or nothing if there is no choice.
export function choice(name, label, options, chosen, onchoose) {
  if (options.length < 2) return null;
  if (options.length > 4) {
    return h("label", { class: "select" }, h("span", { class: "sr" }, label),
      h("select", { onchange: (event) => onchoose(event.target.value) },
        options.map((each) => h("option", { value: each, selected: each === chosen }, each))));
  }
  return h("div", { class: "segments", role: "radiogroup", "aria-label": label },
    options.map((each) => h("label", {},
      h("input", { type: "radio", name, value: each, checked: each === chosen, onchange: () => onchoose(each) }),
      h("span", {}, each))));
}
